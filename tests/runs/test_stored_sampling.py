"""What a run keeps of how it is sampled: used where nothing is said, and nowhere else."""

import copy
import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ddpm_lib import GaussianDiffusion, Shapes, Unet, evaluate, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.images import to_uint8
from ddpm_lib.process.cascade import Cascade, Stage
from ddpm_lib.process.sampling_default import SamplingDefault, choose_sampling, parse_default
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.runs.publishing.pushing import Publication, write_publication
from ddpm_lib.runs.report import write_report
from ddpm_lib.runs.stored_sampling import FILE, read_sampling, undo_sampling, write_sampling
from ddpm_lib.runs.synthesis import synthesise_ema
from training_helpers import tiny_diffusion, tiny_trainer

LEVELS = (50, 31.5, 12.25, 3.0)
TUNED = SamplingDefault(
    made_by="ddpm tune", sampler="dpmpp_2m", spacing=LEVELS, step=4, calls=4,
    evidence={"distance": {"tuned": 1.0, "before": 2.0}},
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mine"
    options = {"max_steps": 4, "save_every": 2, "ema_decay": (0.9, 0.5), "posthoc_ema": (0.05, 0.1)}
    more = {"learning_rate": 0.01, "val_fraction": 0.2, "val_every": 4}
    tiny_trainer(run, tiny_diffusion(num_classes=6), **options, **more).train()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy that tests may write to."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "mine"))


def named(diffusion: GaussianDiffusion, **more: Any) -> torch.Tensor:
    return diffusion.sample(3, sampler="dpmpp_2m", spacing=LEVELS, **more)


def test_what_is_kept_draws_where_nothing_is_said(run: Path) -> None:
    plain = load_run(run).diffusion.sample(3)
    write_sampling(run, TUNED)
    diffusion = load_run(run).diffusion
    assert diffusion.sampling_default == dataclasses.replace(
        TUNED, created=diffusion.sampling_default.created
    )
    assert torch.equal(diffusion.sample(3), named(diffusion))
    for explicit in ({"num_steps": 20}, {"sampler": "unipc"}, {"spacing": "mixed"}):
        assert torch.equal(diffusion.sample(3, **explicit), plain)
    assert torch.equal(copy.deepcopy(diffusion).sample(3), named(diffusion))
    diffusion.sampling_default = None
    assert torch.equal(diffusion.sample(3), plain)


def test_guidance_alone_keeps_the_steps(run: Path) -> None:
    guided: dict[str, Any] = {"guidance_scale": 3.0, "guidance_interval": (0.1, 0.9)}
    write_sampling(run, dataclasses.replace(TUNED, **guided))
    diffusion, cond = load_run(run).diffusion, {"class_label": 1}
    tuned = diffusion.sample(3, cond=cond)
    assert torch.equal(tuned, named(diffusion, cond=cond, **guided))
    plain = diffusion.sample(3, cond=cond, guidance_scale=1.0)
    assert torch.equal(plain, named(diffusion, cond=cond))
    assert not torch.equal(plain, tuned)
    # Nothing to strengthen is no error where the user asked for no guidance.
    assert torch.equal(diffusion.sample(3), named(diffusion))
    null = {"class_label": torch.full((3,), -1)}
    assert torch.equal(diffusion.sample(3, cond=null), named(diffusion, cond=null))


def test_the_average_it_was_chosen_with_is_loaded(run: Path) -> None:
    write_sampling(run, dataclasses.replace(TUNED, weights="ema 0.5"))
    assert load_run(run).weights == "ema 0.5"
    assert load_run(run, ema_decay=0.9).weights == "ema 0.9"
    assert load_run(run, weights="model").weights == "model"
    made = synthesise_ema(run, 0.08)
    write_sampling(run, dataclasses.replace(TUNED, weights="ema sigma_rel=0.08"))
    loaded = load_run(run)
    assert (loaded.weights, loaded.checkpoint) == ("ema sigma_rel=0.08", made.path)
    assert load_run(run, checkpoint=2).weights == "ema 0.9"  # which has no such average
    write_sampling(run, dataclasses.replace(TUNED, weights="ema 0.77"))
    assert load_run(run).weights == "ema 0.9"


@pytest.mark.parametrize("guide_by", ["2", "model", "ema:0.5"])
def test_the_worse_version_is_loaded_when_it_is_needed(run: Path, guide_by: str) -> None:
    write_sampling(run, dataclasses.replace(TUNED, guide_by=guide_by, guide_scale=1.5))
    loaded = load_run(run)
    diffusion = loaded.diffusion
    partner = load_partner(loaded, guide_by).diffusion
    wanted = named(diffusion, guide_by=partner, guide_scale=1.5)
    assert torch.equal(diffusion.sample(3), wanted)
    assert torch.equal(diffusion.sample(3, guidance_scale=1.0), named(diffusion))
    folder = diffusion.save_pretrained("folder")
    again = GaussianDiffusion.from_pretrained(folder)
    assert again.sampling_default.guide_by == "partner"
    torch.testing.assert_close(again.sample(3), wanted)
    assert load_run(folder).weights == "model"
    assert main(["sample", str(folder), "--num", "2", "--device", "cpu"]) == 0
    found = evaluate(folder, data=run_data(run), metrics="kid", features="pixels", num=8, **QUIET)
    assert found.about["samples"]["sampler"] == "dpmpp_2m"


QUIET = {"progress": False, "device": "cpu", "references": False}


def run_data(run: Path) -> str:
    import numpy as np

    from ddpm_lib.data import open_dataset  # noqa: F401 - the folder of images for a pretrained one

    path = run / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(path, arr_0=pixels)
    return str(path)


def test_a_worse_version_that_is_gone_is_named(run: Path) -> None:
    write_sampling(run, dataclasses.replace(TUNED, guide_by="2", guide_scale=1.5))
    shutil.rmtree(run / "checkpoints" / "step-000000002")
    diffusion = load_run(run).diffusion
    with pytest.raises(CheckpointError, match=r"guides by 2, which cannot be loaded.*--undo"):
        diffusion.sample(1)
    named(diffusion)


def test_further_training_is_said_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sampling(run, dataclasses.replace(TUNED, step=2))
    diffusion = load_run(run).diffusion
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        images = diffusion.sample(3)
        diffusion.sample(1)
    told = [r.getMessage() for r in caplog.records]
    assert told == [
        "the default of ddpm tune was chosen for step 2, and these are weights of step 4: choose it"
        " anew, or name sampler and steps."
    ]
    assert torch.equal(images, named(diffusion))
    named(load_run(run).diffusion)
    assert len(caplog.records) == 1


def test_the_command_draws_so_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sampling(run, dataclasses.replace(TUNED, guidance_scale=2.0, weights="ema 0.5"))
    common = ["sample", str(run), "--num", "3", "--format", "npz", "--device", "cpu"]
    common += ["--mixed-precision", "no"]
    assert main([*common, "--output-dir", "tuned"]) == 0
    said = capsys.readouterr().out
    assert "as chosen by ddpm tune at step 4: dpmpp_2m in 4 steps at learned levels" in said
    assert "guidance 2, ema 0.5" in said
    got = np.load("tuned/samples.npz")["arr_0"]
    loaded = load_run(run)
    wanted = to_uint8(named(loaded.diffusion, cond={"class_label": [0, 1, 2]}, guidance_scale=2.0))
    assert np.array_equal(got, wanted.permute(0, 2, 3, 1).numpy())
    settings = yaml.safe_load(Path("tuned/settings.yaml").read_text())
    assert settings["sampling_default"]["sampling"]["spacing"] == list(LEVELS)
    assert main([*common, "--num-steps", "2", "--output-dir", "own"]) == 0
    assert "as chosen by" not in capsys.readouterr().out
    assert "sampling_default" not in Path("own/settings.yaml").read_text()
    assert main([*common, "--guidance-scale", "1", "--output-dir", "unguided"]) == 0
    assert "guidance as asked for" in capsys.readouterr().out


def test_evaluations_note_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"metrics": "kid", "features": "pixels", "num": 12, **QUIET}
    options["dataset"] = Shapes(size=8, n=40)
    before = evaluate(run, **options)
    write_sampling(run, TUNED)
    found = evaluate(run, **options)
    drawn = found.about["samples"]
    assert (drawn["sampler"], drawn["steps"]) == ("dpmpp_2m", 4)
    assert drawn["chosen_by"] == "ddpm tune at step 4"
    assert any(note.startswith("as chosen by ddpm tune") for note in found.about["notes"])
    assert found.about["samples"]["fingerprint"] != before.about["samples"]["fingerprint"]
    named = evaluate(run, sampler="unipc", sample_steps=20, **options)
    assert named.about["samples"]["fingerprint"] == before.about["samples"]["fingerprint"]
    assert "chosen_by" not in named.about["samples"]


def test_a_cascade_and_copies_elsewhere_keep_it(run: Path, tmp_path: Path) -> None:
    write_sampling(run, TUNED)
    diffusion = load_run(run).diffusion
    assert torch.equal(Cascade([diffusion]).sample(3), named(diffusion))
    stage = Stage(diffusion, num_steps=3)
    assert torch.equal(Cascade([stage]).sample(3), diffusion.sample(3, num_steps=3))
    folder = tmp_path / "published"
    write_publication(run, folder, Publication(repo_id="tester/mine"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "dpmpp\\_2m in 4 steps at learned levels" in card or "dpmpp_2m in 4 steps" in card
    assert "num_steps=50" not in card
    again = GaussianDiffusion.from_pretrained(folder)
    torch.testing.assert_close(again.sample(3), diffusion.sample(3))
    assert again.sampling_default.evidence == TUNED.evidence


def test_status_and_page_show_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sampling(run, TUNED)
    assert main(["status", str(run)]) == 0
    line = "sampling    dpmpp_2m in 4 steps at learned levels (ddpm tune at step 4)"
    assert line in capsys.readouterr().out
    assert main(["status", str(run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["sampling"]["sampling"]["sampler"] == "dpmpp_2m"
    page = write_report(run, picture=False)
    assert "dpmpp_2m in 4 steps at learned levels" in Path(str(page)).read_text(encoding="utf-8")


def test_choices_are_taken_back_one_by_one(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sampling default of its own.*nothing can be taken"):
        undo_sampling(run)
    second = dataclasses.replace(TUNED, made_by="ddpm distill", sampler="ddim")
    for default in (TUNED, second):
        write_sampling(run, default)
    gone, now = undo_sampling(run)
    assert (gone.sampler, now.sampler) == ("ddim", "dpmpp_2m")
    assert read_sampling(run).spacing == LEVELS
    assert undo_sampling(run)[1] is None
    assert not (run / FILE).exists()
    (run / FILE).write_text("{")
    assert undo_sampling(run) == (None, None)
    assert not (run / FILE).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: it is no JSON"),
        ("[]", "holds no sampling default"),
        ('{"format": 9}', "is of format 9; this version reads 1"),
        ('{"format": 1}', "sampling must be an object"),
        ('{"format": 1, "made_by": "x", "sampling": {"sampler": 3}}', "sampler must be a text"),
        (
            '{"format": 1, "made_by": "x", "sampling": {"sampler": "ddim", "spacing": [1, 2]}}',
            "levels that decrease",
        ),
        (
            '{"format": 1, "made_by": "x", "sampling": {"sampler": "ddim", "num_steps": true}}',
            "num_steps must be a whole number",
        ),
        (
            '{"format": 1, "made_by": "x", "sampling": {"sampler": "ddim", "guidance_scale": NaN}}',
            "guidance_scale must be a number",
        ),
    ],
)
def test_a_damaged_file_is_said_and_left_out(
    run: Path, text: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_sampling(run)
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        loaded = load_run(run)
    assert loaded.diffusion.sampling_default is None
    assert message in caplog.text
    assert "--undo" in caplog.text


def test_what_is_written_is_read() -> None:
    whole = SamplingDefault(
        made_by="x", sampler="heun", sampler_options={"s_churn": 3.0}, num_steps=5,
        spacing="karras", spacing_options={"rho": 5.0}, guidance_scale=2.0,
        guidance_interval=(0.25, 0.75), guidance_rescale=0.5, guide_by="model", guide_scale=1.5,
        weights="ema 0.9", step=3, calls=20, created="2026", evidence={"a": [1]},
    )  # fmt: skip
    assert parse_default(json.loads(json.dumps(whole.to_json())), "here") == whole
    assert whole.words() == (
        "heun s_churn=3 in 5 steps, spacing karras, guidance 2 where 0.25 < t/T <= 0.75,"
        " autoguidance 1.5 by model, ema 0.9"
    )


def test_choosing() -> None:
    nothing = choose_sampling(None, {"sampler": "ddim"})
    assert (nothing.default, nothing.line()) == (None, "")
    assert choose_sampling(TUNED, {"sampler_options": {}}).default is TUNED  # says nothing
    assert choose_sampling(TUNED, {"eta": 0.0}).default is None
    guided = dataclasses.replace(TUNED, guide_by="2")
    assert choose_sampling(guided, {}).partner_is_stored
    assert not choose_sampling(guided, {"guide_scale": 1.0}).partner_is_stored


def test_a_partner_without_a_run_is_an_error() -> None:
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,)), image_size=8, timesteps=10).eval()
    diffusion.sampling_default = SamplingDefault(
        made_by="x", sampler="ddim", num_steps=2, guide_by="5000"
    )
    with pytest.raises(ConfigError, match=r"guides by '5000'.*sampling_default = None"):
        diffusion.sample(1)
