"""One list of options for Python, config files and flags: dataclasses read off the signatures and
docstrings of the classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import tyro
import yaml

from ddpm_lib.cli import arguments, help
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import meant
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.text import printable, short


def options_class(name: str, target: type, leave_out: tuple[str, ...] = ()) -> type:
    """Make a dataclass whose fields are the constructor arguments of a class, with their docstrings
    as help.

    Args:
        name: Name of the dataclass.
        target: The class; its docstring has a Google-style `Args:` section.
        leave_out: Arguments that something else sets.
    """
    hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]
    help_of = {
        p.arg_name: (p.description or "").replace("\n", " ")
        for p in docstring_parser.parse(target.__doc__ or "").params
    }
    fields: list[Any] = []
    for parameter in inspect.signature(target.__init__).parameters.values():  # type: ignore[misc]
        if parameter.name == "self" or parameter.name in leave_out:
            continue
        kind = _plain_part(hints[parameter.name])
        about = tyro.conf.arg(help=help_of.get(parameter.name, ""))
        annotation = Annotated[kind, about]  # type: ignore[valid-type]
        fields.append((parameter.name, annotation, dataclasses.field(default=parameter.default)))
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


def _plain_part(annotation: Any) -> Any:
    # `str | Schedule` takes an object in Python; a file or a flag can only name one.
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    simple = [
        a
        for a in typing.get_args(annotation)
        if typing.get_origin(a) or a in (int, float, str, bool, type(None))
    ]
    return functools.reduce(operator.or_, simple)


def from_mapping(cls: type, values: Mapping[str, Any], base: Any, where: str) -> Any:
    """Replace fields of a dataclass instance by those of a mapping, nested groups included,
    strictly.

    Args:
        cls: The dataclass.
        values: What a config file or a preset says.
        base: The instance that gives all other values.
        where: Names the source in messages.

    Raises:
        ConfigError: For unknown names (naming the nearest right one) and wrong types.
    """
    from ddpm_lib.core.validation import check_type, unknown_options  # which load torch

    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where} must be a list of `option: value` lines; got {type(values).__name__}."
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    unknown_options(values, [f.name for f in dataclasses.fields(cls)], where)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        current = getattr(base, name)
        if dataclasses.is_dataclass(current):
            changes[name] = from_mapping(
                type(current), value or {}, current, f"{where}, group {name}"
            )
        else:
            value = _as_word(value, hints[name])
            changes[name] = check_type(f"{name} ({where})", value, hints[name])
    return dataclasses.replace(base, **changes)


def _as_word(value: Any, annotation: Any) -> Any:
    """Return "no" or "yes" for the booleans that YAML makes of these words, where they are choices
    and booleans are not.
    """
    kinds = arguments.members(annotation)
    word = {False: "no", True: "yes"}.get(value) if isinstance(value, bool) else None
    choices = [choice for kind in kinds for choice in typing.get_args(kind)]
    return word if word in choices and bool not in kinds else value


def read_config(path: str) -> dict[str, Any]:
    """Read a YAML (or JSON) config file.

    Raises:
        ConfigError: If it does not exist or is not a mapping.
    """
    file = Path(path).expanduser()
    if (file / "config.yaml").is_file():
        inside = shlex.quote(printable(file / "config.yaml"))
        raise ConfigError(f"The config file {path} is a folder. Did you mean {inside}?")
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        like = None if file.exists() else meant(path)
        also = f" Did you mean {printable(like)!r}?" if like else ""
        raise ConfigError(f"The config file {path} {kind}.{also}")
    try:
        values = read_yaml(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(
            f"The config file {path} is no text in UTF-8. Save it as UTF-8 in your editor."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(
            f"The config file {path} is not valid YAML: {str(error)[:2000]}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"The config file {path} must hold `option: value` lines; got {type(values).__name__}."
        )
    return {name: at_home(v) if isinstance(v, str) else v for name, v in values.items()}


def read_yaml(text: str) -> Any:
    """Read YAML safely, numbers such as 1e-4 included.

    Raises:
        yaml.YAMLError: If it is none.
    """
    return yaml.load(text, Loader=_Loader)


_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also reads 1e-4 as a number, as everybody means it, and lets no alias
    stand for gigabytes.
    """

    def get_single_data(self) -> Any:
        """Read the one document.

        Raises:
            yaml.YAMLError: Also if it comes to more than 100,000 values when its aliases are
                written out.
        """
        node = self.get_single_node()
        if node is None:
            return None
        if _values(node, {}, set()) > _MOST_VALUES:
            raise yaml.YAMLError(
                f"its aliases stand for more than {_MOST_VALUES:,} values; write out what is meant"
            )
        return self.construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Read `name: value` lines.

        Raises:
            yaml.YAMLError: Also for a name that stands there twice.
        """
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1 and name != "<<"), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} stands there twice; leave one of them out")
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Count the values of a node with every alias written out; endlessly many for one that holds
    itself.
    """
    if id(node) in above:
        return _MOST_VALUES + 1
    if id(node) not in known:
        inside = above | {id(node)}
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        known[id(node)] = min(
            1 + sum(_values(child, known, inside) for child in children), _MOST_VALUES + 1
        )
    return known[id(node)]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$|[-+]?(\d+\.\d*|\.\d+)$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def to_plain(value: Any) -> Any:
    """Turn a dataclass instance into plain lists and mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def dump(config: Any) -> str:
    """Write a config as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def parse(cls: type, args: Sequence[str], default: Any, prog: str, description: str) -> Any:
    """Read flags and words, in any order, over the defaults of an instance; `--help` shows them and
    exits.

    Raises:
        UsageError: For words that cannot be read.
        ConfigError: For values that cannot work.
    """
    table = arguments.options_of(cls, default)
    if help.wanted(args):
        show_help(cls, table, args, prog, description)
    return arguments.set_values(default, arguments.read(table, args, prog))


def show_help(
    cls: type,
    table: Sequence[arguments.Option],
    args: Sequence[str],
    prog: str,
    description: str,
    shapes: Any = None,
) -> None:
    """Print the help of a command and exit.

    Raises:
        SystemExit: Always, with 0.
    """
    everything = bool({"-H", "--help-all", "--help-verbose"} & set(args))
    print(help.text(cls, table, prog, description, everything, shapes))
    raise SystemExit(0)


def key_values(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """Read `name=value` pairs; a value is read as in YAML: a number, true or false, else a word.

    Raises:
        ConfigError: If a pair has no "=", or a name comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in found:
            raise ConfigError(
                f"{flag} takes name=value pairs with different names, such as {flag} rho=5; got"
                f" {short(pair)}."
            )
        try:
            found[name.replace("-", "_")] = read_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{flag}: {short(value)} is not a number, a word, or true or false."
            ) from error
    return found
