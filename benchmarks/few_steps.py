"""Which sampler and which levels are best in few network calls: with exact denoisers, and of a run.

    python benchmarks/few_steps.py exact --data cifar10/test.parquet --image-column img emoji.npz
    python benchmarks/few_steps.py fixed --data ring moons emoji.npz --calls 4 6 8 10 14 20 30 50
    python benchmarks/few_steps.py run runs/mine --data path/to/images --num 256

exact: images in their first 96 principal components, as a mixture of 24 Gaussians, whose denoiser
is known in closed form. The error is the distance to where the probability-flow ODE ends from the
same noise (root mean square), and how far the spread in the 56 finest directions is off (mean
|log ratio|). `ring` is eight blobs on a circle and `moons` two half moons of 80 blobs, in place of
images: points of two numbers.

fixed: the same, but the mean over starts of their root mean square distance; of the default, of
trailing DDIM, and of what is best, with hindsight for each number of calls and each set, among
seven solvers on each of eight fixed spacings.

run: Fréchet distances of samples to the images, in features of the VGG-16 trunk and in pixels
averaged to 8×8, precision and recall; all variants begin with the same noise.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib import load_run
from ddpm_lib.data import open_dataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics import (
    frechet_of_features,
    make_extractor,
    manifolds,
    statistics_of,
    to_rgb,
)
from ddpm_lib.process.conditions import class_count
from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.samplers import Prediction, UniPC, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.variance import FixedSmall

Options = dict[str, Any]
VARIANTS: dict[str, Options] = {
    "default": {},
    "ddim, trailing": {"sampler": "ddim", "spacing": "trailing"},
    "dpmpp_2m, trailing": {"sampler": "dpmpp_2m", "spacing": "trailing"},
    "dpmpp_2m, log_snr": {"sampler": "dpmpp_2m", "spacing": "log_snr"},
    "dpmpp_2m, mixed": {"sampler": "dpmpp_2m", "spacing": "mixed"},
    "unipc, trailing": {"sampler": "unipc", "spacing": "trailing"},
    "unipc, log_snr from 0.02 to 80": {
        "sampler": "unipc",
        "spacing": "log_snr",
        "spacing_options": {"sigma_min": 0.02, "sigma_max": 80.0},
    },
}
FIXED_SPACINGS: dict[str, Options] = {
    **{name: {"spacing": name} for name in ("trailing", "linspace", "leading", "quadratic")},
    "log_snr": {"spacing": "log_snr"},
    **{
        f"{name} from 0.02 to {top}": {
            "spacing": name,
            "spacing_options": {"sigma_min": 0.02, "sigma_max": float(top)},
        }
        for name, top in (("log_snr", 80), ("log_snr", 20), ("karras", 80))
    },
}
SOLVERS: dict[str, Options] = {
    **{name: {"sampler": name} for name in ("ddim", "dpmpp_2m", "dpmpp_3m", "deis", "heun")},
    **{f"unipc {k}": {"sampler": UniPC(order=k)} for k in (2, 3)},
}
COMPONENTS, DIRECTIONS, COARSE, STARTS = 24, 96, 40, 96
Mixture = tuple[Tensor, Tensor, Tensor]


def ring() -> Mixture:
    """Return eight narrow Gaussians on a circle."""
    turn = torch.arange(8).double() * (math.pi / 4)
    centres = 0.7 * torch.stack([turn.cos(), turn.sin()], 1)
    return centres, torch.full((2,), 0.08**2).double(), torch.zeros(8).double()


def moons() -> Mixture:
    """Return two interleaved half moons, 40 narrow Gaussians each."""
    turn = torch.linspace(0, math.pi, 40).double()
    upper = torch.stack([turn.cos(), turn.sin()], 1)
    lower = torch.stack([1.0 - turn.cos(), 0.5 - turn.sin()], 1)
    centres = 0.55 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25]))
    return centres, torch.full((2,), 0.05**2).double(), torch.zeros(80).double()


TOYS = {"ring": ring, "moons": moons}


def mixture(images: Tensor) -> Mixture:
    """Return centres (k, d), the variance of each direction (d,) and log shares (k,) of a mixture
    of Gaussians that is like these images, in [-1, 1] units of their principal components.
    """
    x = images.double().flatten(1) / 127.5 - 1.0
    mean = x.mean(0)
    basis = torch.linalg.svd(x - mean, full_matrices=False)[2][:DIRECTIONS]
    z = (x - mean) @ basis.T
    start = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:COMPONENTS]
    centres = z[start]
    for _ in range(10):
        nearest = torch.cdist(z, centres).argmin(1)
        own = [z[nearest == k] for k in range(COMPONENTS)]
        centres = torch.stack(
            [part.mean(0) if len(part) else centres[k] for k, part in enumerate(own)]
        )
    nearest = torch.cdist(z, centres).argmin(1)
    shares = torch.bincount(nearest, minlength=COMPONENTS).double() / len(z)
    return centres, (z - centres[nearest]).square().mean(0) + 1e-5, (shares + 1e-9).log()


class Exact:
    """Draws from a mixture of Gaussians with its exact denoiser, always from the same noise."""

    def __init__(self, parts: Mixture) -> None:
        self.centres, self.spread, self.shares = parts
        self.schedule = Schedule.make("cosine", 1000)
        generator = torch.Generator().manual_seed(1)
        size = (STARTS if len(self.spread) > 2 else 10 * STARTS, len(self.spread))
        self.start = torch.randn(size, generator=generator, dtype=torch.float64)
        fine = {"spacing": "log_snr", "spacing_options": {"fractional": True}}
        self.truth = self.draw(sampler=UniPC(order=3), num_steps=400, **fine)

    def predict(self, x: Tensor, level: Level) -> Prediction:
        """Return the mean of clean points, for x (b, d)."""
        variance = level.alpha**2 * self.spread + level.sigma**2
        away = x[:, None] - level.alpha * self.centres
        own = torch.softmax(self.shares - 0.5 * (away.square() / variance).sum(-1), -1)
        x0 = (own[..., None] * (self.centres + level.alpha * self.spread / variance * away)).sum(1)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())

    def draw(self, **options: Any) -> Tensor:
        """Return end points, (b, d), drawn as `GaussianDiffusion.sample` does with options."""
        plan = SamplingPlan.make(self.schedule, **options)
        return sample_loop(
            plan.sampler,
            self.start,
            plan.levels,
            self.predict,
            _no_noise,
            level_at=self.schedule.level_at,
        )

    def apart(self, **options: Any) -> float:
        """Return the mean over starts of the root mean square distance to the true end points."""
        found = self.draw(**options) - self.truth
        return float(found.square().mean(1).sqrt().mean())


def exact(parts: Mixture, calls: list[int]) -> None:
    """Print the errors of all variants on a mixture."""
    subject = Exact(parts)
    truth = subject.truth

    def row(name: str, found: Tensor) -> str:
        apart = float((found - truth).square().mean().sqrt())
        fine = slice(COARSE if truth.shape[1] > COARSE else 0, None)
        ratio = (found[:, fine].std(0) / truth[:, fine].std(0)).log()
        return f"{name:<34}{apart:>10.4f}{float(ratio.abs().mean()):>10.4f}"

    print(f"\n{'':<34}{'distance':>10}{'spread':>10}")
    print(row("ddim in 100, trailing", subject.draw(sampler="ddim", num_steps=100)))
    for count in calls:
        for name, options in VARIANTS.items():
            print(row(f"{name} in {count}", subject.draw(**options, num_steps=count)))


def fixed(parts: Mixture, calls: list[int]) -> None:
    """Print the default beside the best of all solvers on all fixed spacings."""
    subject = Exact(parts)
    print(f"{'calls':>5}{'default':>9}{'ddim':>9}{'best fixed':>12}")
    for count in calls:
        found = []
        for solver, how in SOLVERS.items():
            steps = (count + 1) // 2 if solver == "heun" else count
            for spacing, where in FIXED_SPACINGS.items():
                error = subject.apart(**how, **where, num_steps=steps)
                found.append((error, f"{solver}, {spacing}"))
        usual = subject.apart(num_steps=count)
        ddim = subject.apart(sampler="ddim", num_steps=count)
        best, name = min(found)
        print(f"{count:>5}{usual:>9.4f}{ddim:>9.4f}{best:>12.4f}  {name}", flush=True)


def _no_noise() -> Tensor:
    raise AssertionError("all of these are deterministic")


def of_run(run: str, images: Tensor, num: int, calls: list[int]) -> None:
    """Print distances of a run's samples to images."""
    process = load_run(run).diffusion
    network = make_extractor("hedvgg", ["256", "512"], "cpu")

    def features(pictures: Tensor) -> dict[str, Tensor]:
        parts = [network(part) for part in to_rgb(pictures).split(100)]
        found = {k: torch.cat([part[k] for part in parts]) for k in ("256", "512")}
        return {**found, "8x8": F.adaptive_avg_pool2d(pictures.float() / 255, 8).flatten(1)}

    reference = features(images)
    gaussians = {name: statistics_of(values) for name, values in reference.items()}
    classes = class_count(process.conditioners)
    cond = {"class_label": torch.arange(num) % classes} if classes else None
    print(f"\n{'':<34}{'stage 3':>9}{'stage 5':>9}{'8×8':>9}{'precision':>11}{'recall':>8}")

    def show(name: str, **options: Any) -> None:
        drawn = process.sample(num, cond=cond, seed=1, batch_size=64, **options)
        own = features(to_uint8(drawn))
        far = [frechet_of_features(own[k], gaussians[k])[0] for k in ("256", "512", "8x8")]
        ball = manifolds(own["256"], reference["256"])
        shares = f"{float(ball.precision.mean()):>11.2f}{float(ball.recall.mean()):>8.2f}"
        print(f"{name:<34}" + "".join(f"{value:>9.3f}" for value in far) + shares, flush=True)

    show("ddim in 100, trailing", sampler="ddim", num_steps=100)
    for count in calls:
        for name, options in VARIANTS.items():
            show(f"{name} in {count}", num_steps=count, **options)


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("exact", "fixed", "run"))
    parser.add_argument("run", nargs="?", help="a run directory or a checkpoint, for `run`")
    parser.add_argument(
        "--data", required=True, nargs="+", help="images, as for ddpm train; ring, moons"
    )
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--image-column")
    parser.add_argument("--num", type=int, default=256, help="samples of a run")
    parser.add_argument("--calls", type=int, nargs="+", default=[20])
    options = parser.parse_args()
    if (options.what == "run") != (options.run is not None):
        parser.error("`run` needs a run directory, `exact` and `fixed` take none.")
    of_mixture = {"exact": exact, "fixed": fixed}.get(options.what)
    for source in options.data:
        if of_mixture and source in TOYS:
            print(source)
            of_mixture(TOYS[source](), options.calls)
            continue
        column = options.image_column if source.endswith(".parquet") else None
        data = open_dataset(source, image_size=options.image_size, image_column=column)
        images = data.batch(list(range(min(len(data), 1500))))["image"]
        print(f"{source}: {len(images):,} images")
        if of_mixture:
            of_mixture(mixture(images), options.calls)
        else:
            of_run(options.run, images, options.num, options.calls)


if __name__ == "__main__":
    main()
