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
        draws: k ≥ 1: give each image the nearest of k independent draws (Li et al. 2025). Nothing
            is assigned, and nothing waits. The noise that was chosen is also the target. It is no
            Gaussian any more, and tells of the image, by ln k at most.

    Raises:
        ValueError: If a strength is negative or not finite, or draws is below 1.
    """

    offset: float = 0.0
    perturbation: float = 0.0
    immiscible: bool = False
    draws: int = 1

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

        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(
                f"noise_draws must be a whole number of at least 1, got {self.draws!r}. 4 is a"
                " usual value; 1 takes the noise as it comes."
            )

    def __call__(self, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise that is the target, and the noise that is added, both like x0 (b, c,
        *spatial).
        """
        if self.offset:
            constant = torch.randn(eps.shape[:2], dtype=eps.dtype, device=eps.device)
            eps = eps + self.offset * constant.view(*constant.shape, *[1] * (eps.ndim - 2))
        if self.draws > 1:
            eps = nearest_draw(x0, eps, self.draws)
        if self.immiscible:
            eps = eps[assignment(x0, eps)]
        added = eps + self.perturbation * torch.randn_like(eps) if self.perturbation else eps
        return eps, added


def nearest_draw(x0: Tensor, eps: Tensor, draws: int) -> Tensor:
    """Return for each image the nearest, in Euclidean distance, of some draws of noise.

    Of k draws s = ‖ε‖² − 2⟨x_0, ε⟩ is smallest for the one that is chosen. In d dimensions, d ≫ 1,
    s has the standard deviation √(2d + 4‖x_0‖²), so that with m_k the mean of the largest of k
    normal numbers (0.56, 1.03, 1.42 for k = 2, 4, 8) the chosen noise has ⟨x_0, ε⟩/‖x_0‖ larger by
    2·m_k·‖x_0‖/√(2d + 4‖x_0‖²) on average, and ‖ε‖² smaller by 2·m_k·d/√(2d + 4‖x_0‖²).

    Args:
        x0: Images (b, c, *spatial) in [-1, 1].
        eps: The first draw, like x0; the others come from torch's global generator.
        draws: k ≥ 2 with the first.
    """
    chosen, images = eps, x0.flatten(1)

    def distance(noise: Tensor) -> Tensor:
        flat = noise.flatten(1)
        return flat.square().sum(1) - 2.0 * (images * flat).sum(1)

    nearest = distance(eps)
    for _ in range(draws - 1):  # one at a time: k of them would need k times the memory
        other = torch.randn_like(eps)
        d = distance(other)
        closer = d < nearest
        chosen = torch.where(closer.view(-1, *[1] * (eps.ndim - 1)), other, chosen)
        nearest = torch.where(closer, d, nearest)
    return chosen


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
    rows, columns = linear_sum_assignment(squares.cpu().double().clamp(min=0.0).sqrt().numpy())
    assert (rows == range(len(rows))).all()
    return to_device(torch.from_numpy(columns), eps.device)
