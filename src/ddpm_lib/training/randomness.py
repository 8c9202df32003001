"""Every random decision of training as a function of (seed, step, row): nothing has to be saved to
continue exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys


class DataOrder:
    """The endless order of the training images: slot s holds position s mod n of epoch s // n,
    shuffled per epoch.

    Step k of global batch B takes slots k·B … (k+1)·B - 1, so that no batch is partial, nothing is
    padded or repeated within an epoch, and resuming at any slot costs nothing.

    Args:
        n: Number of images.
        seed: Names the order.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs[epoch] = keys.permutation(self.n, self.seed, "order", epoch)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Return the dataset indices of slots `start` … `stop` - 1 (int64)."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.n)
            take = min(stop - start, self.n - position)
            parts.append(self._epoch(epoch)[position : position + take])
            start += take
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class StepRandomness:
    """Noise and uniform numbers of any rows of any step's global batch, whoever computes them.

    The global batch is cut in `shards` equal blocks, each with a noise generator of its own. A
    process asks for the rows it works on; the blocks it needs are drawn and sliced, so that the
    numbers do not depend on the number of processes.
    """

    seed: int
    batch_size: int
    shards: int

    def uniform(self, what: str, first_slot: int, rows: range) -> Tensor:
        """Draw one number in [0, 1) per row for purpose `what`: float64 (len(rows),) on the CPU."""
        return keys.uniform(
            np.arange(first_slot + rows.start, first_slot + rows.stop), self.seed, what
        )

    def noise(
        self, step: int, rows: range, shape: tuple[int, ...], device: torch.device | str
    ) -> Tensor:
        """Draw ε for the rows of a step: float32 (len(rows), *shape) on `device`."""
        size = self.batch_size // self.shards
        first, last = rows.start // size, (rows.stop - 1) // size
        blocks = []
        for shard in range(first, last + 1):
            generator = keys.generator(device, step * self.shards + shard, self.seed, "noise")
            blocks.append(torch.randn(size, *shape, generator=generator, device=device))
        drawn = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        offset = rows.start - first * size
        return drawn[offset : offset + len(rows)]

    def seed_dropout(self, step: int, rows: range, device: torch.device | str = "cpu") -> None:
        """Seed torch's global generators of the CPU and of a device, which dropout draws from, for
        one micro-batch.

        `torch.manual_seed` would do it for all kinds of devices, and format a stack trace for each
        that this process has not begun to use.
        """
        index = step * self.batch_size + rows.start
        seed = (keys.key(self.seed, "dropout") + index) & (2**63 - 1)
        torch.default_generator.manual_seed(seed)
        kind = torch.device(device).type
        if kind == "mps":
            torch.mps.manual_seed(seed)
        elif kind != "cpu":
            torch.get_device_module(kind).manual_seed(seed)
