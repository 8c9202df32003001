"""What a checkpoint's state.json must say before anything is built from it: whole numbers that are, and sizes that can be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


import json
from collections.abc import Callable
from pathlib import Path

from ddpm_lib.core.text import short
from ddpm_lib.runs import checkpoint as files

MOST_LEVELS = 10**6
"""More noise levels than any process has; tables of 10¹⁰ would take all memory before anything is compared."""


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and 0 <= v < 1e18


def _averages(v: Any) -> bool:
    return isinstance(v, list) and len(v) < 1000 and all(isinstance(d, str) or _number(d) for d in v)


def _states(v: Any) -> bool:
    return isinstance(v, dict) and all(isinstance(state, dict) for state in v.values())


def _model(v: Any) -> bool:
    config = v.get("config") if isinstance(v, dict) else 0
    return isinstance(v, dict) and isinstance(v.get("class"), str) and (config is None or isinstance(config, dict))


def _process(v: Any) -> bool:
    return isinstance(v, dict) and _whole(1, MOST_LEVELS)(v.get("timesteps", 1000))


_MOST = 2**60
_WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("a whole number from 0", _whole(0, _MOST)),
    "images_seen": (f"a whole number from 0 to {_MOST:,}", _whole(0, _MOST)),
    "elapsed_seconds": ("a finite number from 0", _number),
    "seed": ("a whole number", _whole(0, 2**256)),
    "batch_size": ("a whole number from 1", _whole(1, 2**31)),
    "shards": ("a whole number from 1 that divides batch_size", _whole(1, 2**31)),
    "model": ("a class with its arguments", _model),
    "diffusion": (f"arguments, with timesteps from 1 to {MOST_LEVELS:,}", _process),
    "data": ("a list of what identifies the data", lambda v: isinstance(v, dict)),
    "ema_decay": ("a list of numbers", _averages),
    "training": ("a list of options", lambda v: isinstance(v, dict)),
    "callbacks": ("a list of states by name", _states),
    "versions": ("a list of versions", lambda v: isinstance(v, dict)),
}
_FOR_LOADING = ("step", "model", "diffusion", "data", "ema_decay")


def check_state(state: dict[str, Any], path: Path, names: tuple[str, ...] = tuple(_WANTED)) -> None:
    """Check what state.json says, without building anything.

    Args:
        state: Its values.
        path: The checkpoint, for the message.
        names: The entries that are needed.

    Raises:
        CheckpointError: Naming the file, the entry, what it says and what it should.
    """
    for name in names:
        what, fits = _WANTED[name]
        if name not in state:
            raise files.CheckpointError(f"{path / 'state.json'} has no entry {name!r}, so it is damaged.")
        value = state[name]
        if not fits(value) or (name == "shards" and state["batch_size"] % value):
            raise files.CheckpointError(f"{path / 'state.json'}: {name} must be {what}; got {short(value, 100)}.")
    for name in ("guard", "scaler"):
        if state.get(name) is not None and not isinstance(state[name], dict) and len(names) > len(_FOR_LOADING):
            raise files.CheckpointError(
                f"{path / 'state.json'}: {name} must be a state; got {short(state[name], 100)}."
            )


def check_loadable(state: dict[str, Any], path: Path) -> None:
    """Check what sampling needs; an average made later has no more.

    Raises:
        CheckpointError: See `check_state`.
    """
    check_state(state, path, _FOR_LOADING)


def check_resumable(path: Path) -> None:
    """Check that training can go on from a checkpoint whose files are as its manifest says.

    Raises:
        CheckpointError: Naming what is missing or wrong.
    """
    state = files.read_state(path)
    check_state(state, path)
    if state["step"] != files.step_of(path):
        raise files.CheckpointError(f"{path / 'state.json'} says step {state['step']}, so it is of another checkpoint.")
    listed = json.loads((path / files.MANIFEST).read_text(encoding="utf-8"))["files"]
    wanted = ["model.safetensors", "optimizer.safetensors", "state.json"]
    wanted += ["ema.safetensors"] if state["ema_decay"] else []
    for name in wanted:
        if name not in listed:
            raise files.CheckpointError(
                f"{path.name}: {files.MANIFEST} does not list {name}, without which nothing goes on"
            )


def best_step(state: dict[str, Any]) -> int | None:
    """Return the step of the best checkpoint that a checkpoint's state.json knows of, or None."""
    callbacks = state.get("callbacks")
    kept = callbacks.get("KeepBest") if isinstance(callbacks, dict) else None
    step = kept.get("step") if isinstance(kept, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
