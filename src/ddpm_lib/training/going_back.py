"""`resume` by name: back to an older checkpoint, once; what came after it is set aside, never
deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint, Verify, check_resumable, list_checkpoints
from ddpm_lib.runs.names import checkpoint_name, step_of
from ddpm_lib.runs.snapshots import snapshot_paths
from ddpm_lib.training.option_values import wanted_kind

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
    step = step_of(path)
    if len(path.parts) > 1 and os.path.realpath(path.parent) != os.path.realpath(
        run / "checkpoints"
    ):
        raise ConfigError(
            f"{option('resume', resume)} is no checkpoint of the run directory {run}. Name its own"
            " run as"
            f" the output_dir (--output-dir {path.parent.parent}) to go back to it there."
        )
    return step


def back_to(
    run: Path,
    step: int,
    verify: Verify,
    say: Callable[[str], None],
) -> VerifiedCheckpoint | None:
    """Return the checkpoint to go back to, or None where the run went back there before and has
    come further since.

    The second case is that of the same command, started again after an interruption.

    Args:
        run: The run directory.
        step: The step to go back to.
        verify: Verifies a checkpoint.
        say: Gets the line about the second case.

    Raises:
        ConfigError: If there is no such checkpoint, naming those that there are.
        CheckpointError: If it is damaged.
    """
    folder = run / "checkpoints"
    there = list_checkpoints(folder)
    for path in reversed([p for p in there if step_of(p) > step]):
        try:
            said = str(verify(path).state.training.get("resume", "auto"))
            again = wanted_step(said, run.absolute()) == step
        except (CheckpointError, ConfigError, OSError, AttributeError):
            continue
        if again:
            say(
                f"Going back to step {step:,} was done before, and {path.name} comes after it:"
                " training goes on from there. To go back once more, move what is newer than"
                f" {checkpoint_name(step)} out of {folder}."
            )
            return None
    wanted = folder / checkpoint_name(step)
    if wanted not in there:
        names = ", ".join(str(step_of(p)) for p in there)
        raise ConfigError(f"{run} has no checkpoint of step {step}. There are: {names or 'none'}.")
    try:
        checkpoint = verify(wanted)
    except OSError as error:
        raise CheckpointError(f"{wanted} cannot be read ({error}).") from error
    check_resumable(checkpoint)
    return checkpoint


def set_aside(run: Path, step: int) -> str | None:
    """Move the checkpoints and snapshots after a step out of the way.

    Returns:
        What was moved where, or None if there was nothing.
    """
    newer = [p for p in list_checkpoints(run / "checkpoints") if step_of(p) > step]
    snapshots = [path for snapshot_step, path in snapshot_paths(run) if snapshot_step > step]
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
