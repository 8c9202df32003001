"""Which sampler and which levels are best in few network calls: with exact denoisers, and of a run.

    python benchmarks/few_steps.py exact --data cifar10/test.parquet --image-column img emoji.npz
    python benchmarks/few_steps.py run runs/mine --data path/to/images --num 256

exact: images in their first 96 principal components, as a mixture of 24 Gaussians, whose denoiser
is known in closed form. The error is the distance to where the probability-flow ODE ends from the
same noise (root mean square), and how far the spread in the 56 finest directions is off (mean
|log ratio|).

run: Fréchet distances of samples to the images, in features of the VGG-16 trunk and in pixels
averaged to 8×8, precision and recall; all variants begin with the same noise.
"""

from __future__ import annotations

import argparse
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
from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.samplers import Prediction, make_sampler, sample_loop
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
COMPONENTS, DIRECTIONS, COARSE, STARTS = 24, 96, 40, 96


def mixture(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def exact(images: Tensor, calls: list[int]) -> None:
    """Print the errors of all variants on the mixture that is like these images."""
    centres, spread, shares = mixture(images)
    schedule = Schedule.make("cosine", 1000)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(STARTS, DIRECTIONS, generator=generator, dtype=torch.float64)

    def predict(x: Tensor, level: Level) -> Prediction:
        variance = level.alpha**2 * spread + level.sigma**2
        away = x[:, None] - level.alpha * centres
        own = torch.softmax(shares - 0.5 * (away.square() / variance).sum(-1), -1)
        x0 = (own[..., None] * (centres + level.alpha * spread / variance * away)).sum(1)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())

    def draw(**options: Any) -> Tensor:
        plan = SamplingPlan.make(schedule, **options)
        return sample_loop(
            plan.sampler, start, plan.levels, predict, _no_noise, level_at=schedule.level_at
        )

    sampler = make_sampler("unipc", {"order": 3})
    fine = {"spacing": "log_snr", "spacing_options": {"fractional": True}}
    truth = draw(sampler=sampler, num_steps=200, **fine)

    def row(name: str, found: Tensor) -> str:
        apart = float((found - truth).square().mean().sqrt())
        ratio = (found[:, COARSE:].std(0) / truth[:, COARSE:].std(0)).log()
        return f"{name:<34}{apart:>10.4f}{float(ratio.abs().mean()):>10.4f}"

    print(f"\n{'':<34}{'distance':>10}{'spread':>10}")
    print(row("ddim in 100, trailing", draw(sampler="ddim", num_steps=100)))
    for count in calls:
        for name, options in VARIANTS.items():
            print(row(f"{name} in {count}", draw(**options, num_steps=count)))


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
    classes = getattr((process.conditioners or {}).get("class_label"), "num_classes", 0)
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
    parser.add_argument("what", choices=("exact", "run"))
    parser.add_argument("run", nargs="?", help="a run directory or a checkpoint, for `run`")
    parser.add_argument("--data", required=True, nargs="+", help="images, as for ddpm train")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--image-column")
    parser.add_argument("--num", type=int, default=256, help="samples of a run")
    parser.add_argument("--calls", type=int, nargs="+", default=[20])
    options = parser.parse_args()
    if (options.what == "run") != (options.run is not None):
        parser.error("`run` needs a run directory, `exact` takes none.")
    for source in options.data:
        column = options.image_column if source.endswith(".parquet") else None
        data = open_dataset(source, image_size=options.image_size, image_column=column)
        images = data.batch(list(range(min(len(data), 1500))))["image"]
        print(f"{source}: {len(images):,} images")
        if options.what == "exact":
            exact(images, options.calls)
        else:
            of_run(options.run, images, options.num, options.calls)


if __name__ == "__main__":
    main()
