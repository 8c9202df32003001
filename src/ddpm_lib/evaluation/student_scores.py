"""A teacher and its student scored alike: distance, precision, recall, copies and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddpm_lib.evaluation.defaults import is_pictures
from ddpm_lib.evaluation.distillation_gate import COPIES, DISTANCE, RECALL, Drawer, Gate, Measured
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.feature_plan import plan_features
from ddpm_lib.evaluation.feature_store import FeatureStore
from ddpm_lib.evaluation.image_sets import dataset_images
from ddpm_lib.evaluation.network_conditions import conditions_of, draws_of_data
from ddpm_lib.evaluation.sample_set import sample_images
from ddpm_lib.evaluation.scoring import bind_metrics, run_metrics
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.metrics.distances import energy_distance
from ddpm_lib.runs.placing import place_network
from ddpm_lib.training.sampling import default_condition, sample_shared

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.runs.loading import LoadedRun

PARTS = 8
"""Samples that are no pictures are measured in so many parts, whose spread is the error."""
TIMED = 16
"""Images that are drawn to measure the speed."""
_NAMES = {"kd": DISTANCE, "kid": DISTANCE, "precision": "precision", "recall": RECALL}


@dataclass(frozen=True)
class GateOptions:
    """How teacher and student are compared.

    Attributes:
        steps: Steps of the student, fewest first.
        teacher_steps: Steps of the teacher, with DDIM.
        num: Samples of each.
        features: In which pictures are compared, as for `evaluate`.
        seed: Of the samples, the same for all.
        batch_size: Images at a time.
        progress: Whether to show progress.
    """

    steps: tuple[int, ...]
    teacher_steps: int
    num: int
    features: str
    seed: int
    batch_size: int
    progress: bool


@dataclass(frozen=True)
class Way:
    """A network and how it draws."""

    who: str
    loaded: LoadedRun
    sampler: str
    steps: int

    @property
    def process(self) -> GaussianDiffusion:
        """The process."""
        return self.loaded.diffusion


def measure(
    teacher: LoadedRun,
    student: LoadedRun,
    data: ImageDataset,
    held_out: ImageDataset | None,
    options: GateOptions,
    state: PartialState,
) -> Gate:
    """Score both; on every rank, which share the samples.

    Args:
        teacher: The run that was tuned.
        student: What became of it.
        data: The training images of the student, which samples are compared with.
        held_out: The held-out ones, None where there are none.
        options: How they are compared.
        state: accelerate's object that knows the ranks.
    """
    ways = [Way("teacher", teacher, "ddim", options.teacher_steps)]
    ways += [Way("student", student, "consistency", steps) for steps in options.steps]
    drawers = []
    for way in ways:
        place_network(way.process, state.device, "no")
        score = _of_pictures if is_pictures(way.process) else _of_values
        scores = score(way, data, held_out, options, state)
        drawers.append(Drawer(way.who, way.sampler, way.steps, scores, _speed(way, data, state)))
    notes = []
    if default_condition(student.diffusion, 1) is not None:
        notes.append(
            "Both drew without guidance: guidance is not tuned into the student, and guiding it"
            " extrapolates its jumps."
        )
    return Gate(drawers[0], tuple(drawers[1:]), options.num, str(state.device), tuple(notes))


def _of_pictures(
    way: Way,
    data: ImageDataset,
    held_out: ImageDataset | None,
    options: GateOptions,
    state: PartialState,
) -> dict[str, Measured]:
    """Score pictures as `evaluate` does."""
    how = EvaluationOptions(
        metrics="kid,pr,memorisation",
        features=options.features,
        num=options.num,
        sampler=way.sampler,
        sample_steps=way.steps,
        spacing="trailing",
        seed=options.seed,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    engine = Engine(
        state, batch_size=how.batch_size, progress=how.progress and state.is_main_process
    )
    needs, _ = plan_features(how, engine)
    about = [way.who, str(way.loaded.checkpoint), way.loaded.weights_sha256, way.loaded.weights]
    enlarged = data if draws_of_data(way.process) else None
    train = dataset_images(data.steady(), "train")
    sets = {
        "samples": sample_images(
            way.process, how, options.num, about, state.device, given=enlarged
        ),
        "reference": train,
        "train": train,
    }
    if held_out is not None:
        sets["held_out"] = dataset_images(held_out.steady(), "heldout")
    store = FeatureStore(engine, sets)
    store.prepare(need for wanted in needs.values() for need in wanted)
    task = SampleTask(how, state, store)
    found, _ = run_metrics(bind_metrics(how.metric_names, None, task), store, automatic=True)
    engine.finish()
    scores: dict[str, Measured] = {}
    for score in found:
        first = score.name.split("_")[0]
        name = _NAMES.get(first, COPIES if score.name.startswith("copies_pixels") else "")
        if name and "/" not in score.name and name not in scores:
            scores[name] = Measured(score.value, score.standard_error or 0.0, score.name)
    return scores


def _of_values(
    way: Way,
    data: ImageDataset,
    held_out: ImageDataset | None,
    options: GateOptions,
    state: PartialState,
) -> dict[str, Measured]:
    """Measure samples that are no pictures by the energy distance of their values to the data."""
    samples = sample_shared(
        way.process,
        options.num,
        state,
        cond=_conditions(way.process, data, options.num),
        sampler=way.sampler,
        num_steps=way.steps,
        seed=options.seed,
        device=state.device,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    order = np.random.default_rng(options.seed).permutation(len(data))[: options.num]
    truth = data.steady().batch(np.sort(order))["image"]
    truth = truth.float() / 255.0 if truth.dtype == torch.uint8 else truth.float()
    points, real = (values.flatten(1).double().cpu() for values in (samples, truth))
    parts = [energy_distance(part, real) for part in points.chunk(min(PARTS, len(points) // 2))]
    error = float(np.std(parts, ddof=1) / len(parts) ** 0.5) if len(parts) > 1 else 0.0
    return {DISTANCE: Measured(energy_distance(points, real), error, "energy distance")}


def _conditions(process: GaussianDiffusion, data: ImageDataset, n: int) -> Mapping[str, Any] | None:
    if not draws_of_data(process):
        return default_condition(process, n)
    return conditions_of(process, data.batch(np.arange(n) % len(data)))


def _speed(way: Way, data: ImageDataset, state: PartialState) -> float:
    """Return images per second of this process."""
    how: dict[str, Any] = {"sampler": way.sampler, "progress": False, "device": state.device}
    how["cond"] = _conditions(way.process, data, TIMED)
    way.process.sample(TIMED, num_steps=min(2, way.steps), **how)
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        way.process.sample(TIMED, num_steps=way.steps, **how).cpu()  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return TIMED / best
