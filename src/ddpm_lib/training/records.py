"""What a run writes besides checkpoints: metrics.jsonl, metrics.csv, status.json, train.log."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.training.checkpoint import write_atomically

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


def _plain(value: Any) -> Any:
    # JSON knows no NaN; null keeps the file readable by every parser.
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """One JSON object per line in metrics.jsonl, mirrored in metrics.csv with one column per name.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.jsonl, self.csv = run / "metrics.jsonl", run / "metrics.csv"
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        """Read all complete lines; a last line cut off by a crash is left out."""
        if not self.jsonl.is_file():
            return []
        rows = []
        for line in self.jsonl.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def cut_back(self, step: int) -> None:
        """Drop the lines after `step`, so that a resumed run does not write them twice."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_atomically(self.jsonl, "".join(json.dumps(row) + "\n" for row in rows))
        self._rewrite_csv(rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add one line and flush it to the disk's cache.

        Raises:
            OSError: If the disk refuses; no half line stays, and the next call writes this line too.
        """
        self._waiting.append({k: _plain(v) for k, v in row.items()})
        length = self.jsonl.stat().st_size if self.jsonl.exists() else 0
        try:
            with self.jsonl.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in self._waiting))
        except OSError:
            if self.jsonl.exists():
                os.truncate(self.jsonl, length)
            raise
        rows, self._waiting = self._waiting, []
        known, self._columns = self._columns, []  # a table that could not be completed is written anew next time
        if {name for line in rows for name in line} - set(known):
            self._rewrite_csv(self.rows())
        else:
            with self.csv.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, known).writerows(rows)
            self._columns = known

    def flush(self) -> None:
        """Bring metrics.jsonl to the disk itself; called before a checkpoint, which must not be ahead of its curve."""
        if self.jsonl.exists():
            with self.jsonl.open("rb") as file:
                os.fsync(file.fileno())

    def _rewrite_csv(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.csv, text.getvalue())
        self._columns = columns


def write_status(run: Path, **status: Any) -> None:
    """Write status.json: running | finished | stopped | failed, the step and the reason."""
    write_atomically(run / "status.json", json.dumps(status, indent=1) + "\n")


def write_run_config(trainer: Trainer) -> None:
    """Write config.yaml: everything that `ddpm train --config` needs to repeat the run."""
    import yaml

    diffusion = dict(trainer.diffusion.config)
    size, channels = diffusion.pop("image_size"), diffusion.pop("channels")
    model = dict(getattr(trainer.diffusion.model, "config", None) or {})
    for name in ("channels", "dims"):
        model.pop(name, None)
    config = {
        "data": trainer.source_name,
        "image_size": list(size) if isinstance(size, (list, tuple)) else [size],
        "channels": channels,
        "class_conditional": model.get("num_classes") is not None,
        **trainer.config.to_dict(),
        "output_dir": str(trainer.output_dir),
        "model": model,
        "diffusion": diffusion,
    }
    write_atomically(trainer.output_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def flat_scalars(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as plain scalars, which is all that TensorBoard's hyper-parameters take."""
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in options.items()}
