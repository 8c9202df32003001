"""From a dataset and a step number to this process's micro-batches, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.keys import hashes
from ddpm_lib.core.spelling import option
from ddpm_lib.training.option_values import divisors
from ddpm_lib.training.randomness import DataOrder

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.loader import Drawn


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch of B images is shared: process r takes rows r·B/W …, in `accumulation`
    micro-batches.

    Args:
        batch_size: Images per optimizer step over all processes (B).
        processes: Number of processes (W).
        rank: This process.
        accumulation: Micro-batches per process and step.
    """

    batch_size: int
    processes: int
    rank: int
    accumulation: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.accumulation):
            raise ConfigError(
                f"{option('batch_size')} {self.batch_size} cannot be shared by {self.processes}"
                " processes ×"
                f" {self.accumulation} accumulation steps. Products that fit:"
                f" {divisors(self.batch_size)}."
            )

    @property
    def per_process(self) -> int:
        """Images per process and optimizer step."""
        return self.batch_size // self.processes

    @property
    def micro(self) -> int:
        """Images per forward pass."""
        return self.per_process // self.accumulation

    def rows(self) -> list[range]:
        """Return the rows of the global batch that this process works on, one range per
        micro-batch.
        """
        first = self.rank * self.per_process
        return [
            range(first + i * self.micro, first + (i + 1) * self.micro)
            for i in range(self.accumulation)
        ]


class TrainingBatches:
    """The stream of this process's micro-batches from a given slot on: dicts of CPU tensors, in a
    fixed order.

    Args:
        dataset: The training images.
        plan: The share of this process.
        seed: Names the order.
        first_slot: Images that all processes together have used before.
        num_workers: Decoding processes (0 for sets in RAM).
        pin_memory: Whether batches go to page-locked memory, for a GPU.
        log: Gets a line when workers are lost and fewer go on.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        seed: int,
        first_slot: int,
        num_workers: int,
        pin_memory: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        from ddpm_lib.data import make_loader

        self._order = DataOrder(len(dataset), seed)
        self._plan, self._slot, self._seed = plan, first_slot, seed
        self._loader = make_loader(
            dataset, self._index_batches(), num_workers=num_workers, pin_memory=pin_memory, log=log
        )
        self._iterator = iter(self._loader)

    def _index_batches(self) -> Iterator[Drawn]:
        from ddpm_lib.data.loader import Drawn

        slot = self._slot
        while True:
            for rows in self._plan.rows():
                slots = np.arange(slot + rows.start, slot + rows.stop, dtype=np.int64)
                # What random transforms of a user's Dataset draw is named by seed and slot, as
                # everything else.
                draws = (hashes(slots, self._seed, "item") >> np.uint64(1)).astype(np.int64)
                yield Drawn(
                    self._order.indices(slot + rows.start, slot + rows.stop).tolist(), draws
                )
            slot += self._plan.batch_size

    def __next__(self) -> dict[str, Any]:
        return next(self._iterator)

    def close(self) -> None:
        """End the workers."""
        self._loader.close()


def batch_to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch without waiting for the device."""
    return {k: to_device(v, device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def flip_rows(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror those images of (b, c, …, w) whose entry of `flip` (b,) is true along the last
    axis.
    """
    mask = to_device(flip, images.device).view(-1, *[1] * (images.ndim - 1))
    return torch.where(mask, images.flip(-1), images)
