"""A run with a condition that goes on with more images, also in a process of its own for tests that
kill it: run_growing.py RUN KIND ADDED STOP [KILL].
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

N = (20, 10, 6)
"""Images of the sets: what is begun with, and two additions."""
ENCODER = "letters-that-grow"
TABLES: dict[str, dict[str, Any]] = {
    "mask": {"kind": "mask", "classes": 4},
    "image": {"kind": "image", "channels": 1},
    "text": {"kind": "text", "size": 6, "encoder": ENCODER},
}


def letters(texts: list[str]) -> list[list[float]]:
    return [[text.count(letter) + 0.1 * len(text) for letter in "abdenr"] for text in texts]


def write_sets(root: Path, kind: str) -> list[np.ndarray]:
    """Write set0, set1, set2 with what belongs to each beside; return their values."""
    found = []
    for k, n in enumerate(N):
        of = np.random.default_rng(k)
        (root / f"set{k}").mkdir()
        (root / f"with{k}").mkdir()
        lines, values = ["file_name,text"], []
        for i in range(n):
            name = f"{100 * k + i:03d}.png"
            pixels = of.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"set{k}" / name)
            text = "abdenr"[i % 6] * (1 + i + k)
            lines.append(f"{name},{text}")
            beside = of.integers(0, 4 if kind == "mask" else 256, (8, 8), dtype=np.uint8)
            Image.fromarray(beside).save(root / f"with{k}" / name)
            values.append(letters([text])[0] if kind == "text" else beside)
        (root / f"with{k}" / "texts.csv").write_text("\n".join(lines))
        found.append(np.array(values, dtype=np.float32 if kind == "text" else np.uint8))
    return found


def words(root: Path, kind: str, k: int) -> str:
    if kind == "text":
        return f"extra={root / f'with{k}' / 'texts.csv'}:text,encoder={ENCODER}"
    more = ",channels=1" if kind == "image" else ""
    return f"extra={root / f'with{k}'},kind={kind}{more}"


def growing(root: Path, run: Path, kind: str, added: int, stop: int, *callbacks: Any) -> Any:
    """Return a trainer that goes on with so many additions until a step."""
    from ddpm_lib.nn import register_text_encoder
    from training_helpers import StopAt, tiny_diffusion, tiny_trainer

    register_text_encoder(ENCODER, letters)
    return tiny_trainer(
        run,
        tiny_diffusion(conditions={"extra": TABLES[kind]}),
        str(root / "set0"),
        add_data=[str(root / f"set{k}") for k in range(1, 1 + added)],
        condition=(words(root, kind, 0),),
        add_condition=tuple(words(root, kind, k) for k in range(1, 1 + added)),
        callbacks=[StopAt(stop), *callbacks],
        num_workers=0,
        val_every=2,
        val_fraction=0.2,
        save_every=1,
    )


if __name__ == "__main__":
    from training_helpers import At

    torch.set_num_threads(1)
    where, sort, count, last, *at = sys.argv[1:]
    kill = [At(int(step), lambda trainer: os.kill(os.getpid(), signal.SIGKILL)) for step in at]
    place = Path(where)
    sys.exit(growing(place.parent, place, sort, int(count), int(last), *kill).train().exit_code)
