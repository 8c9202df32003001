"""What was found out about a machine: one thing per value, worded where it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ddpm_lib.core.text import printable


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of what, in a word or two.
        state: "ok"; "note" where something works, but less, or not everywhere; "broken" where what
            the library needs does not work.
        says: What was found.
        remedy: What to do about it; "" where there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    says: str
    remedy: str = ""


def run_checks(checks: Iterable[tuple[str, Callable[[], Iterable[Check]]]]) -> Iterator[Check]:
    """Run checks one by one; one that fails itself is a broken thing of its name, and the others
    go on.

    Args:
        checks: The name of each, and a function that looks.
    """
    for name, look in checks:
        try:
            yield from look()
        except Exception as error:
            says = f"{type(error).__name__}: {printable(error)[:300]}"
            yield Check(name, "broken", says, "if the machine is sound, report this line")
