"""What each option means, written once, below its field: for flags, `help()` and notebooks."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from itertools import pairwise
from typing import Any


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the texts below the fields of a dataclass, in order; none where its source is not at
    hand.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def option_lines(cls: Any, indent: int) -> str:
    """Return an entry of a Google-style `Args:` section for each field of a dataclass, with its
    default.
    """
    docs = field_docs(cls)
    lines = []
    for field in dataclasses.fields(cls):
        text = f"{field.name}: {docs.get(field.name, '')} Default: {field.default!r}."
        lines.append(
            textwrap.fill(
                text,
                width=100,
                initial_indent=" " * indent,
                subsequent_indent=" " * (indent + 4),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


class OptionDocs:
    """The docstring of a class whose `**options:` entry is followed by all options of a dataclass;
    put together when somebody reads it, because that means to parse the source of the dataclass.

    Args:
        doc: The docstring, None where Python runs without them.
        options: The dataclass.
    """

    def __init__(self, doc: str | None, options: Any) -> None:
        self._doc, self._options = doc, options
        self._whole: str | None = None

    def __get__(self, instance: object, owner: type) -> str | None:
        """Return the docstring: `__doc__` of the class asks for it here."""
        if self._whole is None:
            self._whole = _with_options(self._doc, self._options)
        return self._whole


def _with_options(doc: str | None, cls: Any) -> str | None:
    if doc is None:
        return None
    lines = doc.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("**options:"))
    indent = len(lines[at]) - len(lines[at].lstrip())  # Python 3.13 takes the common one away
    return "\n".join([*lines[: at + 1], option_lines(cls, indent), *lines[at + 1 :]])


def show_options(cls: Any, options: Any) -> None:
    """Let `help()` and completion show the fields of a dataclass where a constructor takes them as
    `**options`.

    Args:
        cls: The class with the constructor.
        options: The dataclass.
    """
    known = inspect.signature(cls.__init__).parameters.values()
    own = [p for p in known if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in dataclasses.fields(options)
    ]
    cls.__init__.__signature__ = inspect.Signature([*own, *more])
    cls.__doc__ = OptionDocs(cls.__doc__, options)
