"""`evaluate`: load a run, open the images, run the metrics, and say all that repeating it needs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddpm_lib.evaluation.data import check_fits, open_evaluation_data
from ddpm_lib.evaluation.metrics import METRICS
from ddpm_lib.evaluation.options import EvaluationOptions
from ddpm_lib.evaluation.task import Score, Task, mean_score
from ddpm_lib.registry import Registry
from ddpm_lib.training.checkpoint import MANIFEST
from ddpm_lib.training.config import ConfigError, unknown_options
from ddpm_lib.training.devices import process_state, use_channels_last
from ddpm_lib.training.loading import LoadedRun, load_run
from ddpm_lib.training.resume import describe_versions

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: In the order of the metrics.
        about: Checkpoint, data, options, versions: what repeating it needs; JSON-able.
        folder: Where `save` writes, the run's `evaluations`.
    """

    scores: tuple[Score, ...]
    about: dict[str, Any]
    folder: Path

    def __getitem__(self, name: str) -> float:
        """Return the value of a score by name."""
        return Registry("score", {s.name: s.value for s in self.scores})[name]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        fields = ("name", "value", "standard_error", "unit")
        return {"scores": [{k: getattr(s, k) for k in fields} for s in self.scores], **self.about}

    def table(self) -> str:
        """Word it for people: one line per score, parts indented."""
        data = self.about["data"]
        which = f"{data['images']:,} of {data['of']:,} images ({data['name']})"
        lines = [
            f"{self.about['checkpoint']} ({self.about['weights']}), {which}",
            f"{'metric':<18}{'mean':>12}{'std. error':>12}",
        ]
        for s in self.scores:
            name = "  " + s.name.split("/", 1)[1] if "/" in s.name else s.name
            lines.append(f"{name:<16}{_number(s.value):>12}{_number(s.standard_error):>12}  {s.unit}")
        return "\n".join(lines)

    def save(self) -> Path:
        """Write eval-0001.json, or the next free number, and return its path; to be called on one process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        for number in range(1, 10**6):
            path = self.folder / f"eval-{number:04d}.json"
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                continue
            return path
        raise ConfigError(f"{self.folder} is full of evaluations. Move some away.")


def evaluate(run: str | Path, dataset: ImageDataset | None = None, **options: Any) -> Evaluation:
    """Score a trained run; under torchrun all processes call it and get the same result.

    Args:
        run: A run directory, or one of its checkpoints.
        dataset: Images to score, instead of what the option `data` names.
        **options: The fields of `EvaluationOptions`.

    Raises:
        ConfigError: For wrong options, or data that is not what the run was trained on.
        CheckpointError: If there is no complete checkpoint.

    Example:
        >>> evaluate("runs/mine", metrics="nll", num=100, num_levels=20)["nll"]       # doctest: +SKIP
        3.91
    """
    unknown_options(options, [f.name for f in dataclasses.fields(EvaluationOptions)], "evaluate")
    if dataset is not None and {"data", "split"} & set(options):
        raise ConfigError("Give either dataset= or data=, not both.")
    chosen = EvaluationOptions(**options)
    began = time.monotonic()
    loaded = load_run(run, chosen.checkpoint, chosen.weights, chosen.ema_decay)
    name, whole = (
        ("given", check_fits(dataset, loaded))
        if dataset is not None
        else (chosen.data, open_evaluation_data(loaded, chosen))
    )
    if chosen.num is not None and chosen.num > len(whole):
        raise ConfigError(f"num must be at most {len(whole):,}, the number of images ({name}); got {chosen.num:,}.")
    n = chosen.num or len(whole)
    images = whole.subset(np.arange(n) * len(whole) // n)
    state = process_state(chosen.device)
    loaded.diffusion.to(state.device)
    if len(loaded.diffusion.image_size) == 2 and use_channels_last("auto", state.device.type, "no"):
        loaded.diffusion.to(memory_format=torch.channels_last)
    task = Task(loaded, images, chosen, state)
    scores = [score for metric in chosen.metric_names for score in METRICS[metric](task)]
    scores += _difference(scores)
    data = {
        "name": name,
        "images": n,
        "of": len(whole),
        "chosen": "row i·of//images",
        "fingerprint": images.fingerprint,
    }
    return Evaluation(tuple(scores), _about(task, data, time.monotonic() - began), _run_folder(loaded) / "evaluations")


def _difference(scores: Sequence[Score]) -> list[Score]:
    """Compare the two likelihoods image by image: most of the spread between images is common to both."""
    found = {s.name: s.per_image for s in scores}
    bound, flow = found.get("nll"), found.get("flow_nll")
    return [] if bound is None or flow is None else [mean_score("nll - flow_nll", bound - flow, "bits/dim")]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.5f}" if abs(value) < 1e5 else f"{value:.4g}"


def _run_folder(loaded: LoadedRun) -> Path:
    return loaded.checkpoint.parent.parent


def _about(task: Task, data: dict[str, Any], seconds: float) -> dict[str, Any]:
    checkpoint = task.run.checkpoint
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    stem = "model" if task.run.weights == "model" else "ema"
    return {
        "run": str(_run_folder(task.run)),
        "checkpoint": checkpoint.name,
        "step": task.run.step,
        "weights": task.run.weights,
        "weights_sha256": manifest["files"][f"{stem}.safetensors"]["sha256"],
        "data": {**data, "source": task.run.state["data"]["source"]},
        "options": dataclasses.asdict(task.options),
        "processes": task.state.num_processes,
        "device": str(task.state.device),
        "versions": describe_versions(),
        "seconds": round(seconds, 3),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
