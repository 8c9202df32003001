"""Read the words of a command line into the fields of a dataclass.

The order of options and positional words makes no difference: an option takes as many words as its
type has room for, a list only those that fit its type. Where a word could be either, the command
says so instead of guessing.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import _confstruct, _markers

from ddpm_lib.cli.shell import folder_of_pictures
from ddpm_lib.cli.values import (
    FALSE,
    PAIR,
    TRUE,
    UsageError,
    choices_of,
    convert,
    fits,
    is_flag,
    is_list,
    is_plain,
    members,
    wanted,
)
from ddpm_lib.core import peers_names
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.text import short


@dataclass(frozen=True)
class Option:
    """A field of a command's dataclass, or of one of its groups.

    Attributes:
        path: Names that lead to it, such as ("model", "dim").
        annotation: Its type.
        default: Its value where nothing is said; `tyro.MISSING` for none.
        positional: Whether it has no flag.
        append: Whether it collects one value per occurrence.
        aliases: Further flags.
        help: What to say about it, where the annotation does.
    """

    path: tuple[str, ...]
    annotation: Any
    default: Any
    positional: bool = False
    append: bool = False
    aliases: tuple[str, ...] = ()
    help: str | None = None

    @property
    def flag(self) -> str:
        """The flag, as --model.dim."""
        return "--" + ".".join(self.path).replace("_", "-")

    @property
    def negation(self) -> str:
        """The flag that switches it off, as --model.no-scale-skips."""
        *groups, name = ".".join(self.path).replace("_", "-").split(".")
        return "--" + ".".join([*groups, f"no-{name}"])

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is tyro.MISSING

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self.path[-1].upper() if self.positional else self.flag


def options_of(cls: type, default: Any, prefix: tuple[str, ...] = ()) -> list[Option]:
    """List the options of a dataclass in the order of its fields, those of groups in their
    place.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    found: list[Option] = []
    for field in dataclasses.fields(cls):
        value, annotation = getattr(default, field.name), hints[field.name]
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found += options_of(type(value), value, path)
            continue
        extras: tuple[Any, ...] = ()
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *rest = typing.get_args(annotation)
            extras = tuple(rest)
        said = [e for e in extras if isinstance(e, _confstruct._ArgConfig)]
        found.append(
            Option(
                path,
                annotation,
                value,
                positional=_markers.Positional in extras,
                append=_markers.UseAppendAction in extras,
                aliases=tuple(alias for s in said for alias in s.aliases or ()),
                help=next((str(s.help) for s in said if s.help), None),
            )
        )
    return found


def read(options: Sequence[Option], args: Sequence[str], prog: str) -> dict[tuple[str, ...], Any]:
    """Return the values that the words give, by the path of the option.

    Args:
        options: What there is.
        args: The words after the command's name.
        prog: The command, as "ddpm train".

    Raises:
        UsageError: For what is unknown, missing, of the wrong type, or could mean two things.
    """
    reader = _Reader(options, list(args), prog)
    reader.read_all()
    reader.give_words_out()
    return reader.values


def flatten(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Turn nested mappings into values by their path."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in values.items():
        path = (*prefix, name)
        found |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def set_values(default: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return a dataclass instance with the values at the paths changed."""
    changes: dict[str, Any] = {path[0]: value for path, value in values.items() if len(path) == 1}
    for group in {path[0] for path in values if len(path) > 1}:
        inner = {path[1:]: value for path, value in values.items() if path[0] == group}
        changes[group] = set_values(getattr(default, group), inner)
    return dataclasses.replace(default, **changes)


class _Reader:
    """The state of reading one command line."""

    def __init__(self, options: Sequence[Option], args: list[str], prog: str) -> None:
        self.args, self.prog = args, prog
        self.positionals = [o for o in options if o.positional]
        self.flags: dict[str, tuple[Option, bool]] = {}
        for option in (o for o in options if not o.positional):
            for name in (option.flag, *option.aliases):
                self.flags[name] = (option, True)
            if bool in members(option.annotation):
                self.flags.setdefault(option.negation, (option, False))
        self.values: dict[tuple[str, ...], Any] = {}
        self.words: list[str] = []
        self.unknown: list[str] = []
        self.greedy: list[tuple[Option, list[str]]] = []

    def read_all(self) -> None:
        place = 0
        while place < len(self.args):
            word = self.args[place]
            place += 1
            if word == "--":
                self.words += self.args[place:]
                break
            if is_flag(word):
                place = self._read_flag(word, place)
            else:
                self.words.append(word)
        if self.unknown:
            told = [f"Unknown option {told}" for told in map(self._about_unknown, self.unknown)]
            raise UsageError("\n".join([*told, f"`{self.prog} --help` lists the options."]))

    def _read_flag(self, word: str, place: int) -> int:
        name, equals, text = word.partition("=")
        known = self._find(name)
        if known is None and not equals and re.fullmatch(r"-[a-zA-Z]\d+", word):  # -n16
            known, equals, text = self._find(word[:2]), "=", word[2:]
        if known is None:
            self.unknown.append(name)
            return place
        option, positive = known
        if not positive:
            if equals:
                raise UsageError(f"{name} takes no value; got {text!r}.")
            self._set(option, False)
            return place
        if equals:
            self._set(option, self._convert(option, [text]))
            return place
        taken = list(self._take(option, place))
        self._set(option, self._convert(option, taken) if taken or not _switch(option) else True)
        if len(taken) > 1:
            self.greedy.append((option, taken))
        return place + len(taken)

    def _find(self, name: str) -> tuple[Option, bool] | None:
        return self.flags.get(name) or self.flags.get(name.replace("_", "-"))

    def _set(self, option: Option, value: Any) -> None:
        if option.append:
            value = (*self.values.get(option.path, ()), *value)
        self.values[option.path] = value

    def _take(self, option: Option, place: int) -> Iterator[str]:
        """Yield the words that belong to an option."""
        following = []
        for word in self.args[place:]:
            if word == "--" or is_flag(word):
                break
            following.append(word)
        kinds = members(option.annotation)
        if bool in kinds:
            words = TRUE[:1] + FALSE[:1] + tuple(str(c) for k in kinds for c in typing.get_args(k))
            yield from (
                following[:1] if len(kinds) > 1 and following[:1] and following[0] in words else ()
            )
            return
        many = next((k for k in kinds if typing.get_origin(k) in (tuple, dict)), None)
        if following and following[0].lower() == "none" and type(None) in kinds:
            yield following[0]
        elif many is None or option.append:
            if not following:
                raise UsageError(f"{option.flag} needs a value: {wanted(option.annotation)}.")
            yield following[0]
        elif typing.get_origin(many) is dict:
            yield from _take_pairs(following)
        else:
            yield from _take_list(option, many, following)

    def _convert(self, option: Option, words: list[str]) -> Any:
        try:
            return convert([*map(at_home, words)], option.annotation, option.append)
        except ValueError as error:
            got = error.args[0] if error.args else " ".join(words)
            message = f"{option.shown} takes {wanted(option.annotation)}; got {short(got, 100)}."
            choices = [str(c) for k in members(option.annotation) for c in choices_of(k)]
            like = nearest(str(got), choices) if choices else None
            if like:
                message += f" Did you mean {like!r}?"
            elif is_list(option.annotation):
                message += f" Several are written {option.flag} A,B, none {option.flag}=."
            elif type(None) not in members(option.annotation) and str(got).startswith("-"):
                message += f" A value that begins with a dash is written {option.flag}=VALUE."
            raise UsageError(message) from None

    def give_words_out(self) -> None:
        """Give the positional words to their fields."""
        words, fields = self.words, self.positionals
        for k, option in enumerate(fields):
            if is_list(option.annotation):
                fields, words = fields[:k], words[:k]
                rest = self.words[k:]
                if not rest and option.required and len(words) == k:
                    raise UsageError(self._about_missing(option))
                self.values[option.path] = tuple(map(at_home, rest)) or option.default
                break
        if fields and len(words) > len(fields):
            folder = folder_of_pictures(words[len(fields) - 1 :])
            if folder is not None:
                words = [*words[: len(fields) - 1], folder]
        if len(words) > len(fields):
            raise UsageError(self._about_extra(words, len(fields)))
        for option, word in zip(fields, words):
            self.values[option.path] = self._convert(option, [word])
        for option in fields[len(words) :]:
            self._refuse_swallowed(option)
            if option.required:
                raise UsageError(self._about_missing(option))
        for option, _ in self.flags.values():
            if option.required and option.path not in self.values:
                raise UsageError(self._about_missing(option))

    def _refuse_swallowed(self, missing: Option) -> None:
        for option, taken in self.greedy:
            last = taken[-1]
            if Path(last).exists():
                commas = ",".join(taken[:-1])
                raise UsageError(
                    f"{last!r} could belong to {option.flag}, or be {missing.shown}. Write"
                    f" {option.flag} {commas},{last} for the one, {option.flag} {commas} -- {last}"
                    " for the other."
                )

    def _about_missing(self, option: Option) -> str:
        return f"{option.shown} is missing. `{self.prog} --help` shows examples."

    def _about_extra(self, words: list[str], room: int) -> str:
        names = " ".join(o.shown for o in self.positionals) or "no words but options"
        extra = words[room:]
        shown = ", ".join(map(repr, extra[:3])) + (
            f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        )
        text = f"the command takes {names}; got also {shown}."
        if len(extra) == 1 and extra[0].lower() in (*TRUE, *FALSE):
            return f"{text} A switch takes no value: --flag for yes, --no-flag for no."
        if "--mask" in self.flags and len(extra) == 1 and not self._is_given("--mask"):
            text += f" The mask is an option: --mask {shlex.quote(extra[0])}."
        pictures = [Path(w) for w in words if Path(w).is_file()]
        if len(pictures) > 1:
            folder = shlex.quote(str(pictures[0].parent))
            return (
                f"{text} If that is a pattern which the shell has expanded, give the folder"
                f" ({folder}), or quote the pattern."
            )
        lists = [option.flag for option, _ in self.flags.values() if is_list(option.annotation)]
        lists = [flag for flag in lists if self._is_given(flag)]
        if len(words) > 1 and all(Path(word).is_dir() for word in words):
            return f"{text} Give one folder that holds them all; they are its classes then."
        if lists and not any(Path(word).exists() for word in extra):
            text += f" Several values of {lists[0]} are written with commas: {lists[0]} A,B."
        return text

    def _is_given(self, flag: str) -> bool:
        return any(arg.split("=")[0].replace("_", "-") == flag for arg in self.args)

    def _about_unknown(self, name: str) -> str:
        words = {option.path[-1]: option for option in self.positionals}
        word = peers_names.same_name(name, words)
        ours = peers_names.same_name(name, self.flags)
        if word is not None and (ours is None or name.lstrip("-") in words):
            place = " ".join(option.shown for option in self.positionals)
            return f"{name!r}: {words[word].shown} is given without a flag: {self.prog} {place}"
        if ours is None and "--set" in self.flags and peers_names.is_setting(name):
            setting = name.lstrip("-").replace("-", "_")
            cells = f"--set {setting}=VALUE for all cells, --vary {setting}=A,B to compare"
            return f"{name!r}: settings are written {cells}"
        hint = peers_names.hint(name, self.flags)
        if hint is None:
            bare = {flag.lstrip("-").rpartition(".")[2]: flag for flag in reversed(self.flags)}
            bare |= {flag.lstrip("-"): flag for flag in self.flags}
            like = nearest(name.lstrip("-"), bare)
            hint = f"did you mean {bare[like]!r}?" if like else None
        return f"{name!r}: {hint}" if hint else f"{name!r}."


def _switch(option: Option) -> bool:
    return bool in members(option.annotation)


def _take_list(option: Option, kind: Any, following: list[str]) -> Iterator[str]:
    arguments = typing.get_args(kind)
    element = arguments[0]
    room = len(following) if arguments[-1] is Ellipsis else len(arguments)
    fits: Callable[[str], bool] = _fits(option, element, following)
    for k, word in enumerate(following[:room]):
        if k and not fits(word):
            return
        yield word
        if "," in word.rstrip(",") or ("," in word and element is str):
            return  # A,B is a whole list


def _fits(option: Option, element: Any, following: list[str]) -> Callable[[str], bool]:
    """Return what says whether a further word belongs to a list."""
    if element is not str:
        return lambda word: fits(word.rstrip(","), element)
    if following and PAIR.match(following[0]):
        return lambda word: PAIR.match(word) is not None
    if option.path == ("trackers",):
        from ddpm_lib.runtime.trackers import tracker_names

        names = tracker_names()
        return lambda word: word in names
    return lambda word: False


def _take_pairs(following: list[str]) -> Iterator[str]:
    """Yield `name=value` words, or `name value` pairs."""
    place = 0
    while place < len(following):
        word = following[place]
        if PAIR.match(word):
            yield word
            place += 1
        elif place + 1 < len(following) and word.isidentifier() and is_plain(following[place + 1]):
            yield from following[place : place + 2]
            place += 2
        else:
            if not place:
                yield word
            return
