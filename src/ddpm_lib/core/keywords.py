"""Python's "unexpected keyword argument", answered with the name that is meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ddpm_lib.core.registry import unknown_name

F = TypeVar("F", bound=Callable[..., Any])

_FIRST = ("self", "cls")
"""What a method gets without being named."""


def answers_wrong_keywords(function: F) -> F:
    """Let a function name the right keyword where a wrong one is passed, other libraries' words for
    it included.

    Its signature, help and types stay as they are.

    >>> @answers_wrong_keywords
    ... def draw(n: int, *, num_steps: int = 50) -> int:
    ...     return num_steps
    >>> draw(1, num_inference_steps=20)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    TypeError: Unknown argument of draw 'num_inference_steps'. Did you mean 'num_steps'? ...
    """
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p.name for p in parameters if p.kind in named and p.name not in _FIRST]
    ordered = [p.name for p in parameters if p.kind in named[:1]]
    takes_more = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    where = function.__qualname__.removesuffix(".__init__").split(".")[-1]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                raise TypeError(unknown_name(f"argument of {where}", name, known))
        if len(args) > len(ordered) and not takes_more:
            first = [name for name in ordered if name not in _FIRST]
            next_one = f" Write {known[len(first)]}=…" if len(known) > len(first) else ""
            raise TypeError(
                f"{where} takes {', '.join(first) or 'nothing'} in order and all else by name; "
                f"got {len(args) - len(ordered)} more.{next_one}"
            )
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]
