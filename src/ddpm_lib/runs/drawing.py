"""Pictures of a run for whoever asks time and again, as a page does; the network stays loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import PARTNER
from ddpm_lib.images import preview, to_uint8
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import class_count, for_sampling, guidable
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.loading import Found, LoadedRun, load_checkpoint
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.devices import LOW_PRECISION

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
        steps: Sampling steps of DDIM.
        guidance: Scale of classifier-free guidance; 1 is none.
    """

    weights: str
    class_name: str | None = None
    num: int = 16
    seed: int = 0
    steps: int = 50
    guidance: float = 1.0


class Artist:
    """Draws from one checkpoint; calls wait for each other.

    Args:
        found: The checkpoint, or a pretrained folder.
        device: Where to draw.
        precision: "no", "bf16" or "fp16".
        read_cond: Returns the conditions of all pictures, a batch of one each; None for none.

    Raises:
        ConfigError: If the network needs more than a class and these conditions, as one that
            enlarges pictures does.
        ValueError: If a condition is missing that the network cannot do without.
    """

    def __init__(
        self,
        found: Found,
        device: torch.device,
        precision: str,
        read_cond: Callable[[LoadedRun], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.found, self.device, self.precision = found, device, precision
        self._lock = threading.Lock()
        if isinstance(found, VerifiedCheckpoint):
            self.weights = [*(f"ema {d}" for d in found.state.ema_decay), "model"]
        else:
            self.weights = [
                name.replace(":", " ") for name in found.folder.config.weights if name != PARTNER
            ]
        self._loaded, self._weights = self._load(self.weights[0]), self.weights[0]
        self._fixed = {} if read_cond is None else dict(read_cond(self._loaded))
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
        for_sampling(known, {**self._fixed, **self._classes(Wish(weights="", num=1))}, 1)

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
    def class_names(self) -> list[str]:
        """Names of the classes that it knows; empty for none."""
        count = class_count(self._loaded.diffusion.conditioners)
        if count is None:
            return []
        return list(self._loaded.class_names or map(str, range(count)))

    @property
    def guidable(self) -> bool:
        """Whether guidance makes a difference."""
        given = {"class_label", *self._fixed}
        return bool(given.intersection(guidable(self._loaded.diffusion.conditioners)))

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
            cond = {**self._fixed, **self._classes(wish)}
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
        if wish.guidance != 1 and not self.guidable:
            raise ConfigError(
                "Guidance strengthens a class or a condition (--cond), and none is given that this"
                " network could also do without."
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
