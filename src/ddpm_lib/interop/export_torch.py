"""The network as a program of torch.export: runs without this library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.new_folders import new_folder
from ddpm_lib.core.text import printable
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.exporting import (
    Inputs,
    describe,
    inputs_of,
    plain_network,
    write_description,
)

_DIRECTIONS = "dhw"


def export_torch(
    diffusion: GaussianDiffusion, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write `model.pt2` for `torch.export.load`, and `model.json`, which says how to sample.

    `torch.export.load("model.pt2").module()` is called as network(x, t, cond), cond with every
    condition of the network, on batches of any size; up to `largest_batch` of `model.json` for
    networks of diffusers, which take another way from there on.

    Args:
        diffusion: The process.
        folder: Where; must not exist, or be empty.
        about: What else `model.json` is to say of the weights.

    Returns:
        The folder.

    Raises:
        ConfigError: If something lies there, or the network cannot be traced.
        OSError: If the disk refuses; nothing half-written stays.
    """
    with new_folder(folder) as aside:
        program, inputs = traced(diffusion)
        torch.export.save(program, aside / "model.pt2")
        write_description(aside, describe(diffusion, "model.pt2", inputs, about))
    return Path(folder)


def traced(diffusion: GaussianDiffusion) -> tuple[ExportedProgram, Inputs]:
    """Trace the network for batches of any size, and for images of any size where it can.

    Returns:
        The program, called with x, t and a dict of all conditions; and what it takes.

    Raises:
        ConfigError: If the network cannot be traced: it reads values, or runs code of its own.
    """
    network, tries = plain_network(diffusion), list(inputs_of(diffusion).narrower())
    for wanted in tries:
        try:
            return _trace(network, wanted), wanted
        except Exception as error:  # of whatever the network runs into
            if wanted is not tries[-1]:
                continue
            why = printable(str(error).strip().partition("\n")[0])[:300]
            raise ConfigError(
                f"model={type(diffusion.model).__name__} cannot be exported: torch.export does not"
                f" trace its forward ({type(error).__name__}: {why})."
            ) from error
    raise AssertionError("unreachable")


def _trace(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    batch = Dim("batch", min=1, max=inputs.largest)
    x = inputs.values[0].example
    units = [Dim(_DIRECTIONS[k], min=2) for k in range(x.ndim - 2)]
    shapes = {
        value.name: {0: batch}
        | {
            d: step * units[inputs.direction(value, d)]
            for d, step in enumerate(value.steps)
            if step and inputs.unit is not None
        }
        for value in inputs.values
    }
    spec = (shapes.pop("x"), shapes.pop("t"), shapes)
    with torch.no_grad():
        program = torch.export.export(network, inputs.arguments, dynamic_shapes=spec, strict=False)
    for part in program.graph_module.modules():
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    return program
