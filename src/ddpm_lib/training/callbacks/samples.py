"""Grids of samples from fixed seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.core.spread import evenly
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.examples import low_res_of, tiles_beside_examples

if TYPE_CHECKING:
    from ddpm_lib.metrics.sample_facts import TrainingLooks


LOOKED_AT, LOOKED_AT_STREAMED = 2000, 500
"""Training images, spread over the set, that samples are compared with; fewer where each is
decoded for that.
"""
BLOCK = 100
"""Training images that are read at a time."""


class SampleGrid(Callback):
    """Draw a grid of samples from fixed seeds every `sample_every` steps into `samples/`, shared
    over the ranks, and log what they have in common with training images
    (`metrics/sample_facts.py`).

    Of a super-resolution network it shows held-out images: small copy, sample, truth.

    Attributes:
        last_grid: The newest grid, None before the first.
        samples: Its samples, uint8 (n, c, *spatial), on the CPU of the main process.
        drawn_at: The step at which they were drawn.
    """

    def __init__(self) -> None:
        self.last_grid: Path | None = None
        self.samples: Tensor | None = None
        self.drawn_at: int | None = None
        self._looks: TrainingLooks | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Forget what other images looked like."""
        self._looks = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Sample when it is time, and after the last step."""
        config = trainer.config
        if not config.due(trainer.step, "sample_every"):
            return
        batch = trainer.sample(
            config.sample_count,
            sampler=config.sample_sampler,
            num_steps=min(config.sample_steps, trainer.diffusion.timesteps),
            seed=config.sample_seed,
            guidance_scale=config.sample_guidance_scale,
            progress=False,
        )
        self.drawn_at = trainer.step
        if trainer.is_main:
            self.samples = pictures.to_uint8(batch).cpu()
        pictured = batch.ndim == 4 and batch.shape[1] in (1, 3, 4)
        if trainer.is_main and (pictured or trainer.dataset.measured):
            scale = pictures.grid_scale(batch.shape[-2:])
            path = trainer.output_dir / "samples" / f"step-{trainer.step:09d}.png"
            shown = trainer.dataset if trainer.held_out is None else trainer.held_out
            tiles, columns = tiles_beside_examples(trainer.diffusion, shown, batch)
            tiles = pictures.preview(tiles)
            with trainer.tolerate_write_errors(str(path)):
                self.last_grid = pictures.save_grid(tiles, path, columns, scale)
                trainer.note("grid saved")
        trainer.log(trainer.ranks.on_main(lambda: self._facts(trainer, batch)))

    def _facts(self, trainer: TrainingView, samples: Tensor) -> dict[str, float]:
        """Compare samples with training images; on the main process."""
        from ddpm_lib.metrics.sample_facts import TrainingLooks, sample_facts

        data = trainer.dataset.steady()  # looking is no reading that random transforms count
        if self._looks is None:
            n = min(LOOKED_AT if data.in_memory else LOOKED_AT_STREAMED, len(data))
            rows = evenly(n, len(data)).tolist()
            parts = (data.batch(rows[k : k + BLOCK])["image"] for k in range(0, n, BLOCK))
            self._looks = TrainingLooks.of(parts)
        return sample_facts(samples, self._looks, low_res_of(trainer.diffusion) is None)
