"""UniPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.samplers.exponential import advance, half_log_snr_step, moments, quadrature, usable
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC: a multistep predictor, its step then redone with the x̂_0 found at its end (Zhao et
    al. 2023, alg. 5, 6).

    The predictor integrates the polynomial through the last `order` x̂_0 (see `exponential.py`),
    the corrector that through the new one as well; it is needed for the next step anyway, so that a
    step costs one network call. The corrector raises the order by one. For the fewest steps, 5 to
    10, without strong guidance. Steps from pure noise and to clean data are of first order and are
    not corrected.

    Args:
        order: Levels of the predictor, 1 … 4. Published code recommends 2 with guidance and 3
            without.
        variant: B(h) of the paper, "bh1" (h) or "bh2" (1 − e^−h). It only matters where the paper
            fixes a weight at ½: in the predictor of order 2 and the corrector of order 1.
        corrector: False leaves the corrector out; order 2 is then DPM-Solver++ 2M.
        lower_order_final: Lower the order towards the end, to 1 in the last step.

    Raises:
        ValueError: If an option is out of range.
    """

    multistep: ClassVar[bool] = True

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(
                f"order must be 1, 2, 3 or 4, got {self.order!r}. 2 is the usual one, 3 without"
                " guidance."
            )
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(
                f"variant must be 'bh1' or 'bh2', got {self.variant!r}. 'bh2' is the usual one."
            )

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return the predictor's x_s, from the corrected x_t."""
        x0, past = predict(x, t).x0, history.past
        if self.corrector and past and scalars.isfinite(half_log_snr_step(past[-1].level, t)):
            x = self._correct(t, x0, noise, history)
        h = half_log_snr_step(t, s)
        places, earlier = usable(past, t, h, self._order(history.remaining) - 1)
        if scalars.isinf(h) or not earlier:
            weights = moments(h, 1)
        elif len(earlier) == 1:
            change = 0.5 * self._scale(h) / places[0]
            weights = [moments(h, 1)[0] - change, change]
        else:
            weights = quadrature([0.0, *places], h)
        history.remember(t, x, x0, self.order)
        return advance(x, t, s, list(zip(weights, [x0, *earlier])), noise)

    def _correct(self, t: Level, x0: Tensor, noise: Noise, history: History) -> Tensor:
        """Redo the last step, which ended at t, with the x̂_0 found there."""
        *older, last = history.past
        h = half_log_snr_step(last.level, t)
        places, earlier = usable(older, last.level, h, self._order(history.remaining + 1) - 1)
        if earlier:
            weights = quadrature([0.0, 1.0, *places], h)
        else:
            change = 0.5 * self._scale(h)
            weights = [moments(h, 1)[0] - change, change]
        return advance(last.x, last.level, t, list(zip(weights, [last.x0, x0, *earlier])), noise)

    def _order(self, remaining: int) -> int:
        return min(self.order, remaining + 1) if self.lower_order_final else self.order

    def _scale(self, h: float) -> float:
        return h if self.variant == "bh1" else -scalars.expm1(-h)
