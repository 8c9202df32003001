"""A first score at the end of a training: a few samples, features without weights, bounded time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.defaults import is_pictures
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.evaluation_result import Evaluation
from ddpm_lib.evaluation.feature_plan import plan_features
from ddpm_lib.evaluation.feature_store import FeatureStore
from ddpm_lib.evaluation.image_sets import ImageSet, as_pictures, dataset_images
from ddpm_lib.evaluation.network_conditions import low_res_conditioner
from ddpm_lib.evaluation.provenance import describe_sets, describe_target
from ddpm_lib.evaluation.references import reference_rows, to_json
from ddpm_lib.evaluation.remarks import judge_scores
from ddpm_lib.evaluation.scoring import bind_metrics, run_metrics
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.runs.checkpoint import recorded_sha256
from ddpm_lib.runs.names import checkpoint_name
from ddpm_lib.runtime.devices import joined_state
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.examples import example_conditions
from ddpm_lib.training.sampling import default_condition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

SHARE = 0.05
"""At most so much of the time of the training goes into drawing the samples."""
MOST_SECONDS = 60.0
"""And at most so long."""
FEWEST = 20
"""With fewer samples a score says too little."""
COMPARED_WITH = 500
"""Training images, spread over the set, and held-out ones: looking for copies costs its square."""
PARTS = 4
"""The samples are drawn in so many parts, and no further ones when the time is over."""


class FinalScore(Callback):
    """Score a few samples after the last step, with features that need no weights, into the run's
    `evaluations/`.

    Kernel distance, precision, recall and copies of training images, with rows to compare with; of
    what are no pictures, values in their units and copies. It
    takes at most about a twentieth of the training's time, and a minute: fewer samples are drawn
    where they would take longer, and none where fewer than 20 would be left. A training that was
    stopped before its last step is not scored, unless it stopped by itself (`stop_when`), nor one
    near its time limit, nor samples that are not finite, which is said. Nothing of the
    training changes.

    Args:
        samples: How many are drawn at most, at least 20.

    Example:
        >>> Trainer(diffusion, data, callbacks=FinalScore(64))              # doctest: +SKIP
    """

    def __init__(self, samples: int = 64) -> None:
        if samples < FEWEST:
            raise ConfigError(
                f"A final score needs at least {FEWEST} samples; got {samples}. Use 64."
            )
        self.samples = samples
        self.result: Evaluation | None = None
        self._began = (0.0, 0)

    def on_train_start(self, trainer: TrainingView) -> None:
        """Start the clock."""
        self.result = None
        self._began = (time.monotonic(), trainer.images_seen)

    def on_train_end(self, trainer: TrainingView) -> None:
        """Score, where all is trained and there is time."""
        run = TrainedRun(
            config=trainer.config,
            folder=trainer.output_dir,
            step=trainer.step,
            diffusion=trainer.diffusion,
            data=trainer.dataset,
            held_out=trainer.held_out,
            averaged=trainer.averaged_network() is not trainer.diffusion.model,
        )
        stopped = trainer.stop_reason
        whole_run = run.step >= run.config.max_steps or (stopped is not None and stopped.complete)
        if not whole_run or not run.can_be_scored:
            return
        began, (since, images) = time.monotonic(), self._began
        taken, seen = began - since, trainer.images_seen - images
        whole = max(taken, float(trainer.metrics.get("seconds") or 0.0))
        planned = trainer.ranks.from_main(affordable(self.samples, run, taken, seen, whole))
        samples = draw_samples(run, planned, began, trainer.sample, trainer.ranks)
        if samples is None:
            return
        if not bool(torch.isfinite(samples).all()):
            trainer.say("The samples hold NaN or infinite values, so there is no final score.")
            return
        self.result = score(run, samples, began)
        if trainer.is_main:
            with trainer.tolerate_write_errors("the final score"):
                self.result.save()


@dataclass(frozen=True)
class TrainedRun:
    """What is scored.

    Attributes:
        config: The options of the training.
        folder: The run directory.
        step: The last step, whose checkpoint is written.
        diffusion: The process.
        data: The training images.
        held_out: The held-out images, None where there are none.
        averaged: Whether an average of the weights is kept, which then draws.
    """

    config: TrainingConfig
    folder: Path
    step: int
    diffusion: GaussianDiffusion
    data: ImageDataset
    held_out: ImageDataset | None
    averaged: bool

    @property
    def can_be_scored(self) -> bool:
        """Whether it makes images of noise alone, and there are enough to compare them with."""
        return low_res_conditioner(self.diffusion) is None and len(self.data) >= FEWEST

    @property
    def sample_steps(self) -> int:
        """Sampling steps, as for its grids."""
        return min(self.config.sample_steps, self.diffusion.timesteps)


def affordable(
    most: int, run: TrainedRun, taken: float, seen: int, whole: float
) -> tuple[int, float]:
    """Return how many samples may be drawn, and in how many seconds.

    Args:
        most: No more than so many.
        run: The run.
        taken: Seconds that this call of `train` took.
        seen: Images that it trained on.
        whole: Seconds of the whole run.
    """
    budget, hours = min(SHARE * whole, MOST_SECONDS), run.config.max_hours
    if not seen or (hours is not None and taken + 2 * budget > 3600 * hours):
        return 0, 0.0
    # A forward pass is a third of what a training image costs; guidance takes two.
    guided = 2 if run.config.sample_guidance_scale != 1 else 1
    each = taken / seen / 3 * run.sample_steps * guided
    return min(most, int(budget / max(each, 1e-9))), budget


def draw_samples(
    run: TrainedRun,
    planned: tuple[int, float],
    began: float,
    sample: Callable[..., Tensor],
    ranks: Processes,
) -> Tensor | None:
    """Draw samples (n, c, h, w) as grids are, on every rank, or None where there is no time.

    Args:
        run: The run.
        planned: Of `affordable`, the same on every rank.
        began: When the seconds began, on the clock of `time.monotonic`.
        sample: Draws with the weights that are scored, as `Trainer.sample` does; a collective.
        ranks: The processes of the run.
    """
    (n, seconds), config = planned, run.config
    found, drawn = [], 0
    of_data = run.data if run.held_out is None else run.held_out
    labels = example_conditions(run.diffusion, of_data, n) or default_condition(run.diffusion, n)
    while n >= FEWEST and drawn < n:
        here = slice(drawn, min(n, drawn + -(-n // PARTS)))
        found.append(
            sample(
                here.stop - drawn,
                cond={name: value[here] for name, value in (labels or {}).items()} or None,
                sampler=config.sample_sampler,
                num_steps=run.sample_steps,
                seed=config.sample_seed,
                first_index=drawn,
                guidance_scale=config.sample_guidance_scale,
                progress=False,
            ).cpu()
        )
        drawn = here.stop
        if ranks.from_main(time.monotonic() - began > seconds):
            break
    return torch.cat(found) if drawn >= FEWEST else None


def score(run: TrainedRun, samples: Tensor, began: float) -> Evaluation:
    """Score samples (n, c, h, w) of a run, on every rank; `began` is when the work on it did."""
    config = run.config
    pictures = is_pictures(run.diffusion)
    options = EvaluationOptions(
        metrics="kid,pr,memorisation" if pictures else "values,memorisation",
        features="random64" if pictures else "pixels",
        num=len(samples),
        sampler=config.sample_sampler,
        sample_steps=run.sample_steps,
        guidance_scale=config.sample_guidance_scale,
        seed=config.sample_seed,
        progress=False,
    )
    state = joined_state()
    folder = run.folder / "evaluations" / "unfinished"
    engine = Engine(state, batch_size=options.batch_size, progress=False, folder=folder)
    needs, _ = plan_features(options, engine)
    store = FeatureStore(engine, _sets(run, samples))
    store.prepare(need for wanted in needs.values() for need in wanted)
    task = SampleTask(options, state, store)
    scorers = bind_metrics(options.metric_names, None, task)
    scores, left_out = run_metrics(scorers, store, automatic=True)
    rows = reference_rows(task, options.metric_names)
    judged = judge_scores(scores, store, options.feature_names, run.diffusion, rows)
    engine.finish()
    if state.is_main_process:
        with contextlib.suppress(OSError):  # something else is kept there
            folder.rmdir()
    about = {
        **describe_target(str(run.folder), None, options, state),
        **_weights(run, state.is_main_process),
        **describe_sets(store, None, options, needs),
        "references": to_json(rows),
        "skipped": {},
        "seconds": round(time.monotonic() - began, 3),
    }
    about["notes"] = [*left_out, *about["notes"], *judged.notes, _first_look(run, len(samples))]
    return Evaluation(tuple(judged.scores), about, run.folder / "evaluations")


def _weights(run: TrainedRun, is_main: bool) -> dict[str, Any]:
    """Say which weights drew, as evaluations of a run do."""
    name = checkpoint_name(run.step)
    found = {
        "run": str(run.folder),
        "checkpoint": name,
        "step": run.step,
        "weights": f"ema {run.config.ema_decay[0]}" if run.averaged else "model",
    }
    if is_main:
        stem = "ema" if run.averaged else "model"
        found["weights_sha256"] = recorded_sha256(run.folder / "checkpoints" / name, stem)
    return found


def _sets(run: TrainedRun, samples: Tensor) -> dict[str, ImageSet]:
    """Return samples, training and held-out images as the metrics compare them; nothing of them is
    kept on disk.
    """
    units = run.diffusion.normalization
    pixels = as_pictures(samples) if units is None else samples.clamp(0.0, 1.0)
    content = hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
    digest = digest_of("final samples", content, list(pixels.shape))
    shape = tuple(run.diffusion.image_size)
    train = _few(run.data, "train")
    sets = {
        "samples": ImageSet(
            "samples",
            len(pixels),
            lambda rows: pixels[rows.start : rows.stop],
            digest,
            shape=shape,
            normalization=units,
        ),
        "reference": train,
        "train": train,
    }
    if run.held_out is not None:
        sets["held_out"] = _few(run.held_out, "heldout")
    return sets


def _few(data: ImageDataset, name: str) -> ImageSet:
    """Return images spread over a set, no more than are compared."""
    chosen = data.subset(evenly(min(COMPARED_WITH, len(data)), len(data)))
    return dataclasses.replace(dataset_images(chosen, name), cached=False)


def _first_look(run: TrainedRun, n: int) -> str:
    return (
        f"a first look at {n:,} samples, made when training ended; ddpm evaluate {run.folder} takes"
        " more."
    )
