"""The options of a training run: one validated list for `Trainer(...)`, `--config run.yaml` and
command-line flags.
"""

from __future__ import annotations

import functools
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.validation import check_device_name, check_type, is_path, shown, unknown_options
from ddpm_lib.runs.cadences import Cadences
from ddpm_lib.training.config_checks import check_ranges, check_together
from ddpm_lib.training.option_help import OptionDocs
from ddpm_lib.training.option_values import describe_object, place

_BUILT_HERE = {
    "optimizer": (
        "The Trainer builds its optimizer itself: 'adamw', 'adam' or 'muon', with learning_rate,"
        " weight_decay, adam_betas."
    ),
    "lr_schedule": (
        "The Trainer computes its schedule itself: 'constant', 'cosine', 'linear' or 'wsd',"
        " with warmup_steps."
    ),
}
"""Options for which other libraries take an object."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of `Trainer`; every one is also a flag of `ddpm train` and a key of its config file.

    Args:
        **options: All by name.

    Raises:
        ConfigError: At construction, for a wrong type, an impossible value or a contradiction.
    """

    output_dir: str | None = None
    """Run directory: checkpoints, metrics, samples. Default: runs/ and the name of the data."""
    resume: str = "auto"
    """auto: continue from the newest complete checkpoint in the run directory, if any; never:
    refuse such a directory; a step
    or a checkpoint of the run: go back to it, once, and set the newer ones aside.
    """
    override: bool = False
    """Continue although batch size, seed or data differ from the checkpoint's (the differences are
    listed either way).
    """
    init_from: str | None = None
    """Trained weights to begin with: a run, a checkpoint, a folder of save_pretrained, a
    repository, or another library's file; not read again by a run that continues.
    """
    init_weights: Literal["auto", "ema", "model"] = "auto"
    """Which of them: ema for the average, model for the trained weights, auto for the average where
    there is one.
    """
    freeze: tuple[str, ...] = ()
    """Parts of the network that stay as they begin: names such as time_embedding or down.0, or
    levels by number, 0 being the full resolution.
    """
    pull_to_start: float = 0.0
    """Pull the weights back to those that training began with: λ/2·‖θ − θ₀‖² is added to what is
    minimised (L2-SP, Li et al. 2018); every checkpoint then holds θ₀.
    """
    seed: int = 0
    """Names every random number of the run; weights, order, noise, levels, flips, dropout follow
    from it.
    """

    max_steps: int = 75_000
    """Optimizer steps after which training ends."""
    max_hours: float | None = None
    """Wall-clock limit of this call in hours; a checkpoint is saved and the same command continues.
    """
    stop_when: tuple[Literal["overfitting", "copying", "flat"], ...] = ()
    """Stop before max_steps, with a checkpoint, when the held-out loss says over-fitting, when
    samples are copies, or when the held-out loss is surely flat; one or several; none: never.
    """
    patience: int = 3
    """Validations in a row, for copying sample grids, that must show it before stop_when stops."""
    batch_size: int | Literal["auto"] = 32
    """Images per optimizer step over all processes and accumulation steps; auto: the largest batch
    that fits in memory.
    """
    accumulation_steps: int = 1
    """Micro-batches per optimizer step and process: less memory, the same batch."""
    shards: int | None = None
    """Blocks of the global batch with noise keys of their own, fixed at the first start; default:
    one per forward pass.
    """

    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """Optimizer (fused kernels where the device has them); muon: orthogonal updates for
    matrices and convolutions, AdamW for the rest, at the same learning rate.
    """
    learning_rate: float | Literal["auto"] = "auto"
    """Peak learning rate; auto: 2e-4 for 75,000 steps, more for fewer by the square root, at most
    2e-3; 2e-4 with init_from.
    """
    lr_schedule: Literal["auto", "constant", "cosine", "linear", "wsd"] = "auto"
    """Shape after the warm-up, down to final_learning_rate_ratio at max_steps; wsd: stable, then a
    cool-down, before which a checkpoint is kept to extend the run from; auto: wsd, and constant
    with init_from.
    """
    warmup_steps: int | Literal["auto"] = "auto"
    """Steps of linear warm-up; auto: a twentieth of the run, at most 500."""
    final_learning_rate_ratio: float = 0.0
    """Learning rate at max_steps as a fraction of the peak (cosine, linear and wsd)."""
    cooldown_fraction: float = 0.2
    """Share of max_steps in which wsd cools down."""
    weight_decay: float = 0.0
    """Decoupled (adamw) or L2 (adam) decay of weights with two or more dimensions."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's moments."""
    adam_eps: float = 1e-8
    """Adam's ε."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient's norm to this; none: only measure it."""
    ema_decay: tuple[float, ...] | Literal["auto"] = "auto"
    """One or several decays of weight averages; the first is used for sampling. Empty: no average.
    auto: three that cover a hundredth, a thirtieth and a tenth of the run, of which the best on
    held-out images is used at the end.
    """
    ema_power: float = 0.75
    """Warm-up of the average: the decay at step n is at most 1 - n^-ema_power, which suits short
    runs.
    """
    posthoc_ema: tuple[float, ...] = ()
    """Relative lengths of power-function averages to store, from which `ddpm ema` makes any length
    later, such as 0.05 0.1.
    """
    posthoc_every: int = 1000
    """Steps between their snapshots, which are kept for good; each holds one copy of the weights
    per length.
    """

    fit: Literal["crop", "pad", "stretch", "patch"] = "crop"
    """How images get the training size: keep the aspect and crop the centre, keep it and pad, or
    stretch; patch cuts parts of that size out of measured values, others each time.
    """
    labels: Literal["auto", "folder", "prefix", "none"] = "auto"
    """Class labels: from sub-folders or columns where there are some, from label_name.jpg prefixes,
    or none.
    """
    image_column: str | None = None
    """Column of the images in a table; default: found."""
    label_column: str | None = None
    """Column of the labels in a table; default: found."""
    condition: tuple[str, ...] = ()
    """What comes with each image and is learned: NAME=SOURCE[:COLUMN], such as age=meta.csv:age,
    style=:style for a column of the data itself, mask=path/to/masks (docs/conditions.md).
    """
    add_data: tuple[str, ...] = ()
    """More images to train on, of any source, behind the training data: a run that goes on with
    them notes it; what is held out stays the same, and so does the range of measured values.
    """
    add_condition: tuple[str, ...] = ()
    """Where the conditions of what add_data adds are, NAME=SOURCE[:COLUMN], for each of it in
    order, if not in its own columns, nor in a table or folder that has all names.
    """
    split: str | None = None
    """Split of a dataset that has several (then it must be named)."""
    files: str | None = None
    """Which of the images are used: a text file with a name per line, such as `ddpm audit` writes;
    groups in it stay on one side of the split into training and held-out images.
    """
    data_root: str | None = None
    """Where the files of torchvision's sets lie; default: $DDPM_LIB_DATA, else datasets in the
    library's cache.
    """
    download: bool = False
    """Let torchvision download what is missing there."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be decoded: list all of them and stop, or leave them out and count them.
    """
    background: str = "white"
    """Colour under transparent pixels and around padded images: a name, or #rrggbb."""
    max_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decompressed."""
    value_range: tuple[float, float] | None = None
    """What is black and what is white in images of more than 8 bits, such as 0 4095; default: 0
    65535 for 16 bits.
    """
    normalize: Literal["affine", "quantile"] | None = None
    """Take the data for measured values of any type and number of channels: affine maps the lowest
    and highest training value of each channel to the range of the network, quantile spreads values
    evenly in it. Samples come back in the data's units.
    """
    slice_axis: int | None = None
    """Of measured volumes (NIfTI, DICOM, arrays): each slice along this axis, 0 to 2, is an image.
    """
    frames: Literal["first", "all"] = "first"
    """Of files with several pages or frames (TIFF stacks, GIF): the first, or all, each an image.
    """
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    """Decode once into RAM (auto: where it fits in cache_limit_mb), once into a file of the
    library's cache that all runs share (disk), or stream through workers.
    """
    cache_limit_mb: float | None = None
    """Limit of the RAM cache in MB, per process; default: 4,096 or a quarter of the memory it may
    use.
    """
    num_workers: int | None = None
    """Processes that decode images; default: from the CPUs this process may use, 0 where the set is
    in RAM.
    """
    horizontal_flip: bool = False
    """Mirror half of the images, on the device."""
    augment: float = 0.0
    """Probability of each of six transformations that the network is told of, so that samples do
    not show them; 0.12 suits small sets; 0: none.
    """

    val_data: str | None = None
    """Held-out images: any source that training data can come from; in Python also an object, such
    as a Subset.
    """
    val_labels: Literal["auto", "folder", "prefix", "none"] = "auto"
    """Class labels of val_data, as for labels; its classes must be those of the training data."""
    val_condition: tuple[str, ...] = ()
    """Where the conditions of val_data are, NAME=SOURCE[:COLUMN], if not where those of the
    training data are, as for names that both have.
    """
    val_fraction: float = 0.05
    """Share of the training data held out by hash of the name, where val_data is not given; 0:
    none.
    """
    val_every: int | Literal["auto"] = "auto"
    """Steps between validations; auto: a sixth of the run, at most 500; 0: never."""
    val_max_images: int = 512
    """Images of each side (held-out, training) in a validation."""

    log_every: int | Literal["auto"] = "auto"
    """Steps between lines of metrics.jsonl; auto: at most 50, fewer in a short run."""
    save_every: int | Literal["auto"] = "auto"
    """Steps between checkpoints (one is always written at the end); auto: a third of the run, at
    most 1,000.
    """
    keep_last: int = 3
    """Newest checkpoints to keep (at least 2: one may be damaged)."""
    keep_every: int | None = None
    """Also keep the checkpoints of multiples of this step for good."""
    keep_best: str | None = "auto"
    """Also save and keep the checkpoint with the lowest value of this logged metric (val_loss);
    max:NAME for the highest; auto: val_loss, where there are held-out images and fewer than 10,000
    to train on.
    """
    keep_early: Literal["auto", "yes", "no"] = "auto"
    """Also keep the checkpoints at 1/16, 1/8 and 1/4 of max_steps, for autoguidance (ddpm sample
    --guide-by) and from before a small set is copied; auto: below 10,000 training images.
    """
    save_async: bool = False
    """Write checkpoints in a thread: training waits only for a copy in RAM."""
    sample_every: int | Literal["auto"] = "auto"
    """Steps between sample grids; auto: a third of the run, at most 1,000; 0: never."""
    sample_count: int = 16
    """Images of a sample grid."""
    sample_sampler: str = "unipc"
    """Sampler of the grids."""
    sample_steps: int = 20
    """Sampling steps of the grids."""
    sample_seed: int = 0
    """Seed of the grids: the same noise every time, so that grids can be compared."""
    sample_guidance_scale: float = 1.0
    """Classifier-free guidance of the grids; 1: none."""
    trackers: tuple[str, ...] = ()
    """accelerate's trackers: tensorboard, wandb, …"""
    progress: bool = True
    """Show a progress bar."""
    report: bool = True
    """Keep the page of the run, report.html, up to date while it trains: verdict, curves, samples
    and the images nearest to them, in less than a hundredth of the time.
    """

    device: str = "auto"
    """Where to train: auto (an accelerator, else the CPU), cpu, cuda, mps, xpu, or cuda:1 for one
    GPU.
    """
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network's forward pass; auto: bf16 where the hardware computes it fast."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Memory layout of images and convolutions; auto: what is faster on the device."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network's blocks with torch.compile (slow at the first start, kept for the next);
    auto: on CUDA GPUs with Triton.
    """
    cuda_graph: bool = False
    """Record passes and update as CUDA graphs and replay them: for small batches on one GPU,
    whose time goes into launching kernels. Tried on no GPU yet (docs/performance.md).
    """
    deterministic: bool = False
    """Only deterministic CUDA kernels: bitwise repeatable, slower (the CPU needs no switch)."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is NaN or infinite: stop, leave out that update, or go back to a
    checkpoint with other images.
    """
    max_nonfinite: int = 3
    """Updates to leave out, or times to roll back, before the run stops after all."""
    stall_minutes: float = 5.0
    """Say where the run hangs, and which process is missing, when nothing has moved for this long.
    """
    process_timeout_minutes: float = 10.0
    """With several processes: how long to wait for a lost one before giving up."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "val_data" and value is not None and not is_path(value):
                continue  # an object, which whoever opens it looks at
            if field.name == "add_data":
                object.__setattr__(self, field.name, _additions(value))
                continue
            if field.name == "device" and type(value) is int:
                value = str(value)  # earns the sentence on GPUs by number
            if field.name in _BUILT_HERE and not isinstance(value, str):
                raise ConfigError(
                    f"{field.name} must be a name; got {shown(value)}. {_BUILT_HERE[field.name]}"
                )
            object.__setattr__(self, field.name, check_type(field.name, value, hints[field.name]))
        object.__setattr__(self, "device", check_device_name("device", self.device))
        for name in ("output_dir", "init_from"):
            object.__setattr__(self, name, place(name, getattr(self, name)))
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        check_ranges(options)
        check_together(options)

    @property
    def images_per_step(self) -> int:
        """`batch_size` as a number; the Trainer puts one in the place of "auto" before it trains.

        Raises:
            ConfigError: Where that has not happened yet.
        """
        if self.batch_size == "auto":
            raise ConfigError(
                "batch_size='auto' becomes a number when the Trainer prepares; here it needs one."
            )
        return self.batch_size

    @functools.cached_property
    def cadences(self) -> Cadences:
        """Steps between validations, grids, checkpoints and logged lines, as numbers."""
        return Cadences.of({field.name: getattr(self, field.name) for field in fields(self)})

    def due(self, step: int, what: Literal["val_every", "sample_every"]) -> bool:
        """Say whether there is a validation, or a grid, after a step: at its cadence and at the
        end.
        """
        every: int = getattr(self.cadences, what)
        return bool(every) and (step % every == 0 or step == self.max_steps)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str = "Trainer") -> TrainingConfig:
        """Build from a mapping, refusing unknown names.

        Raises:
            ConfigError: For unknown names (naming the nearest right one), wrong types and values.
        """
        also = _OF_TRAINER if where == "Trainer" else ()
        unknown_options(options, [*(f.name for f in fields(cls)), *also], where)
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON values; of an object as `val_data`, what it was."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.val_data is not None and not is_path(self.val_data):
            options["val_data"] = describe_object(self.val_data)
        options["add_data"] = [v if is_path(v) else describe_object(v) for v in self.add_data]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def _additions(value: Any) -> tuple[Any, ...]:
    """Return what is added in a tuple, paths as text: one source, or several."""
    several = isinstance(value, (list, tuple))
    every = value if several else () if value is None else (value,)
    return tuple(place("add_data", os.fspath(v)) if is_path(v) else v for v in every)


_OF_TRAINER = ("diffusion", "data", "callbacks", "transform")
"""Arguments of Trainer that are no options, for what a wrong name may have meant."""

_DOCS = OptionDocs(TrainingConfig.__doc__, TrainingConfig)
TrainingConfig.__doc__ = _DOCS  # type: ignore[assignment]
