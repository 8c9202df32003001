"""How many steps there is time for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs.cadences import Cadences
from ddpm_lib.training.planning.plan_rules import round_steps

if TYPE_CHECKING:
    from ddpm_lib.training.estimate import Estimate

RESERVE = 0.8
"""The share of the hours that is planned for: a machine is not always as fast as in a few steps,
and the run has to end in time.
"""
FEWEST = 10
"""Steps of a run at least, however little time there is."""
STARTING = 30.0
"""Seconds until the first step: libraries, data, network."""
WRITING = 0.02
"""What the page and the checkpoints add, as a share of the steps' time."""


@dataclass(frozen=True)
class TimeBudget:
    """The time of a run, and what has to fit into it.

    Attributes:
        hours: How long the run may take.
        images: All images, those to be held out included.
        batch_size: Images per step.
        options: Options of training that say how often is validated and drawn.
    """

    hours: float
    images: int
    batch_size: int
    options: Mapping[str, Any]

    def steps(self, cost: Estimate) -> int:
        """Return the steps that there is time for.

        Raises:
            ConfigError: If the network does not fit in memory.
        """
        whole = 3600 * self.hours * RESERVE
        rest = max(0.25 * whole, whole - final_score(whole) - STARTING)
        steps = round_steps(rest / self.seconds(10**6, cost))
        while steps > FEWEST and steps * self.seconds(steps, cost) > rest:
            steps = max(FEWEST, round_steps(0.95 * steps))
        return steps

    def seconds(self, steps: int, cost: Estimate) -> float:
        """Return the seconds of a step, with its share of validations and grids.

        Args:
            steps: Of the run, which says how often it validates.
            cost: Of its network.

        Raises:
            ConfigError: If the network does not fit in memory.
        """
        if cost.seconds_per_step is None:
            raise ConfigError(
                "The network does not fit in the memory of this device. Ask for less at a time:"
                f" {option('batch_size')}, {option('image_size')}."
            )
        return cost.seconds_per_step * (1 + self.overhead(steps))

    def whole(self, steps: int, cost: Estimate) -> float:
        """Return the seconds that a run of so many steps is expected to take in all."""
        training = steps * self.seconds(steps, cost)
        return STARTING + training + final_score(training)

    def overhead(self, steps: int) -> float:
        """Return what validations, grids, page and checkpoints add to the time of a step, as a
        share of it: a forward pass is a third of a step's work on an image.

        Args:
            steps: Of the run.
        """
        cadences, forward = Cadences.of({**self.options, "max_steps": steps}), 0.0
        if cadences.val_every:
            held = min(512, self.images // 20 + 1)
            forward += (2 * held + min(held, 128)) / cadences.val_every
        if cadences.sample_every:
            guided = 2 if self.options.get("sample_guidance_scale", 1.0) != 1.0 else 1
            drawn = self.options.get("sample_count", 16) * self.options.get("sample_steps", 20)
            forward += guided * drawn / cadences.sample_every
        return WRITING + forward / 3 / self.batch_size


def final_score(seconds: float) -> float:
    """Return the seconds that the score after a training of so many takes."""
    return min(60.0, 0.05 * seconds)
