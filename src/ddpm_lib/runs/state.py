"""state.json of a checkpoint: its schema, the checks of its values, differences between two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.hub import MOST_LEVELS
from ddpm_lib.core.text import short

STATE = "state.json"


@dataclass(frozen=True)
class Difference:
    """A value that is not the same in two JSON-like values.

    Attributes:
        path: Where it stands, as model.config.dim.
        saved: What a checkpoint, or another process, says.
        now: What holds now, or in this process.
    """

    path: str
    saved: Any
    now: Any

    def worded(self, before: str = "in the checkpoint", after: str = "now") -> str:
        """Return a line for the user; the arguments say where either value holds."""
        return f"{self.path}: {short(self.saved)} {before}, {short(self.now)} {after}"


def differences(saved: Any, now: Any, path: str = "") -> list[Difference]:
    """List where two JSON-like values differ; a tuple equals a list, a missing entry None."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*saved, *now])
        pairs = [(f"{path}.{k}" if path else str(k), saved.get(k), now.get(k)) for k in keys]
        return [d for inner, before, after in pairs for d in differences(before, after, inner)]
    lists = [list(v) if isinstance(v, tuple) else v for v in (saved, now)]
    return [] if lists[0] == lists[1] else [Difference(path, saved, now)]


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What identifies the data of a run.

    Attributes:
        source: Name of what it was opened from.
        images: Number of training images.
        fingerprint: Of the training images.
        fingerprint_version: What that covers. 1: names, sizes and labels; 2: contents as well.
        whole: Fingerprint of the set out of which images were held, where that is known.
        held_fraction: The val_fraction that holds images out, 0: none are; None: not noted.
        class_names: Names of the classes, where the data has labels.
        val_fingerprint: Of validation images that came from elsewhere.
        conditions: A digest of the values of each condition of the training images.
        val_conditions: The same of the held-out images, wherever they are from.
        normalization: Of measured values, `Normalization.to_json`; None for pictures.
        grown: When more images were added: step, images_seen, images_before, images, added.
    """

    source: str
    images: int
    fingerprint: str
    fingerprint_version: int = 1
    whole: str | None = None
    held_fraction: float | None = None
    class_names: list[str] | None
    val_fingerprint: str | None = None
    conditions: dict[str, str] | None = None
    val_conditions: dict[str, str] | None = None
    normalization: dict[str, Any] | None = None
    grown: list[dict[str, Any]] | None = None

    @property
    def is_known(self) -> bool:
        """Whether it says anything: a run made of other programs' weights was trained on images
        that nobody has described.
        """
        return self.images > 0

    @classmethod
    def unknown(cls, class_names: Sequence[str] | None) -> DataDescription:
        """Describe data of which nothing is known but, perhaps, the classes."""
        names = list(class_names) if class_names else None
        return cls(source="", images=0, fingerprint="", fingerprint_version=2, class_names=names)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataDescription:
        """Read what `to_json` returned, also by an earlier version.

        Raises:
            KeyError: If an entry is missing that every version writes.
        """
        entries = {f.name: f for f in dataclasses.fields(cls)}
        needed = [name for name, f in entries.items() if f.default is dataclasses.MISSING]
        own = {name: values[name] for name in needed}
        return cls(**own | {name: values[name] for name in entries if name in values})

    def to_json(self) -> dict[str, Any]:
        """Return the entry `data` of state.json."""
        values = dataclasses.asdict(self)
        optional = ("val_fingerprint", "conditions", "val_conditions", "normalization", "grown")
        return {k: v for k, v in values.items() if k not in optional or v is not None}


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All of a checkpoint but its tensors; values are as JSON has them.

    Attributes:
        step: Optimizer steps done.
        images_seen: Images that those steps have taken.
        elapsed_seconds: Time of training.
        seed: Of the run.
        batch_size: Images per step over all processes.
        shards: Noise keys that the batch is divided into.
        model: Class and arguments of the network; arguments None where only Python can build it.
        diffusion: Arguments of the process.
        data: See `DataDescription`.
        ema_decay: Which averages are kept: decays, or a label where it was synthesised.
        dropout_masks: Where dropout's masks come from on a CPU: "position", a hash of the position,
            or "torch", as runs began before there was this entry.
        training: The options of training.
        callbacks: States by name of the callback.
        guard: State of the guard against NaN.
        scaler: State of the gradient scaler, None without one.
        versions: Of Python and libraries, and the number of threads.
        origin: What the weights came from, where that was no training of ours: see
            `new_run.write_new_run`.
        hardware: What it was trained on last: see `runtime.devices.describe_hardware`.
        started_from: See `runs.started_from.StartedFrom`; None for random weights.
        extra: Entries that this version does not know.
    """

    step: int
    images_seen: int = 0
    elapsed_seconds: float = 0.0
    seed: int = 0
    batch_size: int = 1
    shards: int = 1
    model: dict[str, Any]
    diffusion: dict[str, Any]
    data: dict[str, Any]
    ema_decay: list[float | str]
    dropout_masks: str = "position"
    training: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    guard: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    started_from: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], checkpoint: Path) -> RunState:
        """Check what sampling needs, and take the values; other entries may be missing or damaged.

        Raises:
            CheckpointError: See `check_entries`.
        """
        check_entries(values, checkpoint, _FOR_LOADING)
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        own: dict[str, Any] = {"dropout_masks": "torch"}
        own |= {name: value for name, value in values.items() if name in known}
        extra = {name: value for name, value in values.items() if name not in known}
        return cls(**own, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """Return the content of state.json."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "extra"]
        values = {name: getattr(self, name) for name in names}
        if self.origin is None:
            del values["origin"]
        return values | self.extra

    def differences(self, **now: Any) -> list[Difference]:
        """List where entries, given by name, differ from what they are now."""
        return differences({name: getattr(self, name) for name in now}, now)

    @cached_property
    def trained_on(self) -> DataDescription:
        """What identifies the data.

        Raises:
            KeyError: If the entry `data` is damaged.
        """
        return DataDescription.from_json(self.data)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint that this one knows of, or None."""
        kept = self.callbacks.get("KeepBest") if isinstance(self.callbacks, dict) else None
        step = kept.get("step") if isinstance(kept, dict) else None
        return step if isinstance(step, int) and not isinstance(step, bool) else None


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _number(v: Any) -> bool:
    return (
        isinstance(v, (int, float))
        and not isinstance(v, bool)
        and math.isfinite(v)
        and 0 <= v < 1e18
    )


def _averages(v: Any) -> bool:
    return (
        isinstance(v, list) and len(v) < 1000 and all(isinstance(d, str) or _number(d) for d in v)
    )


def _states(v: Any) -> bool:
    return isinstance(v, dict) and all(isinstance(state, dict) for state in v.values())


def _model(v: Any) -> bool:
    config = v.get("config") if isinstance(v, dict) else 0
    return (
        isinstance(v, dict)
        and isinstance(v.get("class"), str)
        and (config is None or isinstance(config, dict))
    )


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
    "dropout_masks": ("position or torch", lambda v: v in ("position", "torch")),
    "training": ("a list of options", lambda v: isinstance(v, dict)),
    "callbacks": ("a list of states by name", _states),
    "versions": ("a list of versions", lambda v: isinstance(v, dict)),
}
_FOR_LOADING = ("step", "model", "diffusion", "data", "ema_decay")


def check_entries(values: Mapping[str, Any], checkpoint: Path, names: Collection[str]) -> None:
    """Check entries of a state.json, without building anything.

    Args:
        values: Its content.
        checkpoint: The directory, for the message.
        names: The entries that are needed.

    Raises:
        CheckpointError: Naming the file, the entry, what it says and what it should.
    """
    for name in names:
        what, fits = _WANTED[name]
        if name not in values:
            raise CheckpointError(f"{checkpoint / STATE} has no entry {name!r}, so it is damaged.")
        value = values[name]
        if not fits(value) or (name == "shards" and values["batch_size"] % value):
            got = short(value, 100)
            raise CheckpointError(f"{checkpoint / STATE}: {name} must be {what}; got {got}.")


def check_complete(values: Mapping[str, Any], checkpoint: Path) -> None:
    """Check all entries of a state.json: training can go on from these.

    Raises:
        CheckpointError: See `check_entries`.
    """
    later = {"dropout_masks"} - values.keys()  # what earlier versions did not write
    check_entries(values, checkpoint, [name for name in _WANTED if name not in later])
    for name in ("guard", "scaler"):
        if values.get(name) is not None and not isinstance(values[name], dict):
            got = short(values[name], 100)
            raise CheckpointError(f"{checkpoint / STATE}: {name} must be a state; got {got}.")
