"""Whether the data of a run is what its checkpoint was trained on, and if not, what has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_lib.core.spelling import option
from ddpm_lib.runs.state import DataDescription, RunState
from ddpm_lib.runs.stored_texts import write_texts
from ddpm_lib.training.growing import digests, growth

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.contents import Origin
    from ddpm_lib.diffusion import GaussianDiffusion

FINGERPRINT_VERSION = 2
"""See `DataDescription.fingerprint_version`."""


def describe_dataset(
    data: ImageDataset,
    source: str,
    held_fraction: float,
    held_out: ImageDataset | None = None,
    elsewhere: bool = False,
) -> DataDescription:
    """Return what identifies training data.

    Args:
        data: The training images.
        source: Name of what they were opened from.
        held_fraction: The val_fraction that holds images out of them; 0: none are.
        held_out: The images for validation, where there are any.
        elsewhere: Whether these come from elsewhere.
    """
    other = held_out if elsewhere else None
    return DataDescription(
        source=source,
        images=len(data),
        fingerprint=data.fingerprint,
        fingerprint_version=FINGERPRINT_VERSION,
        whole=data.origin.fingerprint if data.origin is not None else None,
        held_fraction=held_fraction,
        class_names=list(data.class_names) if data.class_names else None,
        val_fingerprint=None if other is None else other.fingerprint,
        conditions=digests(data) or None,
        val_conditions=None if held_out is None else digests(held_out) or None,
        normalization=None if data.normalization is None else data.normalization.to_json(),
    )


def fraction_held_out(state: RunState) -> float:
    """Return the val_fraction that a checkpoint's run holds images out by; 0 if it holds none
    out.
    """
    if state.trained_on.held_fraction is not None:
        return float(state.trained_on.held_fraction)
    training = state.training
    held = training["val_data"] is None and training["val_every"]
    return float(training["val_fraction"]) if held else 0.0


def is_same(data: ImageDataset, described: DataDescription) -> bool:
    """Whether training images are those that a checkpoint describes, by what was compared when it
    was saved.
    """
    earlier = described.fingerprint_version < FINGERPRINT_VERSION
    return described.fingerprint == (data.earlier_fingerprint if earlier else data.fingerprint)


def contents_unknown(data: ImageDataset, described: DataDescription) -> str | None:
    """Return a line if a checkpoint is too old to know the contents of its data, else None."""
    if described.fingerprint_version >= FINGERPRINT_VERSION:
        return None
    if data.earlier_fingerprint == data.fingerprint:
        return None
    return (
        "The checkpoint is of an earlier version, which knew names, sizes and labels of the images:"
        " whether their contents are the same was not compared."
    )


def data_changes(
    data: ImageDataset,
    held_fraction: float,
    described: DataDescription,
    held_before: float,
    index: Origin | None,
) -> list[str]:
    """Say in lines what differs between training images and those that a checkpoint describes; none
    if they are the same.

    Args:
        data: The training images.
        held_fraction: The val_fraction that holds images out of them now.
        described: The checkpoint's description of its data.
        held_before: The val_fraction of the run until now.
        index: What the run noted of its data, where it did.
    """
    from ddpm_lib.data.contents import tell_apart

    names = list(data.class_names) if data.class_names else None
    known = growth(data, described)
    if known is not None and names in (None, described.class_names):
        then = next(found for _, images, found in data.grown_from if images == known)
        return [f"data: {words}" for words in other_conditions(then, described.conditions)]
    found = other_conditions(digests(data), described.conditions)
    others = [f"data: {words}" for words in found]
    if is_same(data, described) and described.class_names == names:
        return others
    lines, whole = list[str](), data.origin.fingerprint if data.origin is not None else None
    if described.images != len(data):
        before = f"{described.images:,} training images in the checkpoint"
        lines.append(f"data: {before}, {len(data):,} now")
    if whole is not None and described.whole == whole and held_before != held_fraction:
        name = option("val_fraction")
        fractions = f"{name} {held_before:g} held out other images than {name} {held_fraction:g}"
        return [*lines, f"data: {fractions}"]
    classes_told = False
    if index is not None and data.origin is not None and index.fingerprint == described.whole:
        lines += [f"data: {line}" for line in tell_apart(index, data.origin)]
        classes_told = index.class_names != data.origin.class_names
    if described.class_names != names and not classes_told:
        before = f"classes {_words(described.class_names)} in the checkpoint"
        lines.append(f"data: {before}, {_words(names)} now")
    if not lines:
        more = (
            "" if data.origin is None else ", or fitted in another way (image_size, channels, fit)"
        )
        lines.append(
            f"data: as many images, but others, in another order{more}; which ones, the run did not"
            " note"
        )
    return lines


def held_out_changes(
    data: ImageDataset, now: DataDescription, described: DataDescription
) -> list[str]:
    """Say in lines what differs between held-out images and those that a checkpoint describes; none
    if they are the same, or if one of the two has none.

    Args:
        data: The training images, out of which they may be held.
        now: What describes both.
        described: The checkpoint's description of its data.
    """
    before, own = described.val_fingerprint, now.val_fingerprint
    broken = "so that its curve would break"
    if before and own and before != own:
        return [f"val_data: other images than those that this run was validated on, {broken}"]
    same = is_same(data, described) or growth(data, described) is not None
    if bool(before) != bool(own) or not (own or same):
        return []  # others by the options, or as the training images are
    found = other_conditions(now.val_conditions or {}, described.val_conditions)
    return [f"held-out images: {words}, {broken}" for words in found]


def other_conditions(now: Mapping[str, str], before: Mapping[str, str] | None) -> list[str]:
    """Say of which conditions the values are others; where the images are, that is no wonder.

    Args:
        now: A digest of the values of each condition.
        before: The digests that a checkpoint has noted.
    """
    known = before or {}
    changed = [k for k, digest in now.items() if k in known and digest != known[k]]
    return [f"the condition {name!r} has other values now" for name in changed]


def _words(names: list[str] | None) -> str:
    if not names:
        return "none"
    return ", ".join(names[:10]) + (f", … ({len(names)})" if len(names) > 10 else "")


def write_data_notes(run: Path, data: ImageDataset, diffusion: GaussianDiffusion) -> None:
    """Note in the run directory what the data is made of, for a later start to say what has
    changed, and the vectors of its texts.
    """
    from ddpm_lib.data.contents import write_index

    write_index(run, data.origin)
    write_texts(run, diffusion.conditioners)


def read_data_index(run: Path) -> Origin | None:
    """Return what a run noted of its data, None where it did not."""
    from ddpm_lib.data.contents import read_index

    return read_index(run)
