"""`ddpm tune RUN`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.text import printable
from ddpm_lib.evaluation.tuning import Tuned, TuneOptions, tune
from ddpm_lib.runs.run_status import is_run, no_run
from ddpm_lib.runs.stored_sampling import FILE, undo_sampling
from ddpm_lib.runtime.rendezvous import destroy_group
from ddpm_lib.training import process_state

DESCRIPTION = (
    "Choose how a run is sampled in few network calls: learn the levels of each solver, then choose"
    " solver, average, guidance and what guides by one half of the images, and report on the other."
    " What is nearer to the data than the library's way with as many calls becomes the run's"
    " default: ddpm sample, ddpm evaluate, load_run and pushed models use it. The same command"
    " goes on after a kill."
)


@dataclass(frozen=True, kw_only=True)
class TuneCommand(TuneOptions):
    """Options of `ddpm tune`."""

    run: tyro.conf.Positional[str]
    """A run directory, or one of its checkpoints."""
    condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where the conditions of --data are, NAME=SOURCE[:COLUMN], once per condition, where that is a
    folder, file or dataset; default: where those of the training images are.
    """
    undo: bool = False
    """Take the run's sampling default back: the one before it counts again, else the library's."""


def main(args: list[str]) -> int:
    """Run the command; 1 says that nothing better was found, and nothing was kept."""
    missing: Any = tyro.MISSING
    command: TuneCommand = options.parse(
        TuneCommand, args, TuneCommand(run=missing), "ddpm tune", DESCRIPTION
    )
    if command.undo:
        sys.stdout.write(undo(command))
        return 0
    chosen = {f.name: getattr(command, f.name) for f in dataclasses.fields(TuneOptions)}
    state = process_state(command.device)
    found = tune(command.run, **chosen)
    if state.is_main_process:
        print("\n".join([found.table(), *ending(found, command.run)]))
    destroy_group(state)
    return 0 if found.is_better else 1


def ending(found: Tuned, run: str) -> list[str]:
    """Say what was kept, and what that changes."""
    if found.saved is None:
        return [
            "nothing was kept: what was found is no nearer to the data than the library's way with"
            " as many calls. More --calls, --num or training may change that."
        ]
    name = shlex.quote(run)
    return [
        f"kept in {found.saved}: {found.default.words()}",
        f"`ddpm sample {name}` draws so now; `ddpm tune {name} --undo` takes it back",
    ]


def undo(command: TuneCommand) -> str:
    """Take the default of a run back, and say what counts now.

    Raises:
        ConfigError: If other options were given, it is no run, or there is nothing to take back.
    """
    default = TuneCommand(run=command.run)
    others = [
        f.name
        for f in dataclasses.fields(TuneOptions)
        if getattr(command, f.name) != getattr(default, f.name)
    ]
    if others:
        raise ConfigError(
            f"--undo takes back what was chosen, and --{others[0].replace('_', '-')} is for"
            " choosing. Leave one of them out."
        )
    run = Path(command.run)
    if not is_run(run) and not (run / FILE).is_file():
        raise ConfigError(no_run(run))
    gone, now = undo_sampling(run)
    what = "a damaged default" if gone is None else gone.words()
    next_one = "the library's way" if now is None else f"{now.words()} ({now.origin()})"
    return f"{printable(run)}: took back {what}; sampled by default now: {next_one}\n"
