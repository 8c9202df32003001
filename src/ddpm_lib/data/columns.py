"""Which column, array or key of a source holds the images, and which the labels."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_lib.core.registry import nearest

IMAGE_NAMES = (
    "image",
    "img",
    "images",
    "pixel_values",
    "picture",
    "photo",
    "jpg",
    "png",
    "webp",
    "x",
    "arr_0",
    "data",
)
LABEL_NAMES = (
    "class_label",
    "label",
    "labels",
    "fine_label",
    "coarse_label",
    "class",
    "target",
    "cls",
    "y",
    "arr_1",
)


def choose_column(
    kind: str, asked: str | None, usual: Sequence[str], there: Sequence[str], where: str
) -> str | None:
    """Choose a column: the one asked for, else the first usual name that is there (any case), else
    None.

    Raises:
        ValueError: If the one asked for is not there, naming the nearest and all there are.
    """
    if asked is not None:
        if asked in there:
            return asked
        hint = nearest(asked, there)
        did_you_mean = f" Did you mean {hint!r}?" if hint else ""
        raise ValueError(
            f"{where} has no {kind} column {asked!r}.{did_you_mean} There are:"
            f" {', '.join(map(str, there)) or 'none'}."
        )
    lower = {str(name).lower(): name for name in reversed(there)}
    return next((lower[name] for name in usual if name in lower), None)
