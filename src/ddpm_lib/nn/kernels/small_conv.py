"""3×3 convolutions by the fastest of three ways; of those on few positions the weights' gradient is
a matrix product.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels.group_norm import plain, watched
from ddpm_lib.nn.kernels.norm_formula import by_formula
from ddpm_lib.nn.kernels.winograd import winograd, winograd_fits

_SMALL, _LITTLE = 16, (64, 32)
"""Positions of a map for which the product is the faster one: up to 16 at any batch, up to 64 for
32 images: measured with 128 to 512 channels on AMX.
"""


def conv3x3(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a convolution; where it is one of 3×3 on a CPU, by the fastest way there is.

    In float32 it is Winograd's (`winograd.py`). In bf16 with AMX the gradient on small maps takes
    half the time or less of oneDNN's, which cuts the sum over positions into pieces that are too
    small. Everything else is torch's.

    Args:
        x: Feature map (b, c, *spatial).
        conv: The convolution.
    """
    if x.device.type == "cpu" and _is_plain(x, conv):
        assert isinstance(conv, nn.Conv2d)
        if winograd_fits(x, conv):
            return winograd(x, conv)
        if _is_small(x, conv):
            assert conv.bias is not None
            return _SmallConv.apply(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype))
    return conv(x)


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


def _is_small(x: Tensor, conv: nn.Conv2d) -> bool:
    """Say whether this is a convolution in bf16 on few positions that learns, with AMX."""
    if x.dtype != torch.bfloat16:
        return False
    b, _, h, w = x.shape
    if b == 0:
        return False
    if h * w > _SMALL and (h * w > _LITTLE[0] or b > _LITTLE[1]):
        return False
    return (
        torch.is_grad_enabled()
        and conv.bias is not None
        and conv.weight.requires_grad
        and x.is_contiguous(memory_format=torch.channels_last)
        and _has_amx()
    )


@cache
def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


class _SmallConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
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
        if whole:
            return of_x, of_weight, of_bias
        return of_x, weight_gradient(x, grad), grad.sum((0, 2, 3))


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
