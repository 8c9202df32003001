"""The same processor time and as many parameters for this library and denoising-diffusion-pytorch.

    python benchmarks/equal_budget.py train --minutes 120 --cifar DIR --arms default
    python benchmarks/equal_budget.py train --minutes 120 --cifar DIR --arms likelihood
    python benchmarks/equal_budget.py train --minutes 120 --cifar DIR --arms lucidrains-equal
    python benchmarks/equal_budget.py table --minutes 120
    python benchmarks/equal_budget.py page --minutes 120       # fill docs/performance.md

All train on 30,000 images of CIFAR-10 by the commands of quality.py, which has the arms, the
distances and the pictures (`default` and `cosine`: 1.20 M parameters; `likelihood`: 1.19 M, for few
bits per dimension; `lucidrains-equal`: 1.29 M, the other settings as its README has them). The
table adds what weights say: the bound on bits/dim of held-out images, and the error of the clean
image by the noise's level, both by this library's code, into which the peer's weights are
converted. Start trainings at the same time where a machine has the cores, so that they find the
same machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import quality
from ddpm_lib import GaussianDiffusion, load_run
from ddpm_lib.core.files import write_atomically
from ddpm_lib.data import open_dataset
from quality_sets import SETS, SIDE, Sources, prepare

ARMS = ("default", "cosine", "likelihood", "lucidrains-equal")
ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs" / "performance.md", ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results" / "equal_budget.json"
MADE = re.compile(r"(?<=<!-- equal budget -->\n).*?(?=<!-- end of equal budget -->)", re.S)
LOG_SNRS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
GAP = 8
IMAGES, LEVELS = 256, 16
"""Held-out images, and levels of each that the bound is estimated from."""


def process_of(arm: str, run: Path) -> GaussianDiffusion:
    """Return the averaged process of a run."""
    if arm in quality.PEERS:
        weights, run = str(run / "model-last.pt"), run / "converted"
        if not run.is_dir():
            command = ["convert", weights, str(run), "--image-size", str(SIDE)]
            subprocess.run([sys.executable, "-m", "ddpm_lib.cli", *command], check=True)
    return load_run(run).diffusion


@torch.inference_mode()
def errors(process: GaussianDiffusion, images: torch.Tensor) -> dict[str, float]:
    """Return the mean squared error of x̂_0, in [-1, 1] units, at the level nearest to each
    log-SNR; the noise of an image is the same for every process.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    clean, found = 2.0 * images - 1.0, {}
    levels = [process.schedule.level(t) for t in range(1, process.timesteps)]
    process.model.eval()
    for wanted in LOG_SNRS:
        level = min(levels, key=lambda one: abs(one.log_snr - wanted))
        alpha, sigma = (torch.full((len(images), 1, 1, 1), v) for v in (level.alpha, level.sigma))
        guess, _ = process.denoiser.estimate(
            alpha * clean + sigma * noise, alpha, sigma, torch.full((len(images),), level.t), None
        )
        found[f"{wanted:g}"] = float((guess - clean).square().mean())
    return found


def judge(name: str, arm: str, minutes: float, root: Path) -> dict[str, Any]:
    """Return everything that is known of a run, measured once."""
    label = f"{name}-{arm}-{minutes:g}-0"
    file = root / "judged" / f"{label}.json"
    if not file.is_file():
        known = json.loads((root / "results" / f"{label}.json").read_text(encoding="utf-8"))
        process = process_of(arm, root / "runs" / label)
        held = open_dataset(str(root / "sets" / name / "held_out"), image_size=SIDE)
        pixels = held.batch(list(range(min(IMAGES, len(held)))))["image"]
        bound = process.bits_per_dim(pixels, num_levels=LEVELS)
        known["bits_per_dim"] = float(bound.total.mean())
        known["bits_per_dim_error"] = float(bound.total.std() / len(pixels) ** 0.5)
        known["errors"] = errors(process, pixels.float() / 255)
        known["parameters"] = sum(p.numel() for p in process.model.parameters())
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(known, indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown, a column per arm."""
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [f"{one['parameters'] / 1e6:.2f} M" for one in found]),
        ("core-seconds", [f"{one['cpu_seconds']:,.0f}" for one in found]),
        ("steps", [f"{one['steps']:,}" for one in found]),
        (
            "bits/dim, bound",
            [f"{one['bits_per_dim']:.3f} ± {one['bits_per_dim_error']:.3f}" for one in found],
        ),
    ]
    rows += [
        (f"error of x̂_0 at log-SNR {k}", [f"{one['errors'][k]:.4f}" for one in found])
        for k in found[0]["errors"]
    ]
    rows += [
        (title, [f"{one[name]:.3g}" for one in found]) for name, title in quality.MEASURES.items()
    ]
    head = ["", *(one["arm"] for one in found)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join([what, *cells]) + " |" for what, cells in rows])


def page(found: list[dict[str, Any]], grids: list[Path]) -> None:
    """Store what was found, fill the page, and draw two rows of samples per arm."""
    write_atomically(RESULTS, json.dumps(found, indent=1) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MADE.sub(lambda _: f"\n{table(found)}\n\n", text), encoding="utf-8")
    rows = [Image.open(grid).convert("RGB") for grid in grids]
    rows = [grid.crop((0, 0, grid.width, 2 * SIDE)) for grid in rows]
    drawn = Image.new("RGB", (rows[0].width, len(rows) * (2 * SIDE + GAP) - GAP), "white")
    for k, row in enumerate(rows):
        drawn.paste(row, (0, k * (2 * SIDE + GAP)))
    drawn.save(FIGURES / "equal-budget.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    training = parts.add_parser("train", help="train, draw and measure what is not there yet")
    training.add_argument("--cifar", type=Path, help="folder of train.parquet and test.parquet")
    tables = parts.add_parser("table", help="what the weights say, and all of it as a table")
    filling = parts.add_parser("page", help="the table and a picture in docs/performance.md")
    for each in (training, tables, filling):
        each.add_argument("--set", choices=SETS, default="cifar-30000")
        each.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
        each.add_argument("--minutes", type=float, default=120.0)
        each.add_argument("--root", type=Path, default=Path("runs/equal_budget"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.what == "train":
        if prepare(asked.set, asked.root / "sets", Sources(cifar=asked.cifar)) is None:
            parser.error(f"{asked.set}: its images are not here; --cifar says where they are.")
        quality.SHORT, quality.LONG = 100, 400  # a long run asks for a better guess
        for arm in asked.arms:
            quality.train(asked.set, arm, asked.minutes, 0, asked.root)
        return 0
    labels = {arm: f"{asked.set}-{arm}-{asked.minutes:g}-0" for arm in asked.arms}
    trained = [a for a in asked.arms if (asked.root / "results" / f"{labels[a]}.json").is_file()]
    if not trained:
        parser.error(f"{asked.root} holds no finished training of {asked.set}: `train` makes them.")
    found = [judge(asked.set, arm, asked.minutes, asked.root) for arm in trained]
    if asked.what == "table":
        print(table(found))
    else:
        page(found, [asked.root / "grids" / f"{labels[arm]}.png" for arm in trained])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
