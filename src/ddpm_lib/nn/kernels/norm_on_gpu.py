"""Whether Triton's kernels of normalisation can be used, and their place in autograd."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels.norm_formula import by_formula, differentiable_backward

logger = logging.getLogger("ddpm_lib")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_TILES, _MOST_CHANNELS = 65_535, 4096
"""What the second and third dimension of a grid hold, and channels of a group at once."""
_OFF = 1e-4


def triton_fits(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Say whether Triton's kernels compute this normalisation.

    Args:
        x: Map (b, c, h, w) on a device that Triton knows; dense in channels_last for a yes.
        norm: The normalisation; with weights, and float32 ones, for a yes.
    """
    if x.dtype not in DTYPES or norm.weight is None or norm.weight.dtype != torch.float32:
        return False
    _, c, h, w = x.shape
    if c != norm.num_channels or x.numel() == 0 or norm.weight.device != x.device:
        return False  # torch has the error for it
    too_large = h * w > 64 * _MOST_TILES or c // norm.num_groups > _MOST_CHANNELS
    if too_large or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return triton_kernels(x.device) is not None


@cache
def triton_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the kernels if they work on a device, which is tried once; None where
    `DDPM_LIB_KERNELS` is 0, where Triton is not there, and, with a warning that says why, where
    they do not compile or compute something else than torch.
    """
    if os.environ.get("DDPM_LIB_KERNELS", "1") == "0":
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from ddpm_lib.nn.kernels import triton_norm

        off = kernel_off(triton_norm, device)
    except Exception as error:
        # Of a compiler that is not there, a driver too old, a kind of GPU that Triton knows not.
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        logger.warning("Triton's normalisation is not used on %s (%s).", device, why)
        return None
    if not off < _OFF:
        logger.warning(
            "Triton's normalisation is not used on %s: it is off by %.1g; please report this.",
            device,
            off,
        )
        return None
    return triton_norm


def kernel_off(kernels: Any, device: torch.device) -> float:
    """Return the largest relative error of the kernels' results and gradients against torch's
    operations in float64 on the CPU, for a map of odd sizes.

    Args:
        kernels: The module.
        device: Where they are tried.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # No random numbers: whoever draws from a global generator must not notice.
        wave = torch.arange(2.0 * 70 * 9 * 8).view(2, 70, 9, 8)
        x = wave.mul(0.7).sin().add(1.0).contiguous(memory_format=torch.channels_last)
        grad = wave.mul(1.3).cos().contiguous(memory_format=torch.channels_last)
        add, gamma, beta = (torch.arange(140.0).view(2, 70).mul(k).sin() for k in (0.3, 0.5, 0.9))
        inputs = [v.double().requires_grad_() for v in (x, add, gamma, beta)]
        moved = inputs[0] + inputs[1][..., None, None]
        normed = F.group_norm(moved, 7) * inputs[2][..., None, None] + inputs[3][..., None, None]
        expected = F.silu(normed)
        wanted = [expected, *torch.autograd.grad(expected, inputs, grad.double())]
        here = [v.to(device) for v in (x, add, gamma, beta)]
        with on(device), torch.no_grad():
            y, stats = kernels.forward(*here, 7, 1e-5, True)
            dx, d_gamma, d_beta, d_add = kernels.backward(grad.to(device), None, *here, stats, True)
        found = [v.cpu().double() for v in (y, dx, d_add, d_gamma, d_beta)]
        pairs = [(a, b.detach()) for a, b in zip(found, wanted)]
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one, on which Triton launches."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return contextlib.nullcontext()
    return torch.cuda.device(device)


class TritonNormAct(torch.autograd.Function):
    """silu(norm(x + add)·γ + β) and x itself; gamma and beta are float32 (c,) or (b, c)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        add: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        groups: int,
        eps: float,
        act: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the result and x."""
        ctx.set_materialize_grads(False)
        add = None if add is None else add.contiguous()
        gamma, beta = gamma.contiguous(), beta.contiguous()
        kernels = triton_kernels(x.device)
        assert kernels is not None
        with on(x.device):
            y, stats = kernels.forward(x, add, gamma, beta, groups, eps, act)
        ctx.save_for_backward(x, add, gamma, beta, stats)
        ctx.groups, ctx.eps, ctx.act = groups, eps, act
        return y, x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, past: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the first four arguments."""
        x, add, gamma, beta, stats = ctx.saved_tensors
        if grad is None:
            return past, *(None,) * 6
        if by_formula(grad, past):
            options = (ctx.groups, ctx.eps, ctx.act, 0, 0.0)
            dx, *others = differentiable_backward(grad, x, add, gamma, beta, *options)
            return dx if dx is None or past is None else dx + past, *others[:-2]
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        if past is not None:
            past = past.to(x.dtype).contiguous(memory_format=torch.channels_last)
        kernels = triton_kernels(x.device)
        assert kernels is not None
        with on(x.device):
            dx, d_gamma, d_beta, d_add = kernels.backward(
                grad, past, x, add, gamma, beta, stats, ctx.act
            )
        if gamma.ndim == 1:
            d_gamma, d_beta = d_gamma.sum(0), d_beta.sum(0)
        return dx, None if add is None else d_add, d_gamma, d_beta, None, None, None
