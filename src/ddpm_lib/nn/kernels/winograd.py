"""3×3 convolutions in float32 on a CPU with half of the multiplications or less."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels.build import convolution_library
from ddpm_lib.nn.kernels.norm_formula import by_formula

_LEAST = 64
"""Squares of 2×2 output pixels, over the batch, from which on transforming the weight pays."""


def winograd_fits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Say whether the kernel can stand in for a 3×3 convolution of stride 1 with zeros around the
    map, and is the faster one; a cheap no first, because every layer asks.

    Args:
        x: Feature map (b, c, h, w).
        conv: The convolution.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or conv.weight.dtype != torch.float32:
        return False
    if conv.weight.device != x.device:
        return False  # torch has the error for it
    b, c, h, w = x.shape
    if c != conv.in_channels or b * ((h + 1) // 2) * ((w + 1) // 2) < _LEAST:
        return False
    if torch.is_autocast_enabled("cpu") or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    lib = convolution_library()
    if lib is None:
        return False
    panel = lib.winograd_panel()
    return c % panel == 0 and conv.out_channels % panel == 0


def winograd(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve by F(2×2, 3×3) (Lavin & Gray 2016, §4.1): 16 products for 4 output pixels instead of
    36, to float32's rounding. `winograd_fits` says whether it may be called.

    A pixel depends neither on the other images of the batch nor on the number of threads.

    Args:
        x: Feature map (b, c, h, w), float32, channels_last.
        conv: The convolution.

    Returns:
        Tensor (b, out_channels, h, w) like that of `conv(x)`.
    """
    return _Winograd.apply(x, conv.weight, conv.bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _convolved(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        if by_formula(grad):
            sizes = [weight.shape[0]] if ctx.biased else None
            wanted = [of_x, of_weight, of_bias]
            places = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
            return torch.ops.aten.convolution_backward(grad, x, weight, sizes, *places, wanted)
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = _convolved(grad, weight, None, turned=True) if of_x else None
        dw, db = _gradients(x, grad, weight) if of_weight or of_bias else (None, None)
        return dx, dw if of_weight else None, db if of_bias else None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *, turned: bool = False) -> Tensor:
    """Convolve x (b, c, h, w) with weight (k, c, 3, 3); `turned`: with that of (c, k, 3, 3) turned
    by half a circle, inputs and outputs exchanged, as a gradient is.
    """
    lib = convolution_library()
    assert lib is not None
    (b, c, h, w), threads = x.shape, torch.get_num_threads()
    k, (out, into, row, column) = weight.shape[0], weight.stride()
    start = weight.data_ptr()
    if turned:
        k, out, into = weight.shape[1], into, out
        start += weight.element_size() * 2 * (row + column)
        row, column = -row, -column
    transformed = x.new_empty(16 * c * k)
    strides = (ctypes.c_int64 * 4)(out, into, row, column)
    lib.winograd_weight(start, c, k, strides, transformed.data_ptr(), threads)
    like: dict[str, Any] = {"dtype": x.dtype, "device": x.device}  # torch's defaults may be others
    y = torch.empty((b, k, h, w), memory_format=torch.channels_last, **like)
    given = None if bias is None else bias.contiguous()
    lib.winograd_forward(
        *(x.data_ptr(), b, h, w, c, k, transformed.data_ptr()),
        *(None if given is None else given.data_ptr(), y.data_ptr(), threads),
    )
    return y


def _gradients(x: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight (k, c, 3, 3) and of the bias (k,)."""
    lib = convolution_library()
    assert lib is not None
    (b, c, h, w), k = x.shape, weight.shape[0]
    of_weight, of_bias = torch.empty_like(weight), weight.new_empty(k)
    strides = (ctypes.c_int64 * 4)(*of_weight.stride())
    lib.winograd_weight_gradient(
        *(x.data_ptr(), grad.data_ptr(), b, h, w, c, k, strides),
        *(of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
    )
    return of_weight, of_bias


def winograd_error() -> float:
    """Return the largest difference between the kernel's output and gradients and torch's."""
    lib = convolution_library()
    assert lib is not None
    generator = torch.Generator().manual_seed(0)
    width = lib.winograd_panel()
    x = torch.randn(2, width, 7, 6, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = nn.Conv2d(width, width, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / width)
    leaves = (x, *conv.parameters())
    with torch.enable_grad():
        ours, theirs = winograd(x, conv), F.conv2d(x, conv.weight, conv.bias, padding=1)
        found = torch.autograd.grad(ours.square().sum(), leaves)
        wanted = torch.autograd.grad(theirs.square().sum(), leaves)
    pairs = [(ours, theirs), *zip(found, wanted)]
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)
