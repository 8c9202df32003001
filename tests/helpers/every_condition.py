"""A run that knows every kind of condition, and how each is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.nn import register_text_encoder

ENCODER = "letters-in-commands"
FAST = ["--device", "cpu", "--no-progress", "--mixed-precision", "no", "--num-steps", "2"]
FAST += ["--weights", "model"]
COMMANDS = ("sample", "edit", "inpaint", "restore")
MASK = torch.arange(64).view(8, 8) % 2
SKETCH = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) * 4
KINDS: dict[str, tuple[str, Any]] = {
    "size": ("0.6", 0.6),
    "turn": ("90", 90.0),
    "spot": ("0.1,0.2,0.9", torch.tensor([0.1, 0.2, 0.9])),
    "colour": ("red", "red"),
    "marks": ("b|c", "b|c"),
    "mask": ("{files}/mask.png", MASK),
    "sketch": ("{files}/sketch.png", SKETCH),
    "caption": ("a red ring", "a red ring"),
}
"""By condition, one of each kind: as it is written for --cond, and in Python."""


def letters(texts: list[str]) -> list[list[float]]:
    return [[float(text.count(letter)) for letter in "abdenr"] for text in texts]


def train(where: Path, drop: float = 0.5, names: tuple[str, ...] = tuple(KINDS)) -> Path:
    register_text_encoder(ENCODER, letters)
    shapes = Shapes(size=8, n=32)
    rng = np.random.default_rng(0)
    colours = shapes.column("colour")
    values: dict[str, Any] = {
        "size": shapes.column("size"),
        "turn": rng.uniform(0, 360, 32),
        "spot": rng.normal(size=(32, 3)),
        "colour": colours,
        "marks": [["a", "a|b", "b|c", "c"][i % 4] for i in range(32)],
        "mask": rng.integers(0, 2, (32, 8, 8)).astype(np.uint8),
        "sketch": rng.integers(0, 256, (32, 1, 8, 8)).astype(np.uint8),
        "caption": [f"a {colour} ring" for colour in colours],
    }
    options: dict[str, dict[str, Any]] = {name: {"drop": drop} for name in names}
    if "turn" in names:
        options["turn"]["period"] = 360.0
    if "caption" in names:
        options["caption"]["encoder"] = ENCODER
    data = shapes.with_conditions({name: values[name] for name in names}, **options)
    torch.manual_seed(0)
    net = Unet(
        dim=8,
        dim_mults=(1, 2),
        blocks_per_level=1,
        attention_levels=(),
        num_classes=6,
        class_drop_prob=0.2,
        conditions=data.condition_table,
    )
    diffusion = GaussianDiffusion(net, image_size=8, timesteps=20, parametrization="eps")
    trainer = Trainer(
        diffusion,
        data,
        output_dir=where,
        max_steps=4,
        batch_size=8,
        learning_rate=0.01,
        lr_schedule="cosine",
        device="cpu",
        mixed_precision="no",
        val_fraction=0,
        sample_every=0,
        progress=False,
    )
    trainer.train()
    return where
