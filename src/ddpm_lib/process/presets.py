"""Published runs by name: their processes; `nn.PRESETS` has the networks under the same names."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import Registry, unknown_name
from ddpm_lib.nn import Unet

P = TypeVar("P", bound=nn.Module)

# Nichol & Dhariwal 2021: README of improved-diffusion. Its L_hybrid weighs the bound, summed over
# the levels, by 0.001 with rescale_learned_sigmas; without, it adds the bound of one level as it
# is, which is 1/T of the sum.
_EPS: dict[str, Any] = {"parametrization": "eps", "weighting": "simple"}
_HYBRID: dict[str, Any] = {
    **_EPS,
    "image_size": 64,
    "timesteps": 4000,
    "schedule": "cosine",
    "variance": "learned_range",
    "loss": "hybrid",
    "vlb_weight": 0.001,
}
_VLB: dict[str, Any] = {**_HYBRID, "loss": "vlb", "time_sampler": "loss_aware"}
# ddpm-torch: configs/celeba.json and configs/celebahq.json.
_TQCH: dict[str, Any] = {
    **_EPS,
    "image_size": 64,
    "timesteps": 1000,
    "schedule": "linear",
    "variance": "fixed_small",
    "loss": "simple",
}

PROCESS_PRESETS: Registry[dict[str, Any]] = Registry(
    "preset of a whole run",
    {
        "imagenet64-hybrid": _HYBRID,
        "imagenet64-vlb": _VLB,
        "imagenet64-conditional": {**_HYBRID, "vlb_weight": 1 / 4000},
        "cifar10-hybrid": {**_HYBRID, "image_size": 32},
        "cifar10-vlb": {**_VLB, "image_size": 32},
        "upsample-64-256": {
            **_HYBRID,
            "image_size": 256,
            "schedule": "linear",
            "vlb_weight": 1 / 4000,
        },
        "lsun-bedroom": {
            **_HYBRID,
            "image_size": 256,
            "timesteps": 1000,
            "schedule": "linear",
            "vlb_weight": 1 / 1000,
        },
        "celeba": _TQCH,
        "celeba-hq": {**_TQCH, "image_size": 256},
        # Karras et al. 2022, table 1, between levels instead of in continuous σ.
        "cifar10-edm": {
            "image_size": 32,
            "timesteps": 1000,
            "schedule": "karras",
            "parametrization": "edm",
            "parametrization_options": {"sigma_data": 0.5},
            "weighting": "edm",
            "weighting_options": {"sigma_data": 0.5},
            "variance": "fixed_small",
            "loss": "simple",
            "time_sampler": "log_normal_sigma",
            "time_sampler_options": {"P_mean": -1.2, "P_std": 1.2},
        },
    },
)
"""Arguments of `GaussianDiffusion` by the names of published runs."""


def preset(cls: type[P], name: str, model: nn.Module | None = None, **overrides: Any) -> P:
    """Make the process of a published run, with its network.

    Args:
        cls: `GaussianDiffusion`.
        name: Name of the run, such as "cifar10-hybrid".
        model: A network to use instead of the run's own.
        **overrides: Constructor arguments that replace the preset's.

    Raises:
        ConfigError: If there is no preset of that name with a process.

    >>> from ddpm_lib import GaussianDiffusion
    >>> GaussianDiffusion.preset("celeba", Unet.preset("celeba", dim=8)).schedule
    Schedule.make('linear', 1000)
    """
    if name not in PROCESS_PRESETS:
        raise ConfigError(unknown_name(PROCESS_PRESETS.kind, name, PROCESS_PRESETS))
    network = Unet.preset(name) if model is None else model
    return cls(network, **{**PROCESS_PRESETS[name], **overrides})
