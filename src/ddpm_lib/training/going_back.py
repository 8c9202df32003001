"""`resume` by name: back to an older checkpoint, once; what came after it is set aside, never deleted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.state import check_resumable
from ddpm_lib.training.config import wanted_kind

if TYPE_CHECKING:
    from ddpm_lib.training.context import RunContext

FOLDER = "set-aside"


def wanted_step(resume: str, run: Path) -> int | None:
    """Return the step that `resume` names, None for "auto" and "never".

    Args:
        resume: "auto", "never", a step (1200), a checkpoint's name (step-000001200), or its path.
        run: The run directory, in which the checkpoint must lie.

    Raises:
        ConfigError: If it is a checkpoint of another run.
    """
    kind = wanted_kind(resume)
    if kind in ("auto", "never"):
        return None
    if kind == "step":
        return int(resume)
    path = Path(resume)
    step = files.step_of(path)
    if len(path.parts) > 1 and os.path.realpath(path.parent) != os.path.realpath(run / "checkpoints"):
        raise ConfigError(
            f"resume={resume!r} is no checkpoint of the run directory {run}. Name its own run as the output_dir "
            f"(--output-dir {path.parent.parent}) to go back to it there."
        )
    return step


def back_to(trainer: RunContext, step: int) -> Path | None:
    """Return the checkpoint to go back to, or None where the run went back there before and has come further since.

    The second case is that of the same command, started again after an interruption.

    Raises:
        ConfigError: If there is no such checkpoint, naming those that there are.
        CheckpointError: If it is damaged.
    """
    folder = trainer.output_dir / "checkpoints"
    there = files.list_checkpoints(folder)
    for path in reversed([p for p in there if files.step_of(p) > step]):
        try:
            files.verify(path)
            said = str(files.read_state(path).get("training", {}).get("resume", "auto"))
            again = wanted_step(said, trainer.output_dir.absolute()) == step
        except (files.CheckpointError, ConfigError, OSError, AttributeError):
            continue
        if again:
            trainer.say(
                f"Going back to step {step:,} was done before, and {path.name} comes after it: training goes on from there. "
                f"To go back once more, move what is newer than {files.checkpoint_name(step)} out of {folder}."
            )
            return None
    wanted = folder / files.checkpoint_name(step)
    if wanted not in there:
        names = ", ".join(str(files.step_of(p)) for p in there)
        raise ConfigError(f"{trainer.output_dir} has no checkpoint of step {step}. There are: {names or 'none'}.")
    try:
        files.verify(wanted)
    except OSError as error:
        raise files.CheckpointError(f"{wanted} cannot be read ({error}).") from error
    check_resumable(wanted)
    return wanted


def set_aside(run: Path, step: int) -> str | None:
    """Move the checkpoints and snapshots after a step out of the way.

    Returns:
        What was moved where, or None if there was nothing.
    """
    newer = [p for p in files.list_checkpoints(run / "checkpoints") if files.step_of(p) > step]
    snapshots = [p for p in (run / "posthoc").glob("step-*.safetensors") if files.step_of(p.with_suffix("")) > step]
    if not newer and not snapshots:
        return None
    number = 1
    while os.path.lexists(run / FOLDER / str(number)):
        number += 1
    place = run / FOLDER / str(number)
    for path in [*newer, *snapshots]:
        target = place / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    names = ", ".join(p.name for p in newer) or f"{len(snapshots)} snapshots"
    return f"Set aside in {place}: {names}."
