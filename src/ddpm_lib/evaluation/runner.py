"""`evaluate`: load a run or open images, run the metrics, and say all that repeating it needs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.evaluation.bank import Bank, layer_of
from ddpm_lib.evaluation.data import RunData, check_fits, open_evaluation_data
from ddpm_lib.evaluation.engine import Engine, ImageSet
from ddpm_lib.evaluation.metrics import METRICS
from ddpm_lib.evaluation.options import EvaluationOptions
from ddpm_lib.evaluation.result import Evaluation
from ddpm_lib.evaluation.sample_metrics import FEW, SampleMetric
from ddpm_lib.evaluation.sets import open_bank, plan
from ddpm_lib.evaluation.sources import PICTURES, evenly, open_pictures, sample_images
from ddpm_lib.evaluation.task import NO_MODEL, Score, Task, mean_score, small_image
from ddpm_lib.metrics import save_statistics
from ddpm_lib.spacing import default_num_steps
from ddpm_lib.training.checkpoint import MANIFEST
from ddpm_lib.training.compiling import compile_regions
from ddpm_lib.training.config import ConfigError, unknown_options
from ddpm_lib.training.devices import process_state, use_channels_last
from ddpm_lib.training.loading import LoadedRun, find_checkpoints, load_run
from ddpm_lib.training.resume import describe_versions

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset

DEFAULT_SAMPLES = 10_000


def evaluate(run: Any, dataset: ImageDataset | None = None, **options: Any) -> Evaluation:
    """Score a trained run, or a set of images; under torchrun all processes call it and get the same result.

    Args:
        run: A run directory or one of its checkpoints; or images: a folder, .npz or .npy, an `ImageDataset`, a uint8 tensor
            (n, c, h, w).
        dataset: Images to score and to compare samples with, instead of what the option `data` names.
        **options: The fields of `EvaluationOptions`.

    Raises:
        ConfigError: For wrong options, or data that is not what the run was trained on.
        CheckpointError: If there is no complete checkpoint.
        MissingWeightsError: If no metric can run for want of weights.

    Example:
        >>> evaluate("runs/mine", metrics="nll", num=100, num_levels=20)["nll"]       # doctest: +SKIP
        3.91
    """
    chosen = _options(dataset, options)
    if chosen.checkpoint == "all":
        raise ConfigError("checkpoint='all' gives several results: call evaluate_checkpoints.")
    return Runner(chosen, dataset).evaluate(run)


def evaluate_checkpoints(run: str | Path, dataset: ImageDataset | None = None, **options: Any) -> Iterator[Evaluation]:
    """Score all checkpoints of a run, oldest first, one after the other; arguments and errors are those of `evaluate`."""
    chosen = _options(dataset, options)
    if not is_run(run):
        raise ConfigError(f"{run} is no run with checkpoints. Leave checkpoint='all' out.")
    runner = Runner(chosen, dataset)
    return (runner.evaluate(path) for path in find_checkpoints(run, "all"))


def _options(dataset: ImageDataset | None, options: dict[str, Any]) -> EvaluationOptions:
    unknown_options(options, [f.name for f in dataclasses.fields(EvaluationOptions)], "evaluate")
    if dataset is not None and {"data", "split"} & set(options):
        raise ConfigError("Give either dataset= or data=, not both.")
    return EvaluationOptions(**options)


def is_run(target: Any) -> bool:
    """Say whether a target is a run or a checkpoint rather than images."""
    if not isinstance(target, (str, Path)):
        return False
    path = Path(target)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return False
    holds = (path / MANIFEST).is_file() or (path / "checkpoints").is_dir() or (path / "status.json").is_file()
    return holds or not path.is_dir() or not any(p.suffix.lower() in PICTURES for p in path.rglob("*"))


@dataclass
class Runner:
    """One evaluation: options, and the images given as an object."""

    options: EvaluationOptions
    dataset: ImageDataset | None = None

    def evaluate(self, target: Any) -> Evaluation:
        """Score a run, a checkpoint or images."""
        began, options = time.monotonic(), self.options
        loaded = self._load(target) if is_run(target) else None
        state = process_state(options.device)
        own = RunData(loaded) if loaded is not None else None
        images, about = self._images(loaded, own)
        if loaded is not None:
            loaded.diffusion.to(state.device)
            if len(loaded.diffusion.image_size) == 2 and use_channels_last("auto", state.device.type, "no"):
                loaded.diffusion.to(memory_format=torch.channels_last)
            if options.compile:
                compile_regions(loaded.diffusion.model, True, partial(print, file=sys.stderr))
        engine = self.engine(state)
        needs, skipped = plan(options, engine)
        identity = "" if loaded is None else f"{weights_digest(loaded)} {loaded.weights}"
        task = Task(loaded, images, options, state, None, own, engine, identity)
        if needs:
            samples = self._samples(target, loaded, state, own)
            every = [need for wanted in needs.values() for need in wanted]
            bank = open_bank(samples, every, engine, options, own, self.dataset)
            bank.prepare(every)
            task = dataclasses.replace(task, bank=bank)
        scores = [score for name in options.metric_names if name not in skipped for score in METRICS[name](task)]
        scores += _difference(scores)
        about = {**self._describe(target, task), **about, **self.describe_bank(task, engine, needs), "skipped": skipped}
        engine.finish()
        about["seconds"] = round(time.monotonic() - began, 3)
        folder = run_folder(loaded) if loaded is not None else Path()
        return Evaluation(tuple(scores), about, folder / "evaluations")

    def engine(self, state: PartialState) -> Engine:
        """Return what extracts features."""
        options = self.options
        return Engine(state, batch_size=options.batch_size, progress=options.progress, weights=options.feature_weights)

    def _load(self, target: str | Path) -> LoadedRun:
        options = self.options
        # One of several checkpoints comes as its own directory, which is "latest" of itself.
        which = "latest" if options.checkpoint == "all" else options.checkpoint
        return load_run(target, which, options.weights, options.ema_decay)

    def _images(self, loaded: LoadedRun | None, own: RunData | None) -> tuple[ImageDataset | None, dict[str, Any]]:
        """Open what metrics of the model look at, where there is such a metric."""
        options, dataset = self.options, self.dataset
        if all(isinstance(METRICS[name], SampleMetric) for name in options.metric_names):
            return None, {}
        if loaded is None or own is None:
            raise ConfigError(NO_MODEL)
        name, whole = (
            ("given", check_fits(dataset, loaded))
            if dataset is not None
            else (options.data, open_evaluation_data(own, options))
        )
        drawing = any(isinstance(METRICS[name], SampleMetric) for name in options.metric_names)
        n = options.num or len(whole)
        if n > len(whole) and not drawing:
            raise ConfigError(f"num must be at most {len(whole):,}, the number of images ({name}); got {n:,}.")
        n = min(n, len(whole))
        images = whole.subset(evenly(n, len(whole)))
        data = {
            "name": name,
            "images": n,
            "of": len(whole),
            "chosen": "row i·of//images",
            "fingerprint": images.fingerprint,
        }
        return images, {"data": {**data, "source": loaded.state["data"]["source"]}}

    def _samples(self, target: Any, loaded: LoadedRun | None, state: PartialState, own: RunData | None) -> ImageSet:
        options = self.options
        if loaded is None:
            return dataclasses.replace(open_pictures(target, None, options, options.num), name="samples")
        about = [str(loaded.checkpoint.resolve()), weights_digest(loaded), loaded.weights]
        given = None
        if own is not None and small_image(loaded.diffusion) is not None:
            given = self.dataset if self.dataset is not None else open_evaluation_data(own, options)
        n = options.num or (DEFAULT_SAMPLES if given is None else len(given))
        return sample_images(loaded.diffusion, options, n, about, state.device, given=given)

    def _describe(self, target: Any, task: Task) -> dict[str, Any]:
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
            "options": dataclasses.asdict(self.options),
            "processes": task.state.num_processes,
            "device": str(task.state.device),
            "versions": {**describe_versions(), **_libraries()},
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def describe_bank(self, task: Task, engine: Engine, needs: Collection[str]) -> dict[str, Any]:
        """Describe samples and reference, and write the reference's statistics where that was asked for."""
        bank, options = task.bank, self.options
        if bank is None:
            return {}
        about: dict[str, Any] = {"samples": {"n": bank.n, "fingerprint": bank.sets["samples"].fingerprint}, "notes": []}
        if task.run is not None:
            steps = options.sample_steps or default_num_steps(
                options.sampler == "ddpm", task.run.diffusion.timesteps, options.spacing
            )
            about["samples"] |= {
                "sampler": options.sampler,
                "steps": steps,
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
            about["notes"].append(
                f"{bank.n:,} samples are few: Fréchet distances of fewer than {FEW:,} are biased upwards, and only comparable at "
                "the same number. 'infinity' is an estimate without that bias (Chong & Forsyth 2020); so is kid."
            )
        if options.save_stats:
            self._save_stats(bank)
        return about

    def _save_stats(self, bank: Bank) -> None:
        names = self.options.feature_names
        if len(names) != 1 or "fid" not in self.options.metric_names:
            raise ConfigError(
                "save_stats writes the statistics of one kind of features: ask for fid, and for one in features."
            )
        layer = layer_of(names[0])
        statistics = bank.statistics("reference", layer)
        if bank.state.is_main_process:
            about = {"features": layer, "images": bank.word("reference")}
            save_statistics(str(self.options.save_stats), statistics, **about)


def _difference(scores: Sequence[Score]) -> list[Score]:
    """Compare the two likelihoods image by image: most of the spread between images is common to both."""
    found = {s.name: s.per_image for s in scores}
    bound, flow = found.get("nll"), found.get("flow_nll")
    return [] if bound is None or flow is None else [mean_score("nll - flow_nll", bound - flow, "bits/dim")]


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
