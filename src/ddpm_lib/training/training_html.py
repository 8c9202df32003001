"""What a notebook shows of a trainer and of how its training ended."""

from __future__ import annotations

from typing import Any

from ddpm_lib.core.markup import card, facts, never_fails, note
from ddpm_lib.nn.network_html import parameter_words
from ddpm_lib.runs.report.writing import PAGE
from ddpm_lib.runs.run_html import newest_grid
from ddpm_lib.runs.run_status import last_rows
from ddpm_lib.runs.verdict import headline


@never_fails
def trainer_html(self: Any) -> str:
    """Show what is trained, on what, how far, and the newest grid, as HTML; nothing is opened."""
    config, process = self.config, self.diffusion
    rate, shape = config.learning_rate, config.lr_schedule
    shown = rate if isinstance(rate, str) else f"{rate:g}"
    schedule = "" if shape in ("constant", "auto") else f", {shape}"
    network = f"{type(process.model).__name__}, {parameter_words(process.model)} parameters"
    pairs: list[tuple[str, object]] = [
        ("network", network),
        ("images", "×".join(map(str, process.image_shape)) + " (channels×size)"),
        ("data", self.source_name),
        ("step", f"{self.step:,} of {config.max_steps:,}"),
        ("batch", f"{config.batch_size} images"),
        ("optimizer", f"{config.optimizer}, learning rate {shown}{schedule}"),
        ("run directory", str(self.output_dir)),
        *measured(self.metrics),
    ]
    grid = newest_grid(self.output_dir, process.image_size) if self.step else ""
    hint = "" if self.step else note("train() trains, or goes on where the run directory stands.")
    return card(type(self).__name__, facts(pairs), grid, hint)


@never_fails
def result_html(self: Any) -> str:
    """Show how training ended and the last numbers, as HTML; the grid stands in the live view."""
    page = self.output_dir / PAGE
    newest = {name: v for row in last_rows(self.output_dir) for name, v in row.items()}
    pairs: list[tuple[str, object]] = [
        ("step", f"{self.step:,}"),
        ("because", self.reason),
        ("verdict", headline(self.verdict)),
        ("checkpoint", str(self.checkpoint) if self.checkpoint is not None else None),
        *measured(newest),
        ("page", str(page) if page.is_file() else None),
    ]
    hint = "" if self.status == "finished" else note("train() goes on from here.")
    return card(f"Training {self.status}", facts(pairs), hint)


def measured(row: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the losses of a logged row as facts; what was not logged is left out."""
    gap = "val_gap" if row.get("val_gap_adjusted") is None else "val_gap_adjusted"
    names = {"loss": "loss", "val_loss": "held-out loss", gap: "gap to training images"}
    return [
        (shown, f"{row[name]:{'+' if name == gap else ''}.3g}")
        for name, shown in names.items()
        if isinstance(row.get(name), (int, float))
    ]
