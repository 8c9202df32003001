"""The figures of docs/method.md: small computations, no training, half a minute of one thread.

    python benchmarks/method.py                 # all five
    python benchmarks/method.py --only algebra

`memorisation` draws the numbers of benchmarks/results/memorisation_onset.json, which
memorisation_onset.py measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from ddpm_lib.metrics import (  # noqa: E402
    frechet_distance,
    frechet_infinity,
    kernel_distance,
    statistics_of,
)
from ddpm_lib.process.learned_levels import fixed_levels, learn_levels, walk  # noqa: E402
from ddpm_lib.process.level_pairs import ConsistencyPairs  # noqa: E402
from ddpm_lib.samplers import make_sampler, sample_loop  # noqa: E402
from ddpm_lib.samplers.base import Prediction  # noqa: E402
from ddpm_lib.schedules import Schedule  # noqa: E402
from ddpm_lib.schedules.levels import Level, tau  # noqa: E402
from ddpm_lib.training.randomness import DataOrder  # noqa: E402
from ddpm_lib.variance import VARIANCES  # noqa: E402
from sampler_tools import ring_predict  # noqa: E402

COSINE = Schedule.make("cosine", 1000)
WIDTH = 0.2
"""Standard deviation of the Gaussian data whose denoiser is known, values in [-1, 1]."""
RESULTS = ROOT / "benchmarks" / "results" / "memorisation_onset.json"


def panels(n: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure of n panels side by side."""
    figure = Figure((4.4 * n, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, n)).tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def exact_variance(t: Level, s: Level) -> float:
    """Return the variance of x_s given x_t where the data are N(0, WIDTH²)."""
    share = tau(t, s)
    rest = WIDTH**2 * t.sigma**2 / (t.alpha**2 * WIDTH**2 + t.sigma**2)
    return s.sigma**2 * share + (s.alpha * share) ** 2 * rest


def wrong_width(name: str, steps: int, variance: Callable[[Level, Level], float]) -> float:
    """Return how far the standard deviation that a sampler draws is from the right one, relative,
    before the last step, which is the denoiser's mean. Nothing is drawn: the response to a unit of
    x_T and to a unit of each noise says it.
    """
    levels = [COSINE.level(t) for t in fixed_levels(COSINE, steps)["log_snr, between levels"]]
    impulses, calls = torch.eye(steps + 1, dtype=torch.float64), iter(range(1, steps + 1))

    def predict(x: Tensor, level: Level) -> Prediction:
        gain = 1 / (level.alpha**2 * WIDTH**2 + level.sigma**2)
        return Prediction(level.alpha * WIDTH**2 * gain * x, level.sigma * gain * x, variance)

    first = impulses[:, :1].clone()  # the first row starts from 1, the others from nothing
    end = sample_loop(
        make_sampler(name),
        first,
        levels,
        predict,
        lambda: impulses[:, [next(calls)]],
        level_at=COSINE.level_at,
    )
    last = levels[-1]
    return abs(float(end.norm()) / math.hypot(last.alpha * WIDTH, last.sigma) - 1)


def algebra(file: Path) -> None:
    """τ of neighbours, and the width of what samplers draw from Gaussian data."""
    figure, (left, right) = panels(2)
    for name in ("linear", "cosine", "jsd"):
        schedule = Schedule.make(name, 1000)
        levels = [schedule.level(t) for t in range(0, 1001, 100)]
        new = [tau(now, before) for before, now in pairwise(levels)]
        left.plot(range(100, 1001, 100), new, "o-", ms=4, label=name)
    left.set(xlabel="t, to s = t − 100", ylabel="τ", title="The share of new noise in a step")
    left.legend(frameon=False)

    fixed = {name: VARIANCES[name]() for name in ("fixed_small", "fixed_large")}
    ways = {
        "ddpm, fixed_large": ("ddpm", fixed["fixed_large"]),
        "ddpm, fixed_small": ("ddpm", fixed["fixed_small"]),
        "ddpm, exact variance": ("ddpm", exact_variance),
        "ddim": ("ddim", exact_variance),
        "heun": ("heun", exact_variance),
        "dpmpp_2m": ("dpmpp_2m", exact_variance),
    }
    counts = [4, 8, 16, 32, 64, 128]
    for label, (name, variance) in ways.items():
        errors = [wrong_width(name, n, variance) for n in counts]
        right.loglog(counts, np.maximum(errors, 1e-16), "o-", ms=4, label=label)
        slope = math.log2(errors[-2] / errors[-1]) if errors[-1] > 1e-13 else math.nan
        print(f"{label}: error {errors[2]:.1e} in 16 steps, order {slope:.2f} at the end")
    right.set(xlabel="steps", ylabel="relative error of the width", title="N(0, 0.2²), exact")
    right.legend(frameon=False, fontsize=7, loc="center left")
    figure.savefig(file, dpi=110)


def randomness(file: Path) -> None:
    """The stream of images, cut in steps and in shards."""
    figure, (left, right) = panels(2, 2.6)
    n, batch, steps = 10, 8, 5
    stream = DataOrder(n, seed=0).indices(0, batch * steps).reshape(steps, batch)
    for axis, processes in ((left, 1), (right, 4)):
        axis.imshow(stream, cmap="tab10", vmin=0, vmax=9, aspect="auto")
        for (step, row), image in np.ndenumerate(stream):
            axis.text(row, step, str(image), ha="center", va="center", color="white", fontsize=8)
        for k in range(1, processes):
            axis.axvline(k * batch / processes - 0.5, color="white", lw=4)
        for end in range(n, batch * steps, n):  # where a pass over the images ends
            step, row = divmod(end, batch)
            axis.plot([row - 0.5] * 2, [step - 0.5, step + 0.5], "k", lw=2.5)
        axis.grid(False)
        word = "process" if processes == 1 else "processes"
        axis.set(xlabel="row of the batch", ylabel="step", title=f"{processes} {word}")
    figure.savefig(file, dpi=110)


def evaluation(file: Path) -> None:
    """What distances say of two sets of one distribution, by the number of images."""
    figure, (left, right) = panels(2)
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(48, 48, generator=rng, dtype=torch.float64) / math.sqrt(48)

    def draw(count: int) -> Tensor:
        return torch.randn(count, 48, generator=rng, dtype=torch.float64) @ mix

    reference, counts = draw(4000), [100, 200, 400, 800, 1600]
    statistics = statistics_of(reference)
    found: dict[str, list[list[float]]] = {"FD": [], "FD∞": [], "KD": []}
    for count in counts:
        rows: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(6):
            samples = draw(count)
            infinite = frechet_infinity(samples, statistics)
            rows["FD"].append(frechet_distance(statistics_of(samples), statistics))
            assert infinite is not None  # from 20 samples on
            rows["FD∞"].append(infinite)
            rows["KD"].append(kernel_distance(samples, reference, subsets=20))
        for name in found:
            found[name].append(rows[name])
    for axis, names, title in (
        (left, ("FD", "FD∞"), "Fréchet distance of equal laws"),
        (right, ("KD",), "Kernel distance of equal laws"),
    ):
        for name in names:
            mean = np.mean(found[name], axis=1)
            error = np.std(found[name], axis=1, ddof=1)
            axis.errorbar(counts, mean, error, fmt="o-", ms=4, capsize=3, label=name)
            print(name, *(f"{c}: {m:.4f} ± {e:.4f}" for c, m, e in zip(counts, mean, error)))
        axis.axhline(0, color="k", lw=0.8)
        axis.set(xscale="log", xlabel="samples", title=title)
        axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


def memorisation(file: Path) -> None:
    """The onset of copies against the number of images, as it was measured."""
    figure, (left, right) = panels(2)
    data = json.loads(RESULTS.read_text("utf-8"))
    for kind, colour in (("shapes", "C0"), ("textures", "C1")):
        runs = [run for run in data["runs"] if run["set"] == kind]
        n = np.array([run["images"] for run in runs], float)
        when = np.array([run["onset"] for run in runs])
        slope, low, high = data["slopes"][kind]
        fitted = np.exp(np.log(when).mean() + slope * (np.log(n) - np.log(n).mean()))
        label = f"{kind}: slope {slope:.2f} [{low:.2f}, {high:.2f}]"
        left.loglog(n, when, "o", color=colour, ms=4, label=label)
        left.loglog(np.sort(n), np.sort(fitted), color=colour, lw=1)
    first = [run for run in data["runs"] if run["set"] == "shapes" and run["seed"] == 0]
    for run in first:
        steps, share = zip(*run["looks"])
        passes = np.array(steps) * data["batch_size"] / run["images"]
        right.semilogx(passes, share, "o-", ms=3, label=f"{run['images']} images")
    right.axhline(0.25, color="k", lw=0.8, ls=":")
    left.set(xlabel="training images", ylabel="step of the onset", title="When copies begin")
    right.set(xlabel="passes over the images", title="Share of copies, shapes")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=110)


def few_steps(file: Path) -> None:
    """Levels that are learned, and the consistency function of Gaussian data."""
    figure, (left, right) = panels(2)
    starts = torch.randn(96, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampler, steps = make_sampler("dpmpp_2m"), 6

    def follow(x: Tensor, levels: tuple[float, ...], solver: object = sampler) -> Tensor:
        ladder = [COSINE.level(t) for t in (*levels, 0)]
        return walk(solver, x, ladder, ring_predict, COSINE.level_at)

    many = tuple(fixed_levels(COSINE, 150)["log_snr, between levels"])
    ends, truth = (follow(x, many, make_sampler("dpmpp_3m")) for x in (starts, fresh))
    learned = learn_levels(
        sampler,
        COSINE,
        lambda rows: ring_predict,
        starts,
        ends,
        steps,
        iterations=40,
        batch_size=96,
    ).levels
    rows = {name: fixed_levels(COSINE, steps)[name] for name in ("trailing", "quadratic")}
    rows["learned"] = learned
    for y, (name, levels) in enumerate(rows.items()):
        at = [COSINE.level(t).log_snr for t in levels]
        error = float((follow(fresh, tuple(levels)) - truth).norm(dim=1).mean())
        left.plot(at, [y] * len(at), "o-", label=name)
        left.text(at[0], y + 0.15, f"{name}: error {error:.4f}", fontsize=8)
        print(f"{name}: {error:.4f}")
    left.set(xlabel="log-SNR", yticks=[], ylim=(-0.4, 2.6), title="6 calls, 8 Gaussian blobs")

    noise = np.geomspace(0.01, 20, 60)
    right.loglog(noise, WIDTH**2 / (WIDTH**2 + noise**2), "k--", lw=1, label="denoiser")
    pairs = ConsistencyPairs()
    cleanest = float(COSINE.sigma[1] / COSINE.alpha[1])
    for stage in range(4):
        gains = [gain(float(t), pairs, stage, cleanest) for t in noise]
        right.loglog(noise, gains, lw=1, label=f"after stage {stage + 1}")
    right.loglog(noise, WIDTH / np.hypot(WIDTH, noise), "k", lw=1.5, label="exact jump")
    right.set(xlabel="t̃ = σ/α", title="What is left of an offset, N(0, 0.2²)")
    right.legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=110)


def gain(noise: float, pairs: ConsistencyPairs, stage: int, cleanest: float) -> float:
    """Return the factor of an offset in the answer of a stage that was trained to its end: the
    product over the pairs down to clean data.
    """
    factor = 1.0
    while noise > 0.0:
        earlier = float(pairs.partner(torch.tensor(noise, dtype=torch.float64), stage))
        earlier = earlier if earlier >= cleanest else 0.0
        factor *= (WIDTH**2 + earlier * noise) / (WIDTH**2 + noise**2)
        noise = earlier
    return factor


FIGURES = {
    "algebra": algebra,
    "randomness": randomness,
    "evaluation": evaluation,
    "memorisation": memorisation,
    "few_steps": few_steps,
}


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        FIGURES[name](args.output / f"method-{name}.png")


if __name__ == "__main__":
    main()
