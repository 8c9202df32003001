"""A first score at the end of a training: a few samples, features without weights, bounded time."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

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
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.sampling import default_condition

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

    Kernel distance, precision, recall and copies of training images, with rows to compare with. It
    takes at most about a twentieth of the training's time, and a minute: fewer samples are drawn
    where they would take longer, and none where fewer than 20 would be left. A training that was
    stopped before its last step is not scored, nor one near its time limit. Nothing of the
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
        """Score, where the last step is done and there is time."""
        diffusion = trainer.diffusion
        enlarges = low_res_conditioner(diffusion) is not None
        few = len(trainer.dataset) < FEWEST
        if trainer.step < trainer.config.max_steps or not is_pictures(diffusion) or enlarges or few:
            return
        began = time.monotonic()
        samples = self._draw(trainer, began)
        if samples is None:
            return
        self.result = self._score(trainer, samples, began)
        if trainer.is_main:
            with trainer.tolerate_write_errors("the final score"):
                self.result.save()

    def _affordable(self, trainer: TrainingView, began: float) -> tuple[int, float]:
        """Return how many samples may be drawn, and until when on the clock of `time.monotonic`."""
        since, images = self._began
        taken, seen = began - since, trainer.images_seen - images
        whole = max(taken, float(trainer.metrics.get("seconds") or 0.0))
        budget, hours = min(SHARE * whole, MOST_SECONDS), trainer.config.max_hours
        if not seen or (hours is not None and taken + 2 * budget > 3600 * hours):
            return 0, began
        # A forward pass is a third of what a training image costs; guidance takes two.
        guided = 2 if trainer.config.sample_guidance_scale != 1 else 1
        steps = min(trainer.config.sample_steps, trainer.diffusion.timesteps)
        each = taken / seen / 3 * steps * guided
        return min(self.samples, int(budget / max(each, 1e-9))), began + budget

    def _draw(self, trainer: TrainingView, began: float) -> Tensor | None:
        """Draw samples with the averaged weights, as grids are, or None where there is no time."""
        n, until = trainer.ranks.from_main(self._affordable(trainer, began))
        config, found, drawn = trainer.config, [], 0
        labels = default_condition(trainer.diffusion, n) or {}
        while n >= FEWEST and drawn < n:
            here = slice(drawn, min(n, drawn + -(-n // PARTS)))
            found.append(
                trainer.sample(
                    here.stop - drawn,
                    cond={name: value[here] for name, value in labels.items()} or None,
                    sampler=config.sample_sampler,
                    num_steps=min(config.sample_steps, trainer.diffusion.timesteps),
                    seed=config.sample_seed,
                    first_index=drawn,
                    guidance_scale=config.sample_guidance_scale,
                    progress=False,
                ).cpu()
            )
            drawn = here.stop
            if trainer.ranks.from_main(time.monotonic() > until):
                break
        return torch.cat(found) if drawn >= FEWEST else None

    def _score(self, trainer: TrainingView, samples: Tensor, began: float) -> Evaluation:
        config, run = trainer.config, trainer.output_dir
        options = EvaluationOptions(
            metrics="kid,pr,memorisation",
            features="random64",
            num=len(samples),
            sampler=config.sample_sampler,
            sample_steps=min(config.sample_steps, trainer.diffusion.timesteps),
            guidance_scale=config.sample_guidance_scale,
            seed=config.sample_seed,
            progress=False,
        )
        state = joined_state()
        folder = run / "evaluations" / "unfinished"
        engine = Engine(state, batch_size=options.batch_size, progress=False, folder=folder)
        needs, _ = plan_features(options, engine)
        store = FeatureStore(engine, _sets(trainer, samples))
        store.prepare(need for wanted in needs.values() for need in wanted)
        task = SampleTask(options, state, store)
        scorers = bind_metrics(options.metric_names, None, task)
        scores, left_out = run_metrics(scorers, store, automatic=True)
        rows = reference_rows(task, options.metric_names)
        judged = judge_scores(scores, store, options.feature_names, trainer.diffusion, rows)
        engine.finish()
        if state.is_main_process:
            with contextlib.suppress(OSError):  # something else is kept there
                folder.rmdir()
        about = {
            **describe_target(str(run), None, options, state),
            **self._weights(trainer),
            **describe_sets(store, None, options, needs),
            "references": to_json(rows),
            "skipped": {},
            "seconds": round(time.monotonic() - began, 3),
        }
        about["notes"] = [*left_out, *about["notes"], *judged.notes, _first_look(trainer, samples)]
        return Evaluation(tuple(judged.scores), about, run / "evaluations")

    def _weights(self, trainer: TrainingView) -> dict[str, Any]:
        """Say which weights drew, as evaluations of a run do."""
        name = checkpoint_name(trainer.step)
        averaged = trainer.averaged_network() is not trainer.diffusion.model
        word = f"ema {trainer.config.ema_decay[0]}" if averaged else "model"
        found = {
            "run": str(trainer.output_dir),
            "checkpoint": name,
            "step": trainer.step,
            "weights": word,
        }
        if trainer.is_main:
            stem = "ema" if averaged else "model"
            path = trainer.output_dir / "checkpoints" / name
            found["weights_sha256"] = recorded_sha256(path, stem)
        return found


def _sets(trainer: TrainingView, samples: Tensor) -> dict[str, ImageSet]:
    """Return samples, training and held-out images as the metrics compare them; nothing of them is
    kept on disk.
    """
    pixels = as_pictures(samples)
    digest = digest_of("final samples", str(trainer.output_dir), [trainer.step, len(pixels)])
    shape = tuple(trainer.diffusion.image_size)
    data, held_out = trainer.dataset, trainer.held_out
    chosen = data.subset(evenly(min(COMPARED_WITH, len(data)), len(data)))
    train = dataclasses.replace(dataset_images(chosen, "train"), cached=False)
    sets = {
        "samples": ImageSet(
            "samples", len(pixels), lambda rows: pixels[rows.start : rows.stop], digest, shape=shape
        ),
        "reference": train,
        "train": train,
    }
    if held_out is not None:
        few = held_out.subset(evenly(min(COMPARED_WITH, len(held_out)), len(held_out)))
        sets["held_out"] = dataclasses.replace(dataset_images(few, "heldout"), cached=False)
    return sets


def _first_look(trainer: TrainingView, samples: Tensor) -> str:
    return (
        f"a first look at {len(samples):,} samples, made when training ended; ddpm evaluate"
        f" {trainer.output_dir} takes more."
    )
