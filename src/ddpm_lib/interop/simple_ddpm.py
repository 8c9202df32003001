"""Weights of AnarchistKnight/Simple_DDPM: `latest_model.pth`, a network that is not told the noise
level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ddpm_lib.interop.assumed import filled_in, ho_process
from ddpm_lib.interop.given import needed
from ddpm_lib.interop.imported import USUAL_OPTIONS, Imported, Opened, Reader, Weights
from ddpm_lib.interop.renaming import refuse, shape_problems
from ddpm_lib.interop.tensor_dicts import is_weights, without_prefix
from ddpm_lib.nn.time_blind import TimeBlindUnet

NAME = "simple-ddpm"
_SIGNS = {"head_block.weight", "tail_block.weight", "mid_block.block1.block1.norm.running_mean"}


def recognises(opened: Opened) -> bool:
    """Whether it is a state dict with head, tail and batch normalisation under its names."""
    return is_weights(opened.content) and set(without_prefix(opened.content)) >= _SIGNS


def read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    """Read the state dict, which is all that there is.

    Raises:
        CheckpointError: If something is missing, left over or of another shape.
        ConfigError: If the size of the images is not given.
    """
    where, weights = str(opened.path), without_prefix(opened.content)
    needed(given, "image_size", f"{where} does not say how large the images are")
    training, notes = filled_in(given, {"dropout": 0.1}, NAME)
    with torch.device("meta"):
        model = TimeBlindUnet(**_config(weights), dropout=training["dropout"])
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing: {name}" for name in shapes if name not in weights]
    problems += [f"left over: {name}" for name in weights if name not in shapes]
    refuse(problems or shape_problems(weights, shapes), where)
    process, assumed = ho_process(given, NAME, {"variance": "fixed_small"})
    return Imported(
        source=opened.path,
        format=NAME,
        network="TimeBlindUnet",
        network_config=model.config,
        # Training draws the share of noise 1 − α̅ evenly; sampling clips nothing.
        process=process | {"time_sampler": "uniform_alpha_bar", "clip": "none"},
        weights=weights,
        notes=(
            *assumed,
            *notes,
            "there are no averages, no optimizer and no step in the file",
            "Simple_DDPM leaves out the last step of sampling, to clean data; here it is done",
        ),
    )


def _config(weights: Weights) -> dict[str, Any]:
    head = weights["head_block.weight"]
    widths = [len(head)]
    while (name := f"down_blocks.{len(widths) - 1}.block1.block1.conv.weight") in weights:
        widths.append(len(weights[name]))
    out = len(weights["tail_block.weight"])
    return {
        "widths": tuple(widths),
        "channels": head.shape[1],
        "out_channels": None if out == head.shape[1] else out,
    }


READER = Reader(
    NAME,
    "latest_model.pth of AnarchistKnight/Simple_DDPM",
    recognises,
    read,
    USUAL_OPTIONS,
)
