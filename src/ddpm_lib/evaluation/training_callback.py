"""Evaluation while training: a callback that judges samples of the averaged weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.validation import unknown_options
from ddpm_lib.evaluation.defaults import is_pictures, refuse_features, what_is_drawn
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.evaluation_options import AUTO, EvaluationOptions
from ddpm_lib.evaluation.feature_plan import plan_features
from ddpm_lib.evaluation.feature_store import FeatureStore
from ddpm_lib.evaluation.image_sets import dataset_images
from ddpm_lib.evaluation.metric_table import METRICS
from ddpm_lib.evaluation.network_conditions import draws_of_data
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.sample_set import sample_images
from ddpm_lib.evaluation.scores import Score
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.runtime.devices import joined_state
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.fine_tuning.starting_weights import weights_digest

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.diffusion import GaussianDiffusion

_ALLOWED = (
    "metrics",
    "num",
    "features",
    "feature_weights",
    "reference",
    "sampler",
    "sample_steps",
    "spacing",
    "eta",
    "guidance_scale",
    "batch_size",
    "seed",
)


class Evaluate(Callback):
    """Judge samples of the averaged weights every `every` steps and after the last one, shared over
    the ranks.

    The scores go into metrics.jsonl and the trackers under their names; samples that hold NaN or
    infinite values have none, which is said. The same seeds are drawn
    every time, so that a curve shows the model and not the noise; features of the training images
    are taken once.

    Args:
        every: Steps between evaluations.
        **options: Of `EvaluationOptions`: metrics (of samples; default fid, values where there are
            no pictures), num (default 1,000),
            features, feature_weights, reference (train or held-out), sampler, sample_steps,
            spacing, eta, guidance_scale, batch_size, seed.

    Raises:
        ConfigError: For other options, or metrics that are not of samples.

    Example:
        >>> judge = Evaluate(5000, metrics="fid,memorisation", num=2000)        # doctest: +SKIP
        >>> Trainer(diffusion, data, callbacks=[judge])                         # doctest: +SKIP
    """

    def __init__(self, every: int, **options: Any) -> None:
        unknown_options(options, list(_ALLOWED), "Evaluate")
        if every < 1:
            raise ConfigError(f"every must be at least 1; got {every}. It counts steps.")
        self.every = every
        self.options = EvaluationOptions(
            **{"metrics": "fid", "num": 1000, "progress": False, **options}
        )
        self._named = "metrics" in options
        if self.options.num is None:
            raise ConfigError("num must say how many samples to draw. Use num=1000.")
        if self.options.reference not in (None, "train", "held-out"):
            raise ConfigError(
                "reference must be train or held-out during training; got"
                f" {self.options.reference!r}."
            )
        if self.options.metrics == AUTO:
            raise ConfigError(
                "metrics must be named during training. Use metrics='kid,pr' or metrics='fid'."
            )
        for name in self.options.metric_names:
            _sample_metric(name)
        self._store: FeatureStore | None = None
        self.scores: tuple[Score, ...] = ()

    def on_train_start(self, trainer: TrainingView) -> None:
        """Find weights and images now rather than at the first evaluation.

        Raises:
            ConfigError: If held-out images are the reference and the run holds nothing out, a
                metric lacks its weights, or looks at pictures where there are none.
        """
        if not is_pictures(trainer.diffusion):
            self._choose_for_values(trainer.diffusion)
        sets = {"train": dataset_images(trainer.dataset, "train")}
        if trainer.held_out is not None:
            sets["held_out"] = dataset_images(trainer.held_out, "heldout")
        reference = "held_out" if self.options.reference == "held-out" else "train"
        if reference not in sets:
            raise ConfigError("This run holds nothing out. Use reference='train'.")
        engine = Engine(
            joined_state(),
            batch_size=self.options.batch_size,
            progress=False,
            weights=self.options.feature_weights,
            folder=trainer.output_dir / "evaluations" / "unfinished",
        )
        _, skipped = plan_features(self.options, engine)
        if skipped:
            raise ConfigError("; ".join(f"{name}: {why}" for name, why in skipped.items()))
        self._store = FeatureStore(engine, {**sets, "reference": sets[reference]})

    def _choose_for_values(self, diffusion: GaussianDiffusion) -> None:
        """Take what suits values, where nobody says, and refuse what does not."""
        options = self.options
        if not self._named:
            options = dataclasses.replace(options, metrics="values")
        if options.features == AUTO and {*options.metric_names} <= {"values", "memorisation"}:
            options = dataclasses.replace(options, features="pixels")
        refuse_features(options, what_is_drawn(diffusion))
        self.options = options

    def on_step_end(self, trainer: TrainingView) -> None:
        """Evaluate when it is time."""
        if trainer.step % self.every and trainer.step != trainer.config.max_steps:
            return
        assert self._store is not None
        engine, options = self._store.engine, self.options
        assert options.num is not None
        network = trainer.averaged_network()
        # The same step has other weights where a run went on with other options, or began anew.
        about = [str(trainer.output_dir), trainer.step, weights_digest(network.state_dict())]
        of_data = draws_of_data(trainer.diffusion)
        given = (trainer.held_out or trainer.dataset) if of_data else None
        samples = sample_images(
            trainer.diffusion,
            options,
            options.num,
            about,
            trainer.device,
            network,
            given,
            finite=(watch := _Finite()),
        )
        needs, _ = plan_features(options, engine)
        store = self._store.with_samples(samples)
        store.prepare(need for wanted in needs.values() for need in wanted)
        self.scores = ()
        if not watch.missed(engine.state):
            task = SampleTask(options, engine.state, store)
            metrics = [_sample_metric(name) for name in options.metric_names]
            self.scores = tuple(score for metric in metrics for score in metric(task))
        engine.finish()
        if watch.missed(engine.state):  # a metric may have read more of them
            self.scores = ()
            names = ", ".join(options.metric_names)
            trainer.say(
                f"Step {trainer.step:,}: the samples hold NaN or infinite values, so there is no"
                f" {names}. Look at the weights that drew them."
            )
        trainer.log({score.name: score.value for score in self.scores})


class _Finite:
    """Takes note of samples that are not finite: they are no reason to end a training, and an error
    on one rank would leave the others waiting.
    """

    def __init__(self) -> None:
        self._missed = False

    def __call__(self, samples: Tensor) -> Tensor:
        """Return samples with finite values."""
        if bool(torch.isfinite(samples).all()):
            return samples
        self._missed = True
        return samples.nan_to_num(0.0, 0.0, 0.0)

    def missed(self, state: PartialState) -> bool:
        """Whether a rank has seen values that are not finite; to be called on every rank."""
        return any(Processes.of(state).all_objects(self._missed))


def _sample_metric(name: str) -> SampleMetric:
    metric = METRICS[name]
    if not isinstance(metric, SampleMetric):
        raise ConfigError(
            f"{name} scores the model itself: validation shows its loss, `ddpm evaluate` the rest."
        )
    return metric
