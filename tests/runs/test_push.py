"""From a run to the hub and back: what arrives draws the same images; whatever fails, nothing is
lost.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import ConfigError, HubError
from ddpm_lib.core.hub.folder import open_folder
from hub_server import READ_TOKEN, Hub, hub_server, unreachable_endpoint
from launchers import torchrun
from locations import HELPERS
from training_helpers import At, tiny_diffusion, tiny_trainer

SAMPLE = """
import sys, numpy, torch
from ddpm_lib import GaussianDiffusion
torch.set_num_threads(1)
diffusion = GaussianDiffusion.from_pretrained("tester/mine")
numpy.save(sys.argv[1], diffusion.sample(3, num_steps=4, sampler="ddim", seed=5).numpy())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 20 steps, two averages, a grid and a held-out loss."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    diffusion = tiny_diffusion(num_classes=6)
    options = {"max_steps": 20, "save_every": 10, "sample_every": 20, "sample_count": 2}
    more = {"val_every": 10, "val_fraction": 0.2, "ema_decay": (0.99, 0.9), "sample_steps": 2}
    tiny_trainer(run, diffusion, **options | more).train()
    return run


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def drawn(diffusion: GaussianDiffusion) -> torch.Tensor:
    return diffusion.sample(3, num_steps=4, sampler="ddim", seed=5)


@pytest.mark.slow
def test_what_is_pushed_draws_the_same_elsewhere(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = digests(run)
    assert main(["push", str(run), "tester/mine", "--license", "mit"]) == 0
    said = capsys.readouterr().out
    assert f"Pushed step 20 of {run} to {hub.endpoint}/tester/mine" in said
    files = hub.repo("tester/mine").files()
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "samples.png",
        "training.yaml",
    }
    assert f"model.safetensors  {len(files['model.safetensors']) / 1000:>6.1f} kB" in said
    assert digests(run) == before, "the run is only read"

    script, out = tmp_path / "elsewhere.py", tmp_path / "images.npy"
    script.write_text(SAMPLE)
    env = os.environ | hub.environment(tmp_path / "other home", token=None)
    done = subprocess.run(
        [sys.executable, str(script), str(out)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(np.load(out))
    assert torch.equal(images, drawn(load_run(run).diffusion))


def test_a_user_logs_in_by_name_alone(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run), "mine", "--private", "--message", "a word"]) == 0
    assert 'from_pretrained("tester/mine")' in capsys.readouterr().out
    assert hub.repo("tester/mine").private
    assert hub.repo("tester/mine").messages[-1] == "a word"
    assert b'from_pretrained("tester/mine")' in hub.repo("tester/mine").files()["README.md"]


def test_the_card_of_a_renamed_repository_has_its_new_name(hub: Hub, run: Path, capsys):
    hub.add("tester/mine", {})
    hub.rename("tester/mine", "tester/better")
    assert main(["push", str(run), "tester/mine"]) == 0
    assert f"to {hub.endpoint}/tester/better" in capsys.readouterr().out
    assert b'from_pretrained("tester/better")' in hub.repo("tester/better").files()["README.md"]


def test_a_branch(hub: Hub, run: Path):
    hub.add("tester/mine", {"notes.txt": b"mine"})
    assert main(["push", str(run), "tester/mine", "--branch", "step-20"]) == 0
    assert set(hub.repo("tester/mine").files()) == {"notes.txt"}
    card = hub.repo("tester/mine").files("step-20")["README.md"]
    assert b'from_pretrained("tester/mine", revision="step-20")' in card


WEIGHTS = {
    (): ({"ema"}, "ema", 0.99),
    ("model",): ({"model"}, "model", None),
    ("ema:0.9", "model"): ({"ema:0.9", "model"}, "ema", 0.9),
    ("model", "ema", "ema:0.9"): ({"model", "ema", "ema:0.9"}, "model", None),
}


@pytest.mark.parametrize("names", WEIGHTS)
def test_the_weights_asked_for_are_those_that_loading_gives(
    run: Path, tmp_path: Path, names: tuple[str, ...]
):
    there, kind, decay = WEIGHTS[names]
    wanted = ["--weights", ",".join(names)] if names else []
    assert main(["push", str(run), "tester/mine", "--dry-run", str(tmp_path / "out"), *wanted]) == 0
    opened = open_folder(tmp_path / "out")
    assert set(opened.config.weights) == there
    _, tensors = opened.weights()
    expected = load_run(run, weights=kind, ema_decay=decay).diffusion.model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)


@pytest.mark.parametrize("which", ["10", "step-000000010", "latest"])
def test_an_older_checkpoint(run: Path, tmp_path: Path, which: str):
    args = ["push", str(run), "tester/mine", "--checkpoint", which, "--dry-run"]
    assert main([*args, str(tmp_path / "out")]) == 0
    step = 20 if which == "latest" else 10
    assert f"at step {step}" in (tmp_path / "out" / "README.md").read_text()
    model = GaussianDiffusion.from_pretrained(tmp_path / "out").model
    expected = load_run(run, checkpoint=which).diffusion.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_nothing_of_this_machine_is_told(run: Path, tmp_path: Path):
    config = run / "config.yaml"
    text = config.read_text()
    assert str(run) in text, "there is something to hide"
    places = {
        "val_data": "/home/me/secret/held-out",
        "init_from": "/home/me/other run",
        "data_root": "/home/me/secret/sets",
        "files": "~/secret/kept.txt",
        "add_data": ["/home/me/secret/more", "owner/name"],
        "condition": ["age=/home/me/secret/meta.csv:km/h,drop=0.2", "style=:style"],
        "add_condition": ["mask=~/secret/masks,factor=2"],
        "val_condition": ["word=/secret/a,b/t.csv:t,encoder=/secret/clip,kind=text"],
    }
    config.write_text(text + "".join(f"{k}: {json.dumps(v)}\n" for k, v in places.items()))
    try:
        assert main(["push", str(run), "tester/mine", "--dry-run", str(tmp_path / "out")]) == 0
    finally:
        config.write_text(text)
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes()
        for secret in (str(run), str(Path.home()), "secret", "other run", str(tmp_path)):
            assert secret.encode() not in content, f"{secret} in {path.name}"
    kept = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert {name: kept.get(name) for name in places} == {
        "val_data": None,
        "init_from": None,
        "data_root": None,
        "files": None,
        "add_data": ["path/to/more", "owner/name"],
        "condition": ["age=path/to/meta.csv:km/h,drop=0.2", "style=:style"],
        "add_condition": ["mask=path/to/masks,factor=2"],
        "val_condition": ["word=path/to/t.csv:t,encoder=path/to/clip,kind=text"],
    }


Break = Callable[[Hub, pytest.MonkeyPatch], object]
FAULTS: dict[str, tuple[Break, str]] = {
    "no token": (lambda hub, patch: patch.setenv("HF_TOKEN", ""), r"hf auth login"),
    "a token that reads": (lambda hub, patch: patch.setenv("HF_TOKEN", READ_TOKEN), r"may not"),
    "offline": (
        lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True),
        r"HF_HUB_OFFLINE is set",
    ),
    "nobody answers": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", unreachable_endpoint()),
        r"cannot be reached",
    ),
    "503": (lambda hub, patch: hub.fail("repos/create", 503), r"status 503"),
    "no commit": (lambda hub, patch: hub.drop("POST .*/commit/"), r"connection"),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_with_the_way_to_try_again(
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
):
    break_it, words = FAULTS[fault]
    break_it(hub, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = digests(run)
    assert main(["push", str(run), "tester/mine", "--license", "mit"]) == 2
    told = capsys.readouterr()
    line = told.err.strip().splitlines()[-1]
    assert line.startswith("ddpm push: Could not push to tester/mine: ")
    assert re.search(words, line)
    assert line.endswith(f"to try again: ddpm push {run} tester/mine --license mit")
    assert "Traceback" not in told.err
    assert "Pushed" not in told.out
    assert digests(run) == before
    assert list(tmp_path.glob("ddpm-push-*")) == []
    assert not hub.repos or set(hub.repo("tester/mine").files()) == {".gitattributes"}


WRONG = {
    "no run": (["nowhere", "tester/mine"], r"nowhere does not exist"),
    "no such weights": (["RUN", "tester/mine", "--weights", "ema:0.5"], r"no EMA of decay 0.5"),
    "no weights": (["RUN", "tester/mine", "--weights", "best"], r"Weights are called"),
    "no such checkpoint": (["RUN", "tester/mine", "--checkpoint", "7"], r"no checkpoint '7'"),
    "all of them": (["RUN", "tester/mine", "--checkpoint", "all"], r"must be one"),
    "a name of the hub": (["tester/other", "tester/mine"], r"tester/other does not exist"),
    "no name": (["RUN", "tester/mi ne"], r"Give owner/name"),
    "no commit message": (["RUN", "tester/mine", "--message", " "], r"message must say"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_pushed_is_refused_before_anything_is_uploaded(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], case: str
):
    args, words = WRONG[case]
    assert main(["push", *(str(run) if arg == "RUN" else arg for arg in args)]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert [call for call in hub.requests if not call.startswith("GET")] == []
    assert hub.repos == {}


def test_a_dry_run_asks_nobody_and_overwrites_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    args = ["push", str(run), "mine", "--dry-run", str(tmp_path / "out")]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "Nothing was uploaded" in said
    assert "Missing in the card:\n  a licence" in said
    assert f"  scores: ddpm evaluate {run}, then push again" in said
    before = digests(tmp_path / "out")
    assert main(args) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert digests(tmp_path / "out") == before


def test_a_command_of_one_process(run: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["push", str(run), "tester/mine"]) == 2
    assert "runs as one process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_training_is_pushed_as_far_as_it_was_saved(hub: Hub, tmp_path: Path):
    pushed = []

    def push(trainer) -> None:
        pushed.append(trainer.push_to_hub("tester/mine", license="mit"))

    trainer = tiny_trainer(
        tmp_path / "run", tiny_diffusion(), max_steps=6, save_every=2, callbacks=[At(5, push)]
    )
    trainer.train()
    assert [done.repo_id for done in pushed] == ["tester/mine"]
    card = hub.repo("tester/mine").files()["README.md"].decode()
    assert "these are the weights of step 4 of 6" in card
    found = GaussianDiffusion.from_pretrained("tester/mine")
    assert torch.equal(drawn(found), drawn(load_run(tmp_path / "run", checkpoint=4).diffusion))
    again = trainer.push_to_hub("tester/mine", revision="end", weights="model")
    assert again.url.endswith("/tree/end")
    found = GaussianDiffusion.from_pretrained("tester/mine", revision="end")
    assert torch.equal(drawn(found), drawn(load_run(tmp_path / "run", weights="model").diffusion))


def test_only_the_main_process_uploads(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = tiny_trainer(tmp_path / "run", max_steps=2)
    trainer.train()
    calls: list[Callable[[], object]] = []
    monkeypatch.setattr(trainer, "on_main", lambda call: calls.append(call) or call())
    trainer.push_to_hub("tester/mine")
    assert len(calls) == 1, "all of it happens there, where other ranks wait"


@pytest.mark.slow
def test_of_two_processes_one_uploads_and_both_know(hub: Hub, tmp_path: Path):
    torchrun(str(HELPERS / "run_push.py"), str(tmp_path))
    said = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [urls for urls, _ in said] == [f"{hub.endpoint}/tester/mine"] * 2
    assert "ConfigError: tester/mine exists and is public" in said[0][1]
    assert "ConfigError: tester/mine exists and is public" in said[1][1]
    assert hub.requests.count("POST /api/models/tester/mine/commit/main") == 1


def test_before_anything_was_saved(hub: Hub, tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"does not exist|no checkpoint|holds no"):
        tiny_trainer(tmp_path / "run").push_to_hub("tester/mine")
    assert hub.requests == []


def test_a_process_without_a_run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    diffusion = tiny_diffusion()
    diffusion.eval()
    average = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1).eval()
    done = diffusion.push_to_hub("mine", license="mit", averages={"ema": average})
    assert done.repo_id == "tester/mine"
    raw = GaussianDiffusion.from_pretrained("tester/mine", weights="model")
    assert torch.equal(drawn(raw), drawn(diffusion))
    diffusion.model.load_state_dict(average.state_dict())
    assert torch.equal(drawn(GaussianDiffusion.from_pretrained("tester/mine")), drawn(diffusion))
    before = dict(hub.repo("tester/mine").commits)
    with pytest.raises(ConfigError, match="public"):
        diffusion.push_to_hub("tester/mine", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(HubError, match=r"no token was found.*call it again"):
        diffusion.push_to_hub("tester/mine")
    assert hub.repo("tester/mine").commits == before


def test_a_pretrained_folder_is_no_run(run: Path, tmp_path: Path, capsys):
    folder = tmp_path / "folder"
    tiny_diffusion().save_pretrained(folder)
    assert main(["push", str(folder), "tester/mine", "--dry-run", str(tmp_path / "out")]) == 2
    assert f"hf upload OWNER/NAME {folder}" in capsys.readouterr().err


def test_the_command_draws_what_was_pushed(hub: Hub, run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(run), "tester/mine"]) == 0
    options = ["--num", "2", "--num-steps", "2", "--format", "npz", "--device", "cpu"]
    assert main(["sample", "tester/mine", *options, "--output-dir", "theirs"]) == 0
    assert main(["sample", str(run), *options, "--output-dir", "ours"]) == 0
    theirs, ours = (np.load(f"{name}/samples.npz")["arr_0"] for name in ("theirs", "ours"))
    assert np.array_equal(theirs, ours)


def test_a_damaged_checkpoint_is_passed_over(run: Path, tmp_path: Path, caplog):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-000000020" / "ema.safetensors").write_bytes(b"broken")
    assert main(["push", str(copy), "tester/mine", "--dry-run", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["weights"] == {"ema": "model"}
    assert "at step 10" in (tmp_path / "out" / "README.md").read_text()
