"""`ddpm convert IN OUT`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.paths import fresh
from ddpm_lib.core.text import printable
from ddpm_lib.interop.given import GivenOptions, option_names

if TYPE_CHECKING:
    from ddpm_lib.interop.imported import Imported

DESCRIPTION = (
    "Make a run of another library's checkpoint: ddpm sample, ddpm evaluate and ddpm train take it"
    " like any other. The format is recognised by the names and shapes of the weights; nothing in"
    " the file is executed. What the file does not say is assumed as published, and said: the other"
    " options set it. docs/interop.md has a table of formats."
)


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(GivenOptions):
    """Options of `ddpm convert`."""

    source: tyro.conf.Positional[str]
    """A file, or a folder of files that belong together."""
    out: tyro.conf.Positional[str]
    """The run directory to make; it must not exist."""
    format: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "auto"
    """The format, where it cannot be recognised."""


def main(args: list[str]) -> int:
    """Run the command."""
    from ddpm_lib.interop import read_foreign

    missing: Any = tyro.MISSING
    default = ConvertCommand(source=missing, out=missing)
    command: ConvertCommand = options.parse(
        ConvertCommand, args, default, "ddpm convert", DESCRIPTION
    )
    out = Path(command.out)
    if os.path.lexists(out):
        raise ConfigError(
            f"{printable(out)} exists, and nothing is overwritten. Choose another name, such as"
            f" {printable(fresh(out))}."
        )
    given = {name: getattr(command, name) for name in option_names()}
    imported = read_foreign(command.source, given, command.format)
    write(imported, out)
    print("\n".join(report(imported, out)))
    return 0


def write(imported: Imported, out: Path) -> None:
    """Write what was read as a run directory.

    Raises:
        CheckpointError: If it is a network alone, of no process.
    """
    from ddpm_lib.runs.new_run import write_new_run

    if imported.process is None:
        why = "; ".join(imported.notes)
        raise CheckpointError(
            f"{imported.source} holds a network alone, of which no run can be made ({why}). In"
            " Python, interop.read_foreign reads it."
        )
    write_new_run(
        out,
        model={"class": imported.network, "config": imported.network_config},
        diffusion=imported.process,
        weights=imported.weights,
        averages=imported.averages,
        optimizer=imported.optimizer,
        step=imported.step,
        training=imported.training,
        class_names=imported.class_names,
        origin={"source": str(imported.source), "format": imported.format},
        notes=imported.notes,
    )


def report(imported: Imported, out: Path) -> list[str]:
    """Say in lines what was read, what was assumed and what to do next."""
    averages = ", ".join(map(str, imported.averages))
    carried = [
        "weights" if imported.weights is not None else None,
        f"average{'s' if len(imported.averages) > 1 else ''} {averages}" if averages else None,
        f"Adam's moments, step {imported.step:,}" if imported.optimizer else None,
    ]
    any_weights = imported.weights or next(iter(imported.averages.values()))
    count = sum(tensor.numel() for tensor in any_weights.values())
    process = imported.process or {}
    size = "×".join(map(str, process.get("image_size", [])))
    lines = [
        f"recognised: {imported.format}",
        f"network: {imported.network}, {count / 1e6:,.2f} M parameters",
        f"process: {process.get('timesteps', 1000)} levels, schedule"
        f" {process.get('schedule')}, predicts {process.get('parametrization')}, variance"
        f" {process.get('variance')}, images {size}",
        f"carried over: {'; '.join(part for part in carried if part)}",
    ]
    lines += [f"note: {note}" for note in imported.notes]
    weights = "" if imported.averages else " --weights model"
    run = shlex.quote(str(out))
    lines += ["", "Next:", f"  ddpm sample {run}{weights}"]
    if imported.network == "Unet":
        steps = f" --max-steps {imported.step + 10_000}"
        lines.append(f"  ddpm train path/to/images --config {run}/config.yaml{steps}")
    return lines
