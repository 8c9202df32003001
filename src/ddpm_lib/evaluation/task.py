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

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.progress import bar
from ddpm_lib.images import to_model_range
from ddpm_lib.metrics import bootstrap_interval
from ddpm_lib.nn import LowRes
from ddpm_lib.process.conditions import find_conditioner
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runtime.processes import own_share

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.bank import Bank
    from ddpm_lib.evaluation.data import RunData
    from ddpm_lib.evaluation.engine import Engine
    from ddpm_lib.evaluation.options import EvaluationOptions

NO_MODEL = "This metric scores a model, and there are only images. Give a run or a checkpoint."


@dataclass(frozen=True)
class Score:
    """One number of a metric.

    Attributes:
        name: Such as "nll" or, for a part of it, "nll/decoder".
        value: Mean over the images.
        standard_error: From the choice of images and the noise; None where a metric has none.
        unit: Such as "bits/dim".
        per_image: The numbers it is the mean of, float64 (n,), where there are some; not written to files.
        interval: 95 % bootstrap interval for the choice of images; it says nothing of bias.
        remark: What a reader must know beside the number: that it is worse than trivial, or rests on too little.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    per_image: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)
    interval: tuple[float, float] | None = None
    remark: str = ""


@dataclass(frozen=True)
class Task:
    """What a metric works on.

    Attributes:
        run: The process with the chosen weights, on this rank's device; None where sets of images are compared.
        images: The images to score, in order; the same set on every rank; None where no metric looks at any.
        options: All options.
        state: accelerate's object that knows the ranks.
        bank: Features of samples and reference, for metrics that asked for them.
        data: The run's own sets.
        engine: Shares work over the ranks and keeps what is done; None where nothing is kept.
        identity: Digest of the weights, part of the key under which work is kept.
    """

    run: LoadedRun | None
    images: ImageDataset | None
    options: EvaluationOptions
    state: PartialState
    bank: Bank | None = None
    data: RunData | None = None
    engine: Engine | None = None
    identity: str = ""

    def model(self) -> GaussianDiffusion:
        """Return the process.

        Raises:
            ConfigError: If there is none.
        """
        if self.run is None:
            raise ConfigError(NO_MODEL)
        return self.run.diffusion

    def own(self, which: str) -> ImageDataset:
        """Return the run's "train" or "held-out" images.

        Raises:
            ConfigError: If there is no run, or it held nothing out.
        """
        if self.data is None:
            raise ConfigError(NO_MODEL)
        return self.data.get(which)

    def batch(self, rows: range, images: ImageDataset | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return images of these rows, as they are stored, and the conditions that the network knows."""
        chosen = images if images is not None else self.images
        assert chosen is not None
        batch = chosen.batch(np.arange(rows.start, rows.stop))
        return batch["image"], conditions_of(self.model(), batch)

    def per_image(
        self, what: str, columns: int, group: int, score: Callable[[range], Tensor], resume: bool = False
    ) -> Tensor:
        """Score every image once, on whichever rank, and return the numbers of all on every rank.

        Args:
            what: Names the progress bar.
            columns: Numbers per image, k.
            group: Images per call. Groups begin at multiples of it, whatever the number of ranks.
            score: From rows to float64 (len(rows), k) on the CPU.
            resume: Whether an interrupted evaluation continues from what was kept, which is right if the numbers depend on
                nothing but the weights, the options and the images.

        Returns:
            float64 (n, k) on the CPU.
        """
        assert self.images is not None
        key = self.images.fingerprint if resume else None
        return self.over(len(self.images), what, columns, group, score, key)

    def over(
        self, n: int, what: str, columns: int, group: int, score: Callable[[range], Tensor], resume: str | None = None
    ) -> Tensor:
        """Do as `per_image` for rows 0 … n-1 of a set of this fingerprint."""
        if resume is not None and self.engine is not None:
            chosen = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in ("progress", "metrics")}
            about = [what, resume, n, group, self.identity, chosen]
            return self.engine.collect(what, about, n, group, lambda rows: {"values": score(rows)})["values"].double()
        ranks = self.state.num_processes
        groups = own_share(math.ceil(n / group), self.state.process_index, ranks)
        visible = self.options.progress and self.state.is_main_process
        shown = bar(groups, desc=what, unit="group", shown=visible)
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


def small_image(diffusion: GaussianDiffusion) -> LowRes | None:
    """Return the condition of a network that enlarges images, None of one that does not."""
    return find_conditioner(diffusion.conditioners, LowRes)


def conditions_of(diffusion: GaussianDiffusion, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the conditions that the network knows: labels, and small images made of the images themselves."""
    names = diffusion.conditioners or {}
    cond = {k: v for k, v in batch.items() if k in names}
    low_res = small_image(diffusion)
    if low_res is not None:
        cond[low_res.name] = low_res.derive(to_model_range(batch["image"]))
    return cond or None


def mean_score(name: str, values: Tensor, unit: str) -> Score:
    """Return the mean of float64 (n,) with its standard error s/√n and its bootstrap interval, None for one image."""
    value = float(values.mean())
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Score(name, value, error, unit, values, bootstrap_interval(value, values))
