"""Learn points in the plane in seconds, and see what a schedule, a parametrization or a sampler
does to them.

    python examples/toy2d.py --toy swiss_roll
    python examples/toy2d.py --toy ring --parametrization eps --schedule linear --sampler ddpm
    python examples/toy2d.py --toy moons --class-conditional --guidance-scale 3

Writes scatter.png into the run directory and prints distances to the data, next to what a fresh
draw of data of the same size scores: the floor, below which no model can be told from the truth.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Trainer
from ddpm_lib.cli import run_script
from ddpm_lib.core.plots import need_matplotlib, plot_points
from ddpm_lib.data import Toy, toy_points, values_to_points
from ddpm_lib.metrics.distances import energy_distance, histogram_kl, sliced_wasserstein
from ddpm_lib.nn import MLP
from ddpm_lib.samplers import make_sampler, sample_loop
from ddpm_lib.spacing import sampling_levels


@dataclass(kw_only=True)
class Options:
    toy: Literal["ring", "grid", "moons", "swiss_roll", "checkerboard"] = "ring"
    """The data."""
    output_dir: Path | None = None
    """Run directory; default: runs/toy-<toy>. The same command continues a run, so choose another
    for other options.
    """
    max_steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 256
    """Points per step."""
    learning_rate: float = 2e-3
    """Peak learning rate, decaying to zero along a cosine."""
    width: int = 128
    """Width of the network."""
    depth: int = 3
    """Residual blocks of the network."""
    class_conditional: bool = False
    """Also learn which blob, moon or square a point belongs to."""
    timesteps: int = 1000
    """Noise levels of the process."""
    parametrization: str = "v"
    """What the network predicts: eps, x0 or v."""
    schedule: str = "cosine"
    """Noise schedule."""
    weighting: str = "snr_plus_one"
    """Weights of the noise levels in the loss; this one, ‖v − v̂‖², also cares for the small levels
    that fine points need.
    """
    sampler: str = "dpmpp_2m"
    """Sampler."""
    num_steps: int = 30
    """Sampling steps."""
    spacing: str = "log_snr"
    """How the steps are spread. Try trailing: its last step starts at more noise than the blobs are
    wide, and shrinks them.
    """
    guidance_scale: float = 1.0
    """Classifier-free guidance, for class-conditional networks; 1: none."""
    num_samples: int = 5000
    """Points to sample and to measure."""
    seed: int = 0
    """Names all random numbers."""


def make_trainer(options: Options, data: Toy) -> Trainer:
    torch.manual_seed(options.seed)
    classes = data.num_classes if options.class_conditional else None
    if options.class_conditional and classes is None:
        raise SystemExit(f"{options.toy} has no classes. Leave --class-conditional out.")
    diffusion = GaussianDiffusion(
        MLP(width=options.width, depth=options.depth, num_classes=classes),
        image_size=(1,),
        timesteps=options.timesteps,
        schedule=options.schedule,
        parametrization=options.parametrization,
        weighting=options.weighting,
        clip="none",
    )
    return Trainer(
        diffusion,
        data,
        output_dir=str(options.output_dir or f"runs/toy-{options.toy}"),
        max_steps=options.max_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_schedule="cosine",
        warmup_steps=min(100, options.max_steps // 10),
        ema_decay=(0.995,),
        val_every=0,
        sample_every=0,
        save_every=options.max_steps,
        device="cpu",  # so small a network would wait for a GPU
        seed=options.seed,
    )


def trajectories(
    diffusion: GaussianDiffusion, network: nn.Module, options: Options, n: int = 60
) -> Tensor:
    """Return the states (n, levels, 2) of n samples; `sample` would clamp them to the range of
    images.
    """
    generator = torch.Generator().manual_seed(options.seed)
    draw = partial(torch.randn, n, 2, 1, generator=generator)
    levels = [
        diffusion.schedule.level(t)
        for t in sampling_levels(diffusion.schedule, options.num_steps, options.spacing)
    ]
    classes = network.config["num_classes"]
    cond = None if classes is None else {"class_label": torch.arange(n) % classes}
    states: list[Tensor] = []
    sample_loop(
        make_sampler(options.sampler),
        draw(),
        levels,
        partial(diffusion.denoise, cond=cond, model=network.eval()),
        draw,
        level_at=diffusion.schedule.level_at,
        on_state=lambda _, x: states.append(x[..., 0].clone()),
    )
    return torch.stack(states, 1)


def report(toy: Toy, samples: Tensor, seed: int) -> None:
    """Print distances of the samples to fresh data, and those of five further draws of data."""
    n = len(samples)
    fresh = [toy_points(toy.name, n, seed=seed + 1 + k) for k in range(6)]
    measures = {
        "energy distance": energy_distance,
        "sliced W2": sliced_wasserstein,
        "KL(data ‖ samples)": lambda x, _: histogram_kl(x, toy.distribution.log_density),
    }
    for name, measure in measures.items():
        floor = torch.tensor([measure(other, fresh[0]) for other in fresh[1:]])
        value = measure(samples, fresh[0])
        print(
            f"{name:20s}{value:10.5f}     data against data {floor.mean():8.5f} ± {floor.std():.5f}"
        )


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    need_matplotlib()
    data = Toy(options.toy, n=16_384, seed=options.seed)
    trainer = make_trainer(options, data)
    began = time.monotonic()
    result = trainer.train()
    trained = time.monotonic()
    values = trainer.sample(
        options.num_samples,
        sampler=options.sampler,
        num_steps=options.num_steps,
        spacing=options.spacing,
        guidance_scale=options.guidance_scale,
        seed=options.seed,
    )
    samples = values_to_points(values)
    print(
        f"trained in {trained - began:.1f} s, {len(samples):,} samples in"
        f" {time.monotonic() - trained:.1f} s"
    )
    report(data, samples, options.seed)
    ways = trajectories(trainer.diffusion, trainer.averaged_network(), options)
    fresh = toy_points(options.toy, options.num_samples, seed=options.seed + 1)
    path = trainer.output_dir / "scatter.png"
    plot_points(
        {"data": fresh, "samples": samples}, ways, title=f"{options.toy}: {options.sampler}"
    ).savefig(path)
    print(f"wrote {path}")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
