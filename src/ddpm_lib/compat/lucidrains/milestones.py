"""`model-N.pt`: what the Trainer of denoising-diffusion-pytorch saves, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.compat.lucidrains.peer_process import PeerProcess
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.files import write_aside
from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.imported import Imported
from ddpm_lib.interop.lucidrains_network import to_peer_names
from ddpm_lib.nn.strict import check_weights

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SAME = ("image_size", "channels", "timesteps", "schedule", "parametrization", "weighting")


def milestone_content(
    diffusion: PeerProcess,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    version: str,
) -> dict[str, Any]:
    """Return what the original saves of this state of a training.

    Args:
        diffusion: The process with its trained network.
        averaged: The averaged network, of the class of `diffusion.process.model`.
        optimizer: Adam over that network.
        step: Steps done.
        version: What wrote it.
    """
    model = {name: _own(tensor) for name, tensor in diffusion.state_dict().items()}
    average = to_peer_names({name: _own(t) for name, t in averaged.state_dict().items()})
    tables = {name: tensor for name, tensor in model.items() if not name.startswith("model.")}
    averages = {**tables, **{f"model.{name}": tensor for name, tensor in average.items()}}
    ema: dict[str, Any] = {"initted": torch.tensor(step > 0), "step": torch.tensor(step)}
    ema |= {f"online_model.{name}": tensor for name, tensor in model.items()}
    ema |= {f"ema_model.{name}": tensor for name, tensor in averages.items()}
    return {
        "step": step,
        "model": model,
        "opt": _adam(optimizer, diffusion.process.model, list(average)),
        "ema": ema,
        "scaler": None,
        "version": version,
    }


def _own(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in the usual memory layout."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _adam(optimizer: torch.optim.Optimizer, network: nn.Module, names: list[str]) -> dict[str, Any]:
    """Return Adam's state dict over the parameters in the order of the original."""
    state = {name: optimizer.state.get(p, {}) for name, p in network.named_parameters()}
    moments = {
        moment: to_peer_names({k: _own(v[moment]) for k, v in state.items() if moment in v})
        for moment in _MOMENTS
    }
    step = next((_own(v["step"]) for v in state.values() if "step" in v), torch.tensor(0.0))
    settings = {k: optimizer.param_groups[0][k] for k in ("lr", "betas", "eps")}
    blank = [nn.Parameter(torch.zeros(1)) for _ in names]
    structure = torch.optim.Adam(blank, **settings).state_dict()
    structure["state"] = {
        i: {"step": step.clone(), **{moment: moments[moment][name] for moment in _MOMENTS}}
        for i, name in enumerate(names)
        if name in moments["exp_avg"]
    }
    return structure


def write_milestone(path: Path, content: Mapping[str, Any]) -> None:
    """Write a milestone aside and rename it.

    Raises:
        OSError: If the disk refuses; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda temporary: torch.save(dict(content), temporary))


def read_milestone(path: Path, diffusion: PeerProcess, ema_decay: float) -> Imported:
    """Read a milestone, of this library or of the original, that fits a process.

    Args:
        path: The file.
        diffusion: The process that is to go on from it.
        ema_decay: Decay per step of its average.

    Raises:
        CheckpointError: If there is none, or it is of another network or process.
    """
    process = diffusion.process.config
    given = {"image_size": process["image_size"], "ema_decay": ema_decay}
    found = read_foreign(path, given, "lucidrains")
    assert found.weights is not None
    check_weights(diffusion.process.model, found.weights, str(path))
    there = found.process or {}
    for name in _SAME:
        if there.get(name) != process[name]:
            raise CheckpointError(
                f"{path} was trained with {name}={there.get(name)!r}; this process has"
                f" {process[name]!r}."
            )
    return found
