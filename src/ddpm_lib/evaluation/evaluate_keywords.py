"""The options of `evaluate(...)` as keywords that type checkers and editors see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict


class EvaluateKeywords(TypedDict, total=False):
    """The fields of `EvaluationOptions`, which documents and checks them."""

    metrics: str | Sequence[str]
    data: str | os.PathLike[str]
    reference: str | os.PathLike[str] | None
    held_out: str | os.PathLike[str] | None
    features: str | Sequence[str]
    references: bool
    feature_weights: str | os.PathLike[str] | None
    image_size: int | None
    reader: Literal["training", "torch-fidelity"]
    on_bad_image: Literal["error", "skip"] | None
    background: str | None
    value_range: tuple[float, float] | None
    frames: Literal["first", "all"] | None
    normalize: Literal["affine", "quantile"] | None
    max_pixels: int | None
    save_stats: str | os.PathLike[str] | None
    split: str | None
    condition: str | Sequence[str]
    data_root: str | None
    download: bool
    num: int | None
    checkpoint: str | int
    weights: Literal["ema", "model"]
    ema_decay: float | None
    num_levels: int | None
    num_steps: int | None
    tolerance: float
    flow_group: int
    sampler: str | None
    sample_steps: int | None
    spacing: str | None
    eta: float | None
    guidance_scale: float | None
    guide_by: str | None
    guide_scale: float | None
    batch_size: int
    seed: int
    device: str
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    compile: bool
    progress: bool
