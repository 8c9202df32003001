"""Where one call of `train` ends: at the end of the run, or after so many steps more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.validation import check_type
from ddpm_lib.training.results import StopReason

if TYPE_CHECKING:
    from ddpm_lib.runtime.processes import Processes


def checked_steps(steps: Any) -> int | None:
    """Return how many steps a call of `train` is to do, None for all that are left.

    Raises:
        ConfigError: If it is no whole number of at least 1.
    """
    found: int | None = check_type("steps", steps, int | None)
    if found is not None and found < 1:
        raise ConfigError(
            f"steps must be at least 1; got {found}. It counts optimizer steps from where the run"
            " stands; without it, train() goes on to the end of the run."
        )
    return found


def last_step(steps: int | None, step: int, max_steps: int, ranks: Processes) -> int:
    """Return the step at which the call ends, the same on every rank; a collective.

    Args:
        steps: How many to do, None for all that are left.
        step: Where the run stands.
        max_steps: Where it ends.
        ranks: The processes of the run.

    Raises:
        ConfigError: On every rank, where they were asked for different numbers.
    """
    asked = ranks.all_objects(steps) if ranks.count > 1 else [steps]
    if len(set(asked)) > 1:
        raise ConfigError(
            "steps must be the same on all processes of the run; got"
            f" {', '.join(map(str, asked))} on processes 0 to {len(asked) - 1}."
        )
    return max_steps if steps is None else min(step + steps, max_steps)


def goal_reached(step: int, until: int, done: int, max_steps: int) -> StopReason | None:
    """Return why a call ends that came as far as it was to, None where it did not.

    Args:
        step: Where the run stands.
        until: Where the call was to end.
        done: Steps that the call has done.
        max_steps: Where the run ends.
    """
    if step >= max_steps:
        return StopReason(f"reached max_steps {max_steps}", complete=True)
    if step >= until:
        return StopReason(f"did the {done:,} steps asked for, of {max_steps:,}", complete=True)
    return None
