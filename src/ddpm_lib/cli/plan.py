"""`ddpm plan DATA`: a commented run.yaml that suits the data, this machine and the time."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddpm_lib.cli import arguments, help, options
from ddpm_lib.cli.missing_data import missing_data
from ddpm_lib.cli.run_settings import Given, RunConfig, default_name, given_settings
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.paths import fresh
from ddpm_lib.runs.run_status import is_run
from ddpm_lib.training.planning.plan_file import expectations
from ddpm_lib.training.run_config import in_its_run

DESCRIPTION = (
    "Look at the data, time a few steps on this machine, and write a run.yaml for the hours that"
    " there are: size, network, prediction, batch, steps, rate, averages, flips and more, a reason"
    " and what it rests on behind every line. `ddpm train run.yaml` trains it, and `ddpm train DATA"
    " --hours 2` plans and trains in one. Options of `ddpm train` that are given are kept, and"
    " planned around."
)
NAME = "run.yaml"


@dataclass(frozen=True, kw_only=True)
class PlanCommand(RunConfig):
    """What the command takes besides the settings of a run."""

    hours: float = 2.0
    """How long the training may take."""
    purpose: Annotated[
        Literal["samples", "likelihood"],
        tyro.conf.arg(
            aliases=("--for",),
            help="What the run is for: good samples, or few bits per dimension.",
        ),
    ] = "samples"
    output: str | None = None
    """Where to write; default: run.yaml here, or run-2.yaml if there is one; - for the screen
    alone.
    """


def main(args: list[str]) -> int:
    """Run the command."""
    base = PlanCommand()
    table = arguments.options_of(PlanCommand, base)
    if help.wanted(args):
        own = {f.name for f in dataclasses.fields(PlanCommand)} - {
            f.name for f in dataclasses.fields(RunConfig)
        }
        # The defaults of the others are no default here: they are what is planned.
        shown = [o if o.path[0] in own else dataclasses.replace(o, default=None) for o in table]
        options.show_help(PlanCommand, shown, args, "ddpm plan", DESCRIPTION)
    given = arguments.read(table, args, "ddpm plan")
    if ("data",) not in given:
        raise missing_data(args, "ddpm plan", "shapes")
    refuse_several_processes()
    data = given[("data",)]
    path = output_path(given.get(("output",)))
    hours, purpose = given.get(("hours",), base.hours), given.get(("purpose",), base.purpose)
    text = str(make_plan(data, hours, purpose, given_settings(given, PlanCommand)))
    print(text, end="")
    if path is not None:
        save(path, text)
        sys.stdout.flush()
        print(f"\nwritten: {path}\ntrain:   ddpm train {shlex.quote(str(path))}", file=sys.stderr)
    return 0


def make_plan(
    data: str, hours: float, purpose: str, given: dict[str, Any], began: float | None = None
) -> Any:
    """Plan, saying what is done on standard error; see `training.planning`."""
    from ddpm_lib.data.missing_paths import look_for
    from ddpm_lib.training.planning.planner import planned

    note = look_for(data)
    if note:
        print(note, file=sys.stderr)

    def say(line: str) -> None:
        print(f"plan: {line}", file=sys.stderr, flush=True)

    return planned(data, hours, purpose, given, say, began)


def plan_to_train(given: Given, file: dict[str, Any], cls: type, began: float) -> dict[str, Any]:
    """Return what `ddpm train DATA --hours 2` trains with: the settings of the run that is there
    already, else of a plan; those of the config file where no hours are given.

    Args:
        given: Options by their path.
        file: What the config file says.
        cls: The command.
        began: When the command began, by `time.monotonic()`: the hours are those of the command.

    Raises:
        ConfigError: For a purpose without hours.
    """
    asked = {**arguments.flatten(file), **given}
    hours, purpose = asked.get(("hours",)), asked.get(("purpose",))
    if hours is None:
        if purpose is not None:
            raise ConfigError(
                f"--for {purpose} is what a plan is for: say how many hours there are, as --hours"
                " 2."
            )
        return file
    refuse_several_processes()
    data = str(asked.get(("data",), "shapes"))
    run = Path(asked.get(("output_dir",)) or f"runs/{default_name(data)}")
    config = run / "config.yaml"
    if is_run(run) and config.is_file():
        print(f"plan: {run} is there: going on as {config} says", file=sys.stderr, flush=True)
        kept, _ = in_its_run(config, options.read_config(str(config)))
        return {**kept, "max_hours": hours}
    rest = {
        path: value for path, value in asked.items() if path not in ((("hours",), ("purpose",)))
    }
    plan = make_plan(data, hours, purpose or "samples", given_settings(rest, cls), began)
    for line in expectations(plan):
        print(f"plan: {line}", file=sys.stderr)
    for one in plan.decisions:
        print(f"plan: {one.name} {_shown(one.value)}: {one.comment}", file=sys.stderr)
    return {**plan.settings, "data": data}


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


def refuse_several_processes() -> None:
    """Refuse to plan in each of several processes.

    Raises:
        ConfigError: Saying to plan first.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "A plan is made by one process. Plan first, without a launcher: ddpm plan DATA --hours"
            " 2; then let it start `ddpm train run.yaml`."
        )


def output_path(asked: str | None) -> Path | None:
    """Return where to write, None for the screen alone.

    Raises:
        ConfigError: If what was asked for is there already.
    """
    if asked == "-":
        return None
    if asked is None:
        path, number = Path(NAME), 1
        while os.path.lexists(path):
            number += 1
            path = Path(f"{Path(NAME).stem}-{number}.yaml")
        return path
    path = Path(asked)
    if path.is_dir():
        path = path / NAME
    if os.path.lexists(path):
        other = fresh(path.with_suffix("")).with_suffix(path.suffix)
        raise ConfigError(
            f"{path} is there already, and is not overwritten. Choose another name, such as"
            f" --output {shlex.quote(str(other))}, or move it away."
        )
    return path


def save(path: Path, text: str) -> None:
    """Write a plan.

    Raises:
        OSError: If the disk refuses.
    """
    from ddpm_lib.core.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
