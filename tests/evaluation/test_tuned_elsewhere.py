"""What was chosen for some weights, where those weights go: folders, further training, students."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Unet, distill, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.evaluation import distilling
from ddpm_lib.evaluation.adherence import _samples
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.sample_set import chosen_for
from ddpm_lib.evaluation.tuning import tune
from ddpm_lib.guidance import Guidance
from ddpm_lib.interop.export_weights import export_safetensors
from ddpm_lib.nn.data_conditions import NumberCondition
from ddpm_lib.process.autoguidance import check_scale
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.checkpoint import verify
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.runs.publishing.model_folder import load_first, write_model_folder
from ddpm_lib.runs.stored_sampling import read_sampling, write_sampling
from ddpm_lib.runs.synthesis import synthesise_ema
from ddpm_lib.training.fine_tuning.weight_sources import find_starting_weights
from training_helpers import tiny_diffusion, tiny_trainer

TUNED = SamplingDefault(made_by="ddpm tune", sampler="ddim", num_steps=3, weights="ema 0.5", step=6)
BRIEF: dict[str, Any] = {
    "max_steps": 3, "num_samples": 64, "teacher_steps": 2, "steps": (1,), "progress": False,
    "device": "cpu", "save_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    pixels = Shapes(size=8, n=60).batch(np.arange(60))["image"].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "data.npz", arr_0=pixels)
    options = {"max_steps": 6, "save_every": 2, "ema_decay": (0.9, 0.5), "learning_rate": 0.01}
    tiny_trainer(folder / "mine", None, str(folder / "data.npz"), **options).train()
    return folder / "mine"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copy(trained.parent / "data.npz", tmp_path / "data.npz")
    return Path(shutil.copytree(trained, tmp_path / "mine"))


@pytest.mark.parametrize("way", ["save_pretrained", "push"])
@pytest.mark.parametrize(("step", "stale"), [(4, True), (6, False)])
def test_a_folder_says_that_its_weights_were_trained_on(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, step: int, stale: bool
) -> None:
    write_sampling(run, dataclasses.replace(TUNED, step=step))
    folder = tmp_path / "folder"
    if way == "push":
        checkpoint = verify(run / "checkpoints" / "step-000000006")
        write_model_folder(checkpoint, load_first(checkpoint, []), folder, [])
    else:
        load_run(run).diffusion.save_pretrained(folder)
    again = GaussianDiffusion.from_pretrained(folder)
    again.save_pretrained(tmp_path / "twice")  # and so does what is saved of it
    for process in (again, GaussianDiffusion.from_pretrained(tmp_path / "twice")):
        assert process.sampling_default is not None
        assert process.sampling_default.is_stale is stale
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ddpm_lib"):
            process.sample(1)
        assert ("chosen for step 4, and these are weights of step 6" in caplog.text) is stale


def test_weights_that_are_trained_in_memory_are_not_sampled_as_before(
    run: Path, tmp_path: Path
) -> None:
    write_sampling(run, TUNED)
    process = load_run(run).diffusion
    assert process.sampling_default is not None
    trainer = tiny_trainer(tmp_path / "more", process, str(tmp_path / "data.npz"), max_steps=2)
    trainer.train()
    assert process.sampling_default is None
    log = (tmp_path / "more" / "train.log").read_text()
    assert "what ddpm tune at step 6 chose was for other weights" in log
    mine = trainer.sample(2, weights="model")
    kept = load_run(tmp_path / "more", weights="model").diffusion
    torch.testing.assert_close(mine, kept.sample(2), atol=1e-3, rtol=0)


def test_what_guides_is_no_average_to_begin_with(run: Path, tmp_path: Path) -> None:
    write_sampling(run, dataclasses.replace(TUNED, guide_by="2", guide_scale=1.5))
    process = load_run(run).diffusion
    process.save_pretrained(tmp_path / "folder")  # "model", and "partner"
    for which in ("auto", "model"):
        found = find_starting_weights(str(tmp_path / "folder"), which)
        assert found.origin.weights == "model"
        weights = found.read()
        assert all(torch.equal(weights[k], v) for k, v in process.model.state_dict().items())
    with pytest.raises(ConfigError, match="keeps no average"):
        find_starting_weights(str(tmp_path / "folder"), "ema")


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_raw_weights_have_no_decay(run: Path, tmp_path: Path, kind: str, capsys: Any) -> None:
    place = run
    if kind == "folder":
        place = load_run(run).diffusion.save_pretrained(tmp_path / "folder")
    with pytest.raises(
        ConfigError, match=r"ema_decay=0\.5 names an average, and weights=\"model\""
    ):
        load_run(place, weights="model", ema_decay=0.5)
    words = ["sample", str(place), "--weights", "model", "--ema-decay", "0.5", "--device", "cpu"]
    assert main(words) == 2
    assert "--ema-decay 0.5 names an average, and --weights model" in capsys.readouterr().err


def test_a_student_is_compared_with_the_weights_it_began_with(run: Path, tmp_path: Path) -> None:
    """Whichever average was tuned; and what it draws by is written before the record says so."""
    write_sampling(run, TUNED)
    assert load_run(run).weights == "ema 0.5"
    teacher = distilling.open_teacher(run)
    began = find_starting_weights(str(run), "ema")
    assert (teacher.weights, began.origin.weights) == ("ema 0.9", "ema 0.9")
    weights = began.read()
    same = teacher.diffusion.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in same.items())


def test_a_student_is_never_left_without_its_way_of_sampling(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = distilling.write_sampling

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distilling, "write_sampling", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(run, output_dir=str(tmp_path / "student"), **BRIEF)
    monkeypatch.setattr(distilling, "write_sampling", real)
    student = distill(run, output_dir=str(tmp_path / "student"), **BRIEF)
    kept = read_sampling(student.folder)
    assert kept is not None
    assert (kept.made_by, kept.num_steps) == ("ddpm distill", 1)
    with pytest.raises(ConfigError, match="Tune the run that it was made from"):
        tune(student.folder, calls=2, device="cpu")
    assert not (student.folder / "tuning").exists()
    blurred = torch.rand(1, 3, 8, 8)
    for sampler in ("consistency", "ddim"):
        with pytest.raises(ConfigError, match="restoring takes that for the mean"):
            student.diffusion.restore(blurred, "blur:1", sampler=sampler)


def test_evaluate_guides_by_conditions_of_the_data_as_tune_does() -> None:
    torch.manual_seed(0)
    spec = {"age": {"kind": "number", "low": 0.0, "high": 1.0, "drop_prob": 0.2}}
    network = Unet(dim=8, dim_mults=(1,), conditions=spec)
    for weight in network.parameters():  # which begin with nothing of the condition
        torch.nn.init.normal_(weight, std=0.3)
    process = GaussianDiffusion(network, image_size=8, timesteps=10).eval()
    process.sampling_default = SamplingDefault(
        made_by="ddpm tune", sampler="ddim", num_steps=2, guidance_scale=2.0
    )
    chosen = chosen_for(process, EvaluationOptions())
    assert chosen.arguments["guidance_scale"] == 2.0
    guided = process.sample(2, cond={"age": 0.5})
    plain = process.sample(2, cond={"age": 0.5}, guidance_scale=1.0)
    assert not torch.equal(guided, plain)
    for null in (float("nan"), [float("nan")] * 2, torch.full((2,), torch.nan)):
        none = process.sample(2, cond={"age": null})  # nothing to strengthen, and no error
        assert torch.equal(none, process.sample(2))
    # −1 is a number like others, whatever holds it.
    low = process.sample(1, cond={"age": -1})
    assert torch.equal(low, process.sample(1, cond={"age": -1}, guidance_scale=2.0))
    odd = torch.tensor([-1.0], dtype=torch.bfloat16, requires_grad=True)
    assert torch.equal(low, process.sample(1, cond={"age": odd}))
    assert isinstance(process.conditioners["age"], NumberCondition)


def test_what_guides_is_found_when_it_is_wanted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then a notebook may have gone to another directory."""
    write_sampling(run, dataclasses.replace(TUNED, guide_by="2", guide_scale=2.0))
    wanted = load_run(run).diffusion.sample(1, progress=False)
    monkeypatch.chdir(tmp_path)
    diffusion = load_run("mine").diffusion
    load_run("mine").diffusion.save_pretrained("folder")
    pretrained = GaussianDiffusion.from_pretrained("folder")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert torch.equal(diffusion.sample(1, progress=False), wanted)
    assert torch.equal(pretrained.sample(1, progress=False), wanted)


@pytest.mark.parametrize("guide_by", [None, "2"])
def test_an_exported_folder_samples_as_the_run_does(
    run: Path, tmp_path: Path, guide_by: str | None
) -> None:
    scale = None if guide_by is None else 2.0
    write_sampling(run, dataclasses.replace(TUNED, guide_by=guide_by, guide_scale=scale))
    diffusion = load_run(run).diffusion
    export_safetensors(diffusion, tmp_path / "folder", {"weights": "ema 0.5"})
    found = GaussianDiffusion.from_pretrained(tmp_path / "folder")
    assert found.sampling_default is not None
    assert found.sampling_default.words() == diffusion.sampling_default.words().replace(
        "by 2", "by partner"
    )
    wanted = diffusion.sample(1, progress=False)
    assert torch.equal(found.sample(1, progress=False), wanted)


@pytest.mark.parametrize("name", ["model", "ema:0.5"])
def test_an_average_that_was_synthesised_is_guided_by_the_others(tmp_path: Path, name: str) -> None:
    run = tmp_path / "mine"
    tiny_trainer(run, ema_decay=(0.9, 0.5), posthoc_ema=(0.05, 0.1), learning_rate=0.01).train()
    synthesise_ema(run, 0.1)
    weights = "ema sigma_rel=0.1"
    found = dataclasses.replace(TUNED, guide_by=name, guide_scale=2.0, weights=weights)
    write_sampling(run, found)
    loaded = load_run(run)
    assert loaded.weights == weights
    other = load_run(run, weights="model") if name == "model" else load_run(run, ema_decay=0.5)
    how = {"guide_by": other.diffusion, "guide_scale": 2.0}
    wanted = loaded.diffusion.sample(1, sampler="ddim", num_steps=3, progress=False, **how)
    assert torch.equal(loaded.diffusion.sample(1, progress=False), wanted)


def test_samples_that_were_begun_before_another_default_are_not_gone_on_with() -> None:
    diffusion, keys = tiny_diffusion(), []

    def over(n: int, what: str, columns: int, group: int, draw: Any, resume: str) -> torch.Tensor:
        keys.append(resume)
        return torch.zeros(n, columns)

    here = SimpleNamespace(device=torch.device("cpu"))
    task: Any = SimpleNamespace(
        model=lambda: diffusion, options=EvaluationOptions(), over=over, state=here, run=None
    )
    for default in (None, TUNED, dataclasses.replace(TUNED, num_steps=4), TUNED):
        diffusion.sampling_default = default
        _samples(task, Shapes(size=8, n=4))
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_strength_of_autoguidance_is_finite(scale: float) -> None:
    with pytest.raises(ConfigError, match="guide_scale must be a finite number"):
        check_scale("model", scale)
    with pytest.raises(ValueError, match="partner_scale must be a finite number"):
        Guidance(partner_scale=scale)
    process = tiny_diffusion().eval()
    with pytest.raises(ConfigError, match="finite"):
        process.sample(1, guide_by=tiny_diffusion(1), guide_scale=scale)


def test_a_digit_that_is_no_number_is_a_name(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint '²'\. There are: step-"):
        load_run(run, checkpoint="²")
    with pytest.raises(CheckpointError, match="got '²', which does not exist here"):
        load_partner(load_run(run), "²")
