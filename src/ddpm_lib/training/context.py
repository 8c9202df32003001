"""What every part of a run needs: where it writes, who speaks, and how the ranks agree."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.records import MetricsFile, write_status

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.data import ImageDataset


class RunContext:
    """The run directory, the counters, the console and the ranks of one training run."""

    config: TrainingConfig
    output_dir: Path
    accelerator: Accelerator
    device: torch.device
    records: MetricsFile
    dataset: ImageDataset
    rank: int
    processes: int
    is_main: bool
    step: int
    images_seen: int
    metrics: dict[str, Any]
    _row: dict[str, Any]
    _clock: float

    def _join(self, accelerator: Accelerator) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.records = MetricsFile(self.output_dir)

    def _status(self, status: str, reason: str) -> None:
        if self.is_main:
            write_status(self.output_dir, status=status, step=self.step, max_steps=self.config.max_steps, reason=reason)

    def log(self, values: dict[str, Any]) -> None:
        """Add values to this step's line of metrics.jsonl, metrics.csv and the trackers; to be called on every rank."""
        self._row.update(values)

    def _flush_row(self) -> None:
        if not self._row:
            return
        epoch = self.images_seen / len(self.dataset)
        seconds = time.monotonic() - self._clock
        row = {
            "step": self.step,
            "images": self.images_seen,
            "epoch": round(epoch, 4),
            **self._row,
            "seconds": round(seconds, 3),
        }
        self.metrics.update(row)
        self._row = {}
        if self.is_main:
            self.records.append(row)
            self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)

    def say(self, line: str) -> None:
        """Show one line to the user and keep it in train.log; the main process speaks."""
        if not self.is_main:
            return
        from tqdm.auto import tqdm

        tqdm.write(line, file=sys.stderr)
        with (self.output_dir / "train.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {self.step}: {line}\n")

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; the argument stays as it is."""
        return self.accelerator.reduce(tensor.clone(), reduction="sum") if self.processes > 1 else tensor.clone()

    def from_main(self, value: Any) -> Any:
        """Return the main process's value on every rank."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
