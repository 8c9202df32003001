"""What the shapes in a state dict of improved-diffusion or guided-diffusion say of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.nn.blocks import Resample


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a state dict says of its U-Net.

    Attributes:
        dim: Base number of channels.
        dim_mults: Width of each level as a multiple of it.
        blocks_per_level: Residual blocks per level on the way down.
        attention_levels: Levels with attention.
        resample: How the resolution changes; None where there is one level only.
        scale_shift: Whether time scales and shifts the normalisation, or is added.
        channels: Of the images.
        learned_sigma: Whether the output is twice as wide, for variances.
        super_resolution: Whether the input is twice as wide, for a small image.
        num_classes: Number of classes, None for none.
    """

    dim: int
    dim_mults: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    resample: Resample | None
    scale_shift: bool
    channels: int
    learned_sigma: bool
    super_resolution: bool
    num_classes: int | None


class State:
    """Shapes by name; a missing one is an error for the user."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self.state, self.where = state, where

    def size(self, name: str, axis: int) -> int:
        """Return one length of a tensor's shape."""
        if name not in self.state:
            raise CheckpointError(f"The weights in {self.where} lack {name}.")
        shape = self.state[name].shape
        if len(shape) <= axis:
            raise CheckpointError(
                f"{name} in {self.where} has the shape {tuple(shape)}, which no network of OpenAI"
                " has."
            )
        return int(shape[axis])

    def indices(self, pattern: str) -> list[int]:
        """Return the numbers that a pattern with one group finds in the names, ascending."""
        found = (re.match(pattern, name) for name in self.state)
        return sorted({int(match[1]) for match in found if match})


def read_shapes(weights: Mapping[str, Tensor], where: str) -> Shapes:
    """Read a network off the shapes of its weights.

    Args:
        weights: The state dict.
        where: The file, for messages.

    Raises:
        CheckpointError: If no network of theirs, or none of ours, has these shapes.
    """
    state = State(weights, where)
    dim = state.size("time_embed.0.weight", 1)
    first = state.size("input_blocks.0.0.weight", 0)
    if first != dim:
        raise CheckpointError(
            f"The network in {where} has {first} channels behind its first convolution and a time"
            f" embedding of {dim}: a first entry of channel_mult other than 1, which Unet does not"
            " have."
        )
    levels, resample = _levels(state)
    inputs, outputs = (state.indices(rf"{side}_blocks\.(\d+)\.") for side in ("input", "output"))
    count = len(outputs)
    if count % levels or count // levels < 2 or inputs[-1] + 1 != count:
        raise CheckpointError(
            f"The network in {where} has {inputs[-1] + 1} blocks down, {count} up and {levels}"
            " levels, which do not fit each other."
        )
    per_level = count // levels
    starts = [1 + level * per_level for level in range(levels)]
    widths = [state.size(f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in starts]
    if any(width % dim for width in widths):
        raise CheckpointError(
            f"The network in {where} has levels of {widths} channels, which are no multiples of"
            f" {dim}, as Unet needs them."
        )
    has_attention = [f"input_blocks.{i}.1.qkv.weight" in weights for i in starts]
    gates = state.size("input_blocks.1.0.emb_layers.1.weight", 0)
    channels, super_resolution = _channels(state)
    classes = state.size("label_emb.weight", 0) if "label_emb.weight" in weights else None
    return Shapes(
        dim=dim,
        dim_mults=tuple(width // dim for width in widths),
        blocks_per_level=per_level - 1,
        attention_levels=tuple(level for level, has in enumerate(has_attention) if has),
        resample=resample,
        scale_shift=gates == 2 * widths[0],
        channels=channels,
        learned_sigma=state.size("out.2.weight", 0) == 2 * channels,
        super_resolution=super_resolution,
        num_classes=classes,
    )


def _levels(state: State) -> tuple[int, Resample | None]:
    """Return the number of levels and how the resolution changes between them.

    Strided convolutions show on the way down; averages as numbers without weights; residual blocks
    that resample as a second residual block within a block on the way up.
    """
    inputs = state.indices(r"input_blocks\.(\d+)\.")
    found: dict[Resample, int] = {
        "conv": len(state.indices(r"input_blocks\.(\d+)\.0\.op\.weight")),
        "resblock": len(state.indices(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")),
        "pool": inputs[-1] + 1 - len(inputs),
    }
    kinds = [kind for kind, number in found.items() if number]
    if len(kinds) > 1:
        raise CheckpointError(
            f"The network in {state.where} changes resolution in several ways ({', '.join(kinds)}),"
            " or weights are missing."
        )
    return (1 + found[kinds[0]], kinds[0]) if kinds else (1, None)


def _channels(state: State) -> tuple[int, bool]:
    """Return the channels of the images, and whether a small image enters beside the noisy one."""
    entering = state.size("input_blocks.0.0.weight", 1)
    leaving = state.size("out.2.weight", 0)
    half = entering // 2
    # Six in and six out is a super-resolution network of colour images with learned variances.
    if entering % 2 == 0 and (leaving == half or (leaving == entering and half == 3)):
        return half, True
    if leaving not in (entering, 2 * entering):
        raise CheckpointError(
            f"The network in {state.where} takes {entering} channels and returns {leaving}, which"
            " is neither an image nor an image with variances."
        )
    return entering, False
