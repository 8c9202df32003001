"""The gradient of 3×3 convolutions' weights in bfloat16, on CPUs that multiply pairs of such
numbers (AVX-512 BF16), with half of the multiplications or less.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from ddpm_lib.nn.kernels.build import gradient_library

_LEAST = 128
"""Squares of 2×2 output pixels, over the batch, from which on it is the faster one: measured with
64 to 256 channels on Zen 4.
"""


def low_gradient_fits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Say whether the kernel can compute the gradients of a 3×3 convolution's weight and bias, and
    is the faster one.

    Args:
        x: Feature map (b, c, h, w), bfloat16, channels_last.
        conv: The convolution, of stride 1 with zeros around the map.
    """
    b, c, h, w = x.shape
    if c != conv.in_channels or b * ((h + 1) // 2) * ((w + 1) // 2) < _LEAST:
        return False
    lib = gradient_library()
    if lib is None:
        return False
    panel = lib.low_gradient_panel()
    return c % panel == 0 and conv.out_channels % panel == 0


def low_gradients(x: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients (k, c, 3, 3) of the weight and (k,) of the bias, by F(2×2, 3×3) (Lavin &
    Gray 2016, §4.1).

    What is multiplied is rounded to bfloat16 after the transform, and summed in float32: a relative
    error of 4e-3 where oneDNN's is 2e-3, both far below what one batch differs from another. Sums
    do not depend on the number of threads.

    Args:
        x: Input (b, c, h, w), bfloat16, channels_last.
        grad: Gradient of the output (b, k, h, w), bfloat16.
        weight: The weight, for its type and its place in memory.
    """
    lib = gradient_library()
    assert lib is not None
    grad = grad.contiguous(memory_format=torch.channels_last)
    (b, c, h, w), k = x.shape, grad.shape[1]
    of_weight = torch.empty_like(weight, dtype=torch.float32)
    of_bias = torch.empty(k, dtype=torch.float32, device=x.device)
    strides = (ctypes.c_int64 * 4)(*of_weight.stride())
    lib.low_weight_gradient(
        *(x.data_ptr(), grad.data_ptr(), b, h, w, c, k, strides),
        *(of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
    )
    return of_weight.to(weight.dtype), of_bias.to(weight.dtype)


def low_gradient_error() -> float:
    """Return the largest error of the kernel's gradients, relative to the gradients: 4e-3 by
    rounding.
    """
    lib = gradient_library()
    assert lib is not None
    generator = torch.Generator().manual_seed(0)
    width = lib.low_gradient_panel()
    x, grad = (
        torch.randn(3, width, 7, 6, generator=generator)
        .bfloat16()
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.zeros(width, width, 3, 3)
    found = low_gradients(x, grad, weight)
    places = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True])
    wanted = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), weight.double(), [width], *places
    )[1:]
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted))
