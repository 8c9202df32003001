"""Clean-up that neither stops half-way nor hides the error it follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def run_all(steps: Iterable[Callable[[], object]], first: BaseException | None) -> None:
    """Take every step of a clean-up, whatever the others do.

    Args:
        steps: To be called in this order.
        first: The error that is on its way already; those of the steps become notes of it.

    Raises:
        BaseException: The first error of a step, where there was none before.
    """
    error = first
    for step in steps:
        try:
            step()
        except BaseException as late:
            if error is None:
                error = late
            else:
                error.add_note(f"While cleaning up: {type(late).__name__}: {late}")
    if error is not None and first is None:
        raise error
