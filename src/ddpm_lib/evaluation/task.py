"""What a metric works on and what it returns; the work is shared over the ranks by image.

Means are taken over the numbers of all images in their order, so that a result depends neither on the number of processes nor
on the batch size (up to float32 rounding).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.training.loading import LoadedRun
from ddpm_lib.training.sampling import own_share

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.evaluation.options import EvaluationOptions


@dataclass(frozen=True)
class Score:
    """One number of a metric.

    Attributes:
        name: Such as "nll" or, for a part of it, "nll/decoder".
        value: Mean over the images.
        standard_error: Of that mean, from the choice of images and the noise; None where a metric has none.
        unit: Such as "bits/dim".
        per_image: The numbers it is the mean of, float64 (n,), where there are some; not written to files.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    per_image: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Task:
    """What a metric works on.

    Attributes:
        run: The process with the chosen weights, on this rank's device.
        images: The images to score, in order; the same set on every rank.
        options: All options.
        state: accelerate's object that knows the ranks.
    """

    run: LoadedRun
    images: ImageDataset
    options: EvaluationOptions
    state: PartialState

    def batch(self, rows: range) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return images of these rows, as they are stored, and the conditions that the network knows."""
        batch = self.images.batch(np.arange(rows.start, rows.stop))
        names = getattr(self.run.diffusion.model, "conditioners", {})
        return batch["image"], {k: v for k, v in batch.items() if k in names} or None

    def per_image(self, what: str, columns: int, group: int, score: Callable[[range], Tensor]) -> Tensor:
        """Score every image once, on whichever rank, and return the numbers of all on every rank.

        Args:
            what: Names the progress bar.
            columns: Numbers per image, k.
            group: Images per call. Groups begin at multiples of it, whatever the number of ranks.
            score: From rows to float64 (len(rows), k) on the CPU.

        Returns:
            float64 (n, k) on the CPU.
        """
        from tqdm.auto import tqdm

        n, ranks = len(self.images), self.state.num_processes
        groups = own_share(math.ceil(n / group), self.state.process_index, ranks)
        quiet = not (self.options.progress and self.state.is_main_process)
        shown = tqdm(groups, desc=what, disable=quiet, leave=False)
        none = torch.empty(0, columns, dtype=torch.float64)
        own = torch.cat([none, *(score(range(k * group, min(n, (k + 1) * group))) for k in shown)])
        if ranks == 1:
            return own
        from accelerate.utils import gather

        # Ranks have equal shares of the groups but for the last ones: padded, all but the end of the whole is filled.
        size = math.ceil(math.ceil(n / group) / ranks) * group
        dtype = torch.float32 if self.state.device.type == "mps" else torch.float64
        padded = torch.zeros(size, columns, dtype=dtype, device=self.state.device)
        padded[: len(own)] = own.to(padded)
        return gather(padded)[:n].cpu().double()


def mean_score(name: str, values: Tensor, unit: str) -> Score:
    """Return the mean of float64 (n,) with its standard error s/√n, None for one image."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Score(name, float(values.mean()), error, unit, values)
