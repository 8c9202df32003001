"""What an evaluation says of itself: all that repeating it needs, as JSON-able values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.feature_store import FeatureStore, layer_of
from ddpm_lib.evaluation.sample_metrics import FEW
from ddpm_lib.evaluation.sample_set import chosen_for
from ddpm_lib.metrics import save_statistics
from ddpm_lib.process.plan import resolve_num_steps, usual_sampler, usual_spacing
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.versions import describe_versions
from ddpm_lib.spacing import sampling_levels

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.diffusion import GaussianDiffusion


def describe_target(
    target: Any, loaded: LoadedRun | None, options: EvaluationOptions, state: PartialState
) -> dict[str, Any]:
    """Describe what is scored, how, and with which versions."""
    about: dict[str, Any] = {
        "target": str(target) if isinstance(target, (str, Path)) else "given images"
    }
    if loaded is not None:
        about = {
            "run": str(loaded.run),
            "checkpoint": loaded.name,
            "step": loaded.step,
            "weights": loaded.weights,
            "weights_sha256": loaded.weights_sha256,
        }
        if loaded.pretrained is not None:
            about["run"] = loaded.pretrained.folder.source
            del about["step"]
        elif loaded.run_state.started_from is not None:
            about["started_from"] = loaded.run_state.started_from
        if loaded.pretrained is None and loaded.run_state.trained_on.grown:
            about["grown"] = loaded.run_state.trained_on.grown
    return {
        **about,
        "options": dataclasses.asdict(options),
        "processes": state.num_processes,
        "device": str(state.device),
        "versions": {**describe_versions(), **_libraries()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe_sets(
    store: FeatureStore,
    loaded: LoadedRun | None,
    options: EvaluationOptions,
    needs: Collection[str],
) -> dict[str, Any]:
    """Describe samples and reference, with notes on them."""
    notes = [note for which in store.sets for note in store.sets[which].notes]
    about: dict[str, Any] = {
        "samples": {"n": store.n, "fingerprint": store.sets["samples"].fingerprint}
    }
    if loaded is not None:
        about["samples"] |= {
            **_drawn(loaded.diffusion, options),
            "seeds": "image i is a function of seed and i",
        }
    for which in ("reference", "train", "held_out"):
        if which in store.sets:
            images = store.sets[which]
            about[which] = {"name": images.name, "n": images.n, "fingerprint": images.fingerprint}
    if store.given is not None:
        n = next(iter(store.given.layers.values())).n
        about["statistics"] = {
            "name": store.given.name,
            "n": n,
            "file": options.reference or options.data,
        }
        about.setdefault("reference", about["statistics"])
    about["features"] = store.engine.digests()
    if store.n < FEW and any(name in needs for name in ("fid", "sfid")):
        notes.append(
            f"{store.n:,} samples are few: Fréchet distances of fewer than {FEW:,} are biased"
            " upwards, and only comparable at the same number. 'infinity' is an estimate without"
            " that bias (Chong & Forsyth 2020); so is kid."
        )
    return {**about, "notes": list(dict.fromkeys(notes))}


def _drawn(diffusion: GaussianDiffusion, options: EvaluationOptions) -> dict[str, Any]:
    chosen = chosen_for(diffusion, options)
    how, timesteps = chosen.arguments, diffusion.timesteps
    sampler = how["sampler"] or usual_sampler(how["eta"], how["sampler_options"])
    spacing = usual_spacing(sampler) if how["spacing"] is None else how["spacing"]
    steps = resolve_num_steps(sampler, how["num_steps"], timesteps, spacing)
    if steps is None:
        levels = sampling_levels(timesteps, None, spacing)
        steps = len(levels) - 1
    found: dict[str, Any] = {
        "sampler": sampler,
        "steps": steps,
        "spacing": spacing if isinstance(spacing, str) else list(spacing),
        "eta": how["eta"],
        "guidance_scale": 1.0 if how["guidance_scale"] is None else how["guidance_scale"],
        "guide_by": how["guide_by"],
        "guide_scale": how["guide_scale"],
    }
    if chosen.default is not None:
        found["chosen_by"] = chosen.default.origin()
        found["default"] = {**chosen.default.to_json(), "evidence": {}}
    return found


def write_statistics(store: FeatureStore, features: str, path: str) -> None:
    """Write the reference's statistics of these features to a .npz; on the main process."""
    layer = layer_of(features)
    statistics = store.statistics("reference", layer)
    if store.state.is_main_process:
        about = {"features": layer, "images": store.word("reference")}
        save_statistics(path, statistics, **about)


def _libraries() -> dict[str, str]:
    found = {}
    for name in ("torch-fidelity", "pytorch-fid", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
