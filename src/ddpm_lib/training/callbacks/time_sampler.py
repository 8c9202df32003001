"""What a time sampler that learns is told."""

from __future__ import annotations

from typing import Any

import torch

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.time_sampling import TimeSampler
from ddpm_lib.training.callbacks.base import Callback, TrainingView


class LossAwareTimes(Callback):
    """Tell a time sampler that learns the losses of all ranks in the order of the global batch, and
    keep its state.

    Reading the losses makes every step wait for the device.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._sampler: TimeSampler | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Hand over what a checkpoint held; a new run starts without a memory."""
        self._sampler = trainer.diffusion.time_sampler
        if self._restored is not None or not trainer.step:
            self._sampler.load_state_dict(self._restored or {})
            self._restored = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Tell the losses of this step."""
        assert trainer.last is not None
        losses = trainer.last.losses
        seen = torch.stack(
            [to_device(trainer.last.levels.to(losses.dtype), losses.device), losses], 1
        )
        seen = trainer.ranks.gather(seen).cpu()
        trainer.diffusion.time_sampler.update(seen[:, 0].long(), seen[:, 1].double())

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state, the same on every rank."""
        return self._sampler.state_dict() if self._sampler is not None else self._restored or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._restored = state
