"""The network and the prediction of `ddpm train` where nobody names them: what the run has, or what
the machine can train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.runs.run_status import is_run

AUTO = "auto"
SMALLEST_SIDE = 32
"""Side of the images from which on patches leave enough to work on."""
FREE = ("num_classes", "class_drop_prob", "dropout", "gradient_checkpointing", "augment_dim")
"""Options of the network beside which it is still chosen."""
FROM_TRAINING = ("num_classes", "augment_dim")
DECIDING = ("parametrization", "weighting", "variance", "loss")
"""Options of the process that belong to a network of one's own choice."""
CPU_PRESET = "tiny"
ON_CPU: dict[str, dict[str, Any]] = {
    "model": {"patch_size": 2},
    "diffusion": {"parametrization": "x0", "weighting": "flat"},
}
"""Beside the preset tiny. Patches make the network four times cheaper; with patches, a narrow
network learns to predict x0 far sooner than noise or v, whose every pixel it would have to carry
through.
"""
OPTIMIZER_ON_CPU = "muon"
"""Of that network: better pictures for the same seconds (docs/quality.md)."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What stands in the place of preset "auto".

    Attributes:
        preset: Name of the network.
        values: The optimizer, and options of the groups model and diffusion, beside it.
        words: What to tell the user; "" for nothing.
    """

    preset: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: str = ""


def choose_network(
    given: Mapping[tuple[str, ...], Any],
    size: tuple[int, ...],
    device: str,
    run: Path | None,
) -> Chosen:
    """Choose the network of a run for which no preset is named.

    A run that is there goes on with its own. On accelerators, and where the network or what it
    predicts is named in part, it is "small" with the usual prediction.

    Args:
        given: The options that were named, by their path.
        size: Height and width of the images, or three sizes of volumes.
        device: Where to train, as the option says.
        run: The run directory, where it may be gone on with.
    """
    own = None if run is None else network_of_run(run)
    if own is not None:
        return Chosen("small", own)
    named = {path[1] for path in given if path[0] == "model" and len(path) > 1} - set(FREE)
    named |= {path[1] for path in given if path[0] == "diffusion" and path[-1] in DECIDING}
    if named or resolve_device(device).type != "cpu":
        return Chosen("small")
    if len(size) == 3 or not all(map(patches_fit, size)):
        return Chosen("small")
    words = (
        "Chosen for a CPU: the network tiny with patches of 2, which predicts x0, all levels"
        " weighted alike, trained by Muon. --preset small is the larger one that accelerators get."
    )
    return Chosen(CPU_PRESET, {"optimizer": OPTIMIZER_ON_CPU, **ON_CPU}, words)


def patches_fit(side: int) -> bool:
    """Say whether images of this side are worth patches on a CPU."""
    return side >= SMALLEST_SIDE and side % 8 == 0


def is_choice_for_cpus(settings: Any) -> bool:
    """Say whether the settings of a run hold what is chosen on a CPU where nobody names a network.

    Args:
        settings: Options of `ddpm train`.
    """
    return settings.preset == CPU_PRESET and all(
        getattr(getattr(settings, group), name) == value
        for group, values in ON_CPU.items()
        for name, value in values.items()
    )


def optimizer_of_run(run: Path) -> dict[str, str]:
    """Return the optimizer of a run as an option of its config.yaml; {} where there is no run."""
    name = _settings_of(run).get("optimizer")
    return {"optimizer": name} if isinstance(name, str) else {}


def _settings_of(run: Path) -> dict[str, Any]:
    if not is_run(run):
        return {}
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def network_of_run(run: Path) -> dict[str, Any] | None:
    """Return the groups model and diffusion of a run's config.yaml, and its optimizer; None where
    there is no run, or none of a network that these options describe.
    """
    values = _settings_of(run)
    groups = {name: values.get(name) for name in ("model", "diffusion")}
    if not all(isinstance(group, dict) and group for group in groups.values()):
        return None
    found: dict[str, Any] = {
        name: dict(group) for name, group in groups.items() if isinstance(group, dict)
    }
    for name in FROM_TRAINING:  # follow from options that a command names again, or forgot
        found["model"].pop(name, None)
    return {**optimizer_of_run(run), **found}
