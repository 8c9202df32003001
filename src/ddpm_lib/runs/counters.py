"""How far a run has come: what a checkpoint keeps of the training loop itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counters of a run, over all calls that continued it; the only thing that a roll-back rewinds.

    Attributes:
        step: Optimizer steps done.
        images_seen: Images used by all processes together, the first free slot of the data's order.
        elapsed_seconds: Time spent training, up to the last checkpoint.
    """

    step: int = 0
    images_seen: int = 0
    elapsed_seconds: float = 0.0
    _began: float | None = field(default=None, repr=False)

    def start_clock(self) -> None:
        """Count time from now on, beyond `elapsed_seconds`."""
        self._began = time.monotonic() - self.elapsed_seconds

    def seconds(self) -> float:
        """Return the time spent training until now."""
        return self.elapsed_seconds if self._began is None else time.monotonic() - self._began

    def read_clock(self) -> None:
        """Bring `elapsed_seconds` up to date, for a checkpoint."""
        self.elapsed_seconds = self.seconds()

    def advance(self, images: int) -> None:
        """Count one optimizer step of so many images."""
        self.step += 1
        self.images_seen += images

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, JSON-able."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "elapsed_seconds": self.elapsed_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counters from a mapping that holds them; a clock that runs goes on."""
        self.step, self.images_seen = int(state["step"]), int(state["images_seen"])
        self.elapsed_seconds = float(state["elapsed_seconds"])
