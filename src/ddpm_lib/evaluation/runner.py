"""`evaluate`: load a run or open images, run the metrics, and say all that repeating it needs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import try_writing
from ddpm_lib.core.validation import unknown_options
from ddpm_lib.evaluation.data import RunData, check_fits, open_evaluation_data
from ddpm_lib.evaluation.defaults import choose, too_few
from ddpm_lib.evaluation.describe import (
    describe_sets,
    describe_target,
    weights_digest,
    write_statistics,
)
from ddpm_lib.evaluation.engine import Engine, ImageSet
from ddpm_lib.evaluation.metrics import GAPS, METRICS, looks_at_images
from ddpm_lib.evaluation.options import AUTO, DRAWING, READING, EvaluationOptions, check_used, flag, given
from ddpm_lib.evaluation.pictures import open_pictures
from ddpm_lib.evaluation.remarks import Judged, judge
from ddpm_lib.evaluation.result import Evaluation
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.sets import open_bank, plan
from ddpm_lib.evaluation.sources import clamp, evenly, sample_images
from ddpm_lib.evaluation.task import NO_MODEL, Score, Task, mean_score, small_image
from ddpm_lib.metrics.neighbours import TooFewImagesError
from ddpm_lib.runs import loading
from ddpm_lib.runs.checkpoint import MANIFEST, VerifiedCheckpoint
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.devices import process_state

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset

DEFAULT_SAMPLES = 10_000
TRIAL = (
    "random64 needs no weights and is for a first look: it compares evaluations of one data set. For numbers to publish use "
    "metrics='fid,kid', features='inception2048' (--metrics fid,kid; the weights: ddpm weights list)."
)
_MARKS = (MANIFEST, "checkpoints", "status.json", "metrics.jsonl", ".lock")
"""What only runs and checkpoints hold."""
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".safetensors")


def evaluate(run: Any, dataset: Any = None, **options: Any) -> Evaluation:
    """Score a trained run, or a set of images; under torchrun all processes call it and get the same result.

    Args:
        run: A run directory or one of its checkpoints; or images: anything that `open_dataset` takes, such as a folder, .npz,
            an `ImageDataset`, a torch or 🤗 dataset, a uint8 array.
        dataset: Images to score and to compare samples with, instead of what the option `data` names; of the same kinds.
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


def evaluate_checkpoints(run: str | Path, dataset: Any = None, **options: Any) -> Iterator[Evaluation]:
    """Score all checkpoints of a run, oldest first, one after the other; arguments and errors are those of `evaluate`."""
    chosen = _options(dataset, options)
    if not is_run(run):
        raise ConfigError(f"{run} is no run with checkpoints. Leave checkpoint='all' out.")
    runner = Runner(chosen, dataset)
    return (runner.evaluate(checkpoint) for checkpoint in loading.find_checkpoints(run, "all"))


def evaluate_verified(
    checkpoints: Sequence[VerifiedCheckpoint],
    **options: Any,
) -> Iterator[Evaluation]:
    """Score checkpoints that were verified before, one after the other; see `evaluate`."""
    runner = Runner(_options(None, options))
    return (runner.evaluate(checkpoint) for checkpoint in checkpoints)


def _options(dataset: Any, options: dict[str, Any]) -> EvaluationOptions:
    unknown_options(options, [f.name for f in dataclasses.fields(EvaluationOptions)], "evaluate")
    if dataset is not None and {"data", "split"} & set(options):
        raise ConfigError("Give either dataset= or data=, not both.")
    step = options.get("checkpoint")
    if isinstance(step, int) and not isinstance(step, bool):
        options["checkpoint"] = str(step)
    chosen = EvaluationOptions(**options)
    check_used(chosen)
    return chosen


def is_run(target: Any) -> bool:
    """Say whether a target is a run or a checkpoint, ours or foreign, rather than images.

    What does not exist, or is empty, counts as a run: looking for its checkpoints says what is wrong.
    """
    if not isinstance(target, (str, Path)):
        return False
    path = Path(target)
    if not path.is_dir():
        return not path.exists() or path.suffix.lower() in _WEIGHTS
    if any((path / name).exists() for name in _MARKS) or not any(path.iterdir()):
        return True
    try:
        loading.refuse_foreign(path)
    except CheckpointError:
        return True
    return False


def refuse_checkpoints_folder(target: Any) -> None:
    """Refuse the folder that holds a run's checkpoints, which is neither a run nor one of them.

    Raises:
        ConfigError: If it is one.
    """
    inside = sorted(Path(target).glob(f"*/{MANIFEST}")) if isinstance(target, (str, Path)) else []
    if inside and not is_run(target):
        raise ConfigError(
            f"{target} holds checkpoints of a run. Give the run, {Path(target).resolve().parent}, or one of them, such as "
            f"{inside[-1].parent}."
        )


@dataclass
class Runner:
    """Evaluations: options, and the images given as an object."""

    options: EvaluationOptions
    dataset: Any = None

    def evaluate(self, target: Any) -> Evaluation:
        """Score a run, a checkpoint or images."""
        began = time.monotonic()
        refuse_checkpoints_folder(target)
        loaded = self._load(target)
        state = process_state(self.options.device)
        own = RunData(loaded, self.dataset) if loaded is not None else None
        dataset = self.dataset
        if own is not None and dataset is not None:
            dataset = own.opened(dataset, self.options)
        options = self.options
        if not state.is_main_process:
            options = dataclasses.replace(options, progress=False)
        check_options(options, loaded)
        if options.save_stats is not None and state.is_main_process:
            refuse_unwritable(Path(options.save_stats).parent, "save_stats= (--save-stats)")
        choice = choose(options, own, dataset)
        one = One(choice.options, dataset, loaded, own, state, options)
        result = one.evaluate(target)
        about = result.about
        about["notes"] = [*choice.notes, *about["notes"]]
        about["seconds"] = round(time.monotonic() - began, 3)
        return result

    def _wants_run(self, target: Any) -> bool:
        """Say whether an empty folder was named for what only a run has: looking for it says what is there."""
        if not isinstance(target, (str, Path)) or self.options.metrics == AUTO:
            return False
        wanted = any(isinstance(METRICS[name], SampleMetric) for name in self.options.metric_names)
        return not wanted and not any(Path(target).iterdir())

    def _load(self, target: Any) -> LoadedRun | None:
        """Load a run or one of its checkpoints; None for images."""
        options = self.options
        if isinstance(target, VerifiedCheckpoint):
            return loading.load_checkpoint(target, options.weights, options.ema_decay)
        if not is_run(target) and not self._wants_run(target):
            return None
        return loading.load_run(target, options.checkpoint, options.weights, options.ema_decay)


@dataclass
class One:
    """One evaluation.

    Attributes:
        options: With everything chosen.
        dataset: Images given as an object.
        loaded: The run, where there is one.
        own: Its sets.
        state: accelerate's object that knows the ranks.
        asked: The options as they were given.
    """

    options: EvaluationOptions
    dataset: Any
    loaded: LoadedRun | None
    own: RunData | None
    state: PartialState
    asked: EvaluationOptions

    def evaluate(self, target: Any) -> Evaluation:
        """Run the metrics."""
        options, loaded, own = self.options, self.loaded, self.own
        engine = Engine(
            self.state, batch_size=options.batch_size, progress=options.progress, weights=options.feature_weights
        )
        skipped = without_held_out(options, own, self.dataset)
        needs, without_weights = plan(options, engine, skipped)
        skipped |= without_weights
        images, about, notes = self._images([name for name in options.metric_names if name not in skipped])
        if loaded is not None:
            place_network(loaded.diffusion, self.state.device, "no", compiled=options.compile)
        identity = "" if loaded is None else f"{weights_digest(loaded)} {loaded.weights}"
        task = Task(loaded, images, options, self.state, None, own, engine, identity)
        if needs:
            samples, told = self._samples(target)
            every = [need for wanted in needs.values() for need in wanted]
            bank = open_bank(samples, every, engine, options, own, self.dataset)
            bank.prepare(every)
            task = dataclasses.replace(task, bank=bank)
            notes += told
        if options.save_stats and "fid" in needs:
            write_statistics(task)
        elif options.save_stats:
            notes.append(f"{options.save_stats} was not written, as fid was skipped.")
        judged, left_out = self._score(task, [name for name in options.metric_names if name not in skipped])
        sets = describe_sets(task, engine, needs)
        notes += [*left_out, *sets["notes"], *judged.notes, *clamped_gap(self.asked, options, own)]
        if self.asked.metrics == AUTO and "random64" in options.feature_names and needs:
            notes.append(TRIAL)
        about = {**describe_target(target, task), **about, **sets, "skipped": skipped, "notes": notes}
        engine.finish()
        folder = loaded.run if loaded is not None else Path()
        return Evaluation(tuple(judged.scores), about, folder / "evaluations")

    def _score(self, task: Task, names: Sequence[str]) -> tuple[Judged, list[str]]:
        """Run the metrics; of those that nobody named, leave out what rests on too few images."""
        automatic = self.asked.metrics == AUTO
        scores: list[Score] = []
        left_out: list[str] = []
        for name in names:
            why = too_few(name, task.bank) if automatic else ""
            if not why:
                try:
                    scores += METRICS[name](task)
                except TooFewImagesError as error:
                    if not automatic:
                        raise
                    why = f"{name} was left out: {error}"
            if why:
                left_out.append(why)
        if not scores:
            raise ConfigError(" ".join(left_out) + " Use more images, or name metrics (--metrics fid).")
        return judge([*scores, *_difference(scores)], task), left_out

    def _images(self, names: Sequence[str]) -> tuple[ImageDataset | None, dict[str, Any], list[str]]:
        """Open what metrics of the model look at, where there is such a metric."""
        if not any(looks_at_images(name) for name in names):
            if self.loaded is None and any(not isinstance(METRICS[name], SampleMetric) for name in names):
                raise ConfigError(NO_MODEL)
            return None, {}, []
        if self.loaded is None or self.own is None:
            raise ConfigError(NO_MODEL)
        name, whole = self._whole()
        n, notes = clamp(self.options.num, len(whole), name)
        images = whole.subset(evenly(n, len(whole)))
        data = {
            "name": name,
            "images": n,
            "of": len(whole),
            "chosen": "row i·of//images",
            "fingerprint": images.fingerprint,
        }
        source = self.loaded.run_state.trained_on.source
        return images, {"data": {**data, "source": source}}, notes if self.asked.num else []

    def _whole(self) -> tuple[str, ImageDataset]:
        """Return the images that the model is scored on, with their word."""
        from ddpm_lib.data import ImageDataset

        assert self.own is not None
        assert self.loaded is not None
        if self.dataset is None:
            return self.options.data, open_evaluation_data(self.own, self.options)
        given = self.dataset
        if not isinstance(given, ImageDataset):
            given = self.own.other(given, self.options)
        return "given", check_fits(given, self.loaded)

    def _samples(self, target: Any) -> tuple[ImageSet, list[str]]:
        options, loaded = self.options, self.loaded
        if loaded is None:
            try:
                return open_pictures(target, "samples", options, options.num), []
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{target} is neither a run, as it holds no checkpoints, nor a set of pictures: {error}"
                ) from error
        about = [str(loaded.checkpoint.resolve()), weights_digest(loaded), loaded.weights]
        given, notes = None, []
        if self.own is not None and small_image(loaded.diffusion) is not None:
            if self.dataset is None and options.data == "held-out" and self.own.sets()[1] is None:
                given = self.own.get("train")
                notes = ["the samples enlarge small training images, as this run held nothing out."]
            else:
                given = self._whole()[1]
        n = options.num or (DEFAULT_SAMPLES if given is None else len(given))
        return sample_images(loaded.diffusion, options, n, about, self.state.device, given=given), notes


def refuse_unwritable(folder: Path, option: str) -> None:
    """Refuse a folder for results that cannot be written, before the work and not after it.

    Raises:
        ConfigError: If it cannot be written, naming the option that says where else.
    """
    try:
        try_writing(folder)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(
            f"{folder} cannot be written to ({why}). Say with {option} where the results are to go."
        ) from error


def check_options(options: EvaluationOptions, loaded: LoadedRun | None) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: If there are any.
    """
    if loaded is None:
        found = given(options, ("weights", "ema_decay", *DRAWING))
        if found:
            raise ConfigError(
                f"Images are scored here, and {flag(found[0])} is for a run, which draws them. Leave it out, or give a run."
            )
        return
    size = loaded.diffusion.image_size
    if options.image_size is not None and set(size) != {options.image_size}:
        raise ConfigError(
            f"Images are compared at the run's own size, {'×'.join(map(str, size))}: leave image_size (--image-size) out. "
            "It is for sets of pictures without a run."
        )
    found = given(options, READING)
    if found:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise ConfigError(f"Images are opened as the run opened its own: leave {', '.join(found)} ({flags}) out.")


def without_held_out(options: EvaluationOptions, own: RunData | None, dataset: Any) -> dict[str, str]:
    """Say which metrics cannot run as nothing was held out, before hours go into the others.

    Raises:
        ConfigError: If that is all that was asked for.
    """
    if own is None:
        return {}
    compared = [name for name in options.metric_names if name in GAPS]
    looking = [name for name in options.metric_names if looks_at_images(name)]
    if options.data != "held-out" or dataset is not None:
        looking = []
    if not (compared or looking) or own.sets()[1] is not None:
        return {}
    nothing = own.why_nothing_is_held_out()
    found = dict.fromkeys(looking, f"{nothing} Use data='train' (--data train), or name images.")
    found |= dict.fromkeys(
        compared,
        f"{nothing} It compares held-out with training images: train with val_every and val_fraction above 0, or with val_data.",
    )
    if len(found) == len(options.metric_names):
        raise ConfigError("; ".join(f"{name}: {why}" for name, why in found.items()))
    return found


def clamped_gap(asked: EvaluationOptions, options: EvaluationOptions, own: RunData | None) -> list[str]:
    """Say that fewer images were compared than were asked for."""
    names = [name for name in options.metric_names if name in GAPS]
    if not names or own is None or asked.num is None or own.sets()[1] is None:
        return []
    n = min(len(images) for images in own.sets() if images is not None)
    if asked.num <= n:
        return []
    return [f"{', '.join(names)}: num={asked.num:,} is more than can be compared; {n:,} images of each set were taken."]


def _difference(scores: Sequence[Score]) -> list[Score]:
    """Compare the two likelihoods image by image: most of the spread between images is common to both."""
    found = {s.name: s.per_image for s in scores}
    bound, flow = found.get("nll"), found.get("flow_nll")
    return [] if bound is None or flow is None else [mean_score("nll - flow_nll", bound - flow, "bits/dim")]
