"""What learns: the network on its device, its optimizer and the averages of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ddpm_lib.nn.blocks import dropout_masks
from ddpm_lib.nn.memory_format import use_channels_last
from ddpm_lib.runs.network_state import optimizer_tensors
from ddpm_lib.runtime.compiling import compile_regions, wants_compile
from ddpm_lib.runtime.devices import precision_advice
from ddpm_lib.training.by_length import settled
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.ema import WeightAverages
from ddpm_lib.training.low_weights import LowWeights, keeps_low_weights
from ddpm_lib.training.one_pass import OnePassAdam
from ddpm_lib.training.optim import make_optimizer, state_entries
from ddpm_lib.training.posthoc import PostHocAverages

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.fine_tuning.pull_to_start import PullToStart

START = "start"
"""File stem of the weights at the first step."""

Tensors = dict[str, dict[str, Tensor]]
"""The tensors of a checkpoint by file stem and name."""


@dataclass(frozen=True)
class Learner:
    """The trained parts of a run, whose tensors a checkpoint holds.

    Args:
        diffusion: The process with its network, on the device.
        optimizer: accelerate's wrapper of Adam, AdamW or Muon.
        ema: Averages of the weights, None where none is kept.
        posthoc: Power-function averages.
        channels_last: Whether the weights lie in that memory format.
        pull: The pull to the weights at the first step, None where there is none.
        low: The weights in bfloat16, where they are kept.
    """

    diffusion: GaussianDiffusion
    optimizer: Any
    ema: WeightAverages | None
    posthoc: PostHocAverages
    channels_last: bool
    pull: PullToStart | None = None
    low: LowWeights | None = None

    @classmethod
    def place(
        cls,
        diffusion: GaussianDiffusion,
        config: TrainingConfig,
        accelerator: Accelerator,
        log: Callable[[str], None],
    ) -> Learner:
        """Move the process to its device and build what follows its weights.

        Args:
            diffusion: The process.
            config: The options of the run.
            accelerator: Gives the device and the precision.
            log: Gets a line when regions are compiled.
        """
        device, model = accelerator.device, diffusion.model
        precision = str(accelerator.mixed_precision)
        if advice := precision_advice(config.mixed_precision, device, precision):
            log(advice)
        channels_last = getattr(model, "dims", None) == 2 and use_channels_last(
            config.channels_last, device.type, precision
        )
        diffusion.to(device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if config.freeze:
            from ddpm_lib.training.fine_tuning.freezing import freeze

            freeze(model, config.freeze)
        pull = None
        if config.pull_to_start:
            from ddpm_lib.training.fine_tuning.pull_to_start import PullToStart

            pull = PullToStart(model, config.pull_to_start)
        decays = cast(tuple[float, ...], settled(config).ema_decay)
        ema = WeightAverages(model, decays, config.ema_power) if decays else None
        posthoc = PostHocAverages(model, config.posthoc_ema)
        optimizer = accelerator.prepare_optimizer(make_optimizer(diffusion, config, device))
        compiled = wants_compile(config.compile, device.type)
        if compiled:
            compile_regions(model, config.compile, log)
        low, how = None, {"pulled": pull is not None, "compiled": compiled}
        if keeps_low_weights(device, precision, accelerator.num_processes, **how):
            low = LowWeights(diffusion, optimizer.optimizer)
        return cls(diffusion, optimizer, ema, posthoc, channels_last, pull, low)

    @property
    def dropout_masks(self) -> str:
        """Where dropout's masks come from on a CPU: "position" or "torch"."""
        return dropout_masks(self.diffusion.model)

    def clip_gradients(self, accelerator: Accelerator, most: float) -> Tensor:
        """Return the norm of the gradient, the same on every rank, and shorten the gradient to
        `most`, at the latest when the optimizer reads it.
        """
        inner = self.optimizer.optimizer
        if accelerator.scaler is not None:
            return accelerator.clip_grad_norm_(self.diffusion.parameters(), most)
        if isinstance(inner, OnePassAdam):
            return inner.measure(most)
        trained = [p for group in inner.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(trained, most)

    def close(self) -> None:
        """Leave the network as it was found, but for its weights."""
        if self.low is not None:
            self.low.close()

    def averaged(self) -> nn.Module:
        """Return the EMA network, or the trained one where no average is kept."""
        return self.ema.network() if self.ema is not None else self.diffusion.model

    def update_averages(self, step: int) -> None:
        """Take in the weights after one optimizer step, counted from 1."""
        if self.ema is not None:
            self.ema.update()
        self.posthoc.update(step)

    def tensors(self, copy: bool = False) -> Tensors:
        """Return the tensors of a checkpoint by file stem and name.

        Args:
            copy: Whether to return copies in RAM that training does not change any more.
        """
        diffusion = self.diffusion
        groups: Tensors = {"model": diffusion.model.state_dict()}
        groups["optimizer"] = optimizer_tensors(self.optimizer, diffusion)
        if self.ema is not None:
            groups["ema"] = self.ema.tensors()
        if self.posthoc.sigma_rels:
            groups["posthoc"] = self.posthoc.tensors()
        if self.pull is not None:
            groups[START] = self.pull.tensors()
        if diffusion.uncertainty is not None:
            groups["uncertainty"] = diffusion.uncertainty.state_dict()
        if not copy:
            return groups
        return {stem: _in_ram(group) for stem, group in groups.items()}

    def checkpoint_bytes(self) -> int:
        """Return the size of a checkpoint on disk, also before the first step has made moments."""
        groups = self.tensors()
        if not self.optimizer.state:
            names = {id(p): name for name, p in self.diffusion.named_parameters()}
            groups["optimizer"] = {
                f"{entry}/{names[id(p)]}": p
                for group in self.optimizer.param_groups
                for p in group["params"]
                for entry in state_entries(group)
                if entry != "step"
            }
        every = [(k, v) for group in groups.values() for k, v in group.items()]
        # An entry of a safetensors header: its name and about 70 characters on type and place.
        return sum(v.numel() * v.element_size() + len(k) + 70 for k, v in every) + 8 * 1024


def _in_ram(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}
