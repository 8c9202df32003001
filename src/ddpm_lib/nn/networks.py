"""The networks that folders and checkpoints can name: their names, arguments and rebuilding."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from torch import nn

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.registry import Registry
from ddpm_lib.core.text import short
from ddpm_lib.core.validation import shown
from ddpm_lib.nn.outside import OUTSIDE, diffusers_config, diffusers_name

NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network", OUTSIDE)
"""The networks that a checkpoint can name: each is rebuilt as `NETWORKS[name](**config)`."""

RECORDED = "_constructor_arguments"
"""The attribute of a network that holds what its constructor was given."""


def registered_as(cls: type) -> str | None:
    """Return the name that a class is registered under, None if it is not."""
    own = next((name for name, entry in NETWORKS.loaded() if entry is cls), None)
    return diffusers_name(cls) if own is None else own


def describe_network(model: nn.Module) -> dict[str, Any]:
    """Return {"class": name, "config": arguments} of a network, from which it can be built again.

    Raises:
        ConfigError: If its class is not registered, or an argument is nothing that JSON can hold.
    """
    name = registered_as(type(model))
    if name is None:
        raise ConfigError(
            f"{type(model).__name__} is no registered network, so that nothing could load it again."
            " Put @register_network (from ddpm_lib) above its class."
        )
    config = getattr(model, RECORDED, None) or getattr(model, "config", None) or {}
    if diffusers_name(type(model)) is not None:
        config = diffusers_config(model)
    for argument, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{name} was made with {argument}={shown(value)}, which no file can hold. Let it"
                " take a number, a text or a list instead, such as a name."
            ) from error
    return {"class": name, "config": json.loads(json.dumps(config))}


def describe_for_others(model: nn.Module) -> dict[str, Any]:
    """Return what `describe_network` does, without paths of this machine: for folders that are
    handed on.

    Raises:
        ConfigError: As `describe_network`.
    """
    from ddpm_lib.nn.text_encoders import portable_encoder

    found = describe_network(model)
    table = found["config"].get("conditions")
    for entry in table.values() if isinstance(table, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("encoder"), str):
            entry["encoder"] = portable_encoder(entry["encoder"])
    return found


def build_network(description: dict[str, Any], where: str) -> nn.Module:
    """Build the network that `describe_network` described, by its registered name.

    Args:
        description: What it returned, read from a file.
        where: The folder, for messages.

    Raises:
        CheckpointError: If the name is not registered, or the arguments do not fit.
    """
    name, config = description["class"], description["config"]
    if name not in NETWORKS:
        raise CheckpointError(
            f"{where} holds the weights of a {short(name, 100)}, which is not registered here."
            " In Python, import the module with the class first, with @register_network (from"
            f" ddpm_lib) above it. Registered: {', '.join(NETWORKS)}."
        )
    cls = NETWORKS[name]
    try:
        return cls(**_tuples_again(cls, config))
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{where} describes nothing that this version can build ({type(error).__name__}:"
            f" {str(error)[:300]})."
        ) from error


def _tuples_again(cls: Callable[..., nn.Module], config: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into tuples where the constructor says tuple: JSON knows lists only."""
    parameters = inspect.signature(cls).parameters

    def wanted(name: str) -> bool:
        parameter = parameters.get(name)
        return parameter is not None and (
            isinstance(parameter.default, tuple) or str(parameter.annotation).startswith("tuple")
        )

    return {
        name: tuple(value) if isinstance(value, list) and wanted(name) else value
        for name, value in config.items()
    }
