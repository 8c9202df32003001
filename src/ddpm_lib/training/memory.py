"""How much memory training needs and how much there is, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn

from ddpm_lib.training.by_length import number_of_averages
from ddpm_lib.training.muon import takes_muon

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.config import TrainingConfig

_OVERHEAD, _OVERHEAD_RECOMPUTED = 1.5, 4.0


def working_bytes(model: nn.Module, activations: int) -> int:
    """Return the peak memory of forward and backward passes whose saved activations are known.

    Gradients of activations and buffers of kernels come on top of what is saved; with gradient
    checkpointing also the part that is being recomputed. The factors are measured: growth of the
    process over saved activations was 1.4 to 1.45 (and 3.2 to 3.6 with gradient checkpointing) for
    the preset small at 32×32 on a CPU, in float32 and bf16.
    """
    return int(
        activations
        * (_OVERHEAD_RECOMPUTED if getattr(model, "gradient_checkpointing", False) else _OVERHEAD)
    )


def activation_bytes(
    model: nn.Module,
    image_size: Sequence[int],
    batch_size: int,
    precision: str,
    eager_on_cuda: bool = False,
) -> int | None:
    """Return what the forward pass of a `Unet` keeps for the backward pass, computing nothing; None
    for other networks.

    Args:
        model: The network.
        image_size: Spatial size of one image.
        batch_size: Images per forward pass.
        precision: "no", "bf16" or "fp16".
        eager_on_cuda: Whether torch's own operations compute on CUDA, uncompiled.
    """
    from ddpm_lib.nn import Unet
    from ddpm_lib.nn.summary import summarize

    if type(model) is not Unet:
        return None
    low: Literal["float32", "bf16"] = "float32" if precision == "no" else "bf16"
    return summarize(model, image_size, batch_size, low, eager_on_cuda).activation_bytes


def moments_bytes(module: nn.Module, optimizer: str) -> int:
    """Return the memory of the optimizer's moments: two for each trained parameter, one where Muon
    trains it.

    Args:
        module: A network or a process.
        optimizer: As in the options of training.
    """
    trained = {
        name: p.numel() * p.element_size()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    once = takes_muon(module) if optimizer == "muon" else []
    return 2 * sum(trained.values()) - sum(trained.get(name, 0) for name in once)


def state_bytes(
    diffusion: GaussianDiffusion, config: TrainingConfig, processes: int, to_come: bool = False
) -> int:
    """Return the memory that training takes whatever the batch: weights, gradients, moments,
    averages, DDP's buckets, and the weights of the first step where `pull_to_start` needs them.

    Args:
        diffusion: The process.
        config: Says which averages are kept, and whether there is a pull.
        processes: Number of processes.
        to_come: Count only what is not there before the first step: gradients, moments and buckets.
    """
    trained = sum(p.numel() * p.element_size() for p in diffusion.parameters() if p.requires_grad)
    later = trained * (2 if processes > 1 else 1) + moments_bytes(diffusion, config.optimizer)
    if to_come:
        return later
    present = sum(t.numel() * t.element_size() for t in diffusion.state_dict().values())
    copies = number_of_averages(config) + len(config.posthoc_ema)
    network = sum(t.numel() * t.element_size() for t in diffusion.model.state_dict().values())
    pulled = [p for p in diffusion.model.parameters() if p.requires_grad and config.pull_to_start]
    start = sum(p.numel() * p.element_size() for p in pulled)
    return later + present + copies * network + start
