"""`distill`: a trained run becomes one that draws in 1 to 4 steps, and is compared with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.markup import card, never_fails, note
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import is_path, unknown_options
from ddpm_lib.evaluation.distillation_gate import Gate, distinct_steps
from ddpm_lib.evaluation.student_scores import GateOptions, measure
from ddpm_lib.metrics import FEATURES
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.loading import Found, LoadedRun, find_checkpoints, load_checkpoint, load_run
from ddpm_lib.runs.stored_sampling import write_sampling
from ddpm_lib.runtime.devices import joined_state
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training import TrainingConfig
from ddpm_lib.training.by_length import OPEN
from ddpm_lib.training.callbacks.base import Callback
from ddpm_lib.training.fine_tuning.starting_weights import weights_digest
from ddpm_lib.training.run_config import absolute_source, started_data
from ddpm_lib.training.student_options import student_options
from ddpm_lib.training.trainer import Trainer

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.runs.started_from import StartedFrom
    from ddpm_lib.training import TrainingResult

RECORD = "distillation.json"
"""In the run of a student: how it compares with its teacher."""
STEPS = (1, 2, 4)
TEACHER_STEPS = 50
SAMPLES = 1000
"""Samples of each that are compared, where nothing else is said."""
FEWEST = 64


@dataclass(frozen=True)
class Distilled:
    """A student.

    Attributes:
        training: How its training ended.
        gate: How it compares with its teacher; None where training is not finished.
        folder: Its run directory.
    """

    training: TrainingResult
    gate: Gate | None
    folder: Path

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The student with its averaged weights, as `load_run` loads it."""
        return load_run(self.folder).diffusion

    def __str__(self) -> str:
        if self.gate is None:
            return f"{self.folder}: not compared yet, as training is {self.training.status}."
        return "\n".join(self.gate.lines())

    @never_fails
    def _repr_html_(self) -> str:
        lines = str(self).splitlines()
        return card("Distilled", *(note(line) for line in lines))


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """What `distill` takes besides the options of training.

    Raises:
        ConfigError: For an impossible value.
    """

    steps: tuple[int, ...] = STEPS
    """Numbers of steps at which the student is compared with its teacher."""
    teacher_steps: int = TEACHER_STEPS
    """Steps of the teacher, with ddim."""
    num_samples: int | None = None
    """Samples of each that are compared; default: 1,000, or as many as a small set has images."""
    features: str = "random64"
    """In which pictures are compared: random64 (needs no weights, for a look), inception2048,
    dinov2, pixels, …
    """
    checkpoint: str = "latest"
    """Of the teacher: latest, best (by keep_best), a step (1200) or a name (step-000001200)."""
    stages: int = 4
    """How often the two levels of a pair come closer while the student is trained."""
    q: float = 4.0
    """By which factor they come closer each time."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("teacher_steps", self.teacher_steps, 1),
            ("num_samples", self.num_samples, FEWEST),
        ):
            if value is not None and (isinstance(value, bool) or value < least):
                raise ConfigError(f"{option(name)} must be at least {least}; got {value}.")
        try:
            object.__setattr__(self, "steps", distinct_steps(self.steps))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for name in self.features.split(","):
            FEATURES[name.strip()]

    @property
    def loss_options(self) -> dict[str, float]:
        """Of the process."""
        return {"stages": self.stages, "q": self.q}


def distill(
    run: str | Path,
    data: Any = None,
    *,
    steps: Sequence[int] = STEPS,
    callbacks: Callback | Iterable[Callback] | None = (),
    **options: Any,
) -> Distilled:
    """Tune a trained run to draw in few steps, and compare it with what it was.

    Easy consistency tuning (Geng et al. 2024) from the averaged weights of the run, in a run
    directory of its own. The same call continues a tuning that was cut off. Under torchrun all
    processes call it.

    Args:
        run: The run (or one of its checkpoints, a pretrained folder, a repository) that becomes the
            teacher; nothing of it changes.
        data: Images, as for `Trainer`; default: those that the run was trained on.
        steps: Numbers of steps at which the student is compared.
        callbacks: As for `Trainer`.
        **options: Fields of `DistillOptions`, and of `TrainingConfig`, which otherwise are those of
            the run, for one and a half times as many steps (from 6,667 on 10,000, from
            20,000 on half as many) at half the rate.

    Returns:
        The student, and the comparison: `print(distilled)` shows it.

    Raises:
        ConfigError: If the network predicts eps or sees its own estimate, or for wrong options.
        CheckpointError: If there is no complete checkpoint.

    Example:
        >>> student = distill("runs/mine", max_steps=2000)                      # doctest: +SKIP
        >>> print(student)                                                      # doctest: +SKIP
        >>> student.diffusion.sample(16)                                        # doctest: +SKIP
    """
    own = [*DistillOptions.__dataclass_fields__]
    known = [*own, *TrainingConfig.__dataclass_fields__]
    unknown_options(options, known, "distill")
    chosen = DistillOptions(steps=tuple(steps), **{k: options.pop(k) for k in own if k in options})
    teacher = open_teacher(run, chosen.checkpoint)
    return Distillation(teacher, data, chosen).run(options, callbacks)


def open_teacher(run: str | Path, checkpoint: str | int = "latest") -> LoadedRun:
    """Load the run that is to be tuned, by its averaged weights where it keeps some.

    Raises:
        CheckpointError: If there is no complete checkpoint.
        ConfigError: If it was tuned before.
    """
    loaded = load_first_weights(find_checkpoints(run, checkpoint)[-1])
    if loaded.diffusion.denoiser.jumps:
        began = (loaded.state.get("started_from") or {}).get("source")
        also = f" Tune {began} again, with other options." if began else ""
        raise ConfigError(f"{run} was tuned to draw in few steps already.{also}")
    return loaded


def load_first_weights(found: Found) -> LoadedRun:
    """Load the weights that `init_from` begins with: the first average, whichever `tune` chose."""
    state = getattr(found, "state", None)
    if state is None:
        return load_checkpoint(found, "ema")
    kept = state.ema_decay
    return load_checkpoint(found, "ema", kept[0]) if kept else load_checkpoint(found, "model")


@dataclass(frozen=True)
class Distillation:
    """One tuning.

    Attributes:
        teacher: The run.
        data: Images that were given, None for those of the run.
        options: Of the comparison.
    """

    teacher: LoadedRun
    data: Any
    options: DistillOptions

    @property
    def source(self) -> str:
        """Where the weights to begin with lie."""
        if self.teacher.pretrained is not None:
            return self.teacher.pretrained.folder.source
        return os.path.abspath(self.teacher.checkpoint)

    @property
    def default_output(self) -> str:
        """The run directory of the student, where none is named: beside the teacher's."""
        if self.teacher.pretrained is not None:
            return f"runs/{Path(self.teacher.pretrained.folder.source).name}-distilled"
        return f"{self.teacher.run}-distilled"

    def images(self) -> Any:
        """Return what the student learns from.

        Raises:
            ConfigError: If the run's own data cannot be opened from here.
        """
        if self.data is not None:
            return self.data
        state = None if self.teacher.pretrained is not None else self.teacher.run_state
        if state is None or not state.trained_on.is_known:
            raise ConfigError(
                f"What {self.teacher.name} was trained on is not known. Name images:"
                f" {option('data', 'path/to/images')}."
            )
        called = self.teacher.state.get("training", {}).get("output_dir")
        source = started_data(self.teacher.run, called, str(state.trained_on.source))
        if source.isidentifier() and source[0].isupper() and not Path(source).exists():
            raise ConfigError(
                f"The run was trained on an object of Python ({source}), which cannot be opened"
                " again. Pass it: distill(run, data)."
            )
        return source

    def training_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of training: the run's, changed for tuning, then those given."""
        loaded = self.teacher
        folder = Path(given.get("output_dir") or self.default_output)
        begun = options_of_run(folder)
        if begun is not None:  # goes on as it began, also when its teacher was trained on
            return {**begun, "output_dir": str(folder), "resume": "auto", **given}
        known = {} if loaded.pretrained is not None else dict(loaded.run_state.training)
        known = {k: v for k, v in known.items() if k in TrainingConfig.__dataclass_fields__}
        for name in () if self.data is None else ("add_data", "add_condition"):
            known.pop(name, None)  # by which the run's own images grew
        if self._are_others():
            known.pop("files", None)  # which of the run's own images were used
        if loaded.pretrained is None and known:
            known["batch_size"] = loaded.run_state.batch_size
        own = student_options(known, loaded.step, self.source, given.get("max_steps"))
        own["init_weights"] = "model" if loaded.weights == "model" else "ema"
        if given.get("val_every") == 0:
            own |= {"val_data": None, "val_condition": ()}  # which nothing would look at
        elif "val_data" in given:
            own["val_condition"] = ()  # of the teacher's held-out images
        return {**own, "output_dir": str(folder), **given}

    def _are_others(self) -> bool:
        """Say whether images were named that lie elsewhere than those of the run."""
        if self.teacher.pretrained is not None or not is_path(self.data):
            return False
        own = str(self.teacher.run_state.trained_on.source)
        return absolute_source(os.fspath(self.data)) != own

    def _began_with(self, started: StartedFrom | None) -> tuple[LoadedRun, tuple[str, ...]]:
        """Load what the student began with, and notes: where that is gone, as after further
        training of the teacher, the teacher as it is now.
        """
        source = self.source
        if started is not None and os.path.isdir(started.source):
            source = started.source
        found = load_first_weights(find_checkpoints(source)[-1])
        digest = "" if started is None else started.sha256
        if not digest or weights_digest(found.diffusion.model.state_dict()) == digest:
            return found, ()
        return found, (
            f"The student began with {started}, which is not there any more: it is compared with"
            f" {found.name} ({found.weights}).",
        )

    def run(
        self, given: Mapping[str, Any], callbacks: Callback | Iterable[Callback] | None = ()
    ) -> Distilled:
        """Train the student, then compare."""
        student = self.teacher.diffusion.for_consistency(loss_options=self.options.loss_options)
        images = self.images()
        config = TrainingConfig.from_options(self.training_options(given), "distill")
        trainer = Trainer(student, images, config=config, callbacks=callbacks)
        result = trainer.train()
        folder = trainer.output_dir
        if result.status != "finished":
            return Distilled(result, None, folder)
        sets = trainer.dataset, trainer.held_out
        gate = self._compare(folder, trainer.config, *sets, trainer.ranks, trainer.started_from)
        return Distilled(result, gate, folder)

    def _compare(
        self,
        folder: Path,
        config: TrainingConfig,
        data: ImageDataset,
        held_out: ImageDataset | None,
        ranks: Processes,
        started: StartedFrom | None,
    ) -> Gate:
        """Compare both, or read what was found before; on every rank."""
        teacher, notes = self._began_with(started)
        student = load_run(folder, weights="ema" if config.ema_decay else "model")
        num = self.options.num_samples or min(SAMPLES, max(FEWEST, len(data)))
        timesteps = student.diffusion.timesteps
        how = GateOptions(
            steps=distinct_steps([min(n, timesteps) for n in self.options.steps]),
            teacher_steps=min(self.options.teacher_steps, timesteps),
            num=num,
            features=self.options.features,
            seed=config.seed,
            batch_size=max(config.images_per_step, 32),
            progress=config.progress,
        )
        wanted = {
            "step": student.step,
            "weights_sha256": student.weights_sha256,
            "teacher_sha256": teacher.weights_sha256,
            "steps": list(how.steps),
            "teacher_steps": how.teacher_steps,
            "num": how.num,
            "features": how.features,
            "seed": how.seed,
        }
        known = ranks.from_main(read_gate(folder, wanted) if ranks.is_main else None)
        if known is not None:
            return known
        gate = measure(teacher, student, data, held_out, how, joined_state())
        gate = replace(gate, notes=(*gate.notes, *notes))
        gate = ranks.from_main(gate)  # the speed is that of one process
        if ranks.is_main:
            found = {"compared": wanted, **gate.to_json()}
            # The record last: where it lies, all was written.
            write_sampling(folder, sampling_of(gate, student, found))
            write_atomically(folder / RECORD, json.dumps(found, indent=1) + "\n")
        return gate


def sampling_of(gate: Gate, student: LoadedRun, evidence: Mapping[str, Any]) -> SamplingDefault:
    """Return how a student draws from now on: in the number of steps that was chosen."""
    return SamplingDefault(
        made_by="ddpm distill",
        sampler="consistency",
        num_steps=gate.chosen,
        weights=student.weights,
        step=student.step,
        calls=gate.chosen,
        evidence=evidence,
    )


def options_of_run(folder: Path) -> dict[str, Any] | None:
    """Return the options of training of a run that has begun; None where there is none."""
    for checkpoint in reversed(files.list_checkpoints(folder / "checkpoints")):
        try:
            options = files.read_state(checkpoint)["training"]
        except (CheckpointError, KeyError):
            continue  # what is wrong with it is said where the run looks for what to go on from
        # What followed the length of the run is kept by whoever goes on with it.
        known = set(TrainingConfig.__dataclass_fields__) - set(OPEN)
        return {name: value for name, value in options.items() if name in known}
    return None


def read_gate(folder: Path, wanted: Mapping[str, Any] | None = None) -> Gate | None:
    """Return what a student was found to be; None where it was not compared, or not as wanted.

    Args:
        folder: Its run directory.
        wanted: Weights and options of the comparison; None for any.
    """
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if wanted is not None and values["compared"] != dict(wanted):
            return None
        return Gate.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
