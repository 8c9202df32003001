"""`ddpm evaluate RUN`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import tyro

from ddpm_lib.cli import options
from ddpm_lib.evaluation import METRICS, EvaluationOptions, evaluate
from ddpm_lib.training import process_state

DESCRIPTION = (
    f"Score a run on the images it held out, on its training images or on others. Metrics: {', '.join(METRICS)}. The numbers "
    "depend neither on the batch size nor on the number of processes (torchrun shares the images). Prints a table and writes "
    "evaluations/eval-….json into the run, with everything that repeating it needs."
)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(EvaluationOptions):
    """Options of `ddpm evaluate`."""

    run: tyro.conf.Positional[str]
    """A run directory, or one of its checkpoints."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: EvaluateCommand = options.parse(
        EvaluateCommand, args, EvaluateCommand(run=tyro.MISSING), "ddpm evaluate", DESCRIPTION
    )
    chosen = {f.name: getattr(command, f.name) for f in dataclasses.fields(EvaluationOptions)}
    result = evaluate(command.run, **chosen)
    state = process_state(command.device)
    if state.is_main_process:
        print(result.table())
        print(f"wrote {result.save()}")
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
    return 0
