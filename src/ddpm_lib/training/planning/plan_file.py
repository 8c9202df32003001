"""A plan: settings with their reasons, and how it is written, as a commented run.yaml."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.paths import fresh
from ddpm_lib.core.validation import unknown_options
from ddpm_lib.data.survey_facts import Survey
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.planning import plan_rules as rules
from ddpm_lib.training.planning.plan_rules import Decision
from ddpm_lib.training.planning.rehearsing import Settings, nested

if TYPE_CHECKING:
    from ddpm_lib.training.estimate import Estimate
    from ddpm_lib.training.trainer import Trainer

WIDTH = 38
"""Columns in front of the comments."""


@dataclass(frozen=True)
class Plan:
    """The settings of a run, each with its reason, and what to expect of it.

    Attributes:
        data: What was planned for: a name that opens it, or the object.
        decisions: The settings, in the order in which they are written.
        survey: What the data are like.
        estimate: What the run costs on this machine, measured.
        hours: What it was planned for.
        purpose: "samples" or "likelihood".
        train_images: Images that it trains on.
        seconds: How long the run is expected to take, with validation, grids and the start.
        notes: What else there is to know.
    """

    data: Any
    decisions: tuple[Decision, ...]
    survey: Survey
    estimate: Estimate
    hours: float
    purpose: str
    train_images: int
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as nested values: options of training, and the groups model and
        diffusion.
        """
        return nested({one.name: one.value for one in self.decisions})

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self._value("max_steps"))

    @property
    def _batch(self) -> int:
        """Images per step; of batch_size="auto" as many as the rehearsal took."""
        size = self._value("batch_size")
        return self.estimate.batch_size if size == "auto" else int(size)

    @property
    def passes(self) -> float:
        """Expected passes over the training images."""
        return self.steps * self._batch / self.train_images

    @property
    def copies_from(self) -> int:
        """The step from which copies of training images are to be expected: a prior."""
        return rules.copies_from(self.train_images, self._batch)

    def _value(self, name: str) -> Any:
        return next(one.value for one in self.decisions if one.name == name)

    def __str__(self) -> str:
        """Return the plan as a commented run.yaml, which `ddpm train run.yaml` takes."""
        return plan_yaml(self)

    def save(self, path: str | Path) -> Path:
        """Write run.yaml.

        Raises:
            ConfigError: If something else lies there, or the data have no name.
            OSError: If the disk refuses.
        """
        return save_plan(self, Path(path))

    def trainer(self, **changes: Any) -> Trainer:
        """Return a Trainer of this plan.

        Args:
            **changes: Options of training that are to be otherwise, such as output_dir.
        """
        from ddpm_lib.training.trainer import Trainer

        seen = self.survey
        settings = Settings.of(self.settings, len(seen.class_names or ()), seen.conditions)
        unknown_options(changes, list(TrainingConfig.__dataclass_fields__), "Plan.trainer")
        return Trainer(settings.process(), self.data, **{**settings.training, **changes})


def plan_yaml(plan: Plan) -> str:
    """Return a plan as YAML: what to expect above, a reason behind every line."""
    lines = [f"# {line}".rstrip() for line in expectations(plan)]
    lines.append("")
    group = ""
    for one in plan.decisions:
        outer, dot, name = one.name.partition(".")
        if dot and outer != group:
            lines.append(f"{outer}:")
            group = outer
        text = f"{'  ' if dot else ''}{name if dot else one.name}: {_value(one.value)}"
        lines.append(f"{text:{WIDTH}}  # {one.comment}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def expectations(plan: Plan) -> list[str]:
    """Say in lines what was planned for, what it costs and what to expect."""
    seen, cost = plan.survey, plan.estimate
    height, width = seen.shape
    what = f"{seen.images:,} images, {width}×{height} in the middle of the set"
    classes = len([count for count in seen.class_counts or () if count])
    if seen.values is not None:
        what = f"{seen.images:,} images, {seen.channels:,} × {seen.values.words}"
    if classes > 1:
        what += f", {classes:,} classes"
    what += "".join(f", {name} ({one['kind']})" for name, one in seen.conditions.items())
    disk = cost.checkpoint_bytes * cost.checkpoints / 2**20
    memory = cost.memory_bytes / 2**20
    fits = "fits" if cost.fits else "does NOT fit"
    return [
        f"A plan for {plan.hours:g} hours on {cost.device}, for {plan.purpose}.",
        f"data      {what}",
        f"network   {cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e6:,.0f} M"
        " multiplications per image",
        f"time      about {_duration(plan.seconds)}: {plan.steps:,} steps of"
        f" {cost.seconds_per_step or 0:.3g} s (measured), validation and grids included",
        f"memory    {memory:,.0f} MiB of {cost.available_bytes / 2**30:,.1f} GiB: {fits}",
        f"disk      {disk:,.0f} MiB for {cost.checkpoints} checkpoints at most",
        f"passes    {plan.passes:,.3g} over {plan.train_images:,} training images",
        f"copies    {_copies(plan)}",
        *(f"note      {note}" for note in plan.notes),
    ]


def _copies(plan: Plan) -> str:
    law = "a prior to an order of magnitude; the onset grows with the number of images"
    if plan.copies_from <= plan.steps:
        return f"to be expected from about step {plan.copies_from:,} on ({law})"
    return f"not to be expected: they would begin at about step {plan.copies_from:,} ({law})"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def save_plan(plan: Plan, path: Path) -> Path:
    """Write run.yaml; see `Plan.save`."""
    if not any(one.name == "data" for one in plan.decisions):
        raise ConfigError(
            f"{type(plan.data).__name__} has no name that a file could say: plan with a path or a"
            " name, or train with plan.trainer().train()."
        )
    if path.exists():
        raise ConfigError(
            f"{path} is there already, and is not overwritten. Choose another name, such as"
            f" {shlex.quote(str(fresh(path)))}, or move it away."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, str(plan))
    return path
