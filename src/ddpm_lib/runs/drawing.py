"""Pictures of a run for whoever asks time and again, as a page does; the network stays loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import PARTNER
from ddpm_lib.images import preview, to_uint8
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import class_count, given_as, guidable
from ddpm_lib.process.plan import FEW_JUMPS
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.loading import Found, LoadedRun, load_checkpoint
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runs.run_conditions import fit_of
from ddpm_lib.runs.training_texts import texts_of_training
from ddpm_lib.runtime.devices import LOW_PRECISION

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.nn.data_conditions import DataCondition

MOST = 64
"""Pictures that one wish may be of."""

SIDE = 128
"""Pixels that a small picture is enlarged to, by whole pixels."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be drawn.

    Attributes:
        weights: "ema 0.9999" or "model".
        class_name: Name of the class, None for the classes in turn.
        num: Number of pictures, 1 … `MOST`.
        seed: Names them.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance; 1 is none.
        cond: Conditions of the data of all pictures, by name as `--cond` says them.
    """

    weights: str
    class_name: str | None = None
    num: int = 16
    seed: int = 0
    steps: int = 50
    guidance: float = 1.0
    cond: Mapping[str, str] = field(default_factory=dict)


class Artist:
    """Draws from one checkpoint; calls wait for each other.

    Args:
        found: The checkpoint, or a pretrained folder.
        device: Where to draw.
        precision: "no", "bf16" or "fp16".

    Raises:
        ConfigError: If the network needs more than a class and conditions of the data, as one that
            enlarges pictures does.
    """

    def __init__(self, found: Found, device: torch.device, precision: str) -> None:
        self.found, self.device, self.precision = found, device, precision
        self._lock = threading.Lock()
        if isinstance(found, VerifiedCheckpoint):
            self.weights = [*(f"ema {d}" for d in found.state.ema_decay), "model"]
        else:
            self.weights = [
                name.replace(":", " ") for name in found.folder.config.weights if name != PARTNER
            ]
        self._loaded, self._weights = self._load(self.weights[0]), self.weights[0]
        self._refuse_more()

    def _refuse_more(self) -> None:
        known = self._loaded.diffusion.conditioners or {}
        others = set(known) - {"class_label", "self_cond"} - set(data_conditions(known))
        if others:
            raise ConfigError(
                f"{self._loaded.name} draws from more than a class ({', '.join(sorted(others))})."
                " `ddpm sample` takes pictures to enlarge with --low-res; Python takes everything:"
                " load_run(…).diffusion.sample(cond=…)."
            )

    def _load(self, weights: str) -> LoadedRun:
        kind, _, decay = weights.partition(" ")
        average: Any = None
        if decay:
            average = decay if decay.startswith("sigma") else float(decay)
        loaded = load_checkpoint(self.found, kind, average)
        place_network(loaded.diffusion, self.device, self.precision)
        return loaded

    @property
    def name(self) -> str:
        """Of what is drawn: the checkpoint, or the pretrained folder."""
        return self._loaded.name

    @property
    def timesteps(self) -> int:
        """The most steps."""
        return self._loaded.diffusion.timesteps

    @property
    def usual_steps(self) -> int:
        """Steps to begin with: of what was tuned to draw in few, as many as were chosen."""
        process = self._loaded.diffusion
        if not process.denoiser.jumps:
            return min(50, self.timesteps)
        default = process.sampling_default
        chosen = None if default is None else default.num_steps
        return min(chosen or FEW_JUMPS, self.timesteps)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that it knows; empty for none."""
        count = class_count(self._loaded.diffusion.conditioners)
        if count is None:
            return []
        return list(self._loaded.class_names or map(str, range(count)))

    @property
    def diffusion(self) -> GaussianDiffusion:
        """What draws."""
        return self._loaded.diffusion

    @property
    def conditions(self) -> dict[str, DataCondition]:
        """The conditions of the data that it knows."""
        return data_conditions(self._loaded.diffusion.conditioners)

    @property
    def texts(self) -> dict[str, list[str]]:
        """Texts that need no encoder, by condition, where the tables of the training are here."""
        return texts_of_training(self._loaded.state, self.conditions)

    @property
    def guidable(self) -> bool:
        """Whether guidance can make a difference."""
        known = self._loaded.diffusion.conditioners
        return bool({"class_label", *self.conditions}.intersection(guidable(known)))

    def read(self, cond: Mapping[str, str]) -> dict[str, Tensor]:
        """Read conditions as `--cond` says them, a batch of one each.

        Raises:
            ConfigError: For what the network does not take, and for a source of many values.
        """
        from ddpm_lib.runs.told_conditions import read_told

        told = read_told(self.diffusion, cond, fit_of(self._loaded))
        for source in told.sources:
            raise ConfigError(
                f"{given_as(source.conditioner.name)}: {source.source} has a value for each of"
                f" {len(source):,} images, and the page draws all pictures by one. Name one value,"
                " or draw with `ddpm sample`."
            )
        return dict(told.fixed)

    def draw(self, wish: Wish) -> np.ndarray:
        """Draw pictures; the same wish gives the same ones, those of `ddpm sample`.

        Returns:
            uint8 (n, height, width, 3), or without the last axis for one channel.

        Raises:
            ConfigError: For a wish that cannot be met.
        """
        self._check(wish)
        with self._lock:
            if wish.weights != self._weights:
                self._loaded, self._weights = self._load(wish.weights), wish.weights
            cond = {**self.read(wish.cond), **self._classes(wish)}
            dtype = LOW_PRECISION.get(self.precision, torch.bfloat16)
            low = self.precision in LOW_PRECISION
            with torch.autocast(self.device.type, dtype=dtype, enabled=low):
                images = self._loaded.diffusion.sample(
                    wish.num,
                    num_steps=wish.steps,
                    seed=wish.seed,
                    cond=cond,
                    guidance_scale=wish.guidance,
                    device=self.device,
                    progress=False,
                )
        return pixels(images)

    def _classes(self, wish: Wish) -> dict[str, Tensor]:
        names = self.class_names
        if not names:
            return {}
        labels = torch.arange(wish.num) % len(names)
        if wish.class_name is not None:
            labels = torch.full((wish.num,), names.index(wish.class_name))
        return {"class_label": labels}

    def _check(self, wish: Wish) -> None:
        if not 1 <= wish.num <= MOST:
            raise ConfigError(f"The number of pictures must be 1 to {MOST}; got {wish.num}.")
        if not 1 <= wish.steps <= self.timesteps:
            raise ConfigError(f"The steps must be 1 to {self.timesteps}; got {wish.steps}.")
        if wish.weights not in self.weights:
            raise ConfigError(f"There are the weights {', '.join(self.weights)}.")
        if wish.class_name is not None and wish.class_name not in self.class_names:
            raise ConfigError(f"There is no class {wish.class_name!r}.")
        given = {"class_label", *wish.cond}
        able = given.intersection(guidable(self._loaded.diffusion.conditioners))
        if wish.guidance != 1 and not able:
            raise ConfigError(
                "Guidance strengthens a class or a condition (--cond), and none is given that this"
                " network could also do without. Give one, or leave guidance at 1."
            )


def pixels(images: Tensor) -> np.ndarray:
    """Return images as pictures to look at, small ones enlarged by whole pixels.

    Args:
        images: (n, c, h, w) or volumes (n, c, d, h, w), in [0, 1] or uint8; `preview` says what is
            shown of volumes and of other numbers of channels than 1, 3 and 4.

    Returns:
        uint8 (n, h', w', 3), or (n, h', w') for one channel.
    """
    array = to_uint8(preview(images)).cpu().permute(0, 2, 3, 1).numpy()
    scale = max(1, SIDE // max(array.shape[1:3]))
    array = array.repeat(scale, axis=1).repeat(scale, axis=2)
    return array[..., 0] if array.shape[-1] == 1 else array
