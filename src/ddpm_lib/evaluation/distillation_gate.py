"""Whether a student that draws in few steps is as good as its teacher: both measured alike, and a
worse one called worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ERRORS = 2.0
"""Two scores differ where they are so many standard errors of their difference apart."""
DISTANCE, PRECISION, RECALL, COPIES = "distance", "precision", "recall", "copies"
JUDGED = {DISTANCE: 1, PRECISION: -1, RECALL: -1, COPIES: 1}
"""What is judged, and whether more of it is worse (1) or better (−1)."""


@dataclass(frozen=True)
class Measured:
    """A score.

    Attributes:
        value: It.
        error: Its standard error, 0 where none is known.
        name: The full name of the metric.
    """

    value: float
    error: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Drawer:
    """A network with a way to sample, and what its samples scored.

    Attributes:
        who: "teacher" or "student".
        sampler: Its sampler.
        steps: Its steps.
        scores: By the names in `JUDGED`.
        per_second: Images drawn per second, on one process.
    """

    who: str
    sampler: str
    steps: int
    scores: Mapping[str, Measured]
    per_second: float


@dataclass(frozen=True)
class Judged:
    """A student's steps beside its teacher.

    Attributes:
        steps: Of the student.
        worse: The scores in which it is worse.
        better: The scores in which it is better.
        speed: How many times as many images it draws per second.
    """

    steps: int
    worse: tuple[str, ...]
    better: tuple[str, ...]
    speed: float

    @property
    def word(self) -> str:
        """Say it in a word or two: "worse in recall", "better", "no worse"."""
        if self.worse:
            return f"WORSE in {' and '.join(self.worse)}"
        return f"better in {' and '.join(self.better)}" if self.better else "no worse"


def judge_student(teacher: Drawer, student: Drawer) -> Judged:
    """Compare what is known of both: a score is worse where it is `ERRORS` standard errors of the
    difference away on the wrong side.

    >>> one = Drawer("teacher", "ddim", 50, {"distance": Measured(1.0, 0.1)}, 2.0)
    >>> two = Drawer("student", "consistency", 2, {"distance": Measured(1.4, 0.1)}, 40.0)
    >>> judge_student(one, two).word
    'WORSE in distance'
    """
    behind = _behind(teacher, student)
    worse = tuple(name for name, errors in behind.items() if errors > ERRORS)
    better = tuple(name for name, errors in behind.items() if errors < -ERRORS)
    speed = student.per_second / teacher.per_second if teacher.per_second else math.nan
    return Judged(student.steps, worse, better, speed)


def _behind(teacher: Drawer, student: Drawer) -> dict[str, float]:
    """Return by how many standard errors of the difference a student is worse, by score."""
    found = {}
    for name, sign in JUDGED.items():
        if name in teacher.scores and name in student.scores:
            one, other = teacher.scores[name], student.scores[name]
            apart, error = sign * (other.value - one.value), math.hypot(one.error, other.error)
            found[name] = (
                apart / error if error else math.copysign(math.inf, apart) if apart else 0.0
            )
    return found


@dataclass(frozen=True)
class Gate:
    """A teacher and its student at several numbers of steps.

    Attributes:
        teacher: The teacher.
        students: The student, fewest steps first.
        samples: Number of samples of each.
        device: Where they were drawn.
        notes: What a reader must know.
    """

    teacher: Drawer
    students: tuple[Drawer, ...]
    samples: int
    device: str
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[Judged, ...]:
        """What is to say of each number of steps."""
        return tuple(judge_student(self.teacher, one) for one in self.students)

    @property
    def chosen(self) -> int:
        """The fewest steps with which the student is no worse; if it is worse with all, those whose
        worst score is the fewest standard errors from the teacher's.
        """
        good = [one.steps for one in self.verdicts if not one.worse]
        if good:
            return good[0]
        return min(self.students, key=lambda one: max(_behind(self.teacher, one).values())).steps

    @property
    def is_passed(self) -> bool:
        """Whether some number of steps is no worse than the teacher."""
        return any(not one.worse for one in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        judged = [{**asdict(one), "word": one.word} for one in self.verdicts]
        return {
            "teacher": _plain(self.teacher),
            "students": [_plain(one) for one in self.students],
            "verdicts": judged,
            "chosen": self.chosen,
            "passed": self.is_passed,
            "samples": self.samples,
            "device": self.device,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Gate:
        """Read what `to_json` returned.

        Raises:
            KeyError: If something is missing.
            TypeError: If something is not what it should be.
        """
        students = tuple(_drawer(one) for one in values["students"])
        teacher = _drawer(values["teacher"])
        notes = tuple(map(str, values["notes"]))
        return cls(teacher, students, int(values["samples"]), str(values["device"]), notes)

    def lines(self) -> list[str]:
        """Word it as a table, a line for each drawer, and a conclusion."""
        everyone = (self.teacher, *self.students)
        columns = list(dict.fromkeys(name for one in everyone for name in one.scores))
        head = ["", "steps", *columns, "images/s", ""]
        rows = [[*_cells(self.teacher, columns), ""]]
        for one, judged in zip(self.students, self.verdicts):
            cells = _cells(one, columns)
            cells[-1] += f" ({judged.speed:.3g}×)"
            rows.append([*cells, judged.word])
        table = [head, *rows]
        widths = [max(len(row[k]) for row in table) for k in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if k in (0, len(head) - 1) else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in table
        ]
        return [*lines, self.conclusion(), *self.notes]

    def conclusion(self) -> str:
        """Say in a sentence whether the student is good enough."""
        word = "step" if self.chosen == 1 else "steps"
        names = ", ".join(name for name in JUDGED if name in self.teacher.scores)
        among = f"{names}; {ERRORS:g} standard errors of {self.samples:,} samples each"
        if self.is_passed:
            judged = next(one for one in self.verdicts if one.steps == self.chosen)
            return (
                f"With {self.chosen} {word} the student is {judged.word} than its teacher with"
                f" {self.teacher.steps} ({among}), and {judged.speed:.3g} times as fast."
            )
        return (
            f"The student is WORSE than its teacher with {self.teacher.steps} steps at every number"
            f" of steps ({among}); with {self.chosen} {word} it is nearest. Tune for longer, or"
            " keep the teacher."
        )


def _plain(one: Drawer) -> dict[str, Any]:
    return asdict(one)


def _drawer(values: Mapping[str, Any]) -> Drawer:
    scores = {
        str(name): Measured(float(s["value"]), float(s["error"]), str(s["name"]))
        for name, s in values["scores"].items()
    }
    who, sampler = str(values["who"]), str(values["sampler"])
    return Drawer(who, sampler, int(values["steps"]), scores, float(values["per_second"]))


def _cells(one: Drawer, columns: Sequence[str]) -> list[str]:
    scores = [_figure(one.scores[name]) if name in one.scores else "" for name in columns]
    return [f"{one.who} ({one.sampler})", str(one.steps), *scores, f"{one.per_second:.3g}"]


def _figure(score: Measured) -> str:
    """Write a score with its error.

    >>> _figure(Measured(0.01234, 0.00051))
    '0.0123 ± 0.0005'
    """
    digits = 4 if abs(score.value) < 1 else 2
    if 0 < score.error < 1e-4:
        digits = 6
    error = f" ± {score.error:.{digits}f}" if score.error else ""
    return f"{score.value:.{digits}f}{error}"


def distinct_steps(steps: Sequence[int]) -> tuple[int, ...]:
    """Return numbers of steps in increasing order, each once.

    Raises:
        ValueError: If there is none, or one below 1.
    """
    found = tuple(sorted(set(steps)))
    if not found or found[0] < 1 or any(isinstance(n, bool) for n in steps):
        raise ValueError(
            "steps must be whole numbers from 1, such as (1, 2, 4) (--steps 1,2,4); got"
            f" {list(steps)}."
        )
    return found
