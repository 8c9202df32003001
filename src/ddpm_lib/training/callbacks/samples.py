"""Grids of samples from fixed seeds."""

from __future__ import annotations

from pathlib import Path

from ddpm_lib import images as pictures
from ddpm_lib.core.progress import in_notebook
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.examples import tiles_beside_examples


class SampleGrid(Callback):
    """Draw a grid of samples from fixed seeds every `every` steps into `samples/`, shared over the
    ranks.

    Of a super-resolution network it shows held-out images: small copy, sample, truth.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.last_grid: Path | None = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Sample when it is time, and after the last step."""
        config = trainer.config
        if trainer.step % self.every and trainer.step != config.max_steps:
            return
        batch = trainer.sample(
            config.sample_count,
            sampler=config.sample_sampler,
            num_steps=min(config.sample_steps, trainer.diffusion.timesteps),
            seed=config.sample_seed,
            guidance_scale=config.sample_guidance_scale,
            progress=False,
        )
        if trainer.is_main and batch.ndim == 4 and batch.shape[1] in (1, 3, 4):
            scale = max(1, 128 // max(batch.shape[-2:]))
            path = trainer.output_dir / "samples" / f"step-{trainer.step:09d}.png"
            shown = trainer.dataset if trainer.held_out is None else trainer.held_out
            tiles, columns = tiles_beside_examples(trainer.diffusion, shown, batch)
            with trainer.tolerate_write_errors(str(path)):
                self.last_grid = pictures.save_grid(tiles, path, columns, scale)
                trainer.note("grid saved")
                _show_inline(path)


def _show_inline(path: Path) -> None:
    # In a notebook the grid belongs under the cell; elsewhere there is nothing to show it in.
    if in_notebook():
        from IPython.display import Image, display

        display(Image(filename=str(path)))
