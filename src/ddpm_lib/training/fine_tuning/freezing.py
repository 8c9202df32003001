"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.text import short


def frozen_parameters(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the names of the parameters that are to stay as they are.

    Args:
        model: The network.
        names: Parts of it, such as "time_embedding" or "down.0", or numbers of levels: "0" is the
            full resolution, on the way down and up.

    Raises:
        ConfigError: For a name that no part has, listing those that there are, and where nothing
            is left to train.
    """
    parameters = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for name in names:
        wanted = _level(model, int(name)) if name.isdecimal() else [name]
        found = {p for p in parameters for part in wanted if p == part or p.startswith(f"{part}.")}
        if not found:
            there = parts_of(model)
            like = nearest(name, there)
            hint = f" Did you mean {like!r}?" if like else ""
            raise ConfigError(
                f"freeze names {short(name)}, which is no part of the network.{hint} There are:"
                f" {', '.join(there)}."
            )
        frozen |= found
    if frozen and len(frozen) == len(parameters):
        raise ConfigError(
            "freeze names every part of the network, so that nothing would be trained. Leave one"
            f" out, such as {parts_of(model)[-1]}."
        )
    return [name for name in parameters if name in frozen]


def _level(model: nn.Module, level: int) -> list[str]:
    """Return the parts of a level, none where the network has no such level."""
    down, up = (getattr(model, name, None) for name in ("down", "up"))
    if not isinstance(down, nn.ModuleList) or not isinstance(up, nn.ModuleList):
        return []
    return [f"down.{level}", f"up.{len(up) - 1 - level}"] if level < len(down) else []


def parts_of(model: nn.Module) -> list[str]:
    """List what `freeze` may name: levels by number, then modules with parameters, those of lists
    one by one.
    """
    levels = [str(k) for k in range(1000) if _level(model, k)]
    names: list[str] = []
    for name, child in model.named_children():
        split = isinstance(child, nn.ModuleList | nn.ModuleDict)
        inner = [(f"{name}.{k}", part) for k, part in child.named_children()] if split else []
        names += [k for k, part in inner or [(name, child)] if any(True for _ in part.parameters())]
    own = [name for name, _ in model.named_parameters(recurse=False)]
    return [*levels, *own, *names]


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Let no gradients be computed for parts of a network; see `frozen_parameters`."""
    frozen = set(frozen_parameters(model, names))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
