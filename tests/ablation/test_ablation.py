"""`ddpm ablate`: the grid, the yardsticks that all cells share, skipping and resuming, and the
tables.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from command_line import ddpm
from ddpm_lib import GaussianDiffusion, Shapes
from ddpm_lib.ablation import AblationResult, Grid, Outcome, ablate
from ddpm_lib.ablation.subjects import ImageSubject, ToySubject
from ddpm_lib.ablation.yardsticks import denoising_errors, random_features
from ddpm_lib.data import Toy
from ddpm_lib.data.toys import TOYS
from ddpm_lib.metrics.distances import energy_distance
from ddpm_lib.nn import MLP
from ddpm_lib.schedules import Schedule
from ddpm_lib.training import ConfigError, Trainer
from process_tools import gaussian_diffusion

SMALL: dict[str, Any] = {"images": 64, "num_samples": 32, "device": "cpu"}
FIXED = {
    "model.width": 8,
    "model.depth": 1,
    "batch_size": 32,
    "diffusion.timesteps": 20,
    "sample.num_steps": 3,
}


def small(folder: Path, vary: dict[str, list[Any]], **options: Any) -> AblationResult:
    fixed = {**FIXED, **options.pop("fixed", {})}
    fixed = {k: v for k, v in fixed.items() if k not in vary}
    return ablate(
        "toy:ring", vary, fixed=fixed, output_dir=folder, **{**SMALL, "seeds": (0,), **options}
    )


def grid(vary: dict[str, Any], fixed: dict[str, Any] | None = None) -> Grid:
    return Grid(vary, fixed or {}, ToySubject.defaults, MLP)


def test_every_combination_once_with_the_fixed_settings_under_the_varied() -> None:
    vary = {
        "diffusion.schedule": ["linear", "cosine"],
        "learning_rate": [1e-3, 2e-3],
        "sample.num_steps": [5, 10],
    }
    cells = grid(vary, {"model.width": 8}).cells()
    assert len({tuple(c.varied.values()) for c in cells}) == 8
    assert len({c.name for c in cells}) == 4, "cells that differ in sampling only share their runs"
    last = cells[-1]
    assert last.name == "schedule=cosine+learning_rate=0.002"
    assert last.settings["model"] == {"width": 8, "depth": ToySubject.defaults["model"]["depth"]}
    assert last.settings["training"]["learning_rate"] == 2e-3
    assert last.settings["sample"]["num_steps"] == 10
    odd = grid(
        {"diffusion.schedule_options": [{"s": 0.008}, {"s": 0.1}], "ema_decay": [[0.9, 0.5], []]}
    ).cells()
    assert len({c.name for c in odd}) == 4
    assert all(set(c.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.=+-") for c in odd)


def test_levels_and_options_of_sampling_are_settings_too() -> None:
    vary = {
        "sample.spacing": ["trailing", [10, 5.5]],
        "sample.sampler_options": [{"order": 2}, {}],
        "sample.guidance_scale": [2, {"age": 3}],
    }
    settings = [cell.settings["sample"] for cell in grid(vary).cells()]
    assert len(settings) == 8
    assert {one["spacing"] for one in settings} == {"trailing", (10.0, 5.5)}
    assert settings[0]["sampler_options"] == {"order": 2}
    assert [one["guidance_scale"] for one in settings[:2]] == [2.0, {"age": 3.0}]
    with pytest.raises(ConfigError, match=r"sampler_options must be options by name or none; got"):
        grid({"sample.sampler_options": ["order=2"]})


@pytest.mark.parametrize(
    ("vary", "fixed", "message"),
    [
        ({}, {}, "nothing to vary"),
        (
            {"diffusion.shedule": ["a"]},
            {},
            r"'diffusion.shedule'. Did you mean 'diffusion.schedule'",
        ),
        (
            {"diffusoin.schedule": ["a"]},
            {},
            r"group of settings 'diffusoin'. Did you mean 'diffusion'",
        ),
        ({"learning_rat": [1.0]}, {}, r"'learning_rat'. Did you mean 'learning_rate'"),
        ({"max_steps": [3]}, {}, "Unknown setting 'max_steps'"),
        ({"seed": [3]}, {}, "Unknown setting 'seed'"),
        ({"model.width": ["wide"]}, {}, "model.width must be a whole number; got 'wide'"),
        (
            {"model.width": [8, 8]},
            {},
            r"model.width needs one or more different values; got \[8, 8\]",
        ),
        ({"model.width": [8]}, {"model.width": 4}, "model.width is both varied and set"),
        ({"model.width": [8]}, {"sample.smapler": "ddim"}, "Did you mean 'sample.sampler'"),
    ],
)
def test_wrong_grids(vary: dict[str, Any], fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(vary, fixed)


def test_denoising_does_not_know_schedule_or_parametrization() -> None:
    """The same denoiser in other terms, the exact one of Gaussian data, has the same errors:
    σ²·s²/(α²s² + σ²) of x̂_0.
    """
    mu, s = torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.3)
    x0 = mu + s * torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = (x0.clamp(-1, 1) + 1) / 2
    found = []
    for name, parametrization in (("linear", "eps"), ("cosine", "v"), ("cosine", "x0")):
        d = gaussian_diffusion(mu, s, Schedule.make(name, 100), parametrization)
        found.append(denoising_errors(d, images, d.model, log_snrs=(-3.0, 0.0, 3.0)))
    for errors in found:
        for log_snr, error in errors.items():
            sigma2 = 1 / (1 + np.exp(log_snr))
            assert error == pytest.approx(0.09 / ((1 - sigma2) * 0.09 + sigma2), rel=0.02)
            assert error == pytest.approx(found[0][log_snr], rel=1e-5)


class Still(nn.Module):
    """Answers 0."""

    channels = 2

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return torch.zeros_like(x)


def test_distance_to_the_perfect_answer() -> None:
    """v̂ = 0 is off by v; where the best answer is known, only by what can be known: the rest is
    Bayes' risk.
    """
    d = GaussianDiffusion(Still(), image_size=(1,), timesteps=50, clip="none")
    images, blobs = Toy("ring", n=4000, seed=3).batch(np.arange(4000))["image"], TOYS["ring"].blobs

    def best(x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        return blobs.posterior_mean(x_t[..., 0], alpha, sigma)[..., None]

    x0 = 2 * images - 1
    to_data, to_best = (
        denoising_errors(d, images, d.model, best=b, log_snrs=(0.0,))[0.0] for b in (None, best)
    )
    assert to_data == pytest.approx(0.5 + 0.5 * float(x0.square().mean()), rel=0.03)
    perfect = PerfectRing(d.schedule)
    d2 = GaussianDiffusion(
        perfect, image_size=(1,), timesteps=50, parametrization="x0", clip="none", weighting="flat"
    )
    risk = denoising_errors(d2, images, perfect, log_snrs=(0.0,))[0.0]
    assert denoising_errors(d2, images, perfect, best=best, log_snrs=(0.0,))[0.0] < 1e-9
    assert to_data == pytest.approx(to_best + risk, rel=0.05)  # Pythagoras


class PerfectRing(nn.Module):
    """E[x_0 | x_t] of the ring."""

    channels = 2

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        level = self.schedule.level(float(t[0]) + 1)
        return (
            TOYS["ring"]
            .blobs.posterior_mean(x[..., 0], level.alpha, level.sigma)[..., None]
            .float()
        )


def test_features_tell_blurred_and_noisy_pictures_from_clean_ones() -> None:
    a, b = (Shapes(16, n=128, seed=s).batch(np.arange(128))["image"].float() / 255 for s in (1, 2))
    floor = energy_distance(random_features(a), random_features(b))
    noisy = (b + 0.02 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    blurred = nn.functional.avg_pool2d(b, 3, stride=1, padding=1, count_include_pad=False)
    for worse in (noisy, blurred):
        assert energy_distance(random_features(a), random_features(worse)) > 10 * max(floor, 1e-3)
    assert random_features(a).shape == (128, 256)
    assert energy_distance(random_features(a), random_features(1 - b)) == pytest.approx(
        floor, abs=1e-4
    ), "not colours"


def test_cells_are_trained_once_measured_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = {"diffusion.parametrization": ["eps", "v"], "sample.weights": ["ema", "model"]}
    trained: list[str] = []
    real = Trainer.train

    def counted(self: Trainer) -> Any:
        trained.append(str(self.output_dir))
        return real(self)

    monkeypatch.setattr(Trainer, "train", counted)
    first = small(tmp_path, vary, seeds=(0, 1))
    assert len(first.outcomes) == 8
    assert len(set(trained)) == 4
    assert {o.status for o in first.outcomes} == {"measured"}
    assert {"energy distance", "sliced W2", "histogram KL", "denoising error"} < set(first.measures)
    assert len({o.measures["sliced W2"] for o in first.outcomes}) > 4, (
        "the weights asked for are those measured"
    )
    steps = {json.loads(p.read_text())["step"] for p in tmp_path.rglob("status.json")}
    assert steps == {2}, "64 images in batches of 32"
    trained.clear()
    assert small(tmp_path, vary, seeds=(0, 1)) == first
    assert trained == [], "finished cells are not touched"
    more = small(tmp_path, {**vary, "sample.weights": ["ema", "model"]}, seeds=(0, 1, 2))
    assert len(set(trained)) == 2
    assert more.outcomes[0] == first.outcomes[0]
    with pytest.raises(ConfigError, match="is of an ablation with other settings"):
        small(tmp_path, vary, fixed={"model.width": 16})


def test_a_stopped_ablation_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = {"learning_rate": [1e-3, 2e-3]}
    whole = small(tmp_path / "whole", vary)
    real, calls = Trainer.train, []

    def interrupted(self: Trainer) -> Any:
        calls.append(self)
        if len(calls) == 2:
            from training_helpers import StopAt

            self.callbacks.append(StopAt(1))
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", interrupted)
        partial = small(tmp_path / "cut", vary)
    assert partial.exit_code == 143
    assert len(partial.outcomes) == 1
    again = small(tmp_path / "cut", vary)
    assert again.exit_code == 0
    assert [o.measures for o in again.outcomes] == [o.measures for o in whole.outcomes]


def test_what_the_library_refuses_is_reported_and_a_mistake_is_an_error(tmp_path: Path) -> None:
    vary = {
        "diffusion.schedule_options": [{"zero_terminal_snr": True}, {"zero_terminal_snr": False}],
        "diffusion.parametrization": ["eps", "v"],
    }
    result = small(tmp_path / "a", vary, fixed={"diffusion.weighting": "flat"})
    assert [o.status for o in result.outcomes] == ["refused", "measured", "measured", "measured"]
    assert "zero terminal SNR" in result.outcomes[0].reason
    assert "| refused |" in result.markdown()
    assert "a cell is missing" in result.shares_markdown()
    with pytest.raises(
        ConfigError,
        match=r"schedule=cosin can be built: Unknown schedule 'cosin'. Did you mean 'cosine'",
    ):
        small(tmp_path / "b", {"diffusion.schedule": ["linear", "cosin"]})
    assert not (tmp_path / "b").exists()


def test_what_a_trainer_refuses_or_could_not_be_drawn_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = {"model.width": [8, 16], "optimizer": ["adamw", "muon"]}
    result = small(tmp_path / "a", vary)
    assert [o.status for o in result.outcomes] == ["measured", "refused", "measured", "measured"]
    assert "at least 16 inputs and outputs" in result.outcomes[1].reason
    (tmp_path / "a" / "plot.png").touch()  # as the command leaves it
    assert small(tmp_path / "a", vary) == result
    spacings, options = ["trailing", "log_snr"], [{}, {"sigma_min": 0.2}]
    vary = {"sample.spacing": spacings, "sample.spacing_options": options}
    result = small(tmp_path / "b", vary)
    assert [o.status for o in result.outcomes] == ["measured", "refused", "measured", "measured"]
    assert "sigma_min" in result.outcomes[1].reason
    monkeypatch.setattr(Trainer, "train", None)
    for wrong, message in (
        ({"sample.sampler": ["ddim", "ddimm"]}, "Did you mean 'ddim'"),
        ({"sample.weights": ["ema", "emma"]}, "weights must be 'ema' or 'model'; got 'emma'"),
        ({"ema_decay": [[0.9], [1.5]]}, r"ema_decay must lie in \[0, 1\); got 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(tmp_path / "c", wrong)
    assert not (tmp_path / "c").exists()


def test_cells_that_diverge_do_not_end_the_ablation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Trainer.sample, []

    def broken(self: Trainer, n: int, **options: Any) -> Tensor:
        calls.append(n)
        return real(self, n, **options) * (float("nan") if len(calls) == 1 else 1.0)

    monkeypatch.setattr(Trainer, "sample", broken)
    result = small(tmp_path, {"learning_rate": [1e-3, 2e-3]})
    assert [o.status for o in result.outcomes] == ["diverged", "measured"]
    assert "| 0.001 | diverged |" in result.markdown()
    assert small(tmp_path, {"learning_rate": [1e-3, 2e-3]}).outcomes == result.outcomes
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["sample", "train"])
def test_a_cell_that_fails_does_not_end_the_ablation_and_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    """Whatever the error is; the exit code says that there was one."""
    real, calls = getattr(Trainer, where), []

    def broken(self: Trainer, *args: Any, **options: Any) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise RuntimeError("no\nmemory of this")
        return real(self, *args, **options)

    def command() -> int:
        flags = [f"--set={k}={v}" for k, v in FIXED.items()]
        words = ["--vary", "learning_rate=0.001,0.002", "--images", 64, "--num-samples", 32]
        place = ["--seeds", 0, "--device", "cpu", "--output-dir", tmp_path]
        return ddpm("ablate", "toy:ring", *words, *flags, *place)

    monkeypatch.setattr(Trainer, where, broken)
    vary = {"learning_rate": [1e-3, 2e-3]}
    assert command() == 1
    told = capsys.readouterr()
    assert "Failed, 1 of 2; the same ablation tries them again:" in told.out
    assert "| 0.001 | failed |" in told.out
    assert "RuntimeError: no memory of this" in told.out
    assert "RuntimeError: no memory of this" in told.err
    assert "no memory of this" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)][:2] == ["failed", "measured"]
    assert command() == 0
    assert len(calls) == 3, "the cell that was measured is not touched"
    assert "Failed" not in capsys.readouterr().out
    assert [o.status for o in small(tmp_path, vary).outcomes] == ["measured", "measured"]


def test_images_seen_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"images must be a multiple of the batch size 24; got 64. The nearest is 72",
    ):
        small(tmp_path, {"batch_size": [32, 24]})
    result = small(tmp_path, {"batch_size": [32, 64]})
    rows = [
        json.loads(p.read_text().splitlines()[-1]) for p in sorted(tmp_path.rglob("metrics.jsonl"))
    ]
    assert {row["images"] for row in rows} == {64}
    assert len(result.outcomes) == 2


def test_images_are_compared_too(tmp_path: Path) -> None:
    fixed = {
        "model.dim": 8,
        "model.dim_mults": [1, 2],
        "batch_size": 8,
        "diffusion.timesteps": 10,
        "sample.num_steps": 2,
    }
    options: dict[str, Any] = {
        "images": 16,
        "num_samples": 6,
        "image_size": 8,
        "device": "cpu",
        "seeds": (0,),
    }
    result = ablate(
        "shapes",
        {"diffusion.variance": ["fixed_small", "learned_range"]},
        fixed=fixed,
        output_dir=tmp_path,
        **options,
    )
    assert [o.status for o in result.outcomes] == ["measured", "measured"]
    assert {"energy, pixels", "energy, features", "denoising error", "at log-SNR 4"} <= set(
        result.measures
    )
    path = tmp_path / "few.npy"
    np.save(path, Shapes(8, n=20).batch(np.arange(20))["image"].permute(0, 2, 3, 1).numpy())
    held_out = ImageSubject(str(path), 8, 3, 5)
    assert (len(held_out.train), [len(o) for o in held_out.others]) == (10, [5, 5])
    assert held_out.notes == ()
    fewer = ImageSubject(str(path), 8, 3, 6)
    assert (len(fewer.train), [len(o) for o in fewer.others]) == (10, [5, 5])
    assert len(fewer.notes) == 1
    assert "5 instead of 6" in fewer.notes[0]
    np.save(path, np.zeros((7, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match="8 or more"):
        ImageSubject(str(path), 8, 3, 6)


def made_up(noise: float) -> AblationResult:
    """log m = 2·[a=1] + 1·[b=1] + noise: without noise three quarters … of the variance are a's."""
    rng = np.random.default_rng(0)
    outcomes = tuple(
        Outcome(
            {"x.a": a, "b": b},
            seed,
            "measured",
            "",
            {"m": float(np.exp(2 * a + b + noise * rng.normal()))},
            1.0,
        )
        for a in (0, 1)
        for b in (0, 1)
        for seed in range(3)
    )
    about = {"data": "made up", "images": 10}
    return AblationResult(
        outcomes, {"x.a": [0, 1], "b": [0, 1]}, {"m": [0.5, 0.7]}, about, Path("nowhere")
    )


def test_shares_of_the_variance() -> None:
    """Variances of independent effects add: 2² and 1², so 80 % and 20 %; with noise the parts still
    make the whole.
    """
    exact = made_up(0.0).shares()["m"]
    assert exact == pytest.approx(
        {"x.a": 0.8, "b": 0.2, "interactions": 0.0, "seeds": 0.0}, abs=1e-9
    )
    noisy = made_up(0.5).shares()["m"]
    assert sum(noisy.values()) == pytest.approx(1.0)
    assert noisy["seeds"] > 0.02


def test_table_and_files(tmp_path: Path) -> None:
    import dataclasses

    result = dataclasses.replace(made_up(0.1), folder=tmp_path / "out")
    lines = result.markdown().splitlines()
    assert lines[0] == "| a | b | m |"
    assert lines[2].startswith("| 0 | 0 | **")
    values = result.values({"x.a": 1, "b": 0}, "m")
    assert f"| 1 | 0 | {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in lines
    assert lines[-1] == "| data against data |  | 0.600 ± 0.141 |"
    table, plain, plot = result.save()
    assert result.markdown() in table.read_text()
    rows = list(csv.DictReader(plain.open()))
    assert [float(r["m"]) for r in rows[:12]] == [o.measures["m"] for o in result.outcomes]
    assert [r["status"] for r in rows[12:]] == ["data against data"] * 2
    assert plot.stat().st_size > 5000


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--set={k}={v}" for k, v in FIXED.items()]
    command = [
        "ablate",
        "toy:moons",
        "--vary",
        "diffusion.parametrization=v,x0",
        "--vary",
        "ema_decay=[0.5],[0.9]",
        *flags,
    ]
    command += [
        "--images",
        64,
        "--num-samples",
        16,
        "--seeds",
        3,
        "--device",
        "cpu",
        "--output-dir",
        tmp_path / "out",
    ]
    assert ddpm(*command) == 0
    told = capsys.readouterr()
    assert "| parametrization | ema_decay | energy distance |" in told.out
    assert "[4/4] parametrization=x0 ema_decay=[0.9] seed 3" in told.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "plot.png",
        "runs",
        "table.csv",
        "table.md",
    ]
    for wrong, message in (
        (["--vary", "learning_rate"], "Settings are written NAME=VALUE"),
        (["--vary", "a=[1"], "cannot be read"),
        (["--vary", "ema_decay=[0.5]", "--set", "batch_size=1,2"], "--set takes one value"),
        (
            ["--vary", "learning_rate=1e-3", "--seeds", "1", "1"],
            "seeds must be one or more different numbers",
        ),
        (["--vary", "learning_rate=1e-3", "--num-samples", "1"], "num_samples must be at least 2"),
    ):
        assert ddpm("ablate", "toy:ring", *wrong, "--output-dir", tmp_path / "wrong") == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert ddpm("ablate", "toy:rign", "--vary", "learning_rate=1e-3") == 2
    assert "Unknown toy 'rign'. Did you mean 'ring'?" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
