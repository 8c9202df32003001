"""The options of `Trainer(...)` as keywords that type checkers and editors see."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class TrainerOptions(TypedDict, total=False):
    """The fields of `TrainingConfig`, which documents and checks them."""

    output_dir: str | None
    resume: str
    override: bool
    init_from: str | None
    init_weights: Literal["auto", "ema", "model"]
    freeze: tuple[str, ...]
    pull_to_start: float
    seed: int
    max_steps: int
    max_hours: float | None
    stop_when: tuple[Literal["overfitting", "copying", "flat"], ...]
    patience: int
    batch_size: int | Literal["auto"]
    accumulation_steps: int
    shards: int | None
    optimizer: Literal["adamw", "adam", "muon"]
    learning_rate: float | Literal["auto"]
    lr_schedule: Literal["auto", "constant", "cosine", "linear", "wsd"]
    warmup_steps: int | Literal["auto"]
    final_learning_rate_ratio: float
    cooldown_fraction: float
    weight_decay: float
    adam_betas: tuple[float, float]
    adam_eps: float
    max_grad_norm: float | None
    ema_decay: tuple[float, ...] | Literal["auto"]
    ema_power: float
    posthoc_ema: tuple[float, ...]
    posthoc_every: int
    fit: Literal["crop", "pad", "stretch", "patch"]
    labels: Literal["auto", "folder", "prefix", "none"]
    image_column: str | None
    label_column: str | None
    condition: tuple[str, ...]
    add_data: Any
    add_condition: tuple[str, ...]
    split: str | None
    files: str | None
    data_root: str | None
    download: bool
    on_bad_image: Literal["error", "skip"]
    background: str
    max_pixels: int
    value_range: tuple[float, float] | None
    normalize: Literal["affine", "quantile"] | None
    slice_axis: int | None
    frames: Literal["first", "all"]
    cache: Literal["auto", "ram", "disk", "none"]
    cache_limit_mb: float | None
    num_workers: int | None
    horizontal_flip: bool
    augment: float
    val_data: Any
    val_labels: Literal["auto", "folder", "prefix", "none"]
    val_condition: tuple[str, ...]
    val_fraction: float
    val_every: int | Literal["auto"]
    val_max_images: int
    log_every: int | Literal["auto"]
    save_every: int | Literal["auto"]
    keep_last: int
    keep_every: int | None
    keep_best: str | None
    keep_early: Literal["auto", "yes", "no"]
    save_async: bool
    sample_every: int | Literal["auto"]
    sample_count: int
    sample_sampler: str
    sample_steps: int
    sample_seed: int
    sample_guidance_scale: float
    trackers: tuple[str, ...]
    progress: bool
    report: bool
    device: str
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    channels_last: Literal["auto", "yes", "no"]
    compile: bool | Literal["auto"]
    cuda_graph: bool
    deterministic: bool
    on_nonfinite: Literal["stop", "skip", "rollback"]
    max_nonfinite: int
    stall_minutes: float
    process_timeout_minutes: float
