"""What bf16 costs in quality: error of loss and gradients, and loss curves of bf16 and float32
beside those of two seeds.

    python benchmarks/precision.py --data path/to/sysu-shape-dataset --steps 2000 \\
        --output precision.json

Without --data the built-in shapes are learned. Runs of one seed see the same images, levels and
noise, so that their difference is that of the precision; two seeds differ by all of it, which is
the yardstick.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import common
from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.data import prepare_sysu
from ddpm_lib.nn.memory_format import use_channels_last
from ddpm_lib.runtime.devices import cpu_has_bf16, pick_device


def make(size: int, dim: int, seed: int) -> GaussianDiffusion:
    torch.manual_seed(seed)
    return GaussianDiffusion(Unet(dim, (1, 2, 2)), image_size=size)


def errors(size: int, dim: int, device: str) -> dict[str, float]:
    """Return the relative errors of loss and gradient of one batch against float64, in the
    precisions' default layouts.
    """
    diffusion = make(size, dim, 0)
    for p in diffusion.model.parameters():
        p.data += 0.02 * torch.randn_like(p)  # the layers that start at zero would hide the others
    images, uniform, noise = (
        torch.rand(16, 3, size, size),
        torch.rand(16),
        torch.randn(16, 3, size, size),
    )

    def gradient(
        process: GaussianDiffusion, bf16: bool, dtype: torch.dtype
    ) -> tuple[float, torch.Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = process(
                images.to(device, dtype),
                uniform=uniform.numpy(),
                noise=noise.to(device, dtype),
                reduction="none",
            ).mean()
        loss.backward()
        return float(loss.detach()), torch.cat(
            [p.grad.double().flatten() for p in process.model.parameters() if p.grad is not None]
        )

    exact, truth = gradient(copy.deepcopy(diffusion).double().to(device), False, torch.float64)
    found: dict[str, float] = {}
    for name in ("no", "bf16"):
        process = copy.deepcopy(diffusion).to(device)
        if use_channels_last("auto", device, name):
            process.to(memory_format=torch.channels_last)
        loss, grad = gradient(process, name == "bf16", torch.float32)
        found[f"loss error, {name}"] = abs(loss - exact) / abs(exact)
        found[f"gradient error, {name}"] = float((grad - truth).norm() / truth.norm())
    return found


def train(
    folder: Path, data: Any, args: argparse.Namespace, precision: str, seed: int
) -> dict[int, dict[str, float]]:
    """Train once and return the lines of its metrics by step."""
    trainer = Trainer(
        make(args.image_size, args.dim, seed),
        data,
        output_dir=str(folder),
        max_steps=args.steps,
        batch_size=16,
        seed=seed,
        mixed_precision=precision,
        learning_rate=2e-4,
        lr_schedule="constant",
        warmup_steps=min(100, args.steps),
        log_every=max(1, args.steps // 20),
        sample_every=0,
        val_every=max(1, args.steps // 10),
        val_max_images=128,
        save_every=args.steps,
        progress=False,
        ema_decay=(0.995,),
    )
    common.trained(trainer.train())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    merged: dict[int, dict[str, float]] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return merged


def gap(a: dict[int, dict[str, float]], b: dict[int, dict[str, float]], key: str) -> float:
    """Return the mean relative difference of two curves over their second half."""
    steps = [s for s in a if key in a[s] and s in b and key in b[s] and s > max(a) / 2]
    return statistics.mean(abs(a[s][key] - b[s][key]) / b[s][key] for s in steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="shapes", help="SYSU-Shape, another folder of images, or shapes"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = pick_device("auto")
    if device == "cpu" and not cpu_has_bf16():
        print(
            "This CPU has no bf16 hardware: autocast is emulated here, which is slow but gives the"
            " same numbers."
        )
    found: dict[str, Any] = dict(errors(args.image_size, args.dim, device))
    with TemporaryDirectory() as folder:
        data = args.data
        if data != "shapes" and any(Path(data).glob("*/contours")):
            prepare_sysu(data, Path(folder) / "sysu", size=args.image_size, mode="masked")
            data = str(Path(folder) / "sysu" / "train_data")
        runs = {
            f"{precision} {seed}": train(
                Path(folder) / f"{precision}{seed}", data, args, precision, seed
            )
            for precision, seed in (("no", 0), ("bf16", 0), ("no", 1))
        }
    for key in ("loss", "val_loss"):
        found[f"{key}: bf16 against float32"] = gap(runs["bf16 0"], runs["no 0"], key)
        found[f"{key}: seed 1 against seed 0"] = gap(runs["no 1"], runs["no 0"], key)
        found[f"{key}: last, float32"] = [r[key] for r in runs["no 0"].values() if key in r][-1]
        found[f"{key}: last, bf16"] = [r[key] for r in runs["bf16 0"].values() if key in r][-1]
    for name, value in found.items():
        print(f"{name:36s}{value:12.3e}")
    if args.output:
        args.output.write_text(
            json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, **found}, indent=1)
        )


if __name__ == "__main__":
    main()
