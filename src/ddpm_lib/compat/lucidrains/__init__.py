"""The classes of lucidrains' denoising-diffusion-pytorch, made of ours.

A script written for that library runs with its import line changed:

    from ddpm_lib.compat.lucidrains import Unet, GaussianDiffusion, Trainer

docs/compat.md says what differs.
"""

from ddpm_lib.compat.lucidrains.peer_networks import Unet
from ddpm_lib.compat.lucidrains.peer_process import GaussianDiffusion, LearnedGaussianDiffusion
from ddpm_lib.compat.lucidrains.peer_trainer import Dataset, Trainer

__all__ = ["Dataset", "GaussianDiffusion", "LearnedGaussianDiffusion", "Trainer", "Unet"]
