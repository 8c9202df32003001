"""Does a student of `ddpm distill` draw two moons in 2 calls as its teacher does in 50?

    python benchmarks/distilled_moons.py                # about 5 minutes of one thread

A network learns two half moons, `distill` tunes a copy of it, and the energy distance of 2,000
samples to as many fresh points of the moons is measured for eight seeds: of the teacher with DDIM
and with the default, of the student, and of other fresh points, which is as near as one can come.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import common
from ddpm_lib import GaussianDiffusion, Trainer, distill
from ddpm_lib.data.toys import Toy
from ddpm_lib.metrics.distances import energy_distance
from ddpm_lib.nn.mlp import MLP

POINTS, SEEDS = 2000, 8


def fresh(seed: int) -> Tensor:
    """Return points of the moons that nothing was trained on, (n, 2) in [0, 1]."""
    data = Toy("moons", n=POINTS, seed=1000 + seed)
    return data.batch(list(range(POINTS)))["image"].flatten(1).double()


def main() -> None:
    """Train, distil, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000, help="of the teacher's training")
    parser.add_argument("--student-steps", type=int, default=6000)
    parser.add_argument("--stages", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Toy("moons", n=20_000, seed=0)
    quiet: dict[str, Any] = {"device": "cpu", "progress": False, "report": False}
    quiet |= {"sample_every": 0, "val_every": 0}
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        network = MLP(channels=2, width=128, depth=3)
        process = GaussianDiffusion(network, image_size=(1,), parametrization="v")
        began = time.process_time()
        rate = {"learning_rate": 2e-3, "lr_schedule": "cosine", "mixed_precision": "no"}
        more = {"batch_size": 256, "max_steps": options.steps, "horizontal_flip": False}
        trainer = Trainer(process, data, output_dir=str(teacher), **quiet, **rate, **more)
        common.trained(trainer.train())
        learned = time.process_time()
        tuned = distill(
            teacher,
            data,
            max_steps=options.student_steps,
            stages=options.stages,
            num_samples=2000,
            **quiet,
        )
        ended = time.process_time()
        print(tuned)
        print(f"teacher {learned - began:.0f} s, student {ended - learned:.0f} s of one thread")
        from ddpm_lib import load_run

        old, new = load_run(teacher).diffusion, tuned.diffusion
    rows: dict[str, Callable[[int], Tensor]] = {"fresh points": lambda seed: fresh(seed + 500)}
    for name, steps in (("ddim", 50), ("ddim", 20), ("unipc", 20), ("unipc", 8)):
        rows[f"teacher, {name} in {steps}"] = _drawing(old, name, steps)
    for steps in (1, 2, 4):
        rows[f"student in {steps}"] = _drawing(new, "consistency", steps)
    print(f"\n{'':<24}{'energy distance':>16}{'± (95 %)':>12}")
    for name, draw in rows.items():
        found = [energy_distance(draw(seed), fresh(seed)) for seed in range(SEEDS)]
        error = 2.36 * statistics.stdev(found) / SEEDS**0.5
        print(f"{name:<24}{statistics.mean(found):>16.6f}{error:>12.6f}", flush=True)


def _drawing(process: GaussianDiffusion, sampler: str, steps: int) -> Callable[[int], Tensor]:
    def draw(seed: int) -> Tensor:
        found = process.sample(POINTS, sampler=sampler, num_steps=steps, seed=seed, batch_size=2000)
        return found.flatten(1).double()

    return draw


if __name__ == "__main__":
    main()
