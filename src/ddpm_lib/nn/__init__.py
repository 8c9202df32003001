"""Networks: the U-Net, its blocks and its conditioners."""

from ddpm_lib.nn.conditioning import ClassLabel, Conditioner
from ddpm_lib.nn.presets import PRESETS
from ddpm_lib.nn.unet import Unet, preset_config

__all__ = ["PRESETS", "ClassLabel", "Conditioner", "Unet", "preset_config"]
