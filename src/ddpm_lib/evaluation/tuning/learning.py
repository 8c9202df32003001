"""The learned levels of each solver, as pieces of work that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ddpm_lib.evaluation.tuning.subject_of_tuning import Subject
from ddpm_lib.evaluation.tuning.tune_options import TuneOptions
from ddpm_lib.evaluation.tuning.units import Units
from ddpm_lib.process.learned_levels import LearnedLevels, fixed_levels, learn_levels, walk
from ddpm_lib.samplers import make_sampler

TEACHER = "dpmpp_2m"
"""The solver whose many steps say where few should end."""


@dataclass
class Learning:
    """Learns levels with the usual average, without guidance, once for each solver and number.

    Attributes:
        subject: What is tuned.
        options: How.
        units: Keeps what is learned.
        known: What was learned.
    """

    subject: Subject
    options: TuneOptions
    units: Units
    known: dict[tuple[str, int], LearnedLevels] = field(default_factory=dict)

    @cached_property
    def starts(self) -> Tensor:
        """The states that everything begins with."""
        return self.subject.starts(self.options.starts, self.options.seed)

    @cached_property
    def targets(self) -> Tensor:
        """Where many steps take them; a function of the options, so that it is not kept."""
        process = self.subject.process(self.subject.averages[0])
        schedule, calls = process.schedule, min(self.options.teacher_calls, process.timesteps)
        ladders = fixed_levels(schedule, calls)
        name = next((k for k in ladders if k.startswith("log_snr to σ̃ 80, between")), "trailing")
        levels = [schedule.level(t) for t in (*ladders[name], 0)]
        predict = self.subject.predictor(self.options.starts, self.options.seed)
        found = []
        with torch.no_grad():
            for first in range(0, len(self.starts), self.options.batch_size):
                rows = range(first, min(first + self.options.batch_size, len(self.starts)))
                x = self.starts[rows.start : rows.stop]
                sampler = make_sampler(TEACHER)
                found.append(walk(sampler, x, levels, predict(rows), schedule.level_at))
        return torch.cat(found)

    def levels(self, sampler: str, steps: int) -> LearnedLevels:
        """Return the levels of so many steps of a solver."""
        key = sampler, steps
        if key not in self.known:
            values = self.units.get(f"levels-{sampler}-{steps}", list(key), lambda: self._new(key))
            self.known[key] = LearnedLevels.from_json(values)
        return self.known[key]

    def _new(self, key: tuple[str, int]) -> dict[str, object]:
        sampler, steps = key
        process = self.subject.process(self.subject.averages[0])
        return learn_levels(
            make_sampler(sampler),
            process.schedule,
            self.subject.predictor(self.options.starts, self.options.seed),
            self.starts,
            self.targets,
            steps,
            iterations=self.options.iterations,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
        ).to_json()
