"""Functions of other modules as class methods, with their types."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

    P = ParamSpec("P")
    C = TypeVar("C")

    class class_function(Generic[P]):
        """`classmethod`, for a function whose result is of the class that it is called on."""

        def __init__(self, function: Callable[Concatenate[type[Any], P], Any], /) -> None: ...
        def __get__(self, instance: object, owner: type[C]) -> Callable[P, C]: ...

else:
    class_function = classmethod
