"""Group normalisation with what surrounds it in a residual block, in one pass over memory where
there is a kernel for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels.build import library
from ddpm_lib.nn.kernels.norm_formula import by_formula, differentiable_backward
from ddpm_lib.nn.kernels.norm_on_gpu import TritonNormAct, triton_fits
from ddpm_lib.nn.kernels.position_masks import draw_seed, drop_by_position, threshold_of

GPUS = ("cuda",)
"""Kinds of devices on which Triton's kernels are used."""
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


def norm_act(
    x: Tensor,
    norm: nn.GroupNorm,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """Compute dropout(silu(norm(x + add) · (1 + scale) + shift)).

    In channels_last memory a kernel does it in float32 sums whatever the dtype of x: C++ on a CPU,
    Triton on CUDA; everywhere else torch's own operations do, and where `torch.compile` traces,
    which fuses them. Images on a CPU are
    dropped by a hash of the position (`position_masks.py`), under a seed from torch's global
    generator, with the kernel and without; everything else by torch.

    Args:
        x: Feature map (b, c, *spatial).
        norm: The normalisation, with its weights.
        add: Numbers (b, c) to add to every position first; None for none.
        scale: Factors minus one (b, c) of the normalised map; None for none. Together with shift.
        shift: Summands (b, c) of the normalised map.
        act: Whether to apply SiLU.
        dropout: Probability of setting an element to zero, in [0, 1].

    Returns:
        Tensor like x.
    """
    return _norm_act(x, norm, add, scale, shift, act, dropout)[0]


def norm_act_beside(x: Tensor, norm: nn.GroupNorm, *, act: bool = True) -> tuple[Tensor, Tensor]:
    """Return silu(norm(x)) and x, for a residual branch and what goes past it: where there is the
    kernel, the gradients of both meet in it, without another pass over memory that adds them.

    Args:
        x: Feature map (b, c, *spatial).
        norm: The normalisation, with its weights.
        act: Whether to apply SiLU.
    """
    return _norm_act(x, norm, None, None, None, act, 0.0)


def _norm_act(
    x: Tensor,
    norm: nn.GroupNorm,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    by_position = 0 < dropout < 1 and _drops_by_position(x)
    seed = draw_seed() if by_position else 0
    on_gpu = _has_triton(x, norm)
    apart = any(v is not None and v.device != x.device for v in (add, scale, shift))
    if apart or (not on_gpu and not _has_kernel(x, norm)):
        y = _eager(x, norm, add, scale, shift, act)
        return drop_by_position(y, seed, dropout) if by_position else _dropout(y, dropout), x
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gamma, beta = norm.weight.to(wide), norm.bias.to(wide)
    if scale is not None and shift is not None:
        factor = 1 + scale.to(wide)
        gamma, beta = gamma * factor, torch.addcmul(shift.to(wide), beta, factor)
        if gamma.shape != x.shape[:2]:  # one row for all samples
            gamma, beta = gamma.expand(x.shape[:2]), beta.expand(x.shape[:2])
    if add is not None:
        add = add.to(wide).expand(x.shape[:2])
    if on_gpu:
        y, past = TritonNormAct.apply(x, add, gamma, beta, norm.num_groups, norm.eps, act)
        return drop_by_position(y, seed, dropout) if by_position else _dropout(y, dropout), past
    inside = dropout if by_position else 0.0
    y, past = _NormAct.apply(x, add, gamma, beta, norm.num_groups, norm.eps, act, seed, inside)
    return y if by_position else _dropout(y, dropout), past


def _eager(
    x: Tensor,
    norm: nn.GroupNorm,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    def spread(e: Tensor) -> Tensor:
        return e.unflatten(1, (-1, *(1,) * (x.ndim - 2)))

    h = norm(x if add is None else x + spread(add))
    if scale is not None and shift is not None:
        h = h * (1 + spread(scale)) + spread(shift)
    return F.silu(h) if act else h


def _dropout(y: Tensor, p: float) -> Tensor:
    return F.dropout(y, p) if p else y


def _drops_by_position(x: Tensor) -> bool:
    """Say whether masks come from positions here: not where torch traces or transforms."""
    on_cpu = x.device.type == "cpu" and x.ndim == 4
    return on_cpu and not torch.compiler.is_compiling() and plain(x)


def _has_triton(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Say whether the kernel for GPUs does this one; a cheap no first."""
    if x.device.type not in GPUS or x.ndim != 4 or torch.compiler.is_compiling() or not plain(x):
        return False
    return type(norm) is nn.GroupNorm and not watched(norm) and triton_fits(x, norm)


def _has_kernel(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Say whether the kernel does this one; a cheap no first, because every layer asks."""
    if (
        x.device.type != "cpu"
        or x.ndim != 4
        or torch.compiler.is_compiling()
        or x.dtype not in _DTYPES
    ):
        return False
    if (
        not plain(x)
        or type(norm) is not nn.GroupNorm
        or watched(norm)
        or norm.weight is None
        or x.numel() == 0
        or x.shape[1] != norm.num_channels  # torch has the error for it
        or norm.weight.device != x.device  # and for this
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return False
    if x.dtype != torch.float64 and norm.weight.dtype == torch.float64:
        return False
    return library() is not None


def plain(x: Tensor) -> bool:
    """Say whether x is memory with numbers in it, not a stand-in of torch.func, torch.export or a
    tracer, and nothing else is one either: torch.func takes no gradient of a kernel at all.
    """
    if torch.autograd.forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def watched(module: nn.Module) -> bool:
    """Say whether somebody waits for calls of a module, which a kernel does not make: by a hook, or
    by a forward in place of its own.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch.nn.modules.module._has_any_global_hook()
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _sizes(x: Tensor, groups: int) -> tuple[int, int, int, int, int, int, int]:
    """Return the leading arguments of both kernels."""
    b, c, h, w = x.shape
    return _DTYPES[x.dtype], b, h * w, c, groups, _chunks(c, groups), torch.get_num_threads()


@lru_cache(maxsize=256)
def _chunks(channels: int, groups: int) -> int:
    """Return into how many tasks a sample is cut: of whole groups and 64 channels or more.

    A function of the shape alone, not of the threads or the batch, so that these do not change the
    last digit.
    """
    return max(
        k for k in range(1, groups + 1) if groups % k == 0 and (k == 1 or channels // k >= 64)
    )


class _NormAct(torch.autograd.Function):
    """The kernel with its gradient, and x itself; gamma and beta are (c,) or (b, c)."""

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
        seed: int,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        add = None if add is None else add.contiguous()
        gamma, beta = gamma.contiguous(), beta.contiguous()
        y = torch.empty_like(x, memory_format=torch.channels_last)
        stats = torch.empty(2, x.shape[0], groups, dtype=gamma.dtype, device=x.device)
        stride = gamma.shape[-1] if gamma.ndim == 2 else 0
        lib = library()
        assert lib is not None
        lib.norm_act_forward(
            *_sizes(x, groups),
            seed,
            threshold_of(dropout),
            int(act),
            _pointer(x),
            _pointer(add),
            _pointer(gamma),
            _pointer(beta),
            stride,
            eps,
            _pointer(y),
            _pointer(stats[0]),
            _pointer(stats[1]),
        )
        ctx.save_for_backward(x, add, gamma, beta, stats)
        ctx.groups, ctx.stride, ctx.eps, ctx.act = groups, stride, eps, act
        ctx.seed, ctx.dropout = seed, dropout
        return y, x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, past: Tensor | None) -> tuple[Tensor | None, ...]:
        x, add, gamma, beta, stats = ctx.saved_tensors
        if grad is None:
            return past, *(None,) * 8
        if by_formula(grad, past):
            options = (ctx.groups, ctx.eps, ctx.act, ctx.seed, ctx.dropout)
            dx, *others = differentiable_backward(grad, x, add, gamma, beta, *options)
            return dx if dx is None or past is None else dx + past, *others
        if past is not None:
            past = past.to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        per_channel = torch.empty(3, *x.shape[:2], dtype=gamma.dtype, device=x.device)
        d_add, d_gamma, d_beta = per_channel.unbind(0)
        lib = library()
        assert lib is not None
        lib.norm_act_backward(
            *_sizes(x, ctx.groups),
            ctx.seed,
            threshold_of(ctx.dropout),
            int(ctx.act),
            _pointer(grad),
            _pointer(x),
            _pointer(add),
            _pointer(gamma),
            _pointer(beta),
            ctx.stride,
            _pointer(stats[0]),
            _pointer(stats[1]),
            _pointer(past),
            _pointer(dx),
            None if add is None else _pointer(d_add),
            _pointer(d_gamma),
            _pointer(d_beta),
        )
        if gamma.ndim == 1:
            d_gamma, d_beta = d_gamma.sum(0), d_beta.sum(0)
        return dx, None if add is None else d_add, d_gamma, d_beta, *(None,) * 5
