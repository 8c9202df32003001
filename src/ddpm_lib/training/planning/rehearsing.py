"""From settings, as a config file has them, to a process, and to what training it costs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn import PRESETS, Unet
from ddpm_lib.process.presets import PROCESS_PRESETS
from ddpm_lib.training.augmentation import AUGMENT_DIM
from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from ddpm_lib.training.estimate import Estimate

PROBE_STEPS = 3
"""Steps that are timed."""
_NOT_REHEARSED = (
    "val_data",
    "val_condition",
    "output_dir",
    "max_hours",
    "stop_when",
    "augment",
    "progress",
)
"""Options of a run that its rehearsal does without."""


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values by dotted name into groups.

    >>> nested({"seed": 1, "model.dim": 8})
    {'seed': 1, 'model': {'dim': 8}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, inner = name.partition(".")
        if dot:
            found.setdefault(group, {})[inner] = value
        else:
            found[name] = value
    return found


@dataclass(frozen=True)
class Settings:
    """The settings of a run, apart.

    Attributes:
        model: Options of the network.
        diffusion: Options of the process, image_size and channels included.
        training: Options of the Trainer.
    """

    model: dict[str, Any]
    diffusion: dict[str, Any]
    training: dict[str, Any]

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any],
        classes: int = 0,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Settings:
        """Take settings apart.

        Args:
            values: As in a config file.
            classes: Number of classes of the data, for a network that learns them.
            conditions: Those of the data, as `Unet(conditions=…)` takes them.

        Raises:
            ConfigError: For an unknown preset.
        """
        name = values.get("preset", "small")
        if name not in PRESETS:
            raise ConfigError(unknown_name("preset", str(name), PRESETS))
        process = dict(PROCESS_PRESETS[name]) if name in PROCESS_PRESETS else {}
        channels, size = values.get("channels", 3), values.get("image_size", [64])
        process |= {**values.get("diffusion", {}), "channels": channels, "image_size": tuple(size)}
        model = {**PRESETS[name], **values.get("model", {}), "channels": channels}
        if len(size) == 1:
            process["image_size"] = size[0]
        if process.get("variance") == "learned_range":
            model.setdefault("out_channels", 2 * channels)
        if values.get("augment"):
            model.setdefault("augment_dim", AUGMENT_DIM)
        if values.get("class_conditional"):
            model.setdefault("num_classes", classes)
        if len(size) == 3:
            model["dims"] = 3
        if conditions:
            model["conditions"] = {name: dict(entry) for name, entry in conditions.items()}
        training = {
            name: values[name] for name in TrainingConfig.__dataclass_fields__ if name in values
        }
        return cls(model, process, training)

    def process(self) -> GaussianDiffusion:
        """Build the process around a network with weights of the run's seed."""
        torch.manual_seed(int(self.training.get("seed", 0)))
        return GaussianDiffusion(Unet(**self.model), **self.diffusion)

    def check_size(self) -> None:
        """Refuse a size that the network cannot halve so often.

        Raises:
            ValueError: Naming sizes that fit.
        """
        size = self.diffusion["image_size"]
        with torch.device("meta"):
            Unet(**self.model).check_size(size if isinstance(size, tuple) else (size, size))


def rehearse(settings: Settings, images: int) -> Estimate:
    """Time a few steps on this machine.

    Args:
        settings: Of the run.
        images: Number of training images.

    Raises:
        ConfigError: For settings that do not fit each other.
        OutOfMemoryError: If not even the weights find room.
    """
    from ddpm_lib.training.estimate import estimate

    options = {
        name: value for name, value in settings.training.items() if name not in _NOT_REHEARSED
    }
    config = TrainingConfig(**options, progress=False)
    found = estimate(settings.process(), config, PROBE_STEPS, images)
    assert found is not None
    return found
