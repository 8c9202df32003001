"""Recipes that were run: `ddpm train IMAGES --hours …` alone, by number of images and side.

    python benchmarks/recipe_runs.py train --emoji FONT --sysu DIR --cifar DIR
    python benchmarks/recipe_runs.py train --only 60-32 300-32 --minutes 10 --emoji FONT
    python benchmarks/recipe_runs.py page        # fill docs/recipes.md, and keep two pages of runs

Each is one command of one thread on the CPU, which plans and trains; this file only writes the
images, reads the records of the run, and draws 32 samples. The photographs are SYSU-Shape and
CIFAR-10, the glyphs those of a font; where no real images are so many and so large, the built-in
shapes stand in. `--commands` prints what would be run. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import quality
import quality_sets
from common import cpu_name
from ddpm_lib import load_run
from ddpm_lib.core.files import write_atomically
from ddpm_lib.images import to_uint8
from ddpm_lib.process.conditions import class_count
from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.verdict import judge
from ddpm_lib.runs.verdict.sentences import headline
from quality_sets import Sources, prepare

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES, PAGES = (ROOT / "docs" / name for name in ("recipes.md", "figures", "pages"))
RESULTS = ROOT / "benchmarks" / "results" / "recipe_runs.json"
MADE = re.compile(r"(?<=<!-- recipe runs -->\n).*?(?=<!-- end of recipe runs -->)", re.S)
KEPT = ("60-32-10", "300-32-10")
"""Runs whose pages are kept in the repository."""
RECIPES: dict[str, tuple[str, int, str]] = {
    "60-32": ("emoji-60", 32, "emoji"),
    "60-64": ("emoji-60", 64, "emoji"),
    "300-32": ("emoji-300", 32, "emoji"),
    "300-64": ("emoji-300", 64, "emoji"),
    "1500-32": ("sysu", 32, "photos of objects, cut out (SYSU-Shape)"),
    "1500-64": ("sysu", 64, "photos of objects, cut out (SYSU-Shape)"),
    "10000-32": ("cifar", 32, "photos (CIFAR-10)"),
    "10000-64": ("shapes-10000", 64, "built-in shapes"),
    "50000-32": ("cifar-50000", 32, "photos (CIFAR-10)"),
    "50000-64": ("shapes-50000", 64, "built-in shapes"),
}
"""Images-side → the set, its side, and words."""
NUM_SAMPLES = 32


def command(name: str, minutes: float) -> list[str]:
    """Return the words after `ddpm`, relative to the root of the runs."""
    chosen, side, _ = RECIPES[name]
    return [
        *("train", f"images/{side}/{chosen}/train", "--image-size", str(side)),
        *("--hours", f"{minutes / 60:.4g}", "--output-dir", f"runs/{name}-{minutes:g}"),
        *("--device", "cpu", "--no-progress"),
    ]


def label_of(one: dict[str, Any]) -> str:
    """Return the name of a run: images, side and minutes."""
    return f"{one['recipe']}-{one['minutes']:g}"


def train(name: str, minutes: float, root: Path, sources: Sources) -> None:
    """Write the images, train, read the records and draw, unless all that was done."""
    label = label_of({"recipe": name, "minutes": minutes})
    result = root / "results" / f"{label}.json"
    if result.is_file():
        return
    chosen, quality_sets.SIDE, _ = RECIPES[name]
    images = prepare(chosen, root / "images" / str(quality_sets.SIDE), sources)
    if images is None:
        print(f"{name}: the images of {chosen} are not here; see --help.")
        return
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ddpm_lib.cli", *command(name, minutes)],
        **{"cwd": root, "check": True, "stdout": subprocess.DEVNULL},
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    clock, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    facts = {"recipe": name, "minutes": minutes, "cpu": cpu_name(), "seconds": clock}
    counted = {"cpu_seconds": used, "images": len(list((images / "train").iterdir()))}
    found = {**facts, **counted, **read(root / "runs" / label)}
    draw(root / "runs" / label, root / "grids" / f"recipe-{label}.png")
    result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(result, json.dumps(found, indent=1) + "\n")
    print(label, found, flush=True)


def read(run: Path) -> dict[str, Any]:
    """Return what the records of a run say."""
    records = read_records(run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    held = [row for row in rows if "val_loss" in row]
    scored: list[dict[str, Any]] = []  # where a training is too short to be scored
    for file in sorted((run / "evaluations").glob("eval-*.json")):
        scored = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return {
        "steps": rows[-1]["step"],
        "passes": rows[-1]["epoch"],
        "held_out": held[-1]["val_loss"],
        "held_out_error": held[-1]["val_loss_error"],
        "verdict": headline(judge(records)),
        "scores": {s["name"]: s["value"] for s in scored if "/" not in s["name"]},
    }


def draw(run: Path, file: Path) -> None:
    """Draw samples of a run as a grid of two rows."""
    process = load_run(run).diffusion
    classes = class_count(process.conditioners) or 0
    cond = {"class_label": torch.arange(NUM_SAMPLES) % classes} if classes else None
    drawn = process.sample(NUM_SAMPLES, cond=cond, seed=1, progress=False)
    quality.picture(to_uint8(drawn), file, columns=16)


def score(one: dict[str, Any], start: str) -> str:
    """Return the score whose name begins so."""
    found = [value for name, value in one["scores"].items() if name.startswith(start)]
    return f"{found[0]:.2f}" if found else "–"


def table(found: list[dict[str, Any]]) -> str:
    """Return the table of the page and the samples."""
    head = [
        *("images", "side", "what", "minutes", "steps", "passes", "loss"),
        *("precision", "recall", "copies", "verdict"),
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in found:
        _, side, what = RECIPES[one["recipe"]]
        what = what.rpartition("(")[2].rstrip(")")
        numbers = [score(one, part) for part in ("precision", "recall", "copies_random")]
        label = label_of(one)
        name = f"[{what}](pages/recipe-{label}.html)" if label in KEPT else what
        cells = [f"{one['images']:,}", f"{side}", name]
        cells.append(f"{one['cpu_seconds'] / 60:.0f} of {one['minutes']:g}")
        cells += [f"{one['steps']:,}", f"{one['passes']:.3g}"]
        cells += [f"{one['held_out']:.4f}", *numbers]
        verdict = one["verdict"].partition(":")[0]
        lines.append("| " + " | ".join([*cells, verdict]) + " |")
    pictures = [
        f"\n{one['images']:,} images of {RECIPES[one['recipe']][1]}×{RECIPES[one['recipe']][1]}, "
        f"{RECIPES[one['recipe']][2]}, {one['minutes']:g} minutes:\n\n"
        f"![Samples of the recipe {label_of(one)}](figures/recipe-{label_of(one)}.png)"
        for one in found
    ]
    machines = ", ".join(sorted({one["cpu"] for one in found}))
    return "\n".join([*lines, *pictures, "", f"On one thread of {machines}.", ""])


def order(one: dict[str, Any]) -> tuple[int, float]:
    """Return the place of a run."""
    return list(RECIPES).index(one["recipe"]), one["minutes"]


def page(root: Path) -> None:
    """Store what was found, and fill the page."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    new = [json.loads(file.read_text("utf-8")) for file in (root / "results").glob("*.json")]
    kept = [one for one in old if label_of(one) not in {label_of(other) for other in new}]
    found = sorted([*kept, *new], key=order)
    write_atomically(RESULTS, json.dumps(found, indent=1) + "\n")
    PAGES.mkdir(exist_ok=True)
    for one in new:
        label = label_of(one)
        shutil.copy(root / "grids" / f"recipe-{label}.png", FIGURES)
        if label in KEPT:
            run = root / "runs" / label
            text = (run / "report.html").read_text(encoding="utf-8")
            here = str(root.resolve())  # where this machine keeps its files
            text = text.replace(f"{here}/", "").replace(here, ".")
            (PAGES / f"recipe-{label}.html").write_text(text, encoding="utf-8")
    text = MADE.sub(lambda _: table(found), PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Train recipes, or fill the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    training = parts.add_parser("train", help="train what is not there yet")
    training.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    training.add_argument("--minutes", type=float, default=10.0)
    training.add_argument("--commands", action="store_true", help="print them and do nothing")
    training.add_argument("--sysu", type=Path, help="clone of sysu-shape-dataset")
    training.add_argument("--cifar", type=Path, help="folder of train.parquet and test.parquet")
    training.add_argument("--emoji", type=Path, help="NotoColorEmoji.ttf")
    filling = parts.add_parser("page", help="fill docs/recipes.md")
    for each in (training, filling):
        each.add_argument("--root", type=Path, default=Path("runs/recipes"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.what == "page":
        page(asked.root)
        return 0
    sources = Sources(asked.sysu, asked.cifar, asked.emoji)
    for name in asked.only:
        if asked.commands:
            print("ddpm", *command(name, asked.minutes))
        else:
            train(name, asked.minutes, asked.root, sources)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
