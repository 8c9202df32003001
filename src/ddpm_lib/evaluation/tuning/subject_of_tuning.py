"""What is tuned: a checkpoint with its averages, what may guide it, the noise it begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable
from ddpm_lib.evaluation.network_conditions import conditions_of, draws_of_data
from ddpm_lib.process.conditions import Cond, fill_nulls
from ddpm_lib.process.level_pairs import CONSISTENCY
from ddpm_lib.process.network_calls import evaluating
from ddpm_lib.process.sampling import conditions_for
from ddpm_lib.process.self_conditioning import SelfConditioned, is_self_conditioned
from ddpm_lib.process.streams import ImageStreams
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.runs.loading import LoadedRun, find_checkpoints, load_checkpoint
from ddpm_lib.runs.names import step_in
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runs.synthesis import available_snapshots, posthoc_weights
from ddpm_lib.samplers import Predict
from ddpm_lib.training.sampling import default_condition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

LENGTHS = (0.03, 0.06, 0.1, 0.15)
"""Relative lengths of post-hoc averages that are tried, where a run stored some."""
MOST_PARTNERS = 4


def find_subject(run: str | Path, which: str) -> VerifiedCheckpoint:
    """Find the checkpoint to tune.

    Raises:
        CheckpointError: If there is none.
        ConfigError: If it is no run, several checkpoints are asked for, or it was distilled.
    """
    if which == "all":
        raise ConfigError("checkpoint must be one: 'latest', a step or a name; got 'all'.")
    found = find_checkpoints(run, which)[-1]
    if not isinstance(found, VerifiedCheckpoint):
        raise ConfigError(
            f"{printable(run)} is a pretrained folder; what is tuned is a run, whose data are known"
            " and which keeps the choice. Tune the run and push it, or save it again."
        )
    if found.state.diffusion.get("loss") == CONSISTENCY:
        raise ConfigError(
            f"{printable(run)} was tuned to draw in 1 to 4 steps, and solvers that follow a"
            " trajectory do not fit it: `ddpm distill` chose its number of steps, and sample takes"
            f" others by {option('num_steps')}. Tune the run that it was made from."
        )
    return found


@dataclass
class Subject:
    """A checkpoint with its networks, loaded when they are asked for.

    Attributes:
        checkpoint: It.
        device: Where it is sampled.
        data: Images, of which a network that enlarges gets small ones.
        known: The networks that were asked for.
    """

    checkpoint: VerifiedCheckpoint
    device: torch.device
    data: ImageDataset | None = None
    known: dict[str, LoadedRun] = field(default_factory=dict)

    @property
    def averages(self) -> list[str]:
        """The names of the weights to choose among; the first is the usual one."""
        state, run = self.checkpoint.state, self.checkpoint.run
        names = [f"ema {decay}" for decay in state.ema_decay] or ["model"]
        stored = available_snapshots(run) if (run / "checkpoints").is_dir() else []
        if any(s.step == state.step for s in stored):
            names += [f"ema sigma_rel={length:g}" for length in LENGTHS]
        return list(dict.fromkeys(names))

    def process(self, weights: str) -> GaussianDiffusion:
        """Return the process with some weights, on the device; its network wants no gradients."""
        if weights not in self.known:
            loaded = self._load(weights)
            place_network(loaded.diffusion, self.device, "no")
            loaded.diffusion.model.requires_grad_(False)
            self.known[weights] = loaded
        return self.known[weights].diffusion

    def _load(self, weights: str) -> LoadedRun:
        kind, _, average = weights.partition(" ")
        if "=" not in average:
            named: Any = average or None
            if average and average not in self.checkpoint.state.ema_decay:
                named = float(average)
            return load_checkpoint(self.checkpoint, kind, named)
        if average in self.checkpoint.state.ema_decay:
            return load_checkpoint(self.checkpoint, "ema", average)  # type: ignore[arg-type]
        usual = self.averages[0]
        loaded = self._load(usual)
        step = self.checkpoint.state.step
        length = float(average.partition("=")[2])
        tensors, _, _ = posthoc_weights(available_snapshots(self.checkpoint.run), length, step)
        loaded.diffusion.model.load_state_dict(tensors)
        return loaded

    def partner_names(self) -> list[str]:
        """Return what may guide as a worse version: earlier steps spread over the run, raw
        weights.
        """
        state, folder = self.checkpoint.state, self.checkpoint.path.parent
        if folder.name != "checkpoints":
            return []
        steps = sorted(
            s for p in folder.iterdir() if (s := step_in(p.name)) is not None and s < state.step
        )
        wanted = [state.step * share for share in (1 / 16, 1 / 4, 1 / 2)]
        near = [min(steps, key=lambda s: (abs(s - w), s)) for w in wanted] if steps else []
        names = [str(s) for s in dict.fromkeys(near)]
        return (names + (["model"] if state.ema_decay else []))[:MOST_PARTNERS]

    def partner(self, name: str, weights: str) -> GaussianDiffusion:
        """Return what guides some weights by its name, on the device: of an earlier step the same
        average, as where the run is sampled afterwards.
        """
        key = f"{weights} by {name}"
        if key not in self.known:
            self.process(weights)
            found = load_partner(self.known[weights], name)
            place_network(found.diffusion, self.device, "no")
            self.known[key] = found
        return self.known[key].diffusion

    def conditions(self, rows: range) -> dict[str, Tensor] | None:
        """Return the conditions of images by their numbers: classes in turn, or small images."""
        diffusion = self.process(self.averages[0])
        if draws_of_data(diffusion):
            assert self.data is not None
            import numpy as np

            here = np.arange(rows.start, rows.stop) % len(self.data)
            return conditions_of(diffusion, self.data.batch(here))
        labels = default_condition(diffusion, rows.stop)
        return None if labels is None else {k: v[rows.start :] for k, v in labels.items()}

    def starts(self, n: int, seed: int) -> Tensor:
        """Return n states of pure noise, those of a stream of its own."""
        diffusion = self.process(self.averages[0])
        streams = ImageStreams.make("tuning", seed, None, 0)
        return streams.noise(range(n), diffusion.image_shape, torch.float32, self.device)()

    def predictor(self, n: int, seed: int) -> Any:
        """Return what `learn_levels` asks for the evaluation of some of the starts."""
        diffusion = self.process(self.averages[0])
        streams = ImageStreams.make("tuning", seed, None, 0)
        cond = conditions_for(diffusion, self.conditions(range(n)), n, streams)
        return partial(_predict, diffusion, {k: v.to(self.device) for k, v in cond.items()})


def _predict(diffusion: GaussianDiffusion, cond: Cond, rows: range) -> Predict:
    denoiser = diffusion.denoiser
    here = {k: v[rows.start : rows.stop] for k, v in cond.items()}
    like = torch.empty(len(rows), *diffusion.image_shape, device=denoiser.device)
    complete = fill_nulls(denoiser.conditioners, here, like)
    with evaluating(denoiser.network):  # which stays so: it was loaded for this
        denoiser.network.eval()
    if is_self_conditioned(denoiser.conditioners):
        return SelfConditioned(denoiser.predict, complete)
    return partial(denoiser.predict, cond=complete)
