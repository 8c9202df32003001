"""Networks: the U-Net, its blocks and its conditioners; an MLP for points.

All but the U-Net are imported on first use, by attribute or by their name in `NETWORKS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_lib.core.lazy_names import lazy_names
from ddpm_lib.nn.conditioning import Augmentation, ClassLabel, Conditioner, SelfCondition
from ddpm_lib.nn.low_res import LowRes, LowResNoise
from ddpm_lib.nn.networks import NETWORKS
from ddpm_lib.nn.presets import PRESETS
from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.text_encoders import register_text_encoder
from ddpm_lib.nn.unet import Unet, preset_config

if TYPE_CHECKING:
    from ddpm_lib.nn.edm_unet import EdmUnet
    from ddpm_lib.nn.lucidrains_unet import LucidrainsUnet
    from ddpm_lib.nn.mlp import MLP
    from ddpm_lib.nn.noise_level_unet import NoiseLevelUnet
    from ddpm_lib.nn.noisy_classifier import NoisyClassifier
    from ddpm_lib.nn.time_blind import TimeBlindUnet

_HOME = {
    "EdmUnet": "ddpm_lib.nn.edm_unet",
    "LucidrainsUnet": "ddpm_lib.nn.lucidrains_unet",
    "MLP": "ddpm_lib.nn.mlp",
    "NoiseLevelUnet": "ddpm_lib.nn.noise_level_unet",
    "NoisyClassifier": "ddpm_lib.nn.noisy_classifier",
    "TimeBlindUnet": "ddpm_lib.nn.time_blind",
}

for _name, _module in _HOME.items():
    NETWORKS.add_later(_name, _module)

__getattr__, __dir__ = lazy_names(__name__, _HOME)

__all__ = [
    "MLP",
    "NETWORKS",
    "PRESETS",
    "Augmentation",
    "ClassLabel",
    "Conditioner",
    "EdmUnet",
    "LowRes",
    "LowResNoise",
    "LucidrainsUnet",
    "NoiseLevelUnet",
    "NoisyClassifier",
    "SelfCondition",
    "TimeBlindUnet",
    "Unet",
    "preset_config",
    "register_network",
    "register_text_encoder",
]
