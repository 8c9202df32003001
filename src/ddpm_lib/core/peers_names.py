"""What other libraries call an option or a value, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ddpm_lib.core.peers import (
    command_words,
    data_words,
    network_words,
    process_words,
    sampling_words,
    training_words,
)
from ddpm_lib.core.peers.elsewhere import HOME, INSTEAD, NOWHERE
from ddpm_lib.core.peers.value_words import VALUES

_ROOMS = {
    "training": training_words,
    "data": data_words,
    "commands": command_words,
    "sampling": sampling_words,
    "network": network_words,
    "process": process_words,
}
"""In this order a word of several meanings is understood, where it fits."""


def _key(word: str) -> str:
    return re.sub(r"[-_ ]+", "_", word.strip().lstrip("-")).lower()


def _ungrouped(word: str) -> str:
    return re.sub(r"^(model|diffusion|sample)\.", "", _key(word))


_OPTIONS_AT_LEAST = 2
"""So many of the names must be options of ours for a word to be one of an option."""
_SAME = {name: words for room in _ROOMS.values() for name, words in room.SAME.items()}
_NOTES = {word: text for room in _ROOMS.values() for word, text in room.NOTES.items()}
_OURS: dict[str, list[str]] = {}
for _table in (_SAME, VALUES):
    for _name, _words in _table.items():
        for _word in _words.split():
            _OURS.setdefault(_key(_word), []).append(_name)
_INSTEAD = {word: text for words, text in INSTEAD.items() for word in words} | {
    word: f"no counterpart: {text}" for words, text in NOWHERE.items() for word in words
}
_HOME_OF = {
    name: room for room in HOME for name in (*_ROOMS[room].SAME, *_ROOMS[room].MORE) if name
}


def same_name(word: str, options: Iterable[str]) -> str | None:
    """Return the one of `options` that another library calls `word`, in the spelling it has there;
    None for none.

    Flags and keywords, with dashes or underscores, in groups ("model.dim") or not, all count as the
    same name.

    >>> same_name("lr", ["lr_schedule", "learning_rate"])
    'learning_rate'
    >>> same_name("--channel-mult", ["--model.dim-mults"])
    '--model.dim-mults'
    """
    spelled: dict[str, str] = {}
    for option in options:
        spelled.setdefault(_key(option), option)
    for option in list(spelled.values()):  # options of a group give way to those of none
        spelled.setdefault(_ungrouped(option), option)
    key = _key(word)
    if key not in spelled:
        key = _ungrouped(word)
    if key in spelled:
        return spelled[key]
    return next((spelled[ours] for ours in _OURS.get(key, ()) if ours in spelled), None)


def note(word: str, options: Iterable[str]) -> str | None:
    """Return what must be said beside the name: how the value differs, or what to do where there is
    no such option.

    >>> note("epochs", ["max_steps", "batch_size"])
    'the length of a run is counted in optimizer steps, max_steps: epochs × images / batch_size'
    """
    names, key = list(options), _ungrouped(word)
    flags = any(name.startswith("--") for name in names)
    text = _NOTES.get(key) if same_name(word, names) else _INSTEAD.get(key)
    if text is None and same_name(word, names) is None:
        return _home(key, names, flags)
    if text is None:
        return None
    return re.sub(r"\{(\w+)\}", lambda m: f"--{m[1].replace('_', '-')}" if flags else m[1], text)


def _home(key: str, names: list[str], flags: bool) -> str | None:
    """Say where an option is given that is none here; None where the names are not those of
    options, or nothing is called so.
    """
    if len({_ungrouped(name) for name in names} & _HOME_OF.keys()) < _OPTIONS_AT_LEAST:
        return None
    ours = next((name for name in (key, *_OURS.get(key, ())) if name in _HOME_OF), None)
    if ours is None:
        return None
    python, flag = HOME[_HOME_OF[ours]]
    written = flag if flags else python
    return f"it is given elsewhere: {written.format(python=ours, flag=ours.replace('_', '-'))}"


def is_setting(word: str) -> bool:
    """Say whether a word names a setting of a network, a process or a training.

    >>> is_setting("--model.dim"), is_setting("--dry-run")
    (True, False)
    """
    return _ungrouped(word) in _HOME_OF


def hint(word: str, options: Iterable[str]) -> str | None:
    """Word what another library's name for an option means here, None for a word that no other
    library uses.

    >>> hint("lr", ["learning_rate", "lr_schedule"])
    "did you mean 'learning_rate'?"
    """
    names = list(options)
    ours, beside = same_name(word, names), note(word, names)
    if ours is None:
        return beside
    return f"did you mean {ours!r}?" + (f" ({beside})" if beside else "")
