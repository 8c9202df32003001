"""How a network class of one's own joins those that folders and checkpoints can name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.options import plain
from ddpm_lib.core.validation import shown
from ddpm_lib.nn.networks import NETWORKS, RECORDED, registered_as
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained

N = TypeVar("N", bound=type[nn.Module])


@overload
def register_network(cls: N, /) -> N: ...


@overload
def register_network(name: str | None = None, /) -> Callable[[N], N]: ...


def register_network(cls: Any = None, /) -> Any:
    """Let checkpoints and pretrained folders name a network class of your own: a decorator.

    What they hold is the name and the constructor's arguments, which are recorded when a network is
    made (or taken from `config`, where the class itself declares that attribute). Loading calls the
    class that is registered under the name in your program: nothing of the folder is executed.

    Args:
        cls: The class; or another name for it than its own.

    Raises:
        ConfigError: If the name is taken by another class, or the constructor takes *args.

    >>> @register_network("doc/one-layer")
    ... class OneLayer(nn.Module):
    ...     def __init__(self, channels: int = 3):
    ...         super().__init__()
    ...         self.channels, self.conv = channels, nn.Conv2d(channels, channels, 1)
    ...
    ...     def forward(self, x, t, cond=None):
    ...         return self.conv(x)
    >>> OneLayer(4).config
    {'channels': 4}
    """
    if isinstance(cls, type):
        return _register(cls, cls.__name__)
    return lambda own: _register(own, own.__name__ if cls is None else cls)


def _register(cls: Any, name: Any) -> Any:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"The name of a network must be a text; got {shown(name)}.")
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ConfigError(f"A network is a class of torch.nn.Module; got {shown(cls)}.")
    before = NETWORKS.home(name)
    if before not in (None, (cls.__module__, cls.__qualname__)):
        raise ConfigError(
            f"The network {name!r} is already registered, for {'.'.join(before or ())}. Give"
            ' yours another name: @register_network("my_name").'
        )
    known = registered_as(cls)
    if known not in (None, name):
        raise ConfigError(f"{cls.__name__} is already registered, as {known!r}.")
    if not _declares_config(cls):
        _record_arguments(cls)
    for method, value in (
        ("save_pretrained", save_pretrained),
        ("from_pretrained", classmethod(from_pretrained)),
        ("_repr_html_", _repr_html_),
    ):
        if not hasattr(cls, method):
            setattr(cls, method, value)
    NETWORKS.add(name, cls, again=before is not None)  # a notebook's cell, run again
    return cls


def _repr_html_(self: nn.Module) -> str:
    from ddpm_lib.nn.network_html import network_html

    return network_html(self)


def _declares_config(cls: type) -> bool:
    """Say whether a class keeps a `config` of the very constructor that it has."""
    maker = next(c for c in cls.__mro__ if "__init__" in c.__dict__)
    return "config" in maker.__dict__ or "config" in inspect.get_annotations(maker)


def _record_arguments(cls: type) -> None:
    init: Any = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"{cls.__name__}.__init__ takes {str(parameter)!r} by position only, and arguments"
                " are kept by name. Give it a name, or let the class declare a `config` of its own."
            )

    @functools.wraps(init)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is not cls:
            return
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(list(bound.arguments.items())[1:])
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        object.__setattr__(self, RECORDED, plain(given))
        if not hasattr(self, "config"):
            object.__setattr__(self, "config", plain(given))

    cls.__init__ = wrapped  # type: ignore[misc]
