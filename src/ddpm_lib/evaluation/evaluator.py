"""`evaluate`: load a run or open images, run the metrics, and say all that repeating it needs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import unknown_options
from ddpm_lib.evaluation.defaults import choose_metrics
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.evaluate_keywords import EvaluateKeywords
from ddpm_lib.evaluation.evaluation_options import AUTO, EvaluationOptions, check_used
from ddpm_lib.evaluation.evaluation_result import Evaluation
from ddpm_lib.evaluation.feature_plan import open_feature_store, plan_features
from ddpm_lib.evaluation.feature_store import FeatureStore, Need
from ddpm_lib.evaluation.preflight import (
    check_options,
    clamped_gap,
    refuse_unwritable,
    without_held_out,
)
from ddpm_lib.evaluation.provenance import (
    describe_sets,
    describe_target,
    write_statistics,
)
from ddpm_lib.evaluation.references import reference_rows, to_json
from ddpm_lib.evaluation.remarks import judge_scores
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.evaluation.sample_set import open_samples
from ddpm_lib.evaluation.scored_images import ScoredImages, open_scored_images
from ddpm_lib.evaluation.scoring import bind_metrics, run_metrics
from ddpm_lib.evaluation.targets import is_run, load_target
from ddpm_lib.evaluation.tasks import ModelTask, SampleTask
from ddpm_lib.runs.loading import Found, find_checkpoints
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.devices import process_state

if TYPE_CHECKING:
    from accelerate import PartialState

TRIAL = (
    "random64 needs no weights and is for a first look: it compares evaluations of one data set."
    " For numbers to publish use metrics='fid,kid', features='inception2048' (--metrics fid,kid;"
    " the weights: ddpm weights list)."
)


def evaluate(run: Any, dataset: Any = None, **options: Unpack[EvaluateKeywords]) -> Evaluation:
    """Score a trained run, or a set of images; under torchrun all processes call it and get the
    same result.

    Args:
        run: A run directory or one of its checkpoints; or images: anything that `open_dataset`
            takes, such as a folder, .npz, an `ImageDataset`, a torch or 🤗 dataset, a uint8 array.
        dataset: Images to score and to compare samples with, instead of what the option `data`
            names; of the same kinds.
        **options: The fields of `EvaluationOptions`.

    Raises:
        ConfigError: For wrong options, or data that is not what the run was trained on.
        CheckpointError: If there is no complete checkpoint.
        MissingWeightsError: If no metric can run for want of weights.

    Example:
        >>> evaluate("runs/mine", metrics="nll", num=100, num_levels=20)["nll"]  # doctest: +SKIP
        3.91
    """
    chosen = _options(dataset, dict(options))
    if chosen.checkpoint == "all":
        raise ConfigError("checkpoint='all' gives several results: call evaluate_checkpoints.")
    return _evaluate(run, chosen, dataset)


def evaluate_checkpoints(
    run: str | Path,
    dataset: Any = None,
    **options: Any,
) -> Iterator[Evaluation]:
    """Score all checkpoints of a run, oldest first, one after the other; arguments and errors are
    those of `evaluate`.
    """
    chosen = _options(dataset, options)
    if not is_run(run):
        raise ConfigError(
            f"{run} is no run with checkpoints. Leave {option('checkpoint', 'all')} out."
        )
    return (_evaluate(checkpoint, chosen, dataset) for checkpoint in find_checkpoints(run, "all"))


def evaluate_verified(checkpoints: Sequence[Found], **options: Any) -> Iterator[Evaluation]:
    """Score checkpoints that were found and verified before, one after the other; see
    `evaluate`.
    """
    chosen = _options(None, options)
    return (_evaluate(checkpoint, chosen, None) for checkpoint in checkpoints)


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


def _evaluate(target: Any, options: EvaluationOptions, dataset: Any) -> Evaluation:
    """Score a run, a checkpoint or images, with what was left open in the options chosen."""
    began = time.monotonic()
    loaded = load_target(target, options)
    state = process_state(options.device)
    files = (options.data_root, options.download)
    own = None
    if loaded is not None:
        own = RunImages(loaded, dataset, files, options.condition)
        own.check_words(options.data, dataset)
    if own is not None and dataset is not None:
        dataset = own.opened(dataset, options.split, options.on_bad_image)
    if not state.is_main_process:
        options = dataclasses.replace(options, progress=False)
    check_options(options, loaded)
    if options.save_stats is not None and state.is_main_process:
        refuse_unwritable(Path(options.save_stats).parent, "save_stats= (--save-stats)")
    choice = choose_metrics(options, own, dataset, _are_measured(options, target, dataset))
    result = Evaluator(choice.options, options, dataset, own, state).evaluate(target)
    about = result.about
    about["notes"] = [*choice.notes, *about["notes"]]
    about["seconds"] = round(time.monotonic() - began, 3)
    return result


def _are_measured(options: EvaluationOptions, *sets: Any) -> bool:
    """Say whether sets without a run are measured values."""
    known = (getattr(images, "normalization", None) is not None for images in sets)
    return options.normalize is not None or any(known)


@dataclass(frozen=True)
class Evaluator:
    """One evaluation.

    Attributes:
        options: With everything chosen.
        asked: The options as they were given.
        dataset: Images given as an object.
        own: The run's sets; None where images are compared.
        state: accelerate's object that knows the ranks.
    """

    options: EvaluationOptions
    asked: EvaluationOptions
    dataset: Any
    own: RunImages | None
    state: PartialState

    def evaluate(self, target: Any) -> Evaluation:
        """Open the sets, run the metrics, and describe both."""
        options, own = self.options, self.own
        loaded = None if own is None else own.loaded
        engine = self._engine()
        skipped = without_held_out(options, own, self.dataset)
        needs, without_weights = plan_features(options, engine, skipped)
        skipped |= without_weights
        names = [name for name in options.metric_names if name not in skipped]
        scored = open_scored_images(names, options, own, self.dataset)
        if loaded is not None:
            place_network(loaded.diffusion, self.state.device, "no", compiled=options.compile)
        model = self._model_task(scored, engine)
        notes = [] if scored is None or not self.asked.num else [*scored.notes]
        samples = None
        if needs:
            every = [need for wanted in needs.values() for need in wanted]
            samples, told = self._sample_task(target, every, engine)
            notes += told
        notes += self._save_statistics(samples, needs)
        store = None if samples is None else samples.bank
        scorers = bind_metrics(names, model, samples)
        scores, left_out = run_metrics(scorers, store, self.asked.metrics == AUTO)
        diffusion = None if loaded is None else loaded.diffusion
        rows = {}
        if samples is not None and options.references:
            rows = reference_rows(samples, [name for name in needs if name in names])
        judged = judge_scores(scores, store, options.feature_names, diffusion, rows)
        about = self._describe(target, scored, store, needs) | {"skipped": skipped}
        about["references"] = to_json(rows)
        notes += [*left_out, *about["notes"], *judged.notes]
        notes += clamped_gap(self.asked, options, own)
        if self.asked.metrics == AUTO and "random64" in options.feature_names and needs:
            notes.append(TRIAL)
        about["notes"] = notes
        engine.finish()
        folder = Path() if loaded is None else loaded.run
        return Evaluation(tuple(judged.scores), about, folder / "evaluations")

    def _describe(
        self,
        target: Any,
        scored: ScoredImages | None,
        store: FeatureStore | None,
        needs: dict[str, list[Need]],
    ) -> dict[str, Any]:
        """Say all that repeating the evaluation needs, with notes on the sets."""
        loaded = None if self.own is None else self.own.loaded
        sets: dict[str, Any] = {"notes": []}
        if store is not None:
            sets = describe_sets(store, loaded, self.options, needs)
        images = {} if scored is None else scored.about
        return {**describe_target(target, loaded, self.options, self.state), **images, **sets}

    def _save_statistics(
        self, samples: SampleTask | None, needs: dict[str, list[Need]]
    ) -> list[str]:
        """Write the reference's statistics where `save_stats` says; a note where there are none."""
        path = self.options.save_stats
        if not path:
            return []
        if samples is None or "fid" not in needs:
            return [f"{path} was not written, as fid was skipped."]
        write_statistics(samples.bank, self.options.feature_names[0], path)
        return []

    def _engine(self) -> Engine:
        options = self.options
        return Engine(
            self.state,
            batch_size=options.batch_size,
            progress=options.progress,
            weights=options.feature_weights,
        )

    def _model_task(self, scored: ScoredImages | None, engine: Engine) -> ModelTask | None:
        if scored is None or self.own is None:
            return None
        options, loaded = self.options, self.own.loaded
        chosen = dataclasses.asdict(options)
        key = [
            f"{loaded.weights_sha256} {loaded.weights}",
            {k: v for k, v in chosen.items() if k not in ("progress", "metrics", "references")},
        ]
        return ModelTask(options, self.state, loaded, scored.images, self.own, engine, key)

    def _sample_task(
        self,
        target: Any,
        needs: list[Need],
        engine: Engine,
    ) -> tuple[SampleTask, list[str]]:
        """Open what metrics of samples need, and extract the features; with notes on the
        samples.
        """
        options, own = self.options, self.own
        samples, notes = open_samples(target, options, own, self.dataset, self.state.device)
        store = open_feature_store(samples, needs, engine, options, own, self.dataset)
        store.prepare(needs)
        loaded = None if own is None else own.loaded
        return SampleTask(options, self.state, store, loaded), notes
