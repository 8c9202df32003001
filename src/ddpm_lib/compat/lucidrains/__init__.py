"""The classes of lucidrains' denoising-diffusion-pytorch, made of ours.

A script written for that library runs with its import line changed:

    from ddpm_lib.compat.lucidrains import Unet, GaussianDiffusion, Trainer

docs/compat.md says what differs.
"""

from ddpm_lib.compat.lucidrains.peer_networks import Unet
from ddpm_lib.compat.lucidrains.peer_process import GaussianDiffusion, LearnedGaussianDiffusion
from ddpm_lib.compat.lucidrains.peer_trainer import Dataset, Trainer

__all__ = ["Dataset", "GaussianDiffusion", "LearnedGaussianDiffusion", "Trainer", "Unet"]

_MISSING = {
    "Unet1D Dataset1D GaussianDiffusion1D Trainer1D": "Unet(dims=1) of ddpm_lib takes sequences",
    "ContinuousTimeGaussianDiffusion VParamContinuousTimeGaussianDiffusion": (
        "time_sampler='continuous' of ddpm_lib's GaussianDiffusion trains in continuous time"
    ),
    "WeightedObjectiveGaussianDiffusion": "choose one parametrization",
    "ElucidatedDiffusion": "GaussianDiffusion of ddpm_lib has parametrization='edm'",
    "KarrasUnet KarrasUnet1D KarrasUnet3D InvSqrtDecayLRSched": "ddpm_lib has its own Unet",
    "XMWrapper": "leave it out",
}
"""What the original has besides, and what to use instead."""


def __getattr__(name: str) -> object:
    for names, instead in _MISSING.items():
        if name in names.split():
            raise ImportError(
                f"{name} of denoising-diffusion-pytorch has no counterpart here: {instead}."
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
