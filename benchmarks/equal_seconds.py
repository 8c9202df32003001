"""Training options that are no default, beside the default at equal images and at equal CPU
seconds of training: the tables of docs/failed_experiments.md.

    python benchmarks/equal_seconds.py                   # all, about 15 minutes of one thread
    python benchmarks/equal_seconds.py --show

All train on equally many images first. What takes other seconds than the default then trains
again on as many images as it sees in the default's seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ddpm_lib import Trainer
from ddpm_lib.ablation import ablate

RESULTS = Path(__file__).with_name("results") / "equal_seconds.json"
OPTIONS: dict[str, tuple[str, Any]] = {
    "default": ("lr_schedule", "cosine"),
    "optimizer muon": ("optimizer", "muon"),
    "lr_schedule wsd": ("lr_schedule", "wsd"),
    "immiscible": ("diffusion.immiscible", True),
    "noise_draws 4": ("diffusion.noise_draws", 4),
    "learn_uncertainty": ("diffusion.learn_uncertainty", True),
}
FIXED: dict[str, dict[str, Any]] = {
    "toy:ring": {"batch_size": 256},
    "shapes": {"batch_size": 16, "model.dim": 16, "model.attention_levels": []},
}
"""What all trainings share: the network of the shapes is that of docs/ablation.md."""
IMAGES = {"toy:ring": 102_400, "shapes": 6_400}
SAMPLES = {"toy:ring": None, "shapes": 256}
SEEDS = (0, 1, 2)
CLOSE = 0.05
"""Seconds are equal that differ by so much of them."""


def trained_seconds(train: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Add the CPU seconds of each training to a list."""

    def timed(*given: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return train(*given, **options)
        finally:
            spent.append(time.process_time() - began)

    return timed


def measure(
    data: str, option: str, images: int, seed: int, spent: list[float]
) -> tuple[dict[str, float], float]:
    """Return measures by name, and the CPU seconds of the training."""
    name, value = OPTIONS[option]
    spent.clear()
    with tempfile.TemporaryDirectory() as folder:
        result = ablate(
            data,
            {name: [value]},
            fixed=FIXED[data],
            seeds=(seed,),
            images=images,
            image_size=16,
            num_samples=SAMPLES[data],
            output_dir=f"{folder}/cells",
            device="cpu",
        )
    return result.outcomes[0].measures, spent[0]


def measure_all(data: str, images: dict[str, int], spent: list[float]) -> dict[str, Any]:
    """Measure options for every seed, one seed of all after the other, so that a busy moment of the
    machine is everybody's.
    """
    rows: dict[str, Any] = {
        option: {"images": n, "cpu_seconds": [], "measures": {}} for option, n in images.items()
    }
    for seed in SEEDS:
        for option, row in rows.items():
            found, seconds = measure(data, option, row["images"], seed, spent)
            row["cpu_seconds"].append(seconds)
            for name, one in found.items():
                row["measures"].setdefault(name, []).append(one)
    return rows


def compare(data: str, spent: list[float]) -> dict[str, Any]:
    """Measure every option on one data set, at equal images, then at equal seconds."""
    size, most = FIXED[data]["batch_size"], IMAGES[data]
    measure(data, "default", most // 4 // size * size, 99, spent)  # what a first training pays for
    rows = measure_all(data, dict.fromkeys(OPTIONS, most), spent)
    usual = rows["default"]["cpu_seconds"]
    images = {}
    for option, row in rows.items():
        ratio = statistics.median(a / b for a, b in zip(row["cpu_seconds"], usual))
        if abs(ratio - 1) > CLOSE:
            images[option] = max(1, round(most / ratio / size)) * size
    return {"equal images": rows, "equal seconds": measure_all(data, images, spent)}


def table(rows: dict[str, Any]) -> str:
    """Return rows as Markdown."""
    names = next(iter(rows.values()))["measures"] if rows else ()
    lines = ["option", "images", "CPU s", *names], ["---"] * (3 + len(names))
    told = [f"| {' | '.join(cells)} |" for cells in lines]
    for option, row in rows.items():
        cells = [option, f"{row['images']:,}", f"{statistics.mean(row['cpu_seconds']):.1f}"]
        cells += [
            f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"
            for values in row["measures"].values()
        ]
        told.append(f"| {' | '.join(cells)} |")
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", choices=list(FIXED), default=list(FIXED))
    parser.add_argument("--show", action="store_true", help="print the tables that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    spent: list[float] = []
    Trainer.train = trained_seconds(Trainer.train, spent)  # type: ignore[method-assign]
    for data in given.data:
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        if not given.show:
            known[data] = compare(data, spent)
            RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        for name, rows in known[data].items():
            print(f"{data}, {name}\n\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
