"""The callback that writes milestones: `sample-N.png` and `model-N.pt`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.images import save_grid
from ddpm_lib.training import Callback

if TYPE_CHECKING:
    from ddpm_lib.training.callbacks.base import TrainingView


class Milestones(Callback):
    """Writes `sample-N.png` and `model-N.pt` when it is time.

    Args:
        every: Steps between milestones.
        count: Images of a grid.
        folder: Where grids go.
        drawing: Arguments of `sample`.
        save: Writes the milestone of a name.
        best_only: Keep the best by FID and the latest alone.
    """

    def __init__(
        self,
        every: int,
        count: int,
        folder: Path,
        drawing: dict[str, Any],
        save: Callable[[int | str], None],
        best_only: bool,
    ) -> None:
        self.every, self.count, self.folder, self.drawing = every, count, folder, drawing
        self.save, self.best_only, self.best = save, best_only, math.inf

    def on_step_end(self, trainer: TrainingView) -> None:
        """Sample and save."""
        if trainer.step % self.every:
            return
        milestone = trainer.step // self.every
        images = trainer.sample(self.count, progress=False, **self.drawing)
        if trainer.is_main and images.shape[1] in (1, 3, 4):
            path = self.folder / f"sample-{milestone}.png"
            with trainer.tolerate_write_errors(str(path)):
                save_grid(images, path, math.isqrt(self.count))
        names: list[int | str] = [milestone]
        if self.best_only:
            fid = trainer.logged("fid")
            names = ["latest"]
            if fid is not None and fid < self.best:
                self.best = float(fid)
                names.append("best")
        for name in names:
            with trainer.tolerate_write_errors(f"model-{name}.pt"):
                self.save(name)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {} if math.isinf(self.best) else {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the best score so far."""
        self.best = float(state.get("best", math.inf))
