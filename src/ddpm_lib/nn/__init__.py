"""Networks: the U-Net, its blocks and its conditioners; an MLP for points."""

from torch import nn

from ddpm_lib.core.registry import Registry
from ddpm_lib.nn.conditioning import Augmentation, ClassLabel, Conditioner, SelfCondition
from ddpm_lib.nn.low_res import LowRes, LowResNoise
from ddpm_lib.nn.lucidrains_unet import LucidrainsUnet
from ddpm_lib.nn.mlp import MLP
from ddpm_lib.nn.presets import PRESETS
from ddpm_lib.nn.unet import Unet, preset_config

NETWORKS: Registry[type[nn.Module]] = Registry(
    "network", {"Unet": Unet, "LucidrainsUnet": LucidrainsUnet, "MLP": MLP}
)
"""The networks that a checkpoint can name: each is rebuilt as `NETWORKS[name](**config)`."""

__all__ = [
    "MLP",
    "NETWORKS",
    "PRESETS",
    "Augmentation",
    "ClassLabel",
    "Conditioner",
    "LowRes",
    "LowResNoise",
    "LucidrainsUnet",
    "SelfCondition",
    "Unet",
    "preset_config",
]
