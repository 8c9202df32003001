"""What to do next: commands that are valid where the user stands, or calls in Python where no
command can train such a run, from the verdict and the state of the run, with their minutes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ddpm_lib.core.paths import fresh
from ddpm_lib.runs.cadences import cooldown_start, soonest_end
from ddpm_lib.runs.names import checkpoint_name, step_in
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.run_status import number
from ddpm_lib.runs.verdict.changes import Changes
from ddpm_lib.runs.verdict.findings import GOES_WELL, Verdict

LONGER = 2
"""How many times as long "train longer" trains."""

SCORABLE = 10
"""Training images from which on an evaluation has something to say."""

_WITH_COMMANDS = ("ddpm_lib", "diffusers")
"""Packages whose networks a command can build by their names."""

SPEEDS = 20
"""Logged speeds that the time of a proposal is taken from: the newest ones."""


@dataclass(frozen=True)
class Proposal:
    """Something to do next.

    Attributes:
        why: What it is good for, in a few words.
        command: What to type where the run directory was named as it was; in Python, the call to
            make in the program that trained the run.
        minutes: How long it takes at the speed of the run; None where that is not known.
        python: Whether it is a call in Python, in which `...` stands for the arguments that the
            program gives already (`ELLIPSIS`).
    """

    why: str
    command: str
    minutes: float | None = None
    python: bool = False


ELLIPSIS = "In Python, ... stands for the arguments that your program gives already."
"""What is said below proposals that are calls in Python."""


@dataclass(frozen=True)
class _Stand:
    """Where the user stands."""

    records: RunRecords
    verdict: Verdict
    proposed: dict[tuple[str, ...], Path] = field(default_factory=dict)
    """New run directories by the settings that they are for: two proposals share none."""

    @property
    def run(self) -> Path:
        return self.records.run

    @property
    def step(self) -> int:
        return self.records.status.step or 0

    @property
    def max_steps(self) -> int:
        known = self.records.status.max_steps or number(self.records.option("max_steps"))
        return int(known or self.step)

    @property
    def checkpoints(self) -> list[int]:
        try:
            names = [path.name for path in (self.run / "checkpoints").iterdir()]
        except OSError:
            return []
        return sorted(step for step in map(step_in, names) if step is not None)

    @property
    def trains_by_command(self) -> bool:
        """Whether `ddpm train --config` can train such a run: named data, the command's network."""
        data = self.records.about.get("data") or {}
        return bool(data.get("named")) and self.has_unet

    @property
    def trains_in_python(self) -> bool:
        """Whether a Trainer of a user's program trained the run, and no command can."""
        return bool(self.records.about.get("data")) and not self.trains_by_command

    @property
    def trains(self) -> bool:
        """Whether it is known how to train such a run: by the command or in Python."""
        return self.trains_by_command or self.trains_in_python

    @property
    def has_unet(self) -> bool:
        """Whether the network takes the arguments of a `Unet`."""
        model = self.records.config.get("model")
        return isinstance(model, dict) and "dim" in model

    @property
    def network(self) -> str:
        """Class of the network."""
        return str((self.records.about.get("network") or {}).get("class") or "Unet")

    @property
    def loads_by_command(self) -> bool:
        """Whether a command can build the network again: it is one of the library's own."""
        known = self.records.about.get("network")
        if not isinstance(known, dict):
            return "model" not in self.records.config or bool(self.records.config["model"])
        return str(known.get("module")).split(".")[0] in _WITH_COMMANDS

    def model(self, name: str, default: Any) -> Any:
        """Return an argument of the network."""
        value = (self.records.config.get("model") or {}).get(name)
        return default if value is None else value

    def minutes(self, steps: float) -> float | None:
        """Return how long so many steps take at the run's speed; None if it is not known."""
        rows = self.records.rows
        speeds = [v for row in rows if (v := number(row.get("images_per_second")))]
        last = next((row for row in reversed(rows) if row.get("images") and row["step"]), None)
        images = None if last is None else number(last["images"])
        if not speeds or last is None or not images:
            return None
        return steps * (images / last["step"]) / median(speeds[-SPEEDS:]) / 60

    @property
    def _cooldown(self) -> tuple[float, int] | None:
        """The share of wsd's cool-down and the steps of its warm-up; None under other schedules."""
        option = self.records.option
        fraction, warmup = number(option("cooldown_fraction")), number(option("warmup_steps"))
        if option("lr_schedule") != "wsd" or fraction is None or warmup is None:
            return None
        return fraction, int(warmup)

    @property
    def before_cooldown(self) -> int | None:
        """The checkpoint from which a finished run that was cooled down is extended."""
        start = cooldown_start(self.max_steps, *self._cooldown) if self._cooldown else None
        return start if start in self.checkpoints and start < self.step else None

    @property
    def soonest_end(self) -> int | None:
        """The steps in all after a cool-down from here; None where ending here leaves none out."""
        last = soonest_end(self.step, *self._cooldown) if self._cooldown else None
        return last if last is not None and last < self.max_steps else None

    def go_on(self, why: str, steps: int) -> Proposal:
        """Train this run on, up to a step; beyond its end, from before its rate was cooled down."""
        start = self.before_cooldown if steps > self.max_steps <= self.step else None
        minutes = self.minutes(steps - (self.step if start is None else start))
        told: dict[str, Any] = {} if start is None else {"resume": str(start)}
        told["max_steps"] = steps
        if self.records.status.stopped_by:
            told["stop_when"] = ()
        changes = Changes(told)
        if not self.trains_by_command:
            return Proposal(why, changes.call(self.network), minutes, python=True)
        return Proposal(why, f"ddpm train --config {self._config} {changes.flags()}", minutes)

    def anew(
        self,
        why: str,
        *,
        steps: int | None = None,
        model: dict[str, Any] | None = None,
        diffusion: dict[str, Any] | None = None,
        **training: Any,
    ) -> list[Proposal]:
        """Train another run with other settings; nothing where they are those of a network that has
        no such arguments.
        """
        model = model or {}
        if model and not self.has_unet:
            if steps is None:
                return []
            model = {}
        last = {} if steps is None else {"max_steps": steps}
        key = (repr(model), repr(diffusion), repr({**training, **last}))
        if key not in self.proposed:
            self.proposed[key] = fresh([self.run, *self.proposed.values()][-1])
        other, minutes = str(self.proposed[key]), self.minutes(steps or self.max_steps)
        if self.trains_by_command:
            flags = Changes({**training, **last}, model, diffusion or {}).flags()
            head = f"ddpm train --config {self._config} --output-dir {shlex.quote(other)}"
            return [Proposal(why, f"{head} {flags}", minutes)]
        if training.pop("class_conditional", False):
            counts = (self.records.about.get("data") or {}).get("class_counts") or ()
            model = {**model, "num_classes": len(counts)}
        changes = Changes({**training, **last, "output_dir": other}, model, diffusion or {})
        return [Proposal(why, changes.call(self.network), minutes, python=True)]

    @property
    def _config(self) -> str:
        return shlex.quote(str(self.run / "config.yaml"))

    def on_run(self, why: str, command: str, *flags: str) -> Proposal:
        """Do something with what is trained."""
        return Proposal(why, " ".join([f"ddpm {command}", shlex.quote(str(self.run)), *flags]))


def next_steps(records: RunRecords, verdict: Verdict) -> tuple[Proposal, ...]:
    """Return what to do next, the best first.

    Args:
        records: Of the run.
        verdict: What `judge` returned for them.
    """
    s = _Stand(records, verdict)
    if records.status.word == "running":
        left = s.minutes(s.max_steps - s.step)
        return (Proposal("see how it goes on", f"ddpm watch {shlex.quote(str(s.run))}", left),)
    kinds = [verdict.kind, *(found.kind for found in verdict.also)]
    ways = [one for kind in kinds for one in CURES.get(kind, _nothing)(s)]
    if s.trains and s.step < s.max_steps:
        stopped_by, soon = records.status.stopped_by, s.soonest_end
        cooled = [s.go_on("end by a cool-down", soon)] if soon and verdict.kind in GOES_WELL else []
        if stopped_by:
            ways = [*(cooled if stopped_by == "flat" else ()), *ways]
            ways.append(s.go_on("go on all the same", s.max_steps))
        elif verdict.kind in RESUMABLE:
            ways = [s.go_on("go on to the end", s.max_steps), *cooled, *ways]
    ways += _look(s)
    return tuple({one.command: one for one in reversed(ways)}.values())[::-1]


RESUMABLE = GOES_WELL | {"noise", "too_little"}
"""Verdicts with which a run that was stopped is worth going on with."""


def _look(s: _Stand) -> list[Proposal]:
    """Return the ways to look at what a run can do."""
    if not s.checkpoints:
        return []
    if not s.loads_by_command:
        why = "more samples; of a network of your own, in Python"
        return [Proposal(why, "Trainer(...).sample(64, seed=1)", python=True)]
    ways = []
    if not s.model("low_res_factor", None):
        ways.append(s.on_run("more samples", "sample", "--num 64 --seed 1"))
    data = s.records.about.get("data") or {}
    if (number(data.get("images")) or 0) >= SCORABLE:
        if data.get("named"):
            ways.append(s.on_run("score it", "evaluate"))
        else:  # data of the user's program, which no command can open
            ways.append(Proposal("score it", f"evaluate({str(s.run)!r}, data)", python=True))
    return ways


def _training(cure: Callable[[_Stand], list[Proposal]]) -> Callable[[_Stand], list[Proposal]]:
    """Make a cure empty where it is not known how to train such a run."""
    return lambda s: cure(s) if s.trains else []


def _nothing(s: _Stand) -> list[Proposal]:
    return []


def _longer(s: _Stand) -> list[Proposal]:
    if s.step < s.max_steps:
        return []
    return [s.go_on("train longer", s.max_steps * LONGER)]


def _noise(s: _Stand) -> list[Proposal]:
    if s.verdict.has("flat"):
        return _unstable(s)
    if s.step < s.max_steps:
        return []
    return [s.go_on("train much longer", max(s.max_steps * 10, 1000))]


def _flat(s: _Stand) -> list[Proposal]:
    if s.verdict.kind != "flat":
        return []
    dim = int(s.model("dim", 64))
    return s.anew("a larger network learns more", model={"dim": 2 * dim})


def _overfitting(s: _Stand) -> list[Proposal]:
    found = _finding(s, "overfitting")
    since = s.step if found is None else found
    dropout = min(0.5, max(0.1, 2 * (number(s.model("dropout", 0)) or 0)))
    ways = _before(s, since)
    if s.trains:
        why = "against it: dropout, and an earlier end; more images help most"
        if not s.has_unet:
            why = "against it: an earlier end; more images help most"
        ways += s.anew(why, model={"dropout": dropout}, steps=max(1, since))
    return ways


def _before(s: _Stand, since: int) -> list[Proposal]:
    """Draw from the newest checkpoint that is not behind a step, where it is not the newest."""
    if not s.loads_by_command:
        return []
    earlier = [step for step in s.checkpoints if step <= since]
    if not earlier or earlier[-1] == s.checkpoints[-1]:
        return []
    flags = f"--checkpoint {checkpoint_name(earlier[-1])} --num 64"
    return [s.on_run("samples from before it", "sample", flags)]


def _copying(s: _Stand) -> list[Proposal]:
    found = _finding(s, "copying")
    ways = [] if found is None else _before(s, found - 1)
    if s.trains:
        dim = max(8, int(s.model("dim", 64)) // 2)
        end = max(1, (s.step if found is None else found) // 2)
        why = "a smaller network that stops earlier; more images help most"
        if not s.has_unet:
            why = "an earlier end; more images help most"
        ways += s.anew(why, model={"dim": dim, "dropout": 0.1}, steps=end)
    return ways


def _unstable(s: _Stand) -> list[Proposal]:
    rate = number(s.records.option("learning_rate")) or 1e-4
    return s.anew("a tenth of the learning rate", learning_rate=float(f"{rate / 10:.3g}"))


def _dead_average(s: _Stand) -> list[Proposal]:
    ways = []
    if s.checkpoints and s.loads_by_command:
        ways.append(s.on_run("the trained weights draw", "sample", "--weights model --num 64"))
    if s.trains:
        decay = 1 - 10.0 ** -max(1, min(4, math.floor(math.log10(max(10, s.max_steps) / 5))))
        ways += s.anew("a shorter average", ema_decay=decay, ema_power=0.75)
    return ways


def _collapsed(s: _Stand) -> list[Proposal]:
    ways = []
    decay = number(s.records.option("weight_decay")) or 0.0
    if s.trains:
        ways += s.anew("less weight decay", weight_decay=0.01) if decay > 0.1 else _unstable(s)
    if (
        s.checkpoints
        and s.loads_by_command
        and (number(s.records.option("sample_guidance_scale")) or 1.0) > 1
    ):
        ways.append(s.on_run("samples without guidance", "sample", "--guidance-scale 1 --num 64"))
    return ways


def _colour_cast(s: _Stand) -> list[Proposal]:
    ways = []
    steps = number((s.records.config.get("diffusion") or {}).get("timesteps"))
    if s.checkpoints and s.loads_by_command and steps:
        flags = f"--sampler ddpm --num-steps {int(steps)} --num 16"
        ways.append(s.on_run("whether more steps of sampling help", "sample", flags))
    if s.trains:
        process = {
            "schedule": "cosine",
            "schedule_options": {"zero_terminal_snr": True},
            "parametrization": "v",
            "weighting": "snr_plus_one",  # others give pure noise no weight
        }
        ways += s.anew("a schedule that ends in pure noise", diffusion=process)
    return ways


def _classes_unused(s: _Stand) -> list[Proposal]:
    return s.anew("learn the classes", class_conditional=True)


def _finding(s: _Stand, kind: str) -> int | None:
    """Return since when something holds."""
    if s.verdict.kind == kind:
        return s.verdict.since
    return next((found.since for found in s.verdict.also if found.kind == kind), None)


CURES: dict[str, Callable[[_Stand], Sequence[Proposal]]] = {
    "unstable": _training(_unstable),
    "copying": _copying,
    "dead_average": _dead_average,
    "collapsed": _collapsed,
    "colour_cast": _colour_cast,
    "overfitting": _overfitting,
    "noise": _training(_noise),
    "classes_unused": _training(_classes_unused),
    "too_little": _training(_longer),
    "learning": _training(_longer),
    "flat_rate": _training(_longer),
    "flat": _training(_flat),
}
"""What helps against what, or what comes next."""
