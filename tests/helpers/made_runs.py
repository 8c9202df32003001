"""Run directories with records but without a training, for what reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ddpm_lib.runs.report.sheets import PADDING

TILE = 8


def rows_of(n: int, every: int = 10) -> list[dict[str, Any]]:
    """Rows of a training that goes well: one per step, a validation in each tenth."""
    rows = []
    for k in range(1, n + 1):
        loss = 0.05 + 0.5 / math.sqrt(k)
        row: dict[str, Any] = {"step": k, "images": 32 * k, "epoch": k / 50, "loss": loss}
        row |= {f"loss_q{q}": loss * q / 2.5 for q in (1, 2, 3, 4)}
        row |= {"grad_norm": 1 / k, "learning_rate": 1e-3, "images_per_second": 100.0}
        if k % every == 0:
            row |= {"val_loss": loss * 1.01, "val_loss_error": 0.002, "train_fixed_loss": loss}
            row |= {"val_gap": loss * 0.01, "val_gap_error": 0.001, "val_gap_start": 0.0005}
        rows.append({**row, "seconds": 0.3 * k})
    return rows


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_sheet(
    run: Path, name: str, rows: list[dict[str, Any]], columns: int, **more: Any
) -> None:
    cell = TILE + PADDING
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    picture = noise(len(rows) * cell + PADDING, columns * cell + PADDING, seed=len(name))
    picture.save(folder / f"{name}.png")
    about = {"tile": [TILE, TILE], "columns": columns, "rows": rows, **more}
    (folder / f"{name}.json").write_text(json.dumps(about), encoding="utf-8")


def about_of(word: str = "cats") -> dict[str, Any]:
    return {
        "command": f"ddpm train {word}",
        "directory": f"/home/{word}",
        "git": {"commit": "a" * 40, "dirty": True, "describe": word},
        "versions": {"ddpm_lib": "0.1.0", "torch": word},
        "device": {"kind": "cpu", "name": word, "count": 1, "threads": 2},
        "precision": word,
        "parameters": 1_234_567,
        "data": {
            "name": word, "images": 60, "held_out": 6, "size": [8, 8], "channels": 3,
            "class_names": [word, "dog"], "class_counts": [30, 30], "classes_used": True,
            "sizes_note": word, "crop_loss": 0.125, "mean": [0.5, 0.4, 0.3], "std": [0.1] * 3,
        },
        "started": "2026-11-26T12:00:00+00:00",
        "starts": [{"step": 0}],
    }  # fmt: skip


def evaluation_of(word: str = "kid") -> dict[str, Any]:
    scores = [
        {"name": word, "value": 0.0063, "standard_error": 0.003, "interval": [0.001, 0.012],
         "unit": word, "remark": word},
        {"name": f"{word}/noise", "value": 0.7, "standard_error": None, "interval": None,
         "unit": "MMD²", "remark": ""},
    ]  # fmt: skip
    return {
        "scores": scores, "checkpoint": word, "weights": word, "notes": [word], "created": word,
        "samples": {"n": 64, "sampler": word, "steps": 50}, "reference": {"name": word, "n": 60},
    }  # fmt: skip


def make_run(
    run: Path,
    n: int = 100,
    *,
    word: str = "cats",
    status: str = "finished",
    grids: int = 3,
    rows: list[dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """Write a run directory with everything that a run may hold.

    Args:
        run: Where.
        n: Rows of metrics.jsonl.
        word: Stands wherever a run holds text from outside.
        status: Of status.json.
        grids: Sample grids.
        rows: The rows, instead of `rows_of(n)`.
        options: Of config.yaml.
    """
    for name in ("samples", "evaluations"):
        (run / name).mkdir(parents=True, exist_ok=True)
    rows = rows_of(n) if rows is None else rows
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
    step = rows[-1]["step"] if rows else 0
    said = {"status": status, "step": step, "max_steps": max(step, 1), "reason": word}
    (run / "status.json").write_text(json.dumps(said), encoding="utf-8")
    config = {"data": word, "max_steps": n, "sample_sampler": word, "sample_steps": 30,
              "max_grad_norm": 1.0, "model": {"dim": 8, word: [1, 2]}, **options}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (run / "about.json").write_text(json.dumps(about_of(word)), encoding="utf-8")
    for k in range(1, grids + 1):
        noise(32, 32, seed=k).save(run / "samples" / f"step-{k * max(1, n // grids):09d}.png")
    path = run / "evaluations" / "eval-0001.json"
    path.write_text(json.dumps(evaluation_of(word)), encoding="utf-8")
    write_sheet(run, "data", [{"label": word, "images": 3}, {"label": "dog", "images": 4}], 4)
    near = {"train_name": word, "train_distance": 0.1, "held_out_name": word,
            "held_out_distance": 0.2, "ratio": 0.3, "copy": True}  # fmt: skip
    write_sheet(run, "nearest", [near, {**near, "ratio": 0.9, "copy": False}], 3, step=n,
                train=[60, 60], held_out=[6, 6])  # fmt: skip
    return run
