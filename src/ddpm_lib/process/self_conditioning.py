"""Self-conditioning (Chen et al. 2023): the network sees its own last estimate of the clean
image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.process.conditions import Cond, Conditioners
from ddpm_lib.samplers import Prediction
from ddpm_lib.schedules.levels import Level

SELF_CONDITION = "self_cond"
"""The name of the condition."""


def is_self_conditioned(conditioners: Conditioners | None) -> bool:
    """Whether a network is built for it."""
    return SELF_CONDITION in (conditioners or {})


class SelfConditioned:
    """Evaluates the network while sampling, giving it the x̂_0 of the evaluation before; the first
    one sees the null.

    Args:
        denoise: Called as denoise(x, level, cond).
        cond: The other conditions.
    """

    def __init__(
        self, denoise: Callable[[Tensor, Level, Cond | None], Prediction], cond: Cond | None
    ) -> None:
        self.denoise, self.cond = denoise, dict(cond or {})

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the prediction at x (b, c, *spatial)."""
        found = self.denoise(x, level, self.cond)
        self.cond[SELF_CONDITION] = found.x0
        return found


def training_estimate(x_t: Tensor, shown: Tensor, guess: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what the network is shown of itself in training, like x_t: an estimate for some rows,
    the null 0 for the others.

    Args:
        x_t: Noisy images (b, c, *spatial).
        shown: Booleans (b,) on the CPU: for whom the network is asked first (half of them, in the
            paper).
        guess: From row numbers (k,) to x̂_0 (k, c, *spatial), the network not seeing itself.
            Anywhere but on a CPU k is one of at most eight numbers.
    """
    value = torch.zeros_like(x_t)
    rows = shown.nonzero().flatten()
    if len(rows):
        asked = rows if x_t.device.type == "cpu" else _filled_up(rows, len(shown))
        asked = to_device(asked, x_t.device)
        with torch.no_grad():
            value[asked[: len(rows)]] = guess(asked)[: len(rows)].to(value.dtype)
        # Up to torch 2.11 autocast hands the casts of this pass, which have no history, to the
        # next one: the weights would get no gradient.
        torch.clear_autocast_cache()
    return value


def _filled_up(rows: Tensor, images: int) -> Tensor:
    """Repeat the last row until there is a multiple of an eighth of the images: each number of rows
    is compiled anew, and tried out by cuDNN.
    """
    step = -(-images // 8)
    missing = -len(rows) % step
    return torch.cat([rows, rows[-1:].expand(missing)])
