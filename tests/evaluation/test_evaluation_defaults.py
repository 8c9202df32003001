"""`ddpm evaluate RUN` works for whoever comes, measures what means something, and says where a
number means nothing.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import GaussianDiffusion, Shapes, Unet, evaluate
from ddpm_lib.cli import main
from ddpm_lib.data import tensor_dataset
from ddpm_lib.evaluation import METRICS, evaluate_checkpoints
from ddpm_lib.evaluation.comparison import column_of, compare, metric_of
from ddpm_lib.evaluation.defaults import trains_likelihood
from ddpm_lib.evaluation.evaluation_result import skipped_lines
from ddpm_lib.training import ConfigError
from ddpm_lib.weighting import WEIGHTINGS
from locations import ROOT
from training_helpers import tiny_diffusion, tiny_trainer

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
QUICK: dict[str, Any] = {"sample_steps": 1, **QUIET}
PLAIN = ["--device", "cpu", "--no-progress"]
FLAGS = [*PLAIN, "--sample-steps", "1"]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")


def images(n: int, size: int = 8) -> np.ndarray:
    return Shapes(size=size, n=n).batch(np.arange(n))["image"].permute(0, 2, 3, 1).numpy()


def trained(root: Path, n: int = 60, name: str = "run", **options: Any) -> Path:
    """A run on a file of n images."""
    np.save(root / f"images-{n}.npy", images(n))
    diffusion = options.pop("diffusion", None)
    settings = {
        "max_steps": 2,
        "val_every": 2,
        "batch_size": 4,
        "augment": 0.0,
        "horizontal_flip": False,
    } | options
    tiny_trainer(root / name, diffusion, str(root / f"images-{n}.npy"), **settings).train()
    return root / name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixty pictures, three of them held out, with two checkpoints."""
    return trained(tmp_path_factory.mktemp("defaults"), save_every=1)


def by_name(found: Any) -> dict[str, Any]:
    return {s.name: s for s in found.scores}


def test_the_readme_s_line_works_on_sixty_pictures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--num", "200", "--num-levels", "20"]):
        assert main(["evaluate", str(run), *more, *FLAGS]) == 0
        told = capsys.readouterr().out
        n = 200 if more else 64
        for name in (
            f"kd_random64_train_{n}",
            f"precision_k3_random64_train_{n}",
            f"copies_pixels_train_{n}",
            "loss_gap_3",
        ):
            assert name in told
        assert "nll" not in told.replace("--metrics nll", "").replace("metrics='nll'", "")
        assert (
            "num=200 is more than can be compared; 3 images of each set were taken" in told
        ) == bool(more)
        assert ("num_levels had no effect" in told) == bool(more)
        assert "too few to tell" in told  # a gap of three images each


@pytest.mark.every(2)
@pytest.mark.parametrize("n", [10, 25, 60, 400])
def test_default_metrics_work_for_any_number_of_pictures(n: int, tmp_path: Path) -> None:
    found = evaluate(trained(tmp_path, n), **QUICK)
    names = " ".join(by_name(found))
    train = n - max(1, n // 20)
    assert found.about["samples"]["n"] == max(64, train)
    assert "kd_" in names
    assert ("precision_" in names) == (train >= 20)
    assert ("loss_gap" in names) == (n >= 40)  # two held out
    assert "copies_random64" in names
    told = " ".join(found.about["notes"])
    for metric, there in (("pr", train >= 20), ("loss_gap", n >= 40)):
        assert (f"{metric} was left out" in told or f"({metric})" in told) != there
    assert all(math.isfinite(s.value) for s in found.scores)


def test_what_was_measured_is_written_so_that_it_can_be_repeated(run: Path) -> None:
    first = evaluate(run, **QUICK)
    assert first.about["options"]["metrics"] == "kid,pr,memorisation,loss_gap"
    assert first.about["options"]["features"] == "random64"
    again = evaluate(first.about["run"], **first.about["options"])
    assert {s.name: s.value for s in again.scores} == {s.name: s.value for s in first.scores}


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_bits_are_measured_where_they_were_trained_for(weighting: str) -> None:
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)
    diffusion = GaussianDiffusion(model, image_size=8, weighting=weighting)
    assert trains_likelihood(diffusion) == (weighting in ("simple", "snr_plus_one", "vlb", "edm"))
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, out_channels=6)
    bound = GaussianDiffusion(
        model, image_size=8, weighting=weighting, variance="learned_range", loss="vlb"
    )
    assert trains_likelihood(bound)


def test_a_run_for_likelihood_gets_bits_by_default(tmp_path: Path) -> None:
    diffusion = GaussianDiffusion(
        Unet(dim=8, dim_mults=(1,), blocks_per_level=1),
        image_size=8,
        timesteps=200,
        weighting="simple",
    )
    found = evaluate(trained(tmp_path, diffusion=diffusion), num=200, **QUICK)
    assert by_name(found)["nll"].unit == "bits/dim"
    assert found.about["options"]["num_levels"] == 20
    assert found.about["data"]["images"] == 3
    assert (
        "held-out: num=200 is more than the 3 images there are; all were taken."
        in found.about["notes"]
    )


def test_nothing_held_out_leaves_out_what_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, val_every=0)
    found = evaluate(run, **QUICK)
    assert "loss_gap_3" not in by_name(found)
    assert any("held no images out" in note for note in found.about["notes"])
    assert main(["evaluate", str(run), *FLAGS]) == 0
    # Asked for by name it is said before hours go into the others, and by the exit code.
    asked = ["--metrics", "kid,gap,nll", "--features", "random64", "--num", "10"]
    capsys.readouterr()
    assert main(["evaluate", str(run), *asked, *FLAGS]) == 1
    told = capsys.readouterr().out
    assert "skipped gap: this run held nothing out" in told
    assert "skipped nll: this run held nothing out" in told
    assert "kd_random64_train_10" in told
    assert main(["evaluate", str(run), "--metrics", "gap", *PLAIN]) == 2
    assert "--val-fraction above 0, or with --val-data." in capsys.readouterr().err


def test_networks_that_enlarge_take_training_images_where_none_are_held_out(tmp_path: Path) -> None:
    run = trained(tmp_path, diffusion=tiny_diffusion(low_res_factor=2), val_every=0)
    found = evaluate(run, **QUICK)
    assert any("enlarge small training images" in note for note in found.about["notes"])
    assert "kd_random64_train_64" in by_name(found)


def test_data_that_is_no_pictures_is_scored_by_its_values_and_its_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, channels=2, dims=1)
    diffusion = GaussianDiffusion(model, image_size=(16,), channels=2, timesteps=1000)
    data = tensor_dataset(torch.rand(60, 2, 16))
    tiny_trainer(
        tmp_path / "run", diffusion, data, max_steps=1, val_every=1, horizontal_flip=False
    ).train()
    found = evaluate(tmp_path / "run", data, **QUICK)
    assert found.about["options"]["metrics"] == "values,memorisation,loss_gap"
    assert [s.name for s in found.scores if s.name.startswith("loss")] == [
        "loss_train_3",
        "loss_heldout_3",
        "loss_heldout_3/linear",
        "loss_gap_3",
    ]
    assert not any(s.name.startswith(("kd", "precision")) for s in found.scores)
    with pytest.raises(ConfigError, match=r"trained on an object of Python \(ImageDataset\)"):
        evaluate(tmp_path / "run", **QUICK)


def test_the_object_that_a_run_was_trained_on_gives_it_its_sets_again(tmp_path: Path) -> None:
    data = Shapes(size=8, n=60)
    tiny_trainer(tmp_path / "run", data=data, max_steps=1, val_every=1).train()
    found = evaluate(tmp_path / "run", data, **QUICK)
    assert (found.about["train"]["n"], found.about["held_out"]["n"]) == (57, 3)
    other = evaluate(tmp_path / "run", Shapes(size=8, n=60, seed=1), **QUICK)
    assert "train" not in other.about
    assert any("memorisation and loss_gap were left out" in note for note in other.about["notes"])


@pytest.mark.parametrize("kind", ["images", "statistics"])
def test_two_sets_need_no_metric_named(run: Path, kind: str, tmp_path: Path) -> None:
    reference = str(run.parent / "images-60.npy")
    expected = [
        "kd_random64_images60_60",
        "precision_k3_random64_images60_60",
        "recall_k3_random64_images60_60",
    ]
    if kind == "statistics":
        stats = str(tmp_path / "stats.npz")
        evaluate(
            images(30),
            reference=reference,
            metrics="fid",
            features="random64",
            save_stats=stats,
            **QUIET,
        )
        reference, expected = stats, ["fd_random64_stats_60"]
    found = evaluate(run.parent / "images-60.npy", reference=reference, **QUIET)
    assert [s.name for s in found.scores if "/" not in s.name] == expected
    with pytest.raises(ConfigError, match="kid was left out: it needs at least 4 images"):
        evaluate(images(3), images(3), **QUIET)


def lines_of_the_guide() -> list[str]:
    """The shell lines of docs/evaluation.md that need nothing but sixty pictures."""
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- sixty pictures -->\n```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the guide names."""
    root = tmp_path_factory.mktemp("guide")
    (root / "path" / "to" / "images").mkdir(parents=True)
    for i, image in enumerate(images(60)):
        Image.fromarray(image).save(root / "path" / "to" / "images" / f"{i:02d}.png")
    data = str(root / "path" / "to" / "images")
    settings = {"val_every": 2, "save_every": 1, "batch_size": 4, "horizontal_flip": False}
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=12)
    tiny_trainer(root / "runs" / "mine", diffusion, data, max_steps=2, **settings).train()
    samples = [
        "--num",
        "12",
        "--num-steps",
        "1",
        "--format",
        "all",
        "--output-dir",
        str(root / "path" / "to" / "samples"),
    ]
    assert main(["sample", str(root / "runs" / "mine"), *samples, "--no-progress"]) == 0
    for name in "abc":
        shutil.copytree(root / "runs" / "mine", root / "runs" / name)
        evaluate(root / "runs" / name, metrics="kid", features="random64", num=10, **QUICK).save()
    return root


@pytest.mark.every(2)
@pytest.mark.parametrize("line", lines_of_the_guide())
def test_the_guide_s_lines_work_as_they_stand(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    program, *words = shlex.split(line)
    assert program == "ddpm"
    assert main(words) == 0


def test_bits_worse_than_noise_say_so_beside_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1)
    diffusion = GaussianDiffusion(model, image_size=8, parametrization="x0", weighting="flat")
    run = trained(tmp_path, diffusion=diffusion)
    assert main(["evaluate", str(run), "--metrics", "nll,gap", "--num-levels", "20", *PLAIN]) == 0
    told = capsys.readouterr().out.splitlines()
    row = next(line for line in told if line.startswith("nll "))
    assert float(row.split()[1]) > 8
    assert "worse than uniform noise (8 bits/dim)" in row
    assert any(
        line.startswith("Note:") and "Flat" in line and "does not train likelihood" in line
        for line in told
    )
    for word in ("nll_train_3", "nll_heldout_3"):
        assert "worse than uniform noise" in next(line for line in told if line.startswith(word))


def test_noise_is_a_row_to_compare_with_and_no_better_than_itself() -> None:
    g = torch.Generator().manual_seed(3)
    noise = torch.randint(256, (40, 3, 8, 8), generator=g, dtype=torch.uint8)
    bright = torch.full((40, 3, 8, 8), 255, dtype=torch.uint8) - noise // 64
    reference = torch.from_numpy(images(40)).permute(0, 3, 1, 2)
    good, bad, worse = (
        by_name(evaluate(x, reference, metrics="fid,kid,pr", features="random64", **QUIET))
        for x in (torch.from_numpy(images(80)[40:]).permute(0, 3, 1, 2), noise, 255 - bright)
    )
    for kind in ("fd", "kd"):
        name = f"{kind}_random64_given_40"
        assert good[name].value < good[f"{name}/noise"].value
        assert good[name].remark == ""
        assert bad[name].value == pytest.approx(bad[f"{name}/noise"].value, rel=0.2)
        assert worse[name].remark == "no better than uniform noise"
    assert (
        worse["precision_k3_random64_given_40"].remark
        == "no sample lies among the reference images"
    )
    assert (
        worse["recall_k3_random64_given_40"].remark
        == "the samples cover none of the reference images"
    )
    assert (
        worse["precision_k3_random64_given_40"].standard_error is None
    )  # 0 ± 0 would claim certainty


def test_held_out_images_are_a_row_to_compare_with_where_there_are_enough(tmp_path: Path) -> None:
    found = by_name(evaluate(trained(tmp_path, 600), num=40, **QUICK))
    row = found["kd_random64_train_40/held-out"]
    assert "of 30 held-out images" in row.unit
    assert abs(row.value) < 0.1 * found["kd_random64_train_40/noise"].value
    assert found["precision_k3_random64_train_40/held-out"].value > 0.5


@pytest.mark.parametrize("role", ["samples", "reference", "held_out", "data"])
def test_more_images_than_there_are_are_clamped_with_a_note(
    run: Path, role: str, tmp_path: Path
) -> None:
    few = tmp_path / "few.npy"
    np.save(few, images(12))
    if role == "data":
        found = evaluate(run, metrics="nll", data=str(few), num=500, num_levels=2, **QUIET)
        assert found.about["data"]["images"] == 12
        assert any("num=500 is more than the 12 images" in note for note in found.about["notes"])
        return
    target: Any = few if role == "samples" else images(40)
    options = {"reference": str(few), "held_out": str(few)}
    found = evaluate(
        target, metrics="kid,memorisation", features="random64", num=500, **options, **QUIET
    )
    assert found.about["samples"]["n"] == (12 if role == "samples" else 40)
    assert any("samples: num=500 is more than the" in note for note in found.about["notes"])
    assert found.about["reference" if role == "samples" else role]["n"] == 12


class Narrow(io.StringIO):
    """A terminal that has no letter for anything but ASCII."""

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


@pytest.mark.parametrize("checkpoint", ["latest", "all"])
def test_scores_are_written_whatever_the_terminal_can_show(
    run: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set((run / "evaluations").glob("*")) if (run / "evaluations").exists() else set()
    monkeypatch.setattr(sys, "stdout", Narrow())
    asked = [
        "--metrics",
        "kid",
        "--features",
        "random64",
        "--num",
        "12",
        "--checkpoint",
        checkpoint,
    ]
    assert main(["evaluate", str(run), *asked, *FLAGS]) == 2  # "MMD²"
    monkeypatch.undo()
    written = set((run / "evaluations").glob("*.json")) - before
    assert len(written) == 1
    assert json.loads(written.pop().read_text())["scores"][0]["name"] == "kd_random64_train_12"


def test_each_checkpoint_is_written_as_it_comes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_lib.evaluation.evaluator import Evaluator

    seen = []
    once = Evaluator.evaluate

    def second_fails(self: Evaluator, target: Any) -> Any:
        seen.append(target)
        if len(seen) == 2:
            raise ConfigError("the second one fails")
        return once(self, target)

    monkeypatch.setattr(Evaluator, "evaluate", second_fails)
    before = len(list((run / "evaluations").glob("*.json")))
    asked = ["--metrics", "kid", "--features", "random64", "--num", "12", "--checkpoint", "all"]
    assert main(["evaluate", str(run), *asked, *FLAGS]) == 2
    assert len(list((run / "evaluations").glob("*.json"))) == before + 1


def test_scores_that_cannot_be_written_are_printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_lib.evaluation import Evaluation

    def full(self: Evaluation, folder: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Evaluation, "save", full)
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--metrics",
                "kid",
                "--features",
                "random64",
                "--num",
                "12",
                *FLAGS,
            ]
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert "kd_random64_train_12" in out
    assert "No space left" in err


def test_an_evaluation_shows_itself_in_one_line(run: Path) -> None:
    shown = repr(evaluate(run, metrics="kid", features="random64", num=12, **QUIET))
    assert re.fullmatch(r"<Evaluation of step-\d+: kd_random64_train_12=-?[\d.e-]+>", shown), shown
    x = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    many = repr(evaluate(x, x, metrics="fid,kid,pr,dc", features="random64,pixels", **QUIET))
    assert many.startswith("<Evaluation of given images: fd_random64_given_30=")
    assert many.endswith(", …>")
    assert len(many) < 400


@pytest.fixture
def sealed(run: Path, tmp_path: Path) -> Path:
    """The same run, with plain files where its results belong: not even root can write there."""
    (tmp_path / "run").mkdir()
    for entry in run.iterdir():
        if entry.name not in ("evaluations", "samples"):
            (tmp_path / "run" / entry.name).symlink_to(entry)
    for name in ("evaluations", "samples"):
        (tmp_path / "run" / name).write_text("")
    return tmp_path / "run"


def test_a_run_that_cannot_be_written_to_is_found_before_the_work(
    sealed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--metrics", "kid", "--features", "random64", "--num", "12", *FLAGS]
    assert main(["evaluate", str(sealed), *asked, "--output-dir", str(tmp_path / "mine")]) == 0
    assert "mine/eval-0001.json" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "mine" / "eval-0001.json")]) == 0

    from ddpm_lib.evaluation.evaluator import Evaluator

    def work(*_: object) -> None:
        raise AssertionError("it worked first")

    monkeypatch.setattr(Evaluator, "evaluate", work)
    capsys.readouterr()
    for which in (["--checkpoint", "all"], []):
        assert main(["evaluate", str(sealed), *asked, *which]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "evaluations cannot be written to (Not a directory). Say with --output-dir" in err
    stats = ["--save-stats", str(sealed / "samples" / "a.npz"), "--output-dir", str(tmp_path)]
    assert main(["evaluate", str(sealed), *asked, "--metrics", "fid", *stats]) == 2
    assert "Say with save_stats= (--save-stats) where" in capsys.readouterr().err
    (tmp_path / "evaluations").write_text("")
    monkeypatch.chdir(tmp_path)
    for elsewhere in (
        [],
        ["--output-dir", str(sealed / "samples" / "deep")],
    ):  # pictures: where the user stands
        assert main(["evaluate", str(tmp_path / "mine"), *asked, *elsewhere]) == 2
        assert (
            "cannot be written to (Not a directory). Say with --output-dir"
            in capsys.readouterr().err
        )
    monkeypatch.setattr("ddpm_lib.cli.sample.draw", work)
    assert main(["sample", str(sealed), "--device", "cpu"]) == 2
    assert (
        "samples cannot be written to (Not a directory). Say with --output-dir"
        in capsys.readouterr().err
    )
    monkeypatch.setattr("ddpm_lib.cli.redraw.read_pictures", work)
    assert main(["edit", str(sealed), "none.png", "--device", "cpu"]) == 2
    assert (
        "samples cannot be written to (Not a directory). Say with --output-dir"
        in capsys.readouterr().err
    )


def test_missing_weights_are_one_short_block(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", str(run), "--metrics", "fid,kid,is,pr,loss_gap", "--num", "12", *FLAGS])
        == 1
    )
    told = capsys.readouterr().out
    assert told.count("SHA-256") == 1
    start = told.index("skipped fid, kid, is, pr: ")
    block = told[start:].split("Note:")[0].split("wrote ")[0].strip().splitlines()
    assert len(block) <= 6
    assert max(len(line) for line in block) < 160
    assert main(["evaluate", str(run), "--metrics", "fid,kid", "--num", "12", *FLAGS]) == 2
    assert "--features random64" in capsys.readouterr().err
    assert skipped_lines({"a": "x", "b": "y", "c": "x"}) == ["skipped a, c: x", "skipped b: y"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with several evaluations of several sizes each."""
    root = tmp_path_factory.mktemp("evaluated")
    a = trained(root, name="a")
    shutil.copytree(a, root / "b")
    small = {"features": "random64", **QUICK}
    evaluate(a, metrics="kid,fid", num=20, **small).save()
    evaluate(a, metrics="loss_gap", **QUIET).save()
    evaluate(root / "b", metrics="kid,fid,memorisation", num=57, **small).save()
    return root


@pytest.fixture
def pair(evaluated: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same, for one test alone."""
    for name in "ab":
        shutil.copytree(evaluated / name, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def rows(table: str) -> dict[str, list[str]]:
    return {
        line.split()[0]: line.split()
        for line in table.splitlines()
        if line and not line.startswith("Note")
    }


def test_runs_meet_in_rows_by_metric_whatever_the_number_of_images(pair: tuple[Path, Path]) -> None:
    table = compare(pair)
    for metric in ("kd_random64_train", "fd_random64_train"):
        row = rows(table)[metric]
        assert "(n=20)" in row
        assert "(n=57)" in row
        assert "-" not in row
    assert "(n=3)" in rows(table)["loss_gap"]  # of the evaluation before the newest
    assert "-" in rows(table)["copies_pixels_train"]
    note = next(
        line for line in table.splitlines() if "number of samples differs (A: 20, B: 57)" in line
    )
    assert "fd_random64_train" in note
    assert "kd_random64_train" not in note  # unbiased: comparable at any number


def test_the_newest_value_of_each_metric_counts(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    evaluate(a, metrics="kid", num=33, features="random64", **QUICK).save()
    column = column_of(a)
    assert column.entries["kd_random64_train"].n == 33
    assert column.entries["fd_random64_train"].n == 20
    assert "loss_gap" in column.entries


def test_what_cannot_be_compared_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    evaluate(
        b, metrics="kid", num=20, features="random64", sampler="ddpm", sample_steps=3, **QUIET
    ).save()
    told = compare([a, b])
    assert "not comparable: the sampler differs (A: unipc, B: ddpm) in kd_random64_train" in told
    assert "the sampling steps differ (A: 1, B: 3)" in told
    other = tmp_path / "other"
    other.mkdir()
    c = trained(other, 40, name="c")
    evaluate(c, metrics="kid", num=20, features="random64", **QUICK).save()
    assert "the reference images differ" in compare([a, c])
    trained(tmp_path, name="a", max_steps=4)
    evaluate(a, metrics="kid", num=20, features="random64", **QUICK).save()
    assert "A: of step 2 (ema 0.5): fd_random64_train" in compare([a, b])


KERNEL = "kd_random64_train_9"
UNLIKE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        KERNEL,
        {"options": {"guidance_scale": 3.0}},
        {"options": {"guidance_scale": None}},
        "the guidance scale differs (A: 3.0, B: 1.0)",
    ),
    (
        KERNEL,
        {"samples": {"default": {"sampling": {"guidance_scale": 2.0}}}},
        {"samples": {"guidance_scale": 1.0}},
        "the guidance scale differs (A: 2.0, B: 1.0)",
    ),
    (
        KERNEL,
        {"options": {"sampler": "unipc", "sample_steps": 20}},
        {"samples": {"sampler": "ddim", "steps": 50}},
        "the sampler differs (A: unipc, B: ddim)",
    ),
    (
        KERNEL,
        {"samples": {"eta": None}},
        {"samples": {"eta": 1.0}},
        "the eta differs (A: usual, B: 1.0)",
    ),
    (
        "nll",
        {"options": {"num_steps": 50}},
        {"options": {}},
        "the steps of the bound differ (A: 50, B: all)",
    ),
]


@pytest.mark.parametrize(("name", "a", "b", "note"), UNLIKE)
def test_settings_that_one_left_open_are_compared_too(
    name: str, a: dict[str, Any], b: dict[str, Any], note: str, tmp_path: Path
) -> None:
    files = []
    for word, about in zip("ab", (a, b)):
        said = {"run": word, "scores": [{"name": name, "value": 0.1}], **about}
        files.append(tmp_path / f"{word}.json")
        files[-1].write_text(json.dumps(said))
    assert note in compare(files)
    assert "not comparable" not in compare([files[0], files[0]])


def test_rows_have_the_number_of_their_own_images(tmp_path: Path) -> None:
    name = "kd_random64_train_2k"
    scores = [
        {"name": name, "value": 0.2, "unit": "MMD²"},
        {"name": f"{name}/held-out", "value": 0.1, "unit": "MMD², of 409 held-out images"},
        {"name": f"{name}/noise", "value": 0.9, "unit": "MMD², of 1,000 images of uniform noise"},
        {
            "name": "copies_pixels_train_2k/p",
            "value": 1.0,
            "unit": "p-value (Fisher, 2,409 images)",
        },
    ]
    (tmp_path / "a.json").write_text(json.dumps({"scores": scores}))
    counts = {metric: one.n for metric, one in column_of(tmp_path / "a.json").entries.items()}
    assert [*counts.values()] == [2000, 409, 1000, 2000], counts


def test_comparison_is_written_before_it_is_printed(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "compared.json"
    monkeypatch.setattr(sys, "stdout", Narrow())
    assert main(["compare", *map(str, pair), "--output", str(out)]) == 2
    monkeypatch.undo()
    written = json.loads(out.read_text())
    assert [c["scores"]["kd_random64_train"]["n"] for c in written["columns"]] == [20, 57]
    assert main(["compare", *map(str, pair), "--output", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pictures", "empty", "broken.json", "nowhere"])
def test_compare_says_what_is_no_evaluation(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name in ("pictures", "empty"):
        path.mkdir()
    if name == "pictures":
        (path / "a.png").write_bytes(b"x")
    if name == "broken.json":
        path.write_text('{"scores": [1]}')
    assert main(["compare", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Make one" not in said
    assert str(path) in said


def test_names_of_scores_are_cut_into_metric_and_number() -> None:
    cases = {
        "fd_random64_train_50k/infinity": ("fd_random64_train/infinity", 50_000),
        "precision_k3_inception2048_heldout_1001": ("precision_k3_inception2048_heldout", 1001),
        "is_random_25": ("is_random", 25),
        "copying_ct_pixels_train_64/p": ("copying_ct_pixels_train/p", 64),
        "nll - flow_nll": ("nll - flow_nll", None),
        "nll/prior": ("nll/prior", None),
    }
    assert {name: metric_of(name) for name in cases} == cases


def test_checkpoints_of_images_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3))
    with pytest.raises(ConfigError, match="no run with checkpoints"):
        next(iter(evaluate_checkpoints(tmp_path / "x.npy", **QUIET)))


GIVEN: dict[str, Any] = {
    "num_levels": 5,
    "num_steps": 3,
    "tolerance": 1e-3,
    "flow_group": 2,
    "held_out": "x",
    "reference": "train",
    "features": "random64",
    "feature_weights": "w.pth",
    "sampler": "ddpm",
    "sample_steps": 2,
    "spacing": "karras",
    "eta": 0.5,
    "guidance_scale": 2.0,
    "guide_by": "2",
    "guide_scale": 3.0,
    "references": False,
}


def test_options_that_no_chosen_metric_uses_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_lib.evaluation.evaluation_options import USED_BY, EvaluationOptions, check_used

    assert set(GIVEN) == set(USED_BY)
    for name, value in GIVEN.items():
        for metric in METRICS:
            needed = {"guide_by": "2"} if name == "guide_scale" else {}
            chosen = EvaluationOptions(metrics=metric, **{name: value, **needed})
            if metric in USED_BY[name]:
                check_used(chosen)
                continue
            named = next(iter(needed), name)
            with pytest.raises(
                ConfigError,
                match=rf'{named} \(--.*no effect on metrics="{metric}": it is for .*Leave',
            ):
                check_used(chosen)
    with pytest.raises(ConfigError, match="it is for flow_nll"):
        evaluate(run, metrics="nll,kid", tolerance=1e-3, **QUIET)
    assert main(["evaluate", str(run), "--metrics", "nll", "--sample-steps", "3", *PLAIN]) == 2
    assert "sample_steps (--sample-steps) has no effect on --metrics nll" in capsys.readouterr().err


def test_each_option_of_the_table_is_read_by_the_metrics_it_names() -> None:
    """The table must not refuse what a metric would have used."""
    from ddpm_lib.evaluation import feature_plan, gap, model_metrics, sample_set

    read = {
        "nll": inspect.getsource(model_metrics.nll),
        "flow_nll": inspect.getsource(model_metrics.flow_nll),
        "gap": inspect.getsource(gap.gap) + inspect.getsource(gap._bits),
        "loss_gap": inspect.getsource(gap.loss_gap) + inspect.getsource(gap._loss),
        "memorisation": inspect.getsource(feature_plan) + inspect.getsource(sample_set),
    }
    from ddpm_lib.evaluation.evaluation_options import USED_BY

    for name, users in USED_BY.items():
        for metric, text in read.items():
            reads = f"options.{name}" in text
            if name not in (
                "features",
                "feature_weights",
            ):  # read by properties of the options, and by the engine
                assert reads == (metric in users), (name, metric)


def test_options_without_effect_by_default_are_said(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, tolerance=1e-3, num=8, sample_steps=1, num_levels=2, **QUIET)
    repeated = evaluate(run, **found.about["options"])  # which names the metrics that were chosen
    assert {s.name: s.value for s in found.scores}.items() <= {
        s.name: s.value for s in repeated.scores
    }.items()
    told = [
        note for note in found.about["notes"] if "had no effect" in note and "tolerance" in note
    ]
    assert told == [
        "tolerance had no effect: it is for flow_nll (metrics='flow_nll', --metrics flow_nll)."
    ]
    x = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    for name in ("sampler", "sample_steps", "eta", "guidance_scale", "guide_by"):
        with pytest.raises(ConfigError, match=rf"{name} \(--.* is for a run, which draws them"):
            evaluate(x, x[::-1].copy(), **{name: GIVEN[name]}, **QUIET)
    pictures = evaluate(x, x[::-1].copy(), num_levels=3, **QUIET)
    assert any(
        note.startswith("num_levels had no effect: it is for nll, gap")
        for note in pictures.about["notes"]
    )
