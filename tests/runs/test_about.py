"""about.json: what a run says of its command, machine and data, whatever became of the file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes
from ddpm_lib.data import open_dataset, tensor_dataset
from ddpm_lib.runs.about import (
    FILE,
    STARTS_KEPT,
    command_line,
    git_state,
    read_about,
    with_start,
    write_about,
)
from ddpm_lib.training.run_facts import data_facts, learned_facts, pixel_facts, trivial_loss
from training_helpers import StopAt, tiny_diffusion, tiny_trainer


def test_a_run_says_what_it_is_about_and_adds_later_starts(tmp_path: Path) -> None:
    network = {"dim": 4, "dim_mults": (1,)}
    run = tmp_path / "run"
    tiny_trainer(run, tiny_diffusion(**network), callbacks=[StopAt(2)], max_steps=4).train()
    first = read_about(run)
    data = Shapes(size=8, n=40)
    assert first["data"] == {
        **data_facts("Shapes", data, None, False),
        **pixel_facts(data.batch(range(40))["image"]),
        "named": False,
    }
    assert first["data"]["class_names"] == list(data.class_names or ())
    assert sum(first["data"]["class_counts"]) == 40
    assert first["device"]["kind"] == "cpu"
    assert first["device"]["threads"] == torch.get_num_threads()
    assert first["precision"] == "float32"
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert first["directory"] == str(Path.cwd())
    assert first["parameters"] == sum(p.numel() for p in tiny_diffusion(**network).parameters())
    assert [start["step"] for start in first["starts"]] == [0]
    tiny_trainer(run, tiny_diffusion(**network), max_steps=4).train()
    second = read_about(run)
    assert [start["step"] for start in second["starts"]] == [0, 2]
    assert {k: v for k, v in second.items() if k != "starts"} == {
        k: v for k, v in first.items() if k != "starts"
    }


def test_a_disk_that_refuses_it_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / FILE).symlink_to(tmp_path / "elsewhere" / "nothing")
    result = tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=1).train()
    assert result.status == "finished"
    assert not (tmp_path / "elsewhere").exists()
    assert read_about(run)["starts"], "a link is replaced, not followed"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\xff", "[" * 100_000, '{"data": 3, "git": [], "starts": {"a": 1}}'],
)
def test_a_damaged_file_is_read_as_far_as_it_means_something(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    about = read_about(tmp_path)
    assert about.get("data") is None
    assert about.get("starts", []) == []


def test_no_file_is_an_empty_answer(tmp_path: Path) -> None:
    assert read_about(tmp_path) == read_about(tmp_path / "nowhere") == {}


def test_facts_of_the_first_start_stay_until_the_run_begins_anew() -> None:
    about: dict[str, Any] = {}
    for k, step in enumerate([0, 10, 20]):
        about = with_start(about, {"step": step, "command": f"c{k}"}, {"parameters": k})
    assert (about["command"], about["parameters"]) == ("c0", 0)
    assert [start["command"] for start in about["starts"]] == ["c0", "c1", "c2"]
    about = with_start(about, {"step": 0, "command": "new"}, {"parameters": 9})
    assert (about["command"], about["parameters"], len(about["starts"])) == ("new", 9, 4)
    for step in range(1, 2 * STARTS_KEPT):
        about = with_start(about, {"step": step, "command": "again"}, {})
    assert len(about["starts"]) == STARTS_KEPT
    assert (about["starts"][0]["command"], about["starts"][-1]["step"]) == ("c0", 399)


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/env/bin/ddpm", "train", "my pics"], ["/env/bin/python", "x"], "ddpm train 'my pics'"),
        (
            ["train.py", "--lr", "1"],
            ["/usr/bin/python3", "train.py", "--lr", "1"],
            "python3 train.py --lr 1",
        ),
        (
            ["/lib/ddpm_lib/__main__.py", "train"],
            ["python", "-m", "ddpm_lib", "train"],
            "python -m ddpm_lib train",
        ),
        (["-c"], ["python", "-c", "print('a b')"], "python -c 'print('\"'\"'a b'\"'\"')'"),
        ([], [], None),
    ],
)
def test_the_command_can_be_given_to_a_shell(
    arguments: list[str], original: list[str], expected: str | None
) -> None:
    line = command_line(arguments, original)
    assert line == expected
    assert (
        line is None or shlex.split(line)[-1] == (arguments if len(original) < 3 else original)[-1]
    )


def test_git_says_commit_changes_and_tag(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", outside)
        assert git_state(tmp_path) is None
        git("init", "-q")
        assert git_state(tmp_path) is None, "no commit yet"
        (tmp_path / "a").write_text("1")
        git("add", "a")
        git("commit", "-qm", "one")
        head = git("rev-parse", "HEAD")
        clean = {"commit": head, "dirty": False, "describe": head[:12]}
        assert git_state(tmp_path) == clean
        (tmp_path / "b").write_text("not followed")
        assert git_state(tmp_path) == clean
        git("tag", "v1-beta")
        assert git_state(tmp_path) == {**clean, "describe": "v1-beta"}
        (tmp_path / "a").write_text("2")
        assert git_state(tmp_path) == {"commit": head, "dirty": True, "describe": "v1-beta-dirty"}
        git("commit", "-qam", "two")
        head = git("rev-parse", "HEAD")
        named = {"commit": head, "dirty": False, "describe": f"v1-beta-1-g{head[:12]}"}
        assert git_state(tmp_path) == named
        patch.setenv("PATH", str(tmp_path))
        assert git_state(tmp_path) is None, "no git here"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixel_facts_are_the_moments_of_the_values(channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (50, channels, 4, 6), generator=generator)
    values[0] = 0
    values[1] = 255
    unit = values.double() / 255
    images = values.to(torch.uint8) if dtype == torch.uint8 else unit.to(dtype)
    facts = pixel_facts(images)
    by_channel = unit.transpose(0, 1).flatten(1)
    assert facts["measured"] == 50
    assert facts["mean"] == pytest.approx(by_channel.mean(1).tolist(), abs=2e-6)
    assert facts["std"] == pytest.approx(by_channel.std(1, correction=0).tolist(), abs=2e-6)
    spread = unit.mean((2, 3)).std(0)
    assert facts["mean_spread"] == pytest.approx(spread.tolist(), abs=2e-6)
    assert facts["black"] == pytest.approx(float((unit == 0).double().mean()), abs=2e-6)
    assert facts["white"] == pytest.approx(float((unit == 1).double().mean()), abs=2e-6)
    assert facts["levels"] == (len(values.unique()) if dtype == torch.uint8 else None)


def test_data_of_every_kind_is_described() -> None:
    sequences = tensor_dataset(torch.rand(5, 2, 7))
    facts = data_facts("mine", sequences, None, False)
    assert (facts["size"], facts["channels"], facts["class_names"]) == ([7], 2, None)
    one = data_facts("one", Shapes(size=8, n=12).subset([3]), Shapes(size=8, n=12), True)
    assert (one["images"], one["held_out"]) == (1, 12)
    assert pixel_facts(Shapes(size=8, n=12).batch([3])["image"])["mean_spread"] == [0, 0, 0]
    assert json.loads(json.dumps(one)) == one


@pytest.mark.parametrize("cache", ["ram", "none"])
@pytest.mark.parametrize(
    ("fit", "loss"), [("crop", (0 + 0.5 + 0.25) / 3), ("pad", 0), ("stretch", 0)]
)
def test_what_the_crop_loses(tmp_path: Path, cache: str, fit: str, loss: float) -> None:
    generator = np.random.default_rng(0)
    for k, (width, height) in enumerate([(16, 16), (16, 32), (32, 24)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    data = open_dataset(tmp_path, image_size=8, fit=fit, cache=cache, num_workers=0)
    facts = data_facts("pics", data.subset([0, 1]), None, False)
    assert facts["crop_loss"] == pytest.approx(loss, abs=1e-4)
    assert facts["sizes_note"] == "16 … 32 pixels wide, 16 … 32 high"


def test_an_image_that_is_gone_leaves_the_rest_known(tmp_path: Path) -> None:
    for k in range(3):
        Image.new("RGB", (8, 8), (80 * k, 0, 0)).save(tmp_path / f"{k}.png")
    data = open_dataset(tmp_path, image_size=8, cache="none", num_workers=0)
    (tmp_path / "1.png").write_bytes(b"no picture")
    facts = learned_facts("pics", data, None, tiny_diffusion(), True)
    assert facts["trivial_loss"] is None
    facts = facts["data"]
    assert (facts["images"], facts["measured"], facts.get("mean")) == (3, 0, None)


class Wiener(torch.nn.Module):
    """Predicts x_0 of white normal images with given moments in [-1, 1], level by level."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        alpha, sigma = (v.to(x.dtype).view(-1, 1, 1, 1) for v in self.schedule.gather(t.long() + 1))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


@pytest.mark.parametrize("weighting", ["flat", "simple", "min_snr"])
def test_the_trivial_loss_is_that_of_the_best_denoiser_of_white_images(weighting: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (0.6 + 0.1 * torch.randn(4000, 1, 4, 4, generator=generator)).clamp(0, 1)
    network = Wiener(0.2, 0.04)
    process = {"timesteps": 20, "parametrization": "x0", "weighting": weighting}
    diffusion = GaussianDiffusion(network, image_size=4, channels=1, **process)
    network.schedule = diffusion.schedule
    t = torch.arange(4000) % 20 + 1
    noise = torch.randn(images.shape, generator=generator)
    with torch.no_grad():
        measured = diffusion(images, t=t, noise=noise, reduction="none")
    error = float(measured.std() / 4000**0.5)
    assert trivial_loss(diffusion, images) == pytest.approx(float(measured.mean()), abs=4 * error)
    assert trivial_loss(diffusion, images[:1]) is None


def test_reading_and_writing_load_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ddpm_lib.runs.about import *;"
        "from ddpm_lib.runs.records import read_records;"
        f"run = Path({str(tmp_path)!r});"
        "write_about(run, {'parameters': 1}); assert read_about(run)['parameters'] == 1;"
        "assert read_records(run).about['parameters'] == 1; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    write_about(tmp_path, {"parameters": 2})
    assert read_about(tmp_path)["parameters"] == 2
