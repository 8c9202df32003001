"""Make the standard streams take every text: whatever their encoding, and where there are none."""

from __future__ import annotations

import codecs
import os
import sys

_PLAIN = {
    "²": "2",
    "³": "3",
    "×": "x",
    "…": "...",
    "±": "+-",
    "→": "->",
    "–": "-",
    "—": "-",
    "−": "-",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "é": "e",
    "·": "*",
    "≤": "<=",
    "≥": ">=",
    "‖": "||",
    "√": "sqrt",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "ε": "eps",
    "λ": "lambda",
    "η": "eta",
    "σ": "sigma",
    "τ": "tau",
    "ᾱ": "alpha_bar",
    "█": "#",
    "░": ".",
    "▏": "|",
    "│": "|",
    "━": "-",
    "✓": "ok",
    "√̄": "sqrt",
    "ö": "oe",
    "ä": "ae",
    "ü": "ue",
    "\xa0": " ",
    "○": "o",
    "●": "*",
}
_NAME = "ddpm_lib.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_plain_letter(letter) for letter in missing), error.end


def _plain_letter(letter: str) -> str:
    return _PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode("ascii")


def prepare_streams() -> None:
    """Write what an encoding lacks in other letters, and write into nothing where a stream is
    closed.

    A closed standard stream is opened on the null device first of all, so that no file of ours gets
    its number.
    """
    codecs.register_error(_NAME, _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_NAME)


def reader_left() -> None:
    """Write into nothing from now on: the reader of a pipe (`| head`) has seen enough, and Python
    must not complain.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
