"""A plan as a commented run.yaml."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.paths import fresh

if TYPE_CHECKING:
    from ddpm_lib.training.planning.planner import Plan

WIDTH = 38
"""Columns in front of the comments."""


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
    if classes > 1:
        what += f", {classes:,} classes"
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
