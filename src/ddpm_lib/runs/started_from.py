"""What a run began with besides random weights, as its checkpoints and status.json keep it; loads
no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.text import printable
from ddpm_lib.runs.run_status import newest_checkpoint


@dataclass(frozen=True, kw_only=True)
class StartedFrom:
    """Where the first weights of a run were taken from, and how they were mapped.

    Attributes:
        source: Absolute path, or the name of a repository.
        kind: "run", "pretrained", or the format of another library.
        revision: Of the repository, None where there is none.
        step: Optimizer steps that the weights had been trained for; 0 where that is not known.
        weights: Which of its weights were taken: "model", or "ema" with the decay.
        sha256: Digest of the weights before they were mapped, by names and values; the same for the
            same weights, whatever file they lie in.
        data: Name of the data that they were trained on, None where that is not known.
        notes: What was mapped, dropped or added, a line each.
    """

    source: str
    kind: str
    revision: str | None = None
    step: int = 0
    weights: str
    sha256: str
    data: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a line: source, step, weights and data."""
        revision = f" at {self.revision}" if self.revision else ""
        known = [f"step {self.step:,}"] if self.step else []
        known.append(f"weights {self.weights}")
        known += [f"trained on {self.data}"] if self.data else []
        return printable(f"{self.source}{revision} ({', '.join(known)})")

    def to_json(self) -> dict[str, Any]:
        """Return the entry `started_from` of state.json."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, values: Any) -> StartedFrom | None:
        """Read what `to_json` returned; None where there is nothing, or nothing legible."""
        if not isinstance(values, Mapping):
            return None
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        known["notes"] = tuple(map(str, known.get("notes") or ()))
        texts = ("source", "kind", "weights", "sha256")
        legible = all(isinstance(known.get(name), str) for name in texts)
        step = known.get("step", 0)
        if not legible or isinstance(step, bool) or not isinstance(step, int):
            return None
        for name in ("revision", "data"):
            known[name] = None if known.get(name) is None else str(known[name])
        return cls(**known)


def start_of_run(run: Path) -> StartedFrom | None:
    """Return what a run began with, as its newest checkpoint says; None for random weights, and
    where no checkpoint is legible.
    """
    return StartedFrom.from_json(newest_state(run).get("started_from"))


def is_untrained(run: Path) -> bool:
    """Say whether a run was made of another program's weights and not trained here yet."""
    data = newest_state(run).get("data")
    return isinstance(data, Mapping) and data.get("images") == 0


def newest_state(run: Path) -> Mapping[str, Any]:
    """Return state.json of a run's newest checkpoint; nothing where none is legible."""
    newest = newest_checkpoint(run)
    if newest is None:
        return {}
    try:
        text = (run / "checkpoints" / newest / "state.json").read_text(encoding="utf-8")
        state = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
