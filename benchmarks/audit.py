"""`ddpm audit` on real sets with planted copies: how many are found, how many others, at what cost.

python benchmarks/audit.py cifar PARQUET [--images 50000] [--per-kind 100] [--sheet pairs.png]
python benchmarks/audit.py folder FOLDER [--per-kind 40]

Copies of eight kinds are made of images drawn from the set, the files read as they come from the
audit itself; every other pair that it finds is counted as a false alarm, and drawn, so that the
real copies among them can be told by eye.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

import ddpm_lib

Kind = Callable[[Image.Image, np.random.Generator], Image.Image]


def saved_again(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=int(rng.integers(40, 81)))
    return Image.open(io.BytesIO(raw.getvalue())).convert("RGB")


def cut(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    w, h = picture.size
    side = rng.uniform(0.8, 0.95)
    width, height = round(w * side), round(h * side)
    x, y = int(rng.integers(0, w - width + 1)), int(rng.integers(0, h - height + 1))
    part = picture.crop((x, y, x + width, y + height))
    return part.resize((w, h), Image.Resampling.BICUBIC) if rng.random() < 0.5 else part


def scaled(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = float(rng.choice([0.5, 0.75, 1.5, 2.0, 3.0]))
    size = max(8, round(picture.width * factor)), max(8, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def brighter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(float(rng.choice([0.7, 0.8, 1.2, 1.35])))


def bordered(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    w, h = picture.size
    thick = max(2, round(min(w, h) * rng.uniform(0.06, 0.2)))
    colour = (int(rng.choice([0, 128, 255])),) * 3
    frame = Image.new("RGB", (w + 2 * thick, h + 2 * thick), colour)
    frame.paste(picture, (thick, thick))
    return frame


def turned(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = float(rng.uniform(1, 5) * rng.choice([-1, 1]))
    return picture.rotate(angle, Image.Resampling.BICUBIC)


def noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(picture).astype(float)
    values = values + rng.normal(0, rng.uniform(3, 9), values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


KINDS: dict[str, Kind] = {
    "exact": lambda picture, rng: picture.copy(),
    "saved again": saved_again,
    "mirrored": lambda picture, rng: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cut": cut,
    "scaled": scaled,
    "brighter": brighter,
    "bordered": bordered,
    "turned": turned,
    "noisy": noisy,
}


def read(args: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Return encoded files and their names."""
    if args.set == "folder":
        files = sorted(p for p in Path(args.data).rglob("*.jpg") if "contours" not in p.parts)
        return [p.read_bytes() for p in files], [str(p.relative_to(args.data)) for p in files]
    import pyarrow.parquet as pq

    table = pq.read_table(args.data, use_threads=False).slice(0, args.images)
    column = next(name for name in ("img", "image") if name in table.column_names)
    cells = [cell["bytes"] for cell in table.column(column).to_pylist()]
    return cells, [str(k) for k in range(len(cells))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("cifar", "folder"))
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--sheet")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    import pandas as pd

    cells, names = read(args)
    n, rng = len(cells), np.random.default_rng(7)
    chosen = rng.permutation(n)[: args.per_kind * len(KINDS)]
    planted: list[tuple[str, int]] = []
    for k, row in enumerate(chosen.tolist()):
        kind = list(KINDS)[k % len(KINDS)]
        picture = Image.open(io.BytesIO(cells[row])).convert("RGB")
        raw = io.BytesIO()
        KINDS[kind](picture, rng).save(raw, "PNG")
        cells.append(raw.getvalue())
        planted.append((kind, row))
    frame = pd.DataFrame({"image": cells})
    begun = time.monotonic()
    found = ddpm_lib.audit(frame, num_workers=args.workers, log=print)
    pairs = found.search.pairs
    both = {(int(a), int(b)) for a, b in zip(pairs.first, pairs.second)}
    for groups in (found["exact"].groups,):
        both |= {(min(a, b), max(a, b)) for g in groups for a in g for b in g if a != b}
    rates = {}
    for kind in KINDS:
        hits = [(row, n + k) in both for k, (name, row) in enumerate(planted) if name == kind]
        rates[kind] = float(np.mean(hits))
    others = sorted(pair for pair in both if pair[1] < n)
    flagged = {row for pair in others for row in pair}
    print(found)
    result = {
        "images": n + len(planted),
        "planted": len(planted),
        "found": rates,
        "found_of_all": float(np.mean([(r, n + k) in both for k, (_, r) in enumerate(planted)])),
        "other_pairs": len(others),
        "images_in_other_pairs": len(flagged),
        "share": len(flagged) / n,
        "trial_copies": found.search.probes,
        "decoys": [found.search.alarms, found.search.decoys],
        "agreement_needed": found.search.needed,
        "cpu_seconds": round(found.cpu_seconds, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(result, indent=1))
    for a, b in others[:40]:
        print(names[a], names[b])
    if args.sheet:
        sheet(cells, others, args.sheet)


def sheet(cells: list[bytes], pairs: list[tuple[int, int]], path: str) -> None:
    """Draw pairs side by side."""
    shown = pairs[:: max(1, len(pairs) // 96)][:96]
    canvas = Image.new("RGB", (12 * 140, -(-len(shown) // 12) * 72), "white")
    for k, pair in enumerate(shown):
        for side, row in enumerate(pair):
            picture = Image.open(io.BytesIO(cells[row])).convert("RGB").resize((64, 64))
            canvas.paste(picture, ((k % 12) * 140 + side * 66, (k // 12) * 72))
    canvas.save(path)


if __name__ == "__main__":
    main()
