"""What cells are compared by: measures that do not know the cell's own schedule, parametrization,
weighting or loss.

Two kinds. *Denoising* asks the network for x̂_0 at fixed log-SNRs, whatever level of its schedule
that is, with the same noise for every cell. *Samples* are compared with data by distances between
sets, next to what two sets of data score: the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core import keys
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.images import to_model_range
from ddpm_lib.process.conditions import Cond
from ddpm_lib.schedules.levels import Level

LOG_SNRS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""Where denoising is compared: from hardly anything to be seen to noise of five per cent."""

Best = Callable[[Tensor, float, float], Tensor]
"""E[x_0 | x_t] of the data, from x_t, α and σ."""


def denoising_errors(
    diffusion: GaussianDiffusion,
    images: Tensor,
    network: nn.Module,
    *,
    cond: Cond | None = None,
    best: Best | None = None,
    log_snrs: Sequence[float] = LOG_SNRS,
    batch_size: int = 1024,
) -> dict[float, float]:
    """Return E‖x̂_0 − x_0‖²/σ² per dimension at fixed log-SNRs, that is E‖v̂ − v‖²: v = (α·x_t −
    x_0)/σ.

    What knows nothing scores the variance of the data where all is noise, and 1, that of the noise,
    where there is hardly any: numbers of one size at every level, so that they can be averaged.
    x̂_0 is not clipped.

    Args:
        diffusion: The process.
        images: Images (n, c, *spatial), uint8 or float in [0, 1], the same for all that are
            compared.
        network: The network to ask.
        cond: Conditions of the images.
        best: What a perfect network would answer, where the data's distribution is known. Then the
            error is the distance to that answer, which training can bring to zero: what is left of
            E‖v̂ − v‖² is the data's own.
        log_snrs: The levels.
        batch_size: Images per call.
    """
    device, found = diffusion.device, {}
    for log_snr in log_snrs:
        sigma = math.sqrt(1.0 / (1.0 + math.exp(log_snr)))
        alpha = math.sqrt(1.0 - sigma**2)
        # Outside the schedule's levels the nearest one answers; the noise is the wanted one.
        level = Level(diffusion.schedule.level_at(log_snr).t, alpha, sigma)
        total = 0.0
        for start in range(0, len(images), batch_size):
            x0 = to_model_range(images[start : start + batch_size])
            generator = keys.generator("cpu", start, 0, "yardstick", str(log_snr))
            x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)
            here = (
                {k: v[start : start + batch_size].to(device) for k, v in cond.items()}
                if cond
                else None
            )
            with torch.inference_mode():
                guess = diffusion.denoise(
                    x_t.to(device), level, here, model=network, clip="none"
                ).x0.cpu()
            wanted = x0 if best is None else best(x_t, alpha, sigma)
            total += float((guess - wanted).double().square().sum()) / sigma**2
        found[log_snr] = total / images[0].numel() / len(images)
    return found


def random_features(images: Tensor, filters: int = 64, batch_size: int = 256) -> Tensor:
    """Describe images by random filters: mean and median size of their answers at two resolutions,
    (n, 4·filters).

    The 3×3 filters are drawn once and for all, and each sums to zero over the window in every
    channel: they see edges and texture, not colours. Blur lowers the means; speckle raises the
    medians, which are near zero where a picture is mostly flat. Nothing is learned, and nothing is
    known of objects. The square root of the answers' sizes keeps strong edges from drowning the
    rest.

    Args:
        images: Images (n, c, h, w), uint8 or float in [0, 1].
        filters: Number of filters.
        batch_size: Images per call.
    """
    generator = keys.generator("cpu", 0, 0, "random features")
    weights = torch.randn(filters, images.shape[1], 3, 3, generator=generator)
    weights = weights - weights.mean((2, 3), keepdim=True)
    weights = weights / weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rows = []
    with torch.inference_mode():
        for part in images.split(batch_size):
            fine = to_model_range(part)
            answers = [
                F.conv2d(x, weights).abs().sqrt().flatten(2) for x in (fine, F.avg_pool2d(fine, 2))
            ]
            rows.append(torch.cat([f for a in answers for f in (a.mean(2), a.median(2).values)], 1))
    return torch.cat(rows)
