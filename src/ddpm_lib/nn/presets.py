"""Named network configurations."""

from __future__ import annotations

from typing import Any

from ddpm_lib.core.registry import Registry

# Nichol & Dhariwal 2021: README of improved-diffusion and the defaults of its script_util.py. The
# network with rescale_timesteps sees t·1000/4000.
_IDDPM: dict[str, Any] = {
    "dim": 128,
    "dim_mults": (1, 2, 3, 4),
    "blocks_per_level": 3,
    "attention_levels": (2, 3),
    "out_channels": 6,
    "heads": 4,
    "class_drop_prob": 0.0,
}
_IDDPM_64: dict[str, Any] = {**_IDDPM, "time_scale": 0.25}
_IDDPM_32: dict[str, Any] = {
    **_IDDPM_64,
    "dim_mults": (1, 2, 2, 2),
    "attention_levels": (1, 2),
    "dropout": 0.3,
}
_IMPROVED_DIFFUSION: dict[str, dict[str, Any]] = {
    "imagenet64-hybrid": _IDDPM_64,
    "imagenet64-vlb": _IDDPM_64,
    "imagenet64-conditional": {**_IDDPM, "dim": 192, "num_classes": 1000},
    "cifar10-hybrid": _IDDPM_32,
    "cifar10-vlb": _IDDPM_32,
    "upsample-64-256": {
        **_IDDPM,
        "dim": 192,
        "dim_mults": (1, 1, 2, 2, 4, 4),
        "blocks_per_level": 2,
        "attention_levels": (4, 5),
        "num_classes": 1000,
        "low_res_factor": 4,
        "low_res_max_noise": 0.0,
    },
    "lsun-bedroom": {
        **_IDDPM,
        "dim_mults": (1, 1, 2, 2, 4, 4),
        "blocks_per_level": 2,
        "attention_levels": (4,),
        "heads": 1,
        "time_conditioning": "add",
    },
}

# ddpm-torch: configs/celeba.json and configs/celebahq.json.
_TQCH: dict[str, Any] = {
    "dim": 128,
    "heads": 1,
    "time_conditioning": "add",
    "down_padding": "asymmetric",
    "norm_eps": 1e-6,
    "time_order": "sin_cos",
    "freq_shift": 1,
}
_DDPM_TORCH: dict[str, dict[str, Any]] = {
    "celeba": {**_TQCH, "dim_mults": (1, 2, 2, 2), "attention_levels": (2,)},
    "celeba-hq": {**_TQCH, "dim_mults": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
}

PRESETS: Registry[dict[str, Any]] = Registry(
    "preset",
    {
        # For laptops and tests: 32×32 in minutes on two cores.
        "tiny": {
            "dim": 32,
            "dim_mults": (1, 2, 2),
            "blocks_per_level": 1,
            "attention_levels": (2,),
        },
        # A quarter of the parameters of Ho et al. 2020's CIFAR-10 network, with scale-shift
        # conditioning.
        "small": {"dim": 64, "dim_mults": (1, 2, 2, 2), "attention_levels": (1,), "dropout": 0.1},
        # Ho et al. 2020, appendix B: 35.7 million parameters. Conventions of the published
        # TensorFlow weights.
        "cifar10": {
            "dim": 128,
            "dim_mults": (1, 2, 2, 2),
            "attention_levels": (1,),
            "heads": 1,
            "dropout": 0.1,
            "time_conditioning": "add",
            "down_padding": "asymmetric",
            "norm_eps": 1e-6,
            "time_order": "sin_cos",
            "freq_shift": 1,
        },
        # Dhariwal & Nichol 2021, table 11 (ImageNet 64×64): 296 million parameters. Give
        # num_classes=1000 for the class-conditional network and out_channels=6 for learned
        # variances.
        "imagenet64": {
            "dim": 192,
            "dim_mults": (1, 2, 3, 4),
            "blocks_per_level": 3,
            "attention_levels": (1, 2, 3),
            "head_dim": 64,
            "dropout": 0.1,
            "resample": "resblock",
        },
        # The networks of the runs that `process.presets.PROCESS_PRESETS` names.
        **_IMPROVED_DIFFUSION,
        **_DDPM_TORCH,
        # The options of Karras et al. 2022's CIFAR-10 network (DDPM++) in our U-Net: 56.5 million
        # parameters instead of its 55.7, because attention is also on the way up.
        "cifar10-edm": {
            "dim": 128,
            "dim_mults": (2, 2, 2),
            "blocks_per_level": 4,
            "attention_levels": (1,),
            "heads": 1,
            "dropout": 0.13,
            "time_conditioning": "add",
            "resample": "resblock",
            "scale_skips": True,
            "augment_dim": 9,
        },
    },
)
