"""What a plan decides by: one function per question, from what is known of data, device and time
to a value, its reason and what that rests on.

A rule stands here with its evidence: something that was measured with this library ("own"), a
paper, or an estimate, which is called one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_lib.data.survey_facts import Survey
from ddpm_lib.training.by_length import rate_of

PURPOSES = ("samples", "likelihood")
"""What a run is for."""

COPY_PASSES = 1000
"""Passes over the data after which copies are to be expected, where nothing is done against them:
the order of magnitude of two sets of 1,000 to 2,000 images. The number of steps grows in proportion
to the images at a fixed batch.
"""
COPY_LAW = "a prior, to an order of magnitude; onset ∝ images: arXiv 2505.17638, 2505.16959"


@dataclass(frozen=True)
class Decision:
    """One setting of a plan.

    Attributes:
        name: The option, as "max_steps" or "model.dim".
        value: What it is to be.
        reason: Why, in a few words.
        evidence: What that rests on: "given" by the user, "data" or "measured" here, or a source.
    """

    name: str
    value: Any
    reason: str
    evidence: str

    @property
    def comment(self) -> str:
        """Reason and evidence, as they stand behind the line."""
        return f"{self.reason} [{self.evidence}]"


@dataclass(frozen=True)
class Network:
    """A network that a plan may choose.

    Attributes:
        preset: What it begins from.
        dim: Its width.
        steps: Steps that it needs at 32×32 to show what it can; more by as many times as there are
            more pixels.
        largest: The largest side it is chosen for.
        macs: Millions of multiplications for an image of 32×32, forward; a quarter with patches.
    """

    preset: str
    dim: int
    steps: int
    largest: int
    macs: int

    def work(self, pixels: int, patches: bool) -> float:
        """Return the multiplications for an image, as if they grew with its pixels: attention grows
        faster, and is the smaller part.
        """
        return 1e6 * self.macs * pixels / 32**2 / (4 if patches else 1)

    def needs(self, pixels: int) -> int:
        """Return the steps that it needs at a size."""
        return round(self.steps * max(1.0, pixels / 32**2))


NETWORKS = (
    Network("tiny", 32, 1_000, 64, 250),
    Network("small", 64, 4_000, 96, 1_600),
    Network("small", 96, 10_000, 128, 3_534),
    Network("small", 128, 30_000, 128, 6_224),
)
"""Narrow ones first. The first learns the built-in shapes in 900 steps (README); the last is of the
width of Ho et al. 2020; what lies between is interpolated.
"""
SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sides that a plan may choose."""
WIDEST_FOR_FEW = 64
"""The widest network for fewer than 1,000 images."""


def sides(survey: Survey) -> list[int]:
    """Return the sides that may be chosen: none by which most pictures would be enlarged."""
    fits = [side for side in SIZES if side <= survey.short_side] or [SIZES[0]]
    return [side for side in fits if side >= 16] or fits[-1:]


def frame(survey: Survey, side: int, step: int = 16) -> tuple[list[int], Decision, Decision | None]:
    """Return height and width for a side, why, and how pictures are fitted where that is no crop.

    Args:
        survey: Of the data.
        side: The shorter side.
        step: What width and height are to be multiples of.
    """
    square, (height, width) = survey.crop_loss(), survey.shape
    aspect = width / height
    long = max(step, round(side * max(aspect, 1 / aspect) / step) * step)
    size = [side, long] if width > height else [long, side]
    lost = survey.crop_loss(size[1] / size[0])
    if square > 0.2 and side % step == 0 and long <= 2 * side and lost <= 0.1:
        why = (
            f"the shape of the pictures: a square crop loses {square:.0%} of them, this {lost:.0%}"
        )
        return size, Decision("image_size", size, why, "data"), None
    why = f"pictures are {width}×{height} in the middle of the set"
    decided = Decision("image_size", [side], why, "data, measured speed")
    if square < 0.005:
        return [side], decided, None
    if square <= 0.35:
        reason = f"a centre crop loses {square:.0%} of a picture's area on average"
        return [side], decided, Decision("fit", "crop", reason, "data")
    reason = f"a centre crop would lose {square:.0%} of a picture's area on average"
    if survey.values is not None:
        reason = f"a centre crop loses {square:.0%} of an image; there is no padding of values"
        return [side], decided, Decision("fit", "crop", reason, "data")
    return [side], decided, Decision("fit", "pad", reason, "data")


def channels(survey: Survey) -> Decision:
    """Return how many channels."""
    if survey.values is not None:
        return Decision("channels", survey.channels, "the values have so many", "data")
    if survey.fixed:
        return Decision("channels", survey.channels, "the data have so many", "data")
    if survey.grey:
        return Decision("channels", 1, f"all of {survey.looked_at:,} pictures are grey", "data")
    return Decision("channels", 3, "pictures have colours", "data")


def measured(survey: Survey) -> list[Decision]:
    """Return how measured values are normalized and cut; nothing for pictures."""
    found = survey.values
    if found is None:
        return []
    spread = f"a straight map gives them a deviation of {found.spread:.2g} in [-1, 1]"
    narrow = found.kind == "quantile"
    why = f"{spread}{': quantiles spread them' if narrow else ', of pictures 0.5'}"
    if not found.asked:
        why = f"values of {found.stored}, which value_range would make pictures of; {why}"
    decided = [Decision("normalize", found.kind, why, "data")]
    if found.slice_axis is not None:
        decided.append(Decision("slice_axis", found.slice_axis, found.why_sliced, "data"))
    return decided


def may_augment(survey: Survey, size: Sequence[int] | None) -> bool:
    """Say whether images may be turned and shifted: not volumes, and not where masks and images
    that come with them would stay where they are.
    """
    kinds = {entry["kind"] for entry in survey.conditions.values()}
    return len(size or ()) < 3 and not kinds & {"mask", "image", "angle"}


def least_step(survey: Survey) -> int:
    """Return what a side must be a multiple of for the small images that come with the data."""
    return math.lcm(1, *(int(one.get("factor") or 1) for one in survey.conditions.values()))


def held_out(survey: Survey) -> Decision:
    """Return the share of the images that is held out."""
    least = 64 / max(1, survey.images)
    share = round(min(0.2, max(0.05, least)), 2)
    count = math.floor(min(1000, survey.images * share))
    why = f"{count:,} images to judge by; 64 tell a gap of a tenth of the loss"
    return Decision("val_fraction", share, why, "own: docs/training.md, validation")


def network(chosen: Network, patches: bool) -> list[Decision]:
    """Return what a network has otherwise than its preset."""
    found = []
    if chosen.dim != {"tiny": 32, "small": 64}[chosen.preset]:
        found.append(Decision("model.dim", chosen.dim, "the width that time allows", "measured"))
    if not patches:
        why = "fine detail" if chosen.dim > 32 else "works on pixels as they are"
        found.append(Decision("model.patch_size", 1, why, "estimate"))
    else:
        source = "own: README's runs; Hoogeboom et al. 2023, §2.3"
        found.append(Decision("model.patch_size", 2, "a quarter of the work on a CPU", source))
    return found


def classes(survey: Survey, purpose: str) -> list[Decision]:
    """Return whether the network learns the classes, and how the grids are guided."""
    counts = [count for count in survey.class_counts or () if count]
    if len(counts) < 2:
        return []
    fewest, mean = min(counts), sum(counts) / len(counts)
    enough = fewest >= 5 and mean >= 20
    said = f"{len(counts):,} classes of {fewest:,} to {max(counts):,} images"
    if not enough:
        return [Decision("class_conditional", False, f"{said}: too few of each", "estimate")]
    learned = Decision("class_conditional", True, said, "data")
    if purpose != "samples":
        return [learned]
    why = "guided grids are definite earlier"
    return [learned, Decision("sample_guidance_scale", 2.0, why, "own: README's shapes")]


def batch(images: int, accelerator: bool) -> Decision:
    """Return the images per step."""
    usual = 128 if accelerator else 32
    size = usual
    while size > 4 and 2 * size > images:
        size //= 2
    if size < usual:
        return Decision("batch_size", size, f"no more than half of {images:,} images", "estimate")
    source = "Ho et al. 2020" if accelerator else "own: README's runs"
    why = "keeps a GPU busy" if accelerator else "many small steps learn most on a CPU"
    return Decision("batch_size", size, why, source)


def prediction(patches: bool, purpose: str) -> list[Decision]:
    """Return what is predicted and how levels are weighed."""
    if purpose == "likelihood":
        hybrid = "Nichol & Dhariwal 2021, tables 1 and 2"
        return [
            Decision("diffusion.parametrization", "eps", "of the bound's loss", hybrid),
            Decision("diffusion.weighting", "simple", "beside the bound", hybrid),
            Decision("diffusion.variance", "learned_range", "fewer bits per dimension", hybrid),
            Decision("diffusion.loss", "hybrid", "the bound guides the variances", hybrid),
        ]
    if patches:
        own = "own: README's runs; Li & He 2025 (JiT) for patches"
        why = "with patches a narrow network learns images far sooner than noise or v"
        return [
            Decision("diffusion.parametrization", "x0", why, own),
            Decision("diffusion.weighting", "flat", "what goes with it there", own),
            Decision("optimizer", "muon", "better pictures for the same seconds", _QUALITY),
        ]
    return [
        Decision("diffusion.parametrization", "v", "no worse than x0, better than eps", _ABLATION),
        Decision("diffusion.weighting", "min_snr", "learns faster", "Hang et al. 2023"),
    ]


_ABLATION = "own: docs/ablation.md"
_QUALITY = "own: docs/quality.md"


def drawing() -> list[Decision]:
    """Return the sampler of the grids, which is that of `ddpm sample` where nobody names one."""
    source = "own: docs/sampling.md"
    return [
        Decision("sample_sampler", "unipc", "few steps are enough", source),
        Decision("sample_steps", 20, "the default of every drawing", source),
    ]


def patches(side: int, dim: int, accelerator: bool, purpose: str) -> bool:
    """Say whether the network works on patches of 2×2 pixels."""
    return purpose == "samples" and not accelerator and side >= 32 and dim <= 64


def schedule(steps: int) -> list[Decision]:
    """Return learning rate, its course and the averages: those of every run that names none
    (`training/by_length.py`), written down.

    Args:
        steps: Of the run.
    """
    own, real = "own: docs/training.md", "own: docs/quality.md; Hägele et al. 2024"
    rate, warmup = rate_of(steps), min(500, steps // 20)
    return [
        Decision("learning_rate", rate, f"for {steps:,} steps; 2e-4 for 75,000", own),
        Decision("lr_schedule", "wsd", "the full rate for four fifths, then down to 0", real),
        Decision("warmup_steps", warmup, "a twentieth of the run, at most 500", own),
        Decision("ema_decay", "auto", "three lengths; the best on held-out images is used", own),
    ]


def regularisation(
    survey: Survey, passes: float, purpose: str, augments: bool = True
) -> list[Decision]:
    """Return dropout, flips and augmentation.

    Args:
        survey: Of the data.
        passes: Over the data that the run will make.
        purpose: What it is for.
        augments: Whether the network can be told of transformations.
    """
    found = []
    few = survey.images < 10_000
    drop = 0.1 if few and passes >= 100 else 0.0
    why = f"{passes:,.0f} passes over {survey.images:,} images"
    source = "Ho et al. 2020, appendix B" if drop else "estimate: nothing to forget yet"
    found.append(Decision("model.dropout", drop, why, source))
    if purpose == "samples":
        found.append(flips(survey))
    if augments and purpose == "samples" and survey.images < 5_000 and passes >= 300:
        source = "Karras et al. 2022, appendix F.2"
        found.append(Decision("augment", 0.12, f"{why}; samples do not show it", source))
    return found


def flips(survey: Survey) -> Decision:
    """Return whether images are mirrored at random."""
    share = "" if survey.farther is None else f"{survey.farther:.0%} of mirror images"
    said = {
        True: f"{share} are farther from the others than the images are: no side",
        False: f"{share} are farther from the others than the images are: a side",
        None: "too few images to know whether they have a side",
    }[survey.symmetric]
    decided = survey.symmetric is True
    angles = [name for name, one in survey.conditions.items() if one["kind"] == "angle"]
    if angles:
        decided, said = False, f"{angles[0]} may be another one in a mirror image"
    elif survey.values is not None and survey.farther is None:
        decided, said = False, "volumes may have a side"
    return Decision("horizontal_flip", decided, said, "data")


def ending(purpose: str, images: int) -> list[Decision]:
    """Return what ends the run before its time."""
    if images >= 10_000:
        return []
    kinds = ["copying"] if purpose == "samples" else ["overfitting"]
    return [Decision("stop_when", kinds, "the measured onset decides, not the prior", COPY_LAW)]


def copies_from(images: int, batch_size: int) -> int:
    """Return the step from which copies of training images are to be expected.

    >>> copies_from(1000, 32)
    31250
    """
    return COPY_PASSES * images // batch_size


def worth(images: int, batch_size: int) -> float:
    """Return the steps beyond which a run on so many images learns copies only: three times those
    of the prior, as an onset may come late, and at least 2,000.
    """
    return max(2000.0, 3.0 * copies_from(images, batch_size))


def round_steps(steps: float) -> int:
    """Return a number of steps with two digits, not above it, at least 10.

    >>> round_steps(12_345), round_steps(97.0), round_steps(3)
    (12000, 97, 10)
    """
    if steps < 100:
        return max(10, int(steps))
    scale = 10 ** (math.floor(math.log10(steps)) - 1)
    return int(steps // scale) * int(scale)
