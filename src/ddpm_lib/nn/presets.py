"""Named network configurations."""

from __future__ import annotations

from typing import Any

from ddpm_lib.core.registry import Registry

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
    },
)
