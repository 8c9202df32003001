"""What a metric works on; the work is shared over the ranks by image.

Means are taken over the numbers of all images in their order, so that a result depends neither on
the number of processes nor on the batch size (up to float32 rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.progress import bar
from ddpm_lib.evaluation.network_conditions import conditions_of, identity_of
from ddpm_lib.runtime.processes import Processes, own_share

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.engine import Engine
    from ddpm_lib.evaluation.feature_store import FeatureStore
    from ddpm_lib.evaluation.metric_options import MetricOptions
    from ddpm_lib.evaluation.run_images import RunImages
    from ddpm_lib.runs.loading import LoadedRun

NO_MODEL = "This metric scores a model, and there are only images. Give a run or a checkpoint."


@dataclass(frozen=True)
class Task:
    """What every metric gets: a `ModelTask`, or a `SampleTask` if it is a `SampleMetric`.

    Attributes:
        options: All options of the evaluation.
        state: accelerate's object that knows the ranks.
    """

    options: MetricOptions
    state: PartialState


@dataclass(frozen=True)
class SampleTask(Task):
    """What a metric of samples works on.

    Attributes:
        bank: Features of the samples and of what they are compared with.
        run: The run that drew the samples; None where sets of images are compared.
    """

    bank: FeatureStore
    run: LoadedRun | None = None


@dataclass(frozen=True)
class ModelTask(Task):
    """What a metric that scores the model itself works on.

    Attributes:
        run: The process with the chosen weights, on this rank's device.
        images: The images to score, in order; the same set on every rank.
        run_images: The run's own sets.
        engine: Shares work over the ranks and keeps what is done.
        key: JSON-able: the weights and options that numbers depend on, part of the key under which
            work is kept.
    """

    run: LoadedRun
    images: ImageDataset
    run_images: RunImages
    engine: Engine
    key: Sequence[Any]

    def model(self) -> GaussianDiffusion:
        """Return the process."""
        return self.run.diffusion

    def own(self, which: str) -> ImageDataset:
        """Return the run's "train" or "held-out" images.

        Raises:
            ConfigError: If it held nothing out.
        """
        return self.run_images.get(which)

    def batch(
        self,
        rows: range,
        images: ImageDataset | None = None,
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return images of these rows, as they are stored, and the conditions that the network
        knows.
        """
        chosen = self.images if images is None else images
        batch = chosen.batch(np.arange(rows.start, rows.stop))
        return batch["image"], conditions_of(self.model(), batch)

    def per_image(
        self,
        what: str,
        columns: int,
        group: int,
        score: Callable[[range], Tensor],
        resume: bool = False,
    ) -> Tensor:
        """Score every image once, on whichever rank, and return the numbers of all on every rank.

        Args:
            what: Names the progress bar.
            columns: Numbers per image, k.
            group: Images per call. Groups begin at multiples of it, whatever the number of ranks.
            score: From rows to float64 (len(rows), k) on the CPU.
            resume: Whether an interrupted evaluation continues from what was kept, which is right
                if the numbers depend on nothing but the weights, the options and the images.

        Returns:
            float64 (n, k) on the CPU.
        """
        key = identity_of(self.images) if resume else None
        return self.over(len(self.images), what, columns, group, score, key)

    def over(
        self,
        n: int,
        what: str,
        columns: int,
        group: int,
        score: Callable[[range], Tensor],
        resume: str | None = None,
    ) -> Tensor:
        """Do as `per_image` for rows 0 … n-1 of a set of this identity (`identity_of`)."""
        if resume is not None:
            about = [what, resume, n, group, *self.key]
            made = self.engine.collect(what, about, n, group, lambda rows: {"values": score(rows)})
            return made["values"].double()
        ranks = self.state.num_processes
        groups = own_share(math.ceil(n / group), self.state.process_index, ranks)
        visible = self.options.progress and self.state.is_main_process
        shown = bar(groups, desc=what, unit="group", shown=visible)
        none = torch.empty(0, columns, dtype=torch.float64)
        own = torch.cat([none, *(score(range(k * group, min(n, (k + 1) * group))) for k in shown)])
        if ranks == 1:
            return own
        # Ranks have equal shares of the groups but for the last ones: padded, all but the end of
        # the whole is filled.
        size = math.ceil(math.ceil(n / group) / ranks) * group
        dtype = torch.float32 if self.state.device.type == "mps" else torch.float64
        padded = torch.zeros(size, columns, dtype=dtype, device=self.state.device)
        padded[: len(own)] = own.to(padded)
        return Processes.of(self.state).gather(padded)[:n].cpu().double()
