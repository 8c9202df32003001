"""The network as an ONNX model: runs in onnxruntime and others, without torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.new_folders import new_folder
from ddpm_lib.core.text import printable
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.export_torch import traced
from ddpm_lib.interop.exporting import Inputs, describe, write_description

_NEEDED = ("onnx", "onnxscript")
_SYMBOL = r"[A-Za-z]\w*"
_ONE_FILE = 1_500_000_000
"""Bytes of weights up to which they lie in the model itself: protobuf ends at 2 GiB."""


def export_onnx(
    diffusion: GaussianDiffusion, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write `model.onnx`, and `model.json`, which says how to sample.

    The inputs are `x`, `t` and every condition by its name, for batches of any size; the output is
    `output`. Weights of more than 1.5 GB lie in `model.onnx.data`.

    Args:
        diffusion: The process.
        folder: Where; must not exist, or be empty.
        about: What else `model.json` is to say of the weights.

    Returns:
        The folder.

    Raises:
        ImportError: If onnx or onnxscript is not installed, with the command that helps.
        ConfigError: If something lies there, or the network cannot be written as ONNX.
        OSError: If the disk refuses; nothing half-written stays.
    """
    check_packages()
    with new_folder(folder) as aside:
        program, inputs = traced(diffusion)
        model = _converted(program, diffusion, inputs)
        size = sum(v.numel() * v.element_size() for v in diffusion.model.state_dict().values())
        model.save(aside / "model.onnx", external_data=size > _ONE_FILE)
        described = describe(diffusion, "model.onnx", inputs, about)
        write_description(aside, {**described, "opset": model.model.opset_imports[""]})
    return Path(folder)


def check_packages() -> None:
    """Raise ImportError, with the command that helps, where a package is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Exporting to ONNX needs {' and '.join(missing)}. Install with: pip install"
            " 'ddpm-lib[export]'"
        )


def _converted(
    program: torch.export.ExportedProgram, diffusion: GaussianDiffusion, inputs: Inputs
) -> Any:
    names = [value.name for value in inputs.values]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about torch
            model = torch.onnx.export(
                program, input_names=names, output_names=["output"], dynamo=True, verbose=False
            )
    except Exception as error:  # an operator that ONNX lacks, or another that torch cannot say
        why = printable(str(error).strip().splitlines()[-1] if str(error).strip() else "")[:300]
        raise ConfigError(
            f"model={type(diffusion.model).__name__} cannot be exported to ONNX"
            f" ({type(error).__name__}: {why}). --to torch-export needs no ONNX."
        ) from error
    assert model is not None
    _tidy(model.model, inputs)
    return model


def _tidy(model: Any, inputs: Inputs) -> None:
    """Name the free dimensions as people would, and drop the stack traces: paths of this
    machine.
    """
    from onnx_ir.traversal import RecursiveGraphIterator

    words: dict[str, str] = {}
    for value, got in zip(inputs.values, model.graph.inputs):
        for said, dim in zip(inputs.shape_of(value), got.shape):
            symbols = re.findall(_SYMBOL, str(dim))
            if isinstance(said, str) and len(symbols) == 1:
                words.setdefault(symbols[0], said.rpartition("*")[2])
    nodes = list(RecursiveGraphIterator(model.graph))
    for node in nodes:
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *(v for node in nodes for v in node.outputs)):
        value.metadata_props.clear()
        if value.shape is None:
            continue
        for d, dim in enumerate(value.shape):
            text = None if isinstance(dim, int) else dim.value  # None: nothing is known of it
            if text is not None:
                value.shape[d] = re.sub(_SYMBOL, lambda m: words.get(m[0], m[0]), text)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
