"""A U-Net that is told the noise as EDM's networks are (Karras et al. 2022, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.binding import class_function
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.unet import Unet


@register_network
class EdmUnet(nn.Module):
    """A `Unet` that is told c_noise = ¼·ln σ instead of a level.

    It belongs to the process with parametrization="edm" and schedule="karras" of the same options:
    there, level t, counted from 0, has the noise
    σ = (σ_min^{1/ρ} + t/(T − 1)·(σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ relative to the image.

    Args:
        unet: Arguments of the `Unet`.
        timesteps: T of the process.
        sigma_min: Of its schedule.
        sigma_max: Of its schedule.
        rho: Of its schedule.

    >>> model = EdmUnet({"dim": 8, "dim_mults": (1, 2)})
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([0.0, 999.0])).shape
    torch.Size([2, 3, 16, 16])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able."""

    def __init__(
        self,
        unet: Mapping[str, Any],
        timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        super().__init__()
        self.unet = Unet(**unet)
        self.timesteps, self.rho = timesteps, rho
        self.ends = (sigma_min, sigma_max)
        self.config = {
            "unet": self.unet.config,
            "timesteps": timesteps,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "rho": rho,
        }
        self.channels, self.out_channels = self.unet.channels, self.unet.out_channels
        self.dims = self.unet.dims

    @property
    def conditioners(self) -> nn.ModuleDict:
        """Those of the U-Net."""
        return self.unet.conditioners

    def sigma(self, t: Tensor) -> Tensor:
        """Return σ of times t (b,) from 0 to T − 1, between whole numbers too."""
        low, high = (end ** (1 / self.rho) for end in self.ends)
        kind = torch.promote_types(t.dtype, torch.float32)
        return (low + t.to(kind) / max(1, self.timesteps - 1) * (high - low)) ** self.rho

    def forward(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network; see `Unet.forward`."""
        return self.unet(x, self.sigma(t).log() / 4, cond)

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit."""
        self.unet.check_size(image_size)

    def regions(self) -> list[nn.Module]:
        """Return the parts that repeat, which training compiles one by one."""
        return self.unet.regions()

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)
