"""Samples of measured values against data: statistics that are known, in units, with intervals that
hold; and no feature of pictures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import TINY
from ddpm_lib import GaussianDiffusion, Unet, evaluate
from ddpm_lib.cli import main
from ddpm_lib.data import open_dataset, tensor_dataset
from ddpm_lib.evaluation import Evaluate
from ddpm_lib.evaluation.comparison import compare
from ddpm_lib.metrics.value_statistics import Values, image_spectra, spectrum_distance
from ddpm_lib.training import ConfigError, Trainer
from training_helpers import tiny_trainer

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
QUICK: dict[str, Any] = {"sample_steps": 1, "num": 24, **QUIET}
PLAIN = ["--device", "cpu", "--no-progress"]
Z99 = 2.3263
"""The 99 % quantile of a normal distribution."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")


def noise(n: int, seed: int, shape: tuple[int, ...] = (12, 12)) -> np.ndarray:
    """Two channels of white noise: N(280, 10²) and N(-3, 0.02²)."""
    drawn = np.random.default_rng(seed).standard_normal((n, 2, *shape))
    ones = [1] * len(shape)
    unit, mean = np.array([10.0, 0.02]).reshape(2, *ones), np.array([280.0, -3]).reshape(2, *ones)
    return (mean + unit * drawn).astype(np.float32)


def opened(values: np.ndarray, kind: str = "affine") -> Any:
    size, channels = values.shape[2:], values.shape[1]
    return open_dataset(values, image_size=size, channels=channels, normalize=kind)


def by_name(found: Any) -> dict[str, Any]:
    return {score.name: score for score in found.scores}


def test_spectra_that_differ_by_a_factor_are_so_many_decibels_apart() -> None:
    spectra = np.random.default_rng(0).exponential(size=(50, 6)) + 1
    assert spectrum_distance(4 * spectra, spectra.mean(0))[0] == pytest.approx(20 * np.log10(2))
    assert spectrum_distance(spectra, spectra.mean(0))[0] == pytest.approx(0)
    half = spectra.copy()
    half[:, :3] *= 100  # 20 dB in half of the wave numbers
    assert spectrum_distance(half, spectra.mean(0))[0] == pytest.approx(20 / np.sqrt(2))
    assert spectrum_distance(np.zeros((3, 4)), np.zeros(4))[0] == 0
    assert np.isfinite(spectrum_distance(np.zeros((3, 4)), np.ones(4))[0])


def test_the_derivative_of_the_distance_is_that_by_the_weight_of_a_sample() -> None:
    spectra = np.random.default_rng(0).exponential(size=(20, 5)) + 0.1
    data = np.linspace(1, 3, 5)
    _, influence = spectrum_distance(spectra, data)
    step = 1e-5
    for row in (0, 7):
        weights = np.full(20, (1 - step) / 20)
        weights[row] += step
        moved, _ = spectrum_distance((weights @ spectra)[None], data)
        here, _ = spectrum_distance(spectra.mean(0)[None], data)
        assert (moved - here) / step == pytest.approx(influence[row], rel=1e-3)


@pytest.mark.parametrize("shape", [(30,), (20, 24), (6, 7, 8)])
def test_facts_of_images_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).exponential(size=(5, 2, *shape))
    found = Values(("moments", "levels", "spectrum"), torch.device("cpu"))(torch.tensor(values))
    flat = values.reshape(5, 2, -1)
    assert np.allclose(found["moments"], np.concatenate([flat.mean(2), flat.var(2)], 1), rtol=1e-5)
    spectra = image_spectra(values)
    assert np.allclose(found["spectrum"], spectra.reshape(5, -1), rtol=1e-4)
    levels = found["levels"].reshape(5, 2, -1).numpy()
    for share in (0.05, 0.5, 0.9):
        assert np.allclose(
            np.quantile(levels, share, axis=2), np.quantile(flat, share, axis=2), rtol=0.1
        )


@pytest.mark.parametrize("shape", [(12, 12), (6, 7, 8)])
@pytest.mark.parametrize("kind", ["affine", "quantile"])
def test_known_statistics_are_found_in_their_units(shape: tuple[int, ...], kind: str) -> None:
    """Samples are noise of twice the deviation, three units above the data."""
    data, samples = noise(150, 0, shape), noise(150, 1, shape)
    samples[:, 0] = (samples[:, 0] - 280) * 2 + 283
    found = by_name(evaluate(opened(samples, kind), opened(data, kind), **QUIET))
    truth = {"mean": (283, 280), "std": (20, 10), "q50": (283, 280)}
    truth |= {"q99": (283 + 20 * Z99, 280 + 10 * Z99), "q01": (283 - 20 * Z99, 280 - 10 * Z99)}
    for name, (mine, theirs) in truth.items():
        score, beside = found[f"value_{name}_c0"], found[f"value_{name}_c0/given"]
        assert score.value == pytest.approx(mine, abs=4 * score.standard_error)
        assert beside.value == pytest.approx(theirs, abs=4 * beside.standard_error)
        assert score.interval[0] < score.value < score.interval[1]
        assert score.unit == "units of the data"
        assert "standard deviations" in score.remark
        assert found[f"value_{name}_c1"].remark == ""
    assert found["value_spectrum_c0_given_150"].value == pytest.approx(20 * np.log10(2), abs=0.3)
    assert found["value_spectrum_c1_given_150"].value < 0.5
    rows = {word: found[f"value_spectrum_c1_given_150/{word}"].value for word in ("half", "noise")}
    assert rows["half"] < 0.6 < 1.5 < rows["noise"]


def test_intervals_hold() -> None:
    """Of 24 draws the truth lies in at least 19 intervals, of each number."""
    data = opened(noise(40, 999, (6, 6)))
    held = {"mean": 0, "std": 0, "q50": 0, "q99": 0}
    for seed in range(24):
        samples = opened(noise(60, seed, (6, 6)))
        found = by_name(evaluate(samples, data, references=False, **QUIET))
        for name, truth in {"mean": 280, "std": 10, "q50": 280, "q99": 280 + 10 * Z99}.items():
            low, high = found[f"value_{name}_c0"].interval
            held[name] += low <= truth <= high
    assert min(held.values()) >= 19, held


def test_whole_numbers_and_units_stay_what_they_are() -> None:
    counts = np.random.default_rng(0).integers(0, 4096, (40, 1, 8, 8)).astype(np.uint16)
    found = by_name(evaluate(opened(counts), opened(counts), **QUIET))
    assert found["value_mean_c0"].value == pytest.approx(counts.mean(), rel=1e-5)
    assert found["value_q50_c0"].value == pytest.approx(np.median(counts), rel=1e-3)
    assert found["value_spectrum_c0_given_40"].value == 0
    constant = np.full((40, 1, 8, 8), 7.5, np.float32)
    found = by_name(evaluate(opened(constant), opened(constant), **QUIET))
    assert (found["value_mean_c0"].value, found["value_std_c0"].value) == (7.5, 0)
    assert found["value_mean_c0"].interval is None
    other = by_name(evaluate(opened(constant + 1), opened(constant), **QUIET))
    assert other["value_mean_c0"].remark == "differs from the data, which are constant"


def test_sets_that_have_nothing_in_common_are_refused() -> None:
    values = opened(noise(30, 0))
    pictures = np.zeros((30, 12, 12, 3), np.uint8)
    for pair in ((values, pictures), (pictures, values)):
        with pytest.raises(ConfigError, match=r"measured values and .* pictures.*normalize"):
            evaluate(*pair, **QUIET)
    with pytest.raises(ConfigError, match="channel by channel; the samples have 2, given has 1"):
        evaluate(values, opened(noise(30, 0)[:, :1]), **QUIET)
    with pytest.raises(ConfigError, match=r"different ranges.*values"):
        evaluate(values, opened(noise(30, 1)), metrics="kid", features="pixels", **QUIET)


def trained(run: Path, data: Any, diffusion: Any = None, **options: Any) -> Path:
    made = {"max_steps": 2, "val_every": 2, "val_fraction": 0.25, "batch_size": 4, **options}
    tiny_trainer(run, diffusion, data, augment=0.0, horizontal_flip=False, **made).train()
    return run


def network(channels: int, size: tuple[int, ...]) -> GaussianDiffusion:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, channels=channels, dims=len(size))
    return GaussianDiffusion(model, image_size=size, timesteps=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("values")
    np.save(root / "bands.npy", noise(60, 0, (8, 8)))
    where = str(root / "bands.npy")
    return trained(root / "run", where, network(2, (8, 8)), normalize="affine")


def test_open_sets_are_scored_in_the_range_of_the_run(run: Path, tmp_path: Path) -> None:
    """Whatever they were normalized by when they were opened: other images, and the run's own."""
    options: dict[str, Any] = {"metrics": "nll", "num": 8, "num_levels": 4, **QUIET}
    other = noise(20, 1, (8, 8)) * np.float32(0.5)
    np.save(tmp_path / "other.npy", other)
    by_path = by_name(evaluate(run, data=str(tmp_path / "other.npy"), **options))
    for kind in ("affine", "quantile"):
        found = by_name(evaluate(run, opened(other, kind), **options))
        assert {k: v.value for k, v in found.items()} == {k: v.value for k, v in by_path.items()}
    own = evaluate(run, opened(np.load(run.parent / "bands.npy")), metrics="loss_gap", **QUIET)
    again = evaluate(run, metrics="loss_gap", **QUIET)
    assert [score.value for score in own.scores] == [score.value for score in again.scores]


def test_a_run_on_an_open_set_is_scored_on_files(tmp_path: Path) -> None:
    """Its options do not say that they hold measured values; its units do."""
    made = trained(tmp_path / "run", opened(noise(40, 0, (8, 8))), network(2, (8, 8)))
    other = noise(12, 1, (8, 8))
    np.save(tmp_path / "other.npy", other)
    where = str(tmp_path / "other.npy")
    options: dict[str, Any] = {"metrics": "nll", "num": 6, "num_levels": 3, **QUIET}
    ways = (evaluate(made, data=where, **options), evaluate(made, opened(other), **options))
    assert ways[0].scores[0].value == ways[1].scores[0].value
    drawn = by_name(evaluate(made, metrics="values", reference=where, **QUICK))
    assert 200 < drawn["value_mean_c0"].value < 360


def test_open_sets_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    pictures = tensor_dataset(torch.rand(12, 2, 8, 8))
    with pytest.raises(ConfigError, match=r"learned measured values, and the dataset holds pict"):
        evaluate(run, pictures, metrics="nll", num=4, num_levels=2, **QUIET)
    trained(tmp_path / "run", tensor_dataset(torch.rand(12, 2, 8, 8)), network(2, (8, 8)))
    values = opened(noise(12, 1, (8, 8)))
    with pytest.raises(ConfigError, match=r"learned pictures, and the dataset holds measured val"):
        evaluate(tmp_path / "run", values, metrics="nll", num=4, num_levels=2, **QUIET)
    floats = open_dataset(
        noise(12, 1, (8, 8)).astype(np.float64), image_size=8, channels=2, normalize="affine"
    )
    with pytest.raises(ConfigError, match=r"2 channels of float32; the data has 2 of float64"):
        evaluate(run, floats, metrics="nll", num=4, num_levels=2, **QUIET)


def test_a_run_on_values_is_scored_by_its_values(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--sample-steps", "1", *PLAIN]) == 0
    shown = capsys.readouterr().out
    saved = json.loads(sorted(run.glob("evaluations/eval-*.json"))[-1].read_text())
    names = {score["name"] for score in saved["scores"]}
    for k in (0, 1):
        for word in ("mean", "std", "q01", "q50", "q99"):
            assert {f"value_{word}_c{k}", f"value_{word}_c{k}/train"} <= names
            assert f"value_{word}_c{k} " in shown
        assert f"value_spectrum_c{k}_train_64" in names
    assert "units of the data" in shown
    assert {"copies_pixels_train_64", "loss_gap_15"} <= names
    assert saved["options"]["metrics"] == "values,memorisation,loss_gap"
    assert saved["options"]["features"] == "pixels"
    assert not any("random64" in name or "inception" in name for name in names)
    assert "value_mean_c0/train" in compare([run, run])
    again = by_name(evaluate(run, metrics="values", sample_steps=1, num=64, **QUIET))
    kept = {score["name"]: score["value"] for score in saved["scores"]}
    assert again["value_std_c1"].value == kept["value_std_c1"]
    assert main(["report", str(run)]) == 0
    assert "value_mean_c0" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "wish",
    [
        {"metrics": "fid"},
        {"metrics": "kid,values"},
        {"metrics": "pr", "features": "random64"},
        {"metrics": "dc", "features": "dinov2,pixels"},
        {"metrics": "fid", "features": "hedvgg512"},
        {"metrics": "is", "features": "pixels"},
        {"metrics": "sfid", "features": "pixels"},
        {"metrics": "memorisation", "features": "inception2048"},
        {"features": "random64"},
    ],
)
def test_features_of_pictures_are_refused_with_what_serves(
    run: Path, wish: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"RGB pictures.*measured values.*metrics=.values,mem"):
        evaluate(run, **wish, **QUICK)
    words = [part for name, value in wish.items() for part in (f"--{name}", value)]
    assert main(["evaluate", str(run), *words, *PLAIN]) == 2
    assert "--metrics values,memorisation,loss_gap" in capsys.readouterr().err
    if "," not in wish.get("metrics", ""):
        data = opened(noise(30, 0))
        with pytest.raises(ConfigError, match="RGB pictures"):
            evaluate(data, data, **{"metrics": "fid", **wish}, **QUIET)


def test_what_is_proposed_runs(run: Path) -> None:
    found = by_name(evaluate(run, metrics="values,memorisation,loss_gap", **QUICK))
    assert {"value_mean_c0", "copies_pixels_train_24", "loss_gap_15"} <= set(found)
    pixels = by_name(evaluate(run, metrics="fid,kid,pr,dc", features="pixels", **QUICK))
    assert {name.split("_")[0] for name in pixels} >= {"fd", "kd", "precision", "density"}
    with pytest.raises(ConfigError, match=r"features .* has no effect on metrics=.values"):
        evaluate(run, metrics="values", features="pixels", **QUICK)


def test_other_data_are_compared_too(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "year.npy", noise(40, 5, (8, 8)))
    found = evaluate(run, metrics="values", reference=str(tmp_path / "year.npy"), **QUICK)
    year = by_name(found)["value_mean_c0/year"]
    assert year.value == pytest.approx(280, abs=1)


def test_what_was_drawn_is_compared_without_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("npy", "npz", "tiff"):
        out = tmp_path / kind
        words = ["--num", "24", "--num-steps", "1", "--device", "cpu", "--output-dir", str(out)]
        assert main(["sample", str(run), "--format", kind, *words]) == 0
        sets = [str(out), "--reference", str(run.parent / "bands.npy"), "--normalize", "affine"]
        scores = ["--output-dir", str(tmp_path / "scores")]
        assert main(["evaluate", *sets, *scores, *PLAIN]) == 0
    files = sorted((tmp_path / "scores").glob("*.json"))
    saved = [json.loads(file.read_text())["scores"] for file in files]
    means = [{s["name"]: s["value"] for s in scores}["value_mean_c0"] for scores in saved]
    assert len(means) == 3
    assert np.allclose(means, means[0], rtol=1e-6)
    own = by_name(evaluate(run, metrics="values", **QUICK))
    assert means[0] == pytest.approx(own["value_mean_c0"].value, rel=1e-5)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--normalize", "affine", *PLAIN]) == 2
    assert "leave normalize (--normalize) out" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 8, 8, 8), (5, 8, 8)])
def test_data_that_are_no_pictures_are_scored_without_units_too(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    data = tensor_dataset(torch.rand(40, *shape))
    run = trained(tmp_path / "run", data, network(shape[0], shape[1:]))
    found = by_name(evaluate(run, data, **QUICK))
    assert found["value_mean_c0/given"].value == pytest.approx(0.5, abs=0.05)
    assert found["value_mean_c0"].unit == "of 0 … 1"
    assert "copies_pixels_train_24" in found
    with pytest.raises(ConfigError, match=r"RGB pictures.*this run draws"):
        evaluate(run, data, metrics="fid", **QUICK)


def test_patches_are_the_same_ones_each_time(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", noise(40, 0, (12, 12)))
    where = str(tmp_path / "large.npy")
    run = trained(tmp_path / "run", where, network(2, (8, 8)), normalize="affine", fit="patch")
    first, again = (by_name(evaluate(run, metrics="values", **QUICK)) for _ in range(2))
    assert {k: s.value for k, s in first.items()} == {k: s.value for k, s in again.items()}


def test_values_are_scored_while_training_and_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "bands.npy", noise(60, 0, (8, 8)))
    judge = Evaluate(1, num=24, sample_steps=1)

    def trainer(name: str, callback: Any) -> Trainer:
        return tiny_trainer(
            tmp_path / name,
            network(2, (8, 8)),
            str(tmp_path / "bands.npy"),
            normalize="affine",
            max_steps=2,
            callbacks=[callback],
            augment=0.0,
            horizontal_flip=False,
        )

    trainer("run", judge).train()
    names = {score.name for score in judge.scores}
    assert {"value_mean_c0", "value_spectrum_c1_train_24"} <= names
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("value_std_c0" in json.loads(row) for row in rows)
    for options in ({"metrics": "fid"}, {"metrics": "kid", "features": "random64"}):
        with pytest.raises(ConfigError, match="RGB pictures"):
            trainer("refused", Evaluate(1, **options)).train()
    command = ["train", str(tmp_path / "bands.npy"), "--normalize", "affine", "--channels", "2"]
    made = ["--output-dir", str(tmp_path / "cli"), "--image-size", "8", "--max-steps", "60"]
    assert main([*command, *TINY, *made, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    if (tmp_path / "cli" / "evaluations").exists():  # a fast machine has no time for 20 samples
        assert re.search(r"value_mean_c0 .*\(train ", shown)
        assert "value_q50" not in shown
