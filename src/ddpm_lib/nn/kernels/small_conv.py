"""3×3 convolutions by the fastest of the ways that there are; those in bf16 may have another
gradient of their weights than oneDNN's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels.group_norm import plain, watched
from ddpm_lib.nn.kernels.low_gradient import low_gradient_fits, low_gradients
from ddpm_lib.nn.kernels.norm_formula import by_formula
from ddpm_lib.nn.kernels.winograd import winograd, winograd_fits

Gradients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From input, gradient of the output and weight to the gradients of weight and bias."""

_SMALL, _LITTLE = 16, (64, 32)
"""Positions of a map for which the product is the faster one: up to 16 at any batch, up to 64 for
32 images: measured with 128 to 512 channels on AMX.
"""


def conv3x3(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a convolution; where it is one of 3×3 on a CPU, by the fastest way there is.

    In float32 it is Winograd's (`winograd.py`). In bf16 with AMX the gradient on small maps takes
    half the time or less of oneDNN's, which cuts the sum over positions into pieces that are too
    small; with AVX-512 BF16 alone that of weights is Winograd's (`low_gradient.py`). Everything
    else is torch's.

    Args:
        x: Feature map (b, c, *spatial).
        conv: The convolution.
    """
    if x.device.type == "cpu" and _is_plain(x, conv):
        assert isinstance(conv, nn.Conv2d)
        if winograd_fits(x, conv):
            return winograd(x, conv)
        gradients = _own_gradients(x, conv)
        if gradients is not None:
            assert conv.bias is not None
            weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
            return _LowConv.apply(x, weight, bias, gradients)
    return conv(x)


def _own_gradients(x: Tensor, conv: nn.Conv2d) -> Gradients | None:
    """Return what computes the gradients of weight and bias faster than oneDNN; None where nothing
    does, or nothing is to be learned.
    """
    if not _learns_in_bf16(x, conv):
        return None
    if _has_amx():
        return _small_gradients if _is_small(x) else None
    return low_gradients if low_gradient_fits(x, conv) else None


def _is_plain(x: Tensor, conv: nn.Module) -> bool:
    """Say whether this is a 3×3 convolution of an image as memory, which nobody watches."""
    return (
        type(conv) is nn.Conv2d
        and x.ndim == 4
        and (conv.kernel_size, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and (conv.padding, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()  # FlopCounterMode counts torch's operations
        and plain(x)
        and (type(conv.weight) is nn.Parameter or plain(conv.weight))
        and not watched(conv)
    )


def _learns_in_bf16(x: Tensor, conv: nn.Conv2d) -> bool:
    """Say whether a convolution learns, from maps in bf16 and channels_last."""
    return (
        x.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and conv.bias is not None
        and conv.weight.requires_grad
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_small(x: Tensor) -> bool:
    """Say whether there are few positions, for which the product is the faster one with AMX."""
    b, _, h, w = x.shape
    return b > 0 and (h * w <= _SMALL or (h * w <= _LITTLE[0] and b <= _LITTLE[1]))


@cache
def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


class _LowConv(torch.autograd.Function):
    """A convolution in bf16 whose gradients of weight and bias somebody else computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gradients: Gradients) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradients = gradients
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        whole = by_formula(grad)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            [weight.shape[0]],
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [ctx.needs_input_grad[0], whole, whole],
        )
        if not whole:
            of_weight, of_bias = ctx.gradients(x, grad, weight)
        return of_x, of_weight, of_bias, None


def _small_gradients(x: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight_gradient(x, grad), grad.sum((0, 2, 3))


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (o, i, 3, 3) of the weight of a 3×3 convolution with zeros around the
    map: for each of the nine places of the kernel a product over all positions.

    Args:
        x: Input (b, i, h, w), channels_last.
        grad: Gradient of the output (b, o, h, w).
    """
    b, i, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, _ = padded.stride()
    places = padded.as_strided((b, h, w, 3, 3, i), (image, row, column, row, column, 1))
    rows = grad.permute(0, 2, 3, 1).reshape(b * h * w, -1)
    product = rows.t() @ places.reshape(b * h * w, 9 * i)
    return product.view(-1, 3, 3, i).permute(0, 3, 1, 2)
