"""What an evaluation says of itself: all that repeating it needs, as JSON-able values."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from ddpm_lib.evaluation.bank import layer_of
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.options import EvaluationOptions
from ddpm_lib.evaluation.sample_metrics import FEW
from ddpm_lib.evaluation.task import Task
from ddpm_lib.metrics import save_statistics
from ddpm_lib.process.plan import resolve_num_steps
from ddpm_lib.runs.checkpoint import MANIFEST
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.training.resume import describe_versions


def describe_target(target: Any, task: Task) -> dict[str, Any]:
    """Describe what is scored, how, and with which versions."""
    loaded = task.run
    about: dict[str, Any] = {"target": str(target) if isinstance(target, (str, Path)) else "given images"}
    if loaded is not None:
        about = {
            "run": str(run_folder(loaded)),
            "checkpoint": loaded.checkpoint.name,
            "step": loaded.step,
            "weights": loaded.weights,
            "weights_sha256": weights_digest(loaded),
        }
    return {
        **about,
        "options": dataclasses.asdict(task.options),
        "processes": task.state.num_processes,
        "device": str(task.state.device),
        "versions": {**describe_versions(), **_libraries()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe_sets(task: Task, engine: Engine, needs: Collection[str]) -> dict[str, Any]:
    """Describe samples and reference, with notes on them."""
    bank, options = task.bank, task.options
    if bank is None:
        return {"notes": []}
    notes = [note for which in bank.sets for note in bank.sets[which].notes]
    about: dict[str, Any] = {"samples": {"n": bank.n, "fingerprint": bank.sets["samples"].fingerprint}}
    if task.run is not None:
        about["samples"] |= {
            "sampler": options.sampler,
            "steps": _steps(options, task.run.diffusion.timesteps),
            "seeds": "image i is a function of seed and i",
        }
    for which in ("reference", "train", "held_out"):
        if which in bank.sets:
            images = bank.sets[which]
            about[which] = {"name": images.name, "n": images.n, "fingerprint": images.fingerprint}
    if bank.given is not None:
        n = next(iter(bank.given.layers.values())).n
        about["statistics"] = {"name": bank.given.name, "n": n, "file": options.reference or options.data}
        about.setdefault("reference", about["statistics"])
    about["features"] = engine.digests()
    if bank.n < FEW and any(name in needs for name in ("fid", "sfid")):
        notes.append(
            f"{bank.n:,} samples are few: Fréchet distances of fewer than {FEW:,} are biased upwards, and only comparable at "
            "the same number. 'infinity' is an estimate without that bias (Chong & Forsyth 2020); so is kid."
        )
    return {**about, "notes": list(dict.fromkeys(notes))}


def _steps(options: EvaluationOptions, timesteps: int) -> int:
    steps = resolve_num_steps(options.sampler, options.sample_steps, timesteps, options.spacing)
    return timesteps if steps is None else steps


def write_statistics(task: Task) -> None:
    """Write the reference's statistics where `save_stats` says; on the main process."""
    assert task.bank is not None
    assert task.options.save_stats is not None
    layer = layer_of(task.options.feature_names[0])
    statistics = task.bank.statistics("reference", layer)
    if task.bank.state.is_main_process:
        about = {"features": layer, "images": task.bank.word("reference")}
        save_statistics(task.options.save_stats, statistics, **about)


def run_folder(loaded: LoadedRun) -> Path:
    """Return the run directory of a checkpoint."""
    return loaded.checkpoint.parent.parent


def weights_digest(loaded: LoadedRun) -> str:
    """Return the SHA-256 of the file of the weights that were loaded."""
    manifest = json.loads((loaded.checkpoint / MANIFEST).read_text(encoding="utf-8"))
    stem = "model" if loaded.weights == "model" else "ema"
    return str(manifest["files"][f"{stem}.safetensors"]["sha256"])


def _libraries() -> dict[str, str]:
    found = {}
    for name in ("torch-fidelity", "pytorch-fid", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
