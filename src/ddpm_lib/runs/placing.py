"""A trained process on the device on which it is to sample."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import torch

from ddpm_lib.nn.lowering import lower_weights
from ddpm_lib.nn.memory_format import use_channels_last
from ddpm_lib.runtime.compiling import compile_regions
from ddpm_lib.runtime.devices import LOW_PRECISION

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion


def place_network(
    diffusion: GaussianDiffusion, device: torch.device, precision: str, *, compiled: bool = False
) -> None:
    """Bring a process to a device, in the memory layout and precision that are fastest there.

    Args:
        diffusion: The process; it is changed in place.
        device: Where it is to sample.
        precision: "no", "bf16" or "fp16".
        compiled: Whether to compile the network, with a line on stderr.

    Raises:
        ConfigError: If it cannot be compiled.
    """
    diffusion.to(device)
    if len(diffusion.image_size) == 2 and use_channels_last("auto", device.type, precision):
        diffusion.to(memory_format=torch.channels_last)
    if precision in LOW_PRECISION:
        lower_weights(diffusion.model, LOW_PRECISION[precision])
    if compiled:
        compile_regions(diffusion.model, True, partial(print, file=sys.stderr))
