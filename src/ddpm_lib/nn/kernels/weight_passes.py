"""What a step of training does to all weights on a CPU, in one pass over memory each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_lib.nn.kernels.build import weights_library


def one_pass_fits(*lists: Sequence[Tensor], grads: Sequence[Tensor] | None = None) -> bool:
    """Say whether the kernels can work on lists of tensors, whose k-th ones belong together: all
    float32 on a CPU, `grads` float32 or bfloat16, and laid out alike in memory without gaps.
    """
    if lists and lists[0] and lists[0][0].device.type != "cpu":
        return False  # said at once: a GPU waits for the answer
    if any(t.dtype != torch.float32 for each in lists for t in each):
        return False
    if grads is not None:
        if any(t.dtype not in (torch.float32, torch.bfloat16) for t in grads):
            return False
        lists = (*lists, grads)
    first = lists[0]
    if any(t.device.type != "cpu" for each in lists for t in each):
        return False
    if any(len(each) != len(first) for each in lists):
        return False
    if not all(_is_dense(t) for t in first) or weights_library() is None:
        return False
    alike = (
        t.stride() == s.stride() or (t.is_contiguous() and s.is_contiguous())
        for each in lists[1:]
        for t, s in zip(each, first)
    )
    return all(alike) and all(t.shape == s.shape for each in lists[1:] for t, s in zip(each, first))


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(t)


def gradient_norm(grads: Sequence[Tensor]) -> float:
    """Return √Σg² over all numbers, float32 or bfloat16; NaN or infinite where one of them is."""
    lib = weights_library()
    assert lib is not None
    return float(lib.sum_of_squares(*_listed(grads), _pointers(grads), _low(grads))) ** 0.5


def adam_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[float],
    *,
    scale: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    narrowed: Sequence[Tensor | None] | None = None,
) -> None:
    """Do one step of Adam (Kingma & Ba 2015) in place, or of AdamW.

    Args:
        weights: What is trained.
        grads: Its gradients, float32 or bfloat16.
        means: First moments.
        squares: Second moments.
        steps: Of each weight, this one included.
        scale: Factor on the gradients.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Adam's ε.
        weight_decay: Decoupled (Loshchilov & Hutter 2019), or added to the gradient.
        decoupled: Which of the two.
        narrowed: Of each weight its copy in bfloat16, which is written too; None for none.
    """
    lib = weights_library()
    assert lib is not None
    copies = [None] * len(weights) if narrowed is None else narrowed
    corrections = (
        (ctypes.c_double * len(steps))(*(1 - beta**step for step in steps)) for beta in betas
    )
    lib.adam(
        *_listed(weights),
        *(_pointers(each) for each in (weights, grads, means, squares)),
        _low(grads),
        _pointers(copies),
        *corrections,
        scale,
        lr,
        *betas,
        eps,
        weight_decay,
        int(decoupled),
    )
    torch.autograd.graph.increment_version(weights)


def follow(
    sources: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], weights: Sequence[float]
) -> None:
    """Move averages towards what they follow, in place: a += w·(x − a).

    Args:
        sources: What is followed.
        averages: Lists like it.
        weights: Of each list, in [0, 1].
    """
    lib = weights_library()
    assert lib is not None
    flat = [t for each in averages for t in each]
    numbers = (ctypes.c_double * len(weights))(*weights)
    lib.follow(*_listed(sources), _pointers(sources), len(averages), _pointers(flat), numbers)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t if t is None else t.data_ptr() for t in tensors))


def _low(tensors: Sequence[Tensor]) -> bytes:
    """Return a byte per tensor, 1 for bfloat16."""
    return bytes(t.dtype == torch.bfloat16 for t in tensors)


def _listed(tensors: Sequence[Tensor]) -> tuple[int, ctypes.Array[ctypes.c_int64], int]:
    sizes = (ctypes.c_int64 * len(tensors))(*(t.numel() for t in tensors))
    return len(tensors), sizes, torch.get_num_threads()
