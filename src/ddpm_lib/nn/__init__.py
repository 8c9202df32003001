"""Networks: the U-Net, its blocks and its conditioners; an MLP for points."""

from ddpm_lib.nn.conditioning import Augmentation, ClassLabel, Conditioner, SelfCondition
from ddpm_lib.nn.edm_unet import EdmUnet
from ddpm_lib.nn.low_res import LowRes, LowResNoise
from ddpm_lib.nn.lucidrains_unet import LucidrainsUnet
from ddpm_lib.nn.mlp import MLP
from ddpm_lib.nn.networks import NETWORKS
from ddpm_lib.nn.noise_level_unet import NoiseLevelUnet
from ddpm_lib.nn.noisy_classifier import NoisyClassifier
from ddpm_lib.nn.presets import PRESETS
from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.time_blind import TimeBlindUnet
from ddpm_lib.nn.unet import Unet, preset_config

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
]
