"""Whether conditions are obeyed, where the truth can be computed: size, angle and mask of shapes.

    python benchmarks/conditions.py --steps 1000

Triangles, each turned by an angle of its own, are learned with their size and angle; shapes of all
kinds with their mask. Samples are drawn for conditions of images that were not trained on, and what
they show is measured in their pixels: the size by the area, the angle by the direction of the third
moment, the mask by what differs from the background. "real" is the same measurement of the images
themselves, "chance" that of samples beside the conditions of others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.data import ImageDataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics.condition_readers import mean_iou

SIDE, HELD_OUT, SCALES = 16, 128, (1.0, 2.0)
DEGREES = 180 / np.pi


def foreground(images: np.ndarray) -> np.ndarray:
    """Return how much of each pixel is the shape, (n, h, w) in [0, 1].

    The background is the median of the pixels at the border, the shape's colour that of the pixels
    which are furthest from it; a pixel counts by where it lies between the two. The noise that is
    left in a sample thus adds little to the area, as it would if all that differs from one corner
    counted.
    """
    pixels = images.astype(np.float64)
    n, c, height, width = pixels.shape
    inner = np.zeros((height, width), dtype=bool)
    inner[1:-1, 1:-1] = True
    apart = pixels - np.median(pixels[:, :, ~inner], axis=2)[:, :, None, None]
    flat = apart.reshape(n, c, -1)
    furthest = np.argsort(np.abs(flat).sum(1), axis=1)[:, -(height * width // 20) :]
    colour = np.median(np.take_along_axis(flat, furthest[:, None], axis=2), axis=2)
    along = (flat * colour[:, :, None]).sum(1) / (colour**2).sum(1, keepdims=True).clip(1)
    return np.clip(along, 0, 1).reshape(n, height, width)


def sizes(cover: np.ndarray, slope: float) -> np.ndarray:
    """Return diameters as a share of the side, by the area."""
    found: np.ndarray = slope * np.sqrt(cover.sum((1, 2))) / cover.shape[1]
    return found


def directions(cover: np.ndarray) -> np.ndarray:
    """Return the direction of the third moment in degrees, which turns with a triangle."""
    y, x = np.mgrid[: cover.shape[1], : cover.shape[2]]
    mass = cover.sum((1, 2))
    z = (x + 1j * y)[None] - ((x + 1j * y) * cover).sum((1, 2))[:, None, None] / mass[:, None, None]
    found: np.ndarray = np.angle((cover * z * np.abs(z) ** 2).sum((1, 2))) * DEGREES
    return found


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the angle from b to a in (−180, 180]."""
    return -((b - a + 180) % 360 - 180)


def trained(data: ImageDataset, folder: Path, steps: int) -> GaussianDiffusion:
    """Train a small network on a set with its conditions, and return it with its average."""
    torch.manual_seed(0)
    model = Unet(
        dim=32,
        dim_mults=(1, 2),
        blocks_per_level=1,
        attention_levels=(1,),
        conditions=data.condition_table,
    )
    process = GaussianDiffusion(model, image_size=SIDE, parametrization="x0", weighting="flat")
    options: dict[str, Any] = {"batch_size": 32, "sample_every": 0, "val_every": 0, "ema_decay": ()}
    trainer = Trainer(
        process,
        data,
        output_dir=str(folder),
        max_steps=steps,
        progress=False,
        report=False,
        device="cpu",
        **options,
    )
    common.trained(trainer.train())
    return process.eval()


def drawn(process: GaussianDiffusion, held_out: ImageDataset, guidance: float) -> np.ndarray:
    """Draw a sample for each held-out image by its conditions, uint8 (n, c, h, w)."""
    batch = held_out.batch(range(len(held_out)))
    cond = {name: batch[name] for name in held_out.conditions}
    how: dict[str, Any] = {"num_steps": 12, "guidance_scale": guidance, "progress": False}
    return to_uint8(process.sample(len(held_out), cond=cond, **how)).cpu().numpy()


def row(name: str, unit: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a row of the table: means, and the standard error of that of the samples."""
    error = float(values["samples"].std() / np.sqrt(len(values["samples"])))
    means = {word: float(v.mean()) for word, v in values.items()}
    return {"condition": name, "unit": unit, **means, "error": error}


def triangles(steps: int, folder: Path) -> list[dict[str, Any]]:
    """Learn size and angle of triangles, and measure both."""
    shapes = Shapes(SIDE, n=16384, turned=True)
    assert shapes.labels is not None
    rows = np.flatnonzero(shapes.labels.numpy() == 2)
    values = {name: np.asarray(shapes.column(name))[rows] for name in ("size", "angle")}
    data = shapes.subset(rows).with_conditions(values, angle={"kind": "angle"})
    train, held_out = data.subset(range(HELD_OUT, len(data))), data.subset(range(HELD_OUT))
    process = trained(train, folder, steps)
    real = foreground(held_out.batch(range(HELD_OUT))["image"].numpy())
    known = foreground(train.batch(range(512))["image"].numpy())
    size, angle = (values[name][:HELD_OUT] for name in ("size", "angle"))
    slope = float(np.mean(values["size"][HELD_OUT : HELD_OUT + 512] / sizes(known, 1.0)))
    turned = between(directions(known), values["angle"][HELD_OUT : HELD_OUT + 512])
    offset = np.angle(np.exp(1j * turned / DEGREES).mean()) * DEGREES
    by_scale = {scale: foreground(drawn(process, held_out, scale)) for scale in SCALES}

    def size_errors(cover: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return np.abs(sizes(cover, slope) - asked)

    def angle_errors(cover: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return np.abs(between(directions(cover) - offset, asked))

    found = []
    for name, unit, errors, asked in (
        ("size", "share of the side", size_errors, size),
        ("angle", "degrees", angle_errors, angle),
    ):
        for scale, seen in by_scale.items():
            pairs = {
                "samples": (seen, asked),
                "real": (real, asked),
                "chance": (seen, np.roll(asked, 1)),
            }
            values = {word: errors(*pair) for word, pair in pairs.items()}
            found.append(row(f"{name}, guidance {scale:g}", unit, values))
            if name == "size":
                found[-1]["slope"] = float(np.polyfit(asked, sizes(seen, slope), 1)[0])
    return found


def masks(steps: int, folder: Path) -> dict[str, Any]:
    """Learn shapes by their masks, and measure the overlap."""
    shapes = Shapes(SIDE, n=4096)
    data = shapes.with_conditions(
        {"mask": (np.asarray(shapes.column("mask")) > 0).astype(np.uint8)}
    )
    train, held_out = data.subset(range(HELD_OUT, len(data))), data.subset(range(HELD_OUT))
    process = trained(train, folder, steps)
    batch = held_out.batch(range(HELD_OUT))
    asked, samples = batch["mask"], drawn(process, held_out, 1.0)
    pairs = {
        "samples": (samples, asked),
        "real": (batch["image"].numpy(), asked),
        "chance": (samples, asked.roll(1, 0)),
    }
    overlaps = {
        word: mean_iou(torch.from_numpy(foreground(images) >= 0.5).long(), wanted, 2).numpy()
        for word, (images, wanted) in pairs.items()
    }
    return row("mask", "mean IoU", overlaps)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output")
    options = parser.parse_args()
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        rows = triangles(options.steps, Path(folder) / "triangles")
        rows.append(masks(max(1, options.steps // 5), Path(folder) / "masks"))
    seconds = time.process_time() - began
    print("| condition | samples | real images | chance | unit |")
    print("|---|---|---|---|---|")
    for one in rows:
        cells = (f"{one['samples']:.3g} ± {one['error']:.1g}", f"{one['real']:.3g}")
        print(f"| {one['condition']} | {' | '.join(cells)} | {one['chance']:.3g} | {one['unit']} |")
    for one in rows:
        if "slope" in one:
            print(f"{one['condition']}: measured against asked, a line of slope {one['slope']:.2f}")
    print(f"{options.steps} steps, a fifth of them for masks; {seconds:.0f} s of processor time")
    if options.output:
        told = {
            "steps": options.steps,
            "seconds": seconds,
            "rows": rows,
        }
        Path(options.output).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
