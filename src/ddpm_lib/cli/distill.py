"""`ddpm distill RUN`."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ddpm_lib.cli import arguments, help, options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation.distilling import Distillation, Distilled, DistillOptions, open_teacher
from ddpm_lib.runs.lock import refuse_taken
from ddpm_lib.runtime.rendezvous import destroy_group
from ddpm_lib.training import TrainingConfig, process_state
from ddpm_lib.training.student_options import ANEW

DESCRIPTION = (
    "Tune a trained run to draw in 1 to 4 steps (easy consistency tuning), in a run directory of"
    " its own, and compare it with what it was: distance, precision, recall, copies, speed. A worse"
    " student is called worse. Options of training that are not given are those of the run, for one"
    " and a half times as many steps (half as many of long runs) at half the learning rate. The"
    " same command continues a tuning that was cut off."
)


@dataclass(frozen=True, kw_only=True)
class DistillCommand(DistillOptions, TrainingConfig):
    """Options of `ddpm distill`."""

    run: tyro.conf.Positional[str]
    """The run to tune: a run directory, a pretrained folder, or one of the hub by its name,
    owner/name. Nothing of it changes.
    """
    data: str | None = None
    """Images to tune it with; default: those that it was trained on."""

    def __post_init__(self) -> None:
        if self.run is not tyro.MISSING:
            TrainingConfig.__post_init__(self)
            DistillOptions.__post_init__(self)


def main(args: list[str]) -> int:
    """Run the command."""
    usual = DistillCommand(run=tyro.MISSING)
    table = arguments.options_of(DistillCommand, usual)
    if help.wanted(args):
        told = [_as_of_the_run(option) for option in table]
        options.show_help(DistillCommand, told, args, "ddpm distill", DESCRIPTION)
    words = arguments.read(table, args, "ddpm distill")
    arguments.set_values(usual, words)  # what is wrong in any case is said first
    given = {path[0]: value for path, value in words.items()}
    run, data = given.pop("run"), given.pop("data", None)
    named = {f.name for f in dataclasses.fields(DistillOptions)}
    own = DistillOptions(**{k: v for k, v in given.items() if k in named})
    training = {k: v for k, v in given.items() if k not in named}
    _refuse_start(training)
    process_state(training.get("device", "auto"))
    work = Distillation(open_teacher(run, own.checkpoint), data, own)
    folder = Path(training.get("output_dir") or work.default_output)
    refuse_taken(folder)
    found = work.run(training)
    state = process_state(training.get("device", "auto"))
    if state.is_main_process:
        report(found)
    destroy_group(state)
    return found.training.exit_code


_DEFAULTS = {
    "max_steps": (
        "Optimizer steps; default: one and a half times those of the run, at most 10,000; half of"
        " them for a run of more than 20,000."
    ),
    "learning_rate": "Peak learning rate; default: half of the run's.",
    "batch_size": (
        "Images per optimizer step over all processes and accumulation steps; default: as the run;"
        " auto: the largest batch that fits in memory."
    ),
    "output_dir": "Run directory of the student; default: RUN-distilled.",
}
"""What the help says of options whose default is not that of `ddpm train`."""


def _as_of_the_run(option: arguments.Option) -> arguments.Option:
    """Return an option of training as the help shows it: without the default of `ddpm train`, as
    what is not given follows the run.
    """
    name = option.path[-1]
    training = {field.name for field in dataclasses.fields(TrainingConfig)}
    if name not in training or isinstance(option.default, bool):
        return option
    own = name in ANEW and not name.startswith("sample_")
    default = option.default if own else None
    return dataclasses.replace(option, default=default, help=_DEFAULTS.get(name, option.help))


def _refuse_start(training: dict[str, Any]) -> None:
    """Refuse options that name other weights than those of the run.

    Raises:
        ConfigError: Naming the option.
    """
    for name in ("init_from", "init_weights"):
        if name in training:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag} has no place here: the student begins with the averaged weights of RUN."
                " Leave it out, or choose a step of RUN with --checkpoint."
            )


def report(found: Distilled) -> None:
    """Print what was found, and what comes next."""
    print()
    if found.gate is None:
        print(f"{found} The same command goes on.")
        return
    for line in found.gate.lines():
        print(line)
    run = shlex.quote(str(found.folder))
    steps = found.gate.chosen
    print(f"\ndraw with it  ddpm sample {run} --num 64")
    print(f"score it      ddpm evaluate {run}   (draws in {steps} step{'s' * (steps > 1)})")
