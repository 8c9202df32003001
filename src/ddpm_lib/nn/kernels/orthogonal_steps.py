"""A step of Muon on a CPU, without copies in between."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_lib.nn.kernels.build import orthogonal_library
from ddpm_lib.nn.kernels.weight_passes import one_pass_fits


def orthogonal_fits(*lists: Sequence[Tensor]) -> bool:
    """Say whether the kernel can work on lists of tensors, whose k-th ones belong together: all
    float32 on a CPU, laid out alike without gaps, a row after the other.
    """
    rows = all(t.ndim >= 2 and t.stride(0) * t.shape[0] == t.numel() for t in lists[0])
    return rows and one_pass_fits(*lists) and orthogonal_library() is not None


def orthogonal_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Do one step of Muon (Jordan et al. 2024, Liu et al. 2025) in place; see `Muon`.

    Args:
        weights: What is trained, (out, in) or (out, in, *kernel).
        grads: Its gradients.
        means: Its momenta.
        lr: Learning rate.
        momentum: Decay rate of the momenta.
        weight_decay: Decoupled.
    """
    lib = orthogonal_library()
    assert lib is not None
    rows = [w.shape[0] for w in weights]
    columns = [w.numel() // w.shape[0] for w in weights]
    scales = [lr * 0.2 * max(pair) ** 0.5 for pair in zip(rows, columns)]
    count = len(weights)
    lib.orthogonal_step(
        count,
        (ctypes.c_int64 * count)(*rows),
        (ctypes.c_int64 * count)(*columns),
        torch.get_num_threads(),
        *((ctypes.c_void_p * count)(*(t.data_ptr() for t in each)) for each in (weights, grads)),
        (ctypes.c_void_p * count)(*(t.data_ptr() for t in means)),
        momentum,
        (ctypes.c_double * count)(*scales),
        lr * weight_decay,
    )
    torch.autograd.graph.increment_version(weights)


def orthogonal_error() -> float:
    """Return how far the kernel's update is from what its iteration gives by hand, for a matrix
    whose singular values are all alike: there it is a sum of numbers.
    """
    rows, side = 48, 20
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(rows, side, generator=generator, dtype=torch.float64))
    grad, weight = basis.float().contiguous(), torch.zeros(rows, side)
    options = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    orthogonal_step([weight], [grad], [torch.zeros(rows, side)], **options)
    value = side**-0.25  # of all singular values, over the root of the Gram matrix's norm
    for _ in range(5):
        value *= 3.4445 - 4.7750 * value**2 + 2.0315 * value**4
    return float((weight + 0.2 * rows**0.5 * value * grad).abs().max() / weight.abs().max())
