"""What a notebook shows of a network."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ddpm_lib.core.markup import card, facts, never_fails, plain_value

MOST_OPTIONS = 12
"""So many options are shown; all of them stand in `config`."""


@never_fails
def network_html(self: nn.Module) -> str:
    """Show the size of a network and the options that are not the default ones, as HTML."""
    options = chosen_options(type(self), getattr(self, "config", None) or {})
    pairs = [("parameters", parameter_words(self))]
    pairs += [(name, plain_value(value)) for name, value in list(options.items())[:MOST_OPTIONS]]
    if len(options) > MOST_OPTIONS:
        pairs.append(("…", f"{len(options) - MOST_OPTIONS} more options in config"))
    return card(type(self).__name__, facts(pairs))


def parameter_words(model: nn.Module) -> str:
    """Word the number of parameters, and how many of them are frozen."""
    every = list(model.parameters())
    count = sum(p.numel() for p in every)
    frozen = sum(p.numel() for p in every if not p.requires_grad)
    return f"{count:,}" + (f", {frozen:,} of them frozen" if frozen else "")


def chosen_options(made_by: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that differ from the constructor's defaults; the others have no news.

    Args:
        made_by: The class or function that takes them.
        config: All of them by name, tuples as lists.
    """
    defaults = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in inspect.signature(made_by).parameters.items()
    }
    return {
        name: value
        for name, value in config.items()
        if name not in defaults or value != defaults[name]
    }
