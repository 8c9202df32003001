"""The options of an evaluation: one validated list for `evaluate(...)` and the flags of `ddpm
evaluate`.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import check_device_name, check_type
from ddpm_lib.evaluation.metric_table import METRICS
from ddpm_lib.evaluation.sample_metrics import SAMPLE_METRICS
from ddpm_lib.metrics import FEATURES
from ddpm_lib.process.autoguidance import check_scale
from ddpm_lib.process.plan import usual_sampler
from ddpm_lib.samplers import make_sampler

AUTO = "auto"
READING = ("background", "value_range", "frames", "max_pixels", "normalize")
"""Options of `open_dataset` for sets that are compared without a run; a run's own are those of its
training.
"""
DRAWING = (
    "sampler",
    "sample_steps",
    "spacing",
    "eta",
    "guidance_scale",
    "guide_by",
    "guide_scale",
)
"""Options of the samples that a run draws."""
_SAMPLES = tuple(SAMPLE_METRICS)
_BUILT_IN = frozenset(METRICS)
USED_BY: dict[str, tuple[str, ...]] = {
    "num_levels": ("nll", "gap"),
    "num_steps": ("nll", "gap"),
    "tolerance": ("flow_nll",),
    "flow_group": ("flow_nll",),
    "held_out": ("memorisation",),
    "reference": tuple(name for name in _SAMPLES if name != "is"),
    "references": _SAMPLES,
    **dict.fromkeys(
        ("features", "feature_weights"), tuple(name for name in _SAMPLES if name != "values")
    ),
    **dict.fromkeys(DRAWING, (*_SAMPLES, "adherence")),
}
"""Options that some of our metrics use, and which; the others serve all, or are checked with the
data.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of `evaluate`; every one is also a flag of `ddpm evaluate`.

    Raises:
        ConfigError: At construction, for a wrong type, an impossible value or an unknown metric.
    """

    metrics: str = AUTO
    """auto: what suits the target and needs no weights (kid, pr, or values where there are no
    pictures; memorisation, loss_gap; nll where the training was for likelihood; adherence where
    there are conditions of the data). Else names separated by commas: fid, sfid, kid, is, pr
    (precision, recall), dc (density, coverage), memorisation and values (mean, deviation, quantiles
    and spectrum by channel, in units) look at samples; nll (bits/dim by the variational bound),
    flow_nll (by the probability flow), loss_gap and gap (held-out minus training: the loss; and
    bits/dim too) score the model itself; adherence reads conditions of the data back from samples.
    """
    data: str = "held-out"
    """Images for nll and flow_nll. held-out: what the run held out; train: what it was trained on;
    else a folder, file or dataset, which is then the reference too.
    """
    reference: str | None = None
    """What samples are compared with: train (the default), held-out, a folder, file or dataset, or
    a file of statistics.
    """
    held_out: str | None = None
    """memorisation: images that were not trained on; default: those that the run held out."""
    features: str = AUTO
    """Names separated by commas: inception2048 (768, 192, 64), pytorchfid2048 (…), dinov2,
    hedvgg512 and hedvgg256, random64 and pixels (both need no weights and are for trials). auto:
    random64 where metrics is auto, else inception2048; pixels where there are no pictures, which
    is all that suits measured values.
    """
    references: bool = True
    """Beside each score of samples, what held-out images, blurred images and noise score in their
    place: what is good and what is bad. Costs the features of up to 1,000 images of each once.
    """
    feature_weights: str | None = None
    """File of Inception weights; default: $DDPM_LIB_INCEPTION_WEIGHTS, the libraries' caches, a
    checked download.
    """
    image_size: int | None = None
    """Size at which sets of pictures of different sizes are compared; default: as they are stored.
    With a run, its own.
    """
    reader: Literal["training", "torch-fidelity"] = "training"
    """How folders are read: as training reads them, or as torch-fidelity and pytorch-fid do (not
    the sub-folders, transparency dropped, not turned by EXIF, never resized), for numbers to put
    beside theirs.
    """
    on_bad_image: Literal["error", "skip"] | None = None
    """Pictures that cannot be used: error names them all, skip leaves them out; default: as the run
    was trained, else error.
    """
    background: str | None = None
    """Colour under transparent pixels of sets that are compared without a run; default: white."""
    value_range: tuple[float, float] | None = None
    """What is black and what is white in such sets where they have more than 8 bits, as 0 4095;
    default: 0 65535 for 16 bits.
    """
    frames: Literal["first", "all"] | None = None
    """Of files with several pages or frames in such sets: the first (the default), or all, each an
    image.
    """
    normalize: Literal["affine", "quantile"] | None = None
    """Such sets are measured values, of any type and number of channels, compared in their units
    (values).
    """
    max_pixels: int | None = None
    """Pictures of such sets with more pixels are refused; default: 64,000,000."""
    save_stats: str | None = None
    """Write the reference's mean and covariance to this .npz, which --reference reads back."""
    split: str | None = None
    """Split of `data`, where it is a dataset that has several."""
    condition: tuple[str, ...] = ()
    """Where the conditions of `data` are, NAME=SOURCE[:COLUMN], once per condition, where that is a
    folder, file or dataset; default: where those of the training images are.
    """
    data_root: str | None = None
    """Where the files of torchvision's sets lie; default: $DDPM_LIB_DATA, else datasets in the
    library's cache; of the run's own data, where training found them.
    """
    download: bool = False
    """Let torchvision download what is missing there."""
    num: int | None = None
    """Number of samples (default: 10,000; with metrics auto as many as training images, 64 to
    1,000), and of images spread evenly over the data (default: all). More than there are is
    clamped, with a note.
    """
    checkpoint: str = "latest"
    """latest, best (by keep_best), a step (1200), a name (step-000001200), or all: a curve over the
    checkpoints.
    """
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, or the raw ones."""
    ema_decay: float | None = None
    """Which average, where several were kept; default: the first."""
    num_levels: int | None = None
    """nll: estimate the sum over the steps, without bias, from so many of them per image; default:
    all, which takes long.
    """
    num_steps: int | None = None
    """nll: steps of the chain, for the bound of sampling with so few; default: all T."""
    tolerance: float = 1e-5
    """flow_nll: relative and absolute tolerance of the solver."""
    flow_group: int = 16
    """flow_nll: images integrated together. They share the solver's steps, so another group agrees
    up to the tolerance only.
    """
    sampler: str | None = None
    """Sampler that draws the samples. Default, with steps, spacing and guidance: what ddpm tune
    chose for the run, else unipc.
    """
    sample_steps: int | None = None
    """Steps of the sampler; default: 20 for unipc, all for ddpm, 2 for consistency, 50 for the
    others.
    """
    spacing: str | None = None
    """Levels that the sampler visits; default: mixed for unipc, trailing for the others."""
    eta: float | None = None
    """Noise of ddim and dpmpp samplers: 0 deterministic, 1 like ddpm."""
    guidance_scale: float | None = None
    """Classifier-free guidance of the samples; default: 1, none. Classes are taken in turn."""
    guide_by: str | None = None
    """Autoguidance of the samples: a worse version to move away from: a step of the run ("5000"),
    "model" or "ema:0.999" for other weights, or another run of the same process.
    """
    guide_scale: float | None = None
    """How far to move away from it: 1 not at all; default: 2."""
    batch_size: int = 64
    """Images and network evaluations at a time, per process; no effect on the numbers."""
    seed: int = 0
    """Names the noise and the samples: those of image i are a function of seed and i."""
    device: str = "auto"
    """Where to evaluate: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision in which the network draws the samples: no (float32), bf16, fp16, or auto as
    `ddpm sample` has it, which is several times as fast on a GPU. Losses and likelihoods are always
    computed in float32.
    """
    compile: bool = False
    """Compile the network's blocks with torch.compile: for many images on a GPU; the first batch
    takes long.
    """
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("data", "reference", "held_out", "feature_weights", "save_stats", "guide_by"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if isinstance(self.condition, str):
            object.__setattr__(self, "condition", (self.condition,))
        for name in ("metrics", "features"):
            listed: Any = getattr(self, name)
            if isinstance(listed, (list, tuple)) and all(isinstance(one, str) for one in listed):
                object.__setattr__(self, name, ",".join(listed))
        hints = typing.get_type_hints(EvaluationOptions)
        for name, hint in hints.items():
            object.__setattr__(self, name, check_type(name, getattr(self, name), hint))
        object.__setattr__(self, "device", check_device_name("device", self.device))
        for name in self.metric_names if self.metrics != AUTO else ():
            METRICS[name]
        for name in self.feature_names:
            FEATURES[name]
        given = [name for name in ("image_size", *READING) if getattr(self, name) is not None]
        if self.reader != "training" and given:
            raise ConfigError(
                f"{option('reader', self.reader)} neither resizes nor knows a background or a"
                " range. Leave"
                f" {', '.join(given)} out, or the reader."
            )
        make_sampler(self.sampler or usual_sampler(self.eta), eta=self.eta)
        check_scale(self.guide_by, self.guide_scale)
        at_least = {
            "num": 1,
            "sample_steps": 1,
            "image_size": 1,
            "max_pixels": 1,
            "num_levels": 2,
            "num_steps": 1,
            "flow_group": 1,
            "batch_size": 1,
            "seed": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}.")
        if self.save_stats and (len(self.feature_names) != 1 or "fid" not in self.metric_names):
            raise ConfigError(
                f"{option('save_stats')} writes the statistics of one kind of features: ask for"
                " fid, and for one"
                " in features."
            )
        if not 0 < self.tolerance < 1:
            raise ConfigError(
                f"tolerance must lie between 0 and 1; got {self.tolerance}. Use 1e-5, or 1e-3 for a"
                " quick look."
            )

    @property
    def metric_names(self) -> list[str]:
        """The names in `metrics`, each once, in the order given."""
        return list(dict.fromkeys(name.strip() for name in self.metrics.split(",")))

    @property
    def feature_names(self) -> list[str]:
        """The names in `features`, each once, in the order given."""
        if self.features == AUTO:
            return ["random64" if self.metrics == AUTO else "inception2048"]
        return list(dict.fromkeys(name.strip() for name in self.features.split(",")))


def non_default(options: EvaluationOptions, names: Collection[str]) -> list[str]:
    """Return those of the named options that are not at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(EvaluationOptions)}
    return [name for name in names if getattr(options, name) != defaults[name]]


def unused_options(options: EvaluationOptions, metrics: Collection[str]) -> list[str]:
    """Return the options that were given and that none of these metrics uses; a metric of others
    may use all.
    """
    if not _BUILT_IN.issuperset(metrics):
        return []
    return [name for name in non_default(options, USED_BY) if not set(USED_BY[name]) & set(metrics)]


def flag(name: str) -> str:
    """Write an option as in Python and as a flag."""
    return f"{name} (--{name.replace('_', '-')})"


def check_used(options: EvaluationOptions) -> None:
    """Refuse options that none of the metrics that were named uses.

    Raises:
        ConfigError: If there is one, naming the metrics that use it.
    """
    found = unused_options(options, options.metric_names) if options.metrics != AUTO else []
    if found:
        users = ", ".join(USED_BY[found[0]])
        steps = f" The steps of samples are {option('sample_steps')}."
        also = steps if found[0] == "num_steps" else ""
        raise ConfigError(
            f"{flag(found[0])} has no effect on {option('metrics', options.metrics)}: it is for"
            f" {users}. "
            f"Leave it out, or add one of them to metrics (--metrics).{also}"
        )
