"""RePaint: painting the unknown part of an image with a process that was trained on whole images
(Lugmayr et al. 2022).

Each step draws the known pixels from q(x_s | x_0) and the others from the model. The model sees the
known pixels' noise but not the pixels, so that one pass harmonises badly; jumping back up by the
forward process and down again lets both parts agree. Every jump raises the number of network calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lib.core.spelling import option
from ddpm_lib.samplers import History, LevelAt, Noise, Predict, Sampler
from ddpm_lib.samplers.base import with_progress
from ddpm_lib.schedules.levels import Level, tau


def jump_schedule(num_steps: int, jump_length: int, num_resamples: int) -> list[int]:
    """Return the visited positions of a ladder of num_steps noisy levels, from num_steps down to 0
    with jumps up.

    From the positions 1, 1 + j, 1 + 2j, … (j = jump_length) below num_steps − j, r − 1 times (r =
    num_resamples), the walk goes back up by j single steps (Lugmayr et al. 2022, appendix, the
    schedule of their pseudo-code, whose t is the position − 1).

    Args:
        num_steps: Positions above clean data, ≥ 1.
        jump_length: j ≥ 1. Longer jumps forget more.
        num_resamples: r ≥ 1; how often each stretch is walked down. 1 never jumps.

    Raises:
        ValueError: If an argument is out of range, or the ladder is too short for any jump.

    >>> jump_schedule(4, 2, 2)
    [4, 3, 2, 1, 2, 3, 2, 1, 0]
    """
    if jump_length < 1 or num_resamples < 1:
        raise ValueError(
            f"jump_length and num_resamples must be at least 1, got {jump_length} and"
            f" {num_resamples}. num_resamples=1 never jumps."
        )
    if num_resamples > 1 and jump_length >= num_steps:
        raise ValueError(
            f"jump_length={jump_length} does not fit into {num_steps} steps, so that nothing would"
            f" be resampled. Use {option('jump_length', max(1, num_steps // 4))}, more steps, or"
            f" {option('num_resamples', 1)}."
        )
    left = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), num_resamples - 1)
    visited, position = [num_steps], num_steps
    while position > 0:
        if left.get(position, 0) > 0:
            left[position] -= 1
            visited += range(position + 1, position + jump_length + 1)
            position += jump_length
        position -= 1
        visited.append(position)
    return visited


def diffuse(x: Tensor, s: Level, t: Level, z: Tensor) -> Tensor:
    """Return a draw from the forward kernel q(x_t | x_s) = N((α_t/α_s)·x_s, σ_t²·τ) for any levels
    s < t.

    Ho et al. 2020, eq. 2 is the case of neighbours, where σ_t²·τ = β_t.

    Args:
        x: x_s, (b, c, *spatial).
        s: Its level; must not be pure noise.
        t: A noisier level.
        z: Standard Gaussian noise like x.
    """
    return (t.alpha / s.alpha) * x + t.sigma * math.sqrt(tau(t, s)) * z


def to_mask(mask: Tensor, n: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a mask as booleans (n, c, *spatial) or smaller that broadcast, True where to paint.

    Args:
        mask: Booleans or numbers 0 and 1: (*spatial), (c or 1, *spatial) or (n or 1, c or 1,
            *spatial).
        n: Number of images.
        shape: Of one image, (c, *spatial).
        device: Where it is needed.

    Raises:
        ValueError: If it has another shape or other values.
    """
    full = (n, *shape)
    fits = len(shape) - 1 <= mask.ndim <= len(full) and mask.shape[-len(shape) + 1 :] == torch.Size(
        shape[1:]
    )
    if not fits or any(m not in (1, f) for m, f in zip(mask.shape[::-1], full[::-1])):
        raise ValueError(
            f"The mask must have the shape of one plane {shape[1:]}, of one image {shape} or of all"
            f" {full}, where the numbers of images and channels may be 1; got {tuple(mask.shape)}."
        )
    painted = mask != 0
    if not torch.equal(painted.to(mask.dtype), mask):
        raise ValueError(
            "A mask holds True or 1 where to paint and False or 0 where to keep. Pass mask > 0.5,"
            " say."
        )
    return painted.view(*[1] * (len(full) - mask.ndim), *mask.shape).to(device)


def repaint_loop(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    predict: Predict,
    noise: Noise,
    *,
    known: Tensor,
    mask: Tensor,
    level_at: LevelAt | None = None,
    on_state: Callable[[int, Tensor], None] | None = None,
    progress: bool | None = False,
) -> Tensor:
    """Take x down and up through the levels; the known pixels of every state are drawn afresh from
    q(x_t | x_0).

    Given x_0, the noise of the known pixels is independent of everything else, so that fresh noise
    at each state is their exact law.

    Args:
        sampler: Makes the steps down; single-step. A step has no memory, because the known pixels
            change under it.
        x: The state at levels[0], (b, c, *spatial).
        levels: The levels to visit, each next one cleaner or noisier than the one before.
        predict: Evaluates the network.
        noise: Draws noise like x.
        known: The images in [-1, 1]; only the known pixels count.
        mask: True where to paint, broadcastable to x.
        level_at: As for `sample_loop`.
        on_state: As for `sample_loop`.
        progress: As for `sample_loop`.

    Returns:
        The state at levels[-1], with the known pixels in place.
    """
    pairs = list(enumerate(pairwise(levels), start=1))
    steps = len({level.t for level in levels}) - 1

    def merge(x: Tensor, level: Level) -> Tensor:
        at = level.alpha * known + level.sigma * noise() if level.sigma else known
        return torch.where(mask, x, at)

    with torch.inference_mode():
        x = merge(x, levels[0])
        if on_state is not None:
            on_state(0, x)
        for i, (t, s) in with_progress(pairs, progress):
            if s.t > t.t:
                x = diffuse(x, t, s, noise())
            else:
                x = sampler.step(x, t, s, predict, noise, History(steps=steps, level_at=level_at))
            x = merge(x, s)
            if on_state is not None:
                on_state(i, x)
    return x


def check_single_step(sampler: Sampler) -> None:
    """Refuse a solver that extrapolates from earlier steps.

    Raises:
        ValueError: If it is one.
    """
    if sampler.multistep:
        raise ValueError(
            f"{type(sampler).__name__} extrapolates from what the network said in earlier steps,"
            " which saw other noise in the known pixels. Inpaint with a single-step sampler: ddpm,"
            " ddim, dpmpp_2s, euler or heun."
        )
