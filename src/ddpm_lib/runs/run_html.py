"""What a notebook shows of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_lib.core.markup import card, facts, never_fails, note, picture
from ddpm_lib.images import grid_scale, small_png
from ddpm_lib.nn.network_html import parameter_words

WIDEST = 390
"""Pixels of a grid on the page."""


@never_fails
def loaded_run_html(self: Any) -> str:
    """Show where the weights are from, what they draw, and the newest grid of the run, as HTML."""
    process = self.diffusion
    default = process.sampling_default
    network = f"{type(process.model).__name__}, {parameter_words(process.model)} parameters"
    pairs: list[tuple[str, object]] = [
        ("from", str(self.checkpoint) if self.pretrained is None else self.pretrained.name),
        ("step", f"{self.step:,}" if self.pretrained is None else None),
        ("weights", self.weights),
        ("network", network),
        ("images", "×".join(map(str, process.image_shape)) + " (channels×size)"),
        ("classes", ", ".join(self.class_names) if self.class_names else None),
        ("sampling", None if default is None else f"{default.words()} ({default.origin()})"),
    ]
    grid = newest_grid(self.run, process.image_size) if self.pretrained is None else ""
    return card(type(self).__name__, facts(pairs), grid)


def newest_grid(run: Path, size: Sequence[int]) -> str:
    """Return the newest grid of samples, of images (height, width), of a run as HTML; empty where
    there is none.
    """
    found = sorted((run / "samples").glob("step-*.png"))
    if not found:
        return ""
    step = found[-1].stem.removeprefix("step-").lstrip("0") or "0"
    try:
        png, width = small_png(found[-1], WIDEST, grid_scale(size))
    except OSError as error:
        return note(f"The grid of step {step} cannot be read ({error}).")
    caption = f"samples at step {step}"
    return picture(png, caption, width) + "<br>" + note(caption)
