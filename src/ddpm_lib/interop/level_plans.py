"""The plan of a U-Net of Ho et al. 2020, read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError


class LevelPlan(NamedTuple):
    """One resolution of the way down."""

    width: int
    blocks: int
    attention: bool


def levels_of(blocks: Sequence[tuple[int, bool] | None], where: str) -> list[LevelPlan]:
    """Group the blocks of the way down into resolutions.

    Args:
        blocks: Width and attention of each residual block; None for a change of resolution.
        where: The file, for messages.

    Raises:
        CheckpointError: If a level is empty or mixed, or levels have different numbers of blocks.
    """
    levels: list[list[tuple[int, bool]]] = [[]]
    for block in blocks:
        if block is None:
            levels.append([])
        else:
            levels[-1].append(block)
    if any(len(set(level)) != 1 for level in levels) or len({len(lv) for lv in levels}) != 1:
        told = " | ".join(
            " ".join(f"{width}{'a' if attn else ''}" for width, attn in level) for level in levels
        )
        raise CheckpointError(
            f"The levels of the network in {where} are not alike (widths, a for attention: {told}),"
            " which no Unet can be."
        )
    return [LevelPlan(level[0][0], len(level), level[0][1]) for level in levels]


def config_of(levels: Sequence[LevelPlan], first: Tensor, where: str) -> dict[str, Any]:
    """Return the arguments of `Unet` that libraries after Ho et al. 2020 have in common.

    Args:
        levels: The way down.
        first: The weight of the first convolution.
        where: The file, for messages.

    Raises:
        CheckpointError: If a width is no multiple of the first convolution's.
    """
    dim, channels = first.shape[:2]
    odd = [level.width for level in levels if level.width % dim]
    if odd:
        raise CheckpointError(
            f"The width {odd[0]} in {where} is no multiple of {dim}, that of the first convolution."
        )
    return {
        "dim": dim,
        "dim_mults": tuple(level.width // dim for level in levels),
        "channels": channels,
        "blocks_per_level": levels[0].blocks,
        "attention_levels": tuple(i for i, level in enumerate(levels) if level.attention),
        "heads": 1,
        "time_conditioning": "add",
        "groups": 32,
    }


def reached(weights: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    """Return one of the weights.

    Raises:
        CheckpointError: If it is missing.
    """
    if name not in weights:
        raise CheckpointError(f"The weights in {where} do not fit the network: missing: {name}.")
    return weights[name]
