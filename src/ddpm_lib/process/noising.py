"""Variants of the noise that training adds: which noise meets which image, and how it departs from
independent pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device


@dataclass(frozen=True)
class Noising:
    """What becomes of Gaussian noise before it is added to a batch; nothing, by default.

    Every draw comes from torch's global generators, as dropout's do. Only training uses it:
        validation and sampling see the
    plain process.

    Args:
        offset: Standard deviation ≥ 0 of a further noise that is constant over each channel of an
            image. It teaches a network to change the overall brightness, which independent pixels
            at the noisiest level hardly touch.
        perturbation: γ ≥ 0 in x_t = α·x_0 + σ·(ε + γ·ξ), while ε stays the target: the network
            meets inputs that are off by what sampling gets wrong (Ning et al. 2023, algorithm 1;
            0.1 there).
        immiscible: Give each image of the batch the noise that is near it, by the assignment of
            least total distance (Li et al. 2024, algorithm 1). The noise that was assigned is also
            the target. Waits for the device in every step.

    Raises:
        ValueError: If a strength is negative or not finite.
    """

    offset: float = 0.0
    perturbation: float = 0.0
    immiscible: bool = False

    def __post_init__(self) -> None:
        for name, value, usual in (
            ("offset_noise", self.offset, 0.1),
            ("input_perturbation", self.perturbation, 0.1),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{name} must be a finite number ≥ 0, got {value}. {usual} is a usual value; 0"
                    " is none."
                )

    def __call__(self, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise that is the target, and the noise that is added, both like x0 (b, c,
        *spatial).
        """
        if self.offset:
            constant = torch.randn(eps.shape[:2], dtype=eps.dtype, device=eps.device)
            eps = eps + self.offset * constant.view(*constant.shape, *[1] * (eps.ndim - 2))
        if self.immiscible:
            eps = eps[assignment(x0, eps)]
        added = eps + self.perturbation * torch.randn_like(eps) if self.perturbation else eps
        return eps, added


def assignment(x0: Tensor, eps: Tensor) -> Tensor:
    """Return the permutation (b,) for which Σ_i ‖x0_i − eps_{p(i)}‖ is smallest (Kuhn 1955, as
    scipy solves it).

    The distances, not their squares, as in Li et al. (2024), algorithm 1: the two differ in many
    batches.

    scipy solves it on the CPU, for which the host waits for the device.
    """
    from scipy.optimize import linear_sum_assignment

    images, noise = x0.flatten(1), eps.flatten(1)
    squares = images.square().sum(1)[:, None] + noise.square().sum(1) - 2.0 * (images @ noise.T)
    rows, columns = linear_sum_assignment(squares.double().clamp(min=0.0).sqrt().cpu().numpy())
    assert (rows == range(len(rows))).all()
    return to_device(torch.from_numpy(columns), eps.device)
