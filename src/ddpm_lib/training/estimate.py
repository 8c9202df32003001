"""What a run will cost, before it starts: numbers of the network, memory, disk, and the speed of a
few steps on random images.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ddpm_lib.core.errors import ConfigError, OutOfMemoryError
from ddpm_lib.nn.kernels.norm_on_gpu import triton_kernels
from ddpm_lib.process.conditions import class_count
from ddpm_lib.runs.run_log import RunLog
from ddpm_lib.runtime import devices
from ddpm_lib.runtime.accelerate_state import (
    give_back_network,
    in_own_state,
    prepare_network,
)
from ddpm_lib.runtime.compiling import wants_compile
from ddpm_lib.runtime.memory import device_module, free_bytes, is_out_of_memory_error
from ddpm_lib.runtime.watchdog import Watchdog
from ddpm_lib.training.conditions_of_data import made_up
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.keeping import kept_for_good
from ddpm_lib.training.memory import activation_bytes, state_bytes, working_bytes
from ddpm_lib.training.sources import data_options
from ddpm_lib.training.trainer import Trainer

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.nn import Unet

WARM_UP = 2
"""Steps before the clock starts: kernels are chosen, memory is taken, moments are made."""
_MANY = 2**18
_MIB, _GIB = 2.0**20, 2.0**30


@dataclass(frozen=True)
class Estimate:
    """What a run costs; memory is that of one process.

    Args:
        parameters: Number of parameters of the network.
        macs: Multiply-accumulate operations per image, forward.
        image_size: Spatial size of one image.
        device: Where the run would be.
        precision: Of the forward pass.
        processes: How many share a step.
        batch_size: Images per optimizer step.
        batch_reason: Why batch_size="auto" is that number; empty for a given one.
        images_per_pass: Images per forward pass.
        activation_bytes_float32: What the forward pass keeps for the backward pass, in float32.
        activation_bytes_bf16: The same under bf16.
        state_bytes: Weights, gradients, moments of the optimizer, and averages.
        memory_bytes: All memory of training at its peak; measured on a GPU where steps were done,
            else computed.
        memory_measured: Whether it was measured.
        available_bytes: What the process may use of the device.
        fits: Whether the one is less than the other.
        checkpoint_bytes: Size of a checkpoint on disk.
        checkpoints: How many are on disk at most, but for those of `keep_every`.
        max_steps: Optimizer steps of the run.
        probe_steps: Steps that were timed.
        seconds_per_step: How long they took each; None if there were none.
        images_per_second: The speed of all processes together.
        hours: Duration of all steps, without validation, sample grids and the decoding of images.
    """

    parameters: int
    macs: int
    image_size: tuple[int, ...]
    device: str
    precision: str
    processes: int
    batch_size: int
    batch_reason: str
    images_per_pass: int
    activation_bytes_float32: int
    activation_bytes_bf16: int
    state_bytes: int
    memory_bytes: int
    memory_measured: bool
    available_bytes: int
    fits: bool
    checkpoint_bytes: int
    checkpoints: int
    max_steps: int
    probe_steps: int
    seconds_per_step: float | None
    images_per_second: float | None
    hours: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain JSON values."""
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    def __str__(self) -> str:
        """Write one line per quantity."""
        size = "×".join(map(str, self.image_size))
        shares = (
            f", {self.images_per_pass} per forward pass"
            if self.images_per_pass < self.batch_size
            else ""
        )
        ranks = f", {self.processes} processes" if self.processes > 1 else ""
        measured = "measured" if self.memory_measured else "computed"
        verdict = (
            "fits"
            if self.fits
            else "does NOT fit: use more accumulation steps, or model.gradient_checkpointing"
        )
        lines = [
            ("parameters", f"{self.parameters:,}"),
            (f"MACs per {size} image", f"{self.macs:,}"),
            ("device", f"{self.device}, {self.precision}{ranks}"),
            ("batch", f"{self.batch_size} images{shares}"),
            (
                "activations",
                (
                    f"float32 {_mib(self.activation_bytes_float32)}, bf16"
                    f" {_mib(self.activation_bytes_bf16)}"
                ),
            ),
            ("weights, gradients, moments, averages", _mib(self.state_bytes)),
            (
                "memory of training",
                (
                    f"{_mib(self.memory_bytes)} ({measured}) of {self.available_bytes / _GIB:,.2f}"
                    f" GiB: {verdict}"
                ),
            ),
            (
                "checkpoint",
                f"{_mib(self.checkpoint_bytes)} on disk, {self.checkpoints} of them at most",
            ),
            ("speed", self._speed()),
        ]
        if self.hours is not None:
            without = "without validation, sample grids and the decoding of images"
            lines.append((f"{self.max_steps:,} steps", f"{_duration(self.hours)}, {without}"))
        width = max(len(name) for name, _ in lines)
        told = "\n".join(f"{name:{width}}  {value}" for name, value in lines)
        return f"{self.batch_reason}\n{told}" if self.batch_reason else told

    def _speed(self) -> str:
        if self.seconds_per_step is None:
            return "not measured: " + (
                "no steps were asked for (probe_steps 0)" if self.fits else "out of memory"
            )
        return (
            f"{self.images_per_second:,.4g} images/s, {self.seconds_per_step:.4g} s per step (mean"
            f" of {self.probe_steps} after {WARM_UP} of warm-up)"
        )


def estimate(
    diffusion: GaussianDiffusion,
    config: TrainingConfig,
    probe_steps: int = 5,
    images: int | None = None,
) -> Estimate | None:
    """Build the run on random images, count, and time a few of its steps; nothing is written that
    stays.

    Under a launcher every process is to call it; the numbers are returned by the main one, the
    others return None.

    Args:
        diffusion: The process with a `Unet`; the steps train it.
        config: The options of the run.
        probe_steps: Steps to time; 0 for none.
        images: Number of training images, where it is known; a batch of "auto" is not larger.

    Raises:
        ConfigError: For impossible options.
        OutOfMemoryError: If not even the weights find room.
    """
    if probe_steps < 0:
        raise ConfigError(f"probe_steps must be 0 or more; got {probe_steps}.")
    with TemporaryDirectory(prefix="ddpm-estimate-") as folder:
        trainer = Rehearsal(
            diffusion, random_images(diffusion, images or _MANY), config, Path(folder)
        )
        try:
            trainer.prepare()
        except RuntimeError as error:
            if isinstance(error, OutOfMemoryError) or not is_out_of_memory_error(error):
                raise
            raise OutOfMemoryError(
                f"The weights and their averages do not fit on the device: {error}"
            ) from error
        there = trainer.state_bytes() - trainer.state_bytes(to_come=True)
        available = there + free_bytes(trainer.device)
        seconds, peak = trainer.probe(probe_steps) if probe_steps else (None, None)
        result = trainer.result(probe_steps, seconds, peak, available) if trainer.is_main else None
        trainer.close()
    return result


class QuietLog(RunLog):
    """The log of a run that is only rehearsed: its lines are about a run that this is not."""

    def info(self, line: str) -> None:
        """Drop the line."""


class Rehearsal(Trainer):
    """A trainer that does a few steps, calls no callback and leaves no files.

    Args:
        diffusion: The process.
        data: Random images.
        config: The options of the run.
        folder: Where files may lie for the time being.
    """

    def __init__(
        self, diffusion: GaussianDiffusion, data: ImageDataset, config: TrainingConfig, folder: Path
    ) -> None:
        data.opened_with = data_options(config, config.split)  # they cost nothing in a step
        changes: dict[str, Any] = {
            "val_data": None,
            "val_condition": (),
            "val_every": 0,
            "sample_every": 0,
            "keep_best": None,
            "keep_early": "no",
            "condition": (),  # of files; these images have values of their own
            "add_data": (),
            "add_condition": (),
            "trackers": (),
            "progress": False,
            "num_workers": 0,
            "resume": "auto",
            "output_dir": None,
        }
        super().__init__(diffusion, data, config=dataclasses.replace(config, **changes))
        validated = config.val_data is not None or bool(config.val_fraction)
        self.kept = kept_for_good(config, len(data), validated)
        # Not as an option, which must be the same on all ranks.
        self.run_log = QuietLog(
            folder / "run",
            self.progress,
            max_steps=self.config.max_steps,
            save_every=self.config.cadences.save_every,
        )

    def state_bytes(self, to_come: bool = False) -> int:
        """Return what `training.memory.state_bytes` says of this run."""
        return state_bytes(self.diffusion, self.config, self.processes, to_come)

    def result(
        self, steps: int, seconds: float | None, peak: int | None, available: int
    ) -> Estimate:
        """Collect the numbers of the run.

        Args:
            steps: Steps that were to be timed.
            seconds: How long each took; None if memory ran out, or none were timed.
            peak: The peak of the device's memory, where it was measured.
            available: Bytes that the process may use of the device.

        Raises:
            ConfigError: If the network is no `Unet`.
        """
        config, model, size = (
            self.config,
            cast("Unet", self.diffusion.model),
            self.diffusion.image_size,
        )
        micro = self.plan.micro
        eager = self.device.type == "cuda" and not wants_compile(config.compile, "cuda")
        eager = eager and not (self.learner.channels_last and triton_kernels(self.device))
        kept = {p: activation_bytes(model, size, micro, p, eager) for p in ("no", "bf16")}
        if kept["no"] is None or kept["bf16"] is None:
            raise ConfigError(f"Only a Unet can be estimated; got {type(model).__name__}.")
        activations = kept["no" if self.precision == "no" else "bf16"]
        assert activations is not None
        state = self.state_bytes()
        memory = peak if peak is not None else state + working_bytes(model, activations)
        summary = model.summary(size)
        out_of_memory = bool(steps) and seconds is None
        return Estimate(
            parameters=summary.parameters,
            macs=summary.macs,
            image_size=tuple(size),
            device=str(self.device),
            precision="float32" if self.precision == "no" else self.precision,
            processes=self.processes,
            batch_size=config.images_per_step,
            batch_reason=self.batch_reason,
            images_per_pass=micro,
            activation_bytes_float32=kept["no"],
            activation_bytes_bf16=kept["bf16"],
            state_bytes=state,
            memory_bytes=memory,
            memory_measured=peak is not None,
            available_bytes=available,
            fits=memory <= available and not out_of_memory,
            checkpoint_bytes=self.learner.checkpoint_bytes(),
            checkpoints=config.keep_last + 1 + self.kept,
            max_steps=config.max_steps,
            probe_steps=0 if seconds is None else steps,
            seconds_per_step=seconds,
            images_per_second=None if seconds is None else config.images_per_step / seconds,
            hours=None if seconds is None else config.max_steps * seconds / 3600,
        )

    @in_own_state
    def probe(self, steps: int) -> tuple[float | None, int | None]:
        """Do some steps and time them.

        Returns:
            Seconds per step, None if memory ran out; and the peak of the device's memory, where the
            device tells it.
        """
        own_forward = self.diffusion.__dict__.get("forward")
        self._watchdog = Watchdog(60 * self.config.stall_minutes, self.output_dir)
        seconds, peak = None, None
        if self.device.type in ("cuda", "xpu"):  # what a search tried before is no part of it
            device_module(self.device).reset_peak_memory_stats(self.device)
        try:
            network = prepare_network(self.accelerator, self.diffusion)
            self.diffusion.train()
            self.guard.reset(self.device)
            batches = self._open_batches()
            with devices.global_state_kept(self.device, self.config.deterministic):
                for step in range(WARM_UP + steps):
                    if step == WARM_UP:
                        began = self._now()
                    self._optimizer_step(network, batches)
                seconds = (self._now() - began) / steps
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
        finally:
            self.learner.close()
            give_back_network(self.accelerator, self.diffusion, own_forward)
        if seconds is not None and self.device.type in ("cuda", "xpu"):
            peak = int(device_module(self.device).max_memory_reserved(self.device))
        return seconds, peak

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def random_images(diffusion: GaussianDiffusion, count: int) -> ImageDataset:
    """Return images of noise in RAM that fit the process, with labels where the network reads
    some.
    """
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.dataset import MemoryStore

    draw = np.random.default_rng(0)
    pool = draw.integers(0, 256, (64, diffusion.channels, *diffusion.image_size), dtype=np.uint8)
    classes = class_count(diffusion.conditioners)
    labels = None if classes is None else draw.integers(0, classes, count)
    images = ImageDataset(
        MemoryStore(torch.from_numpy(pool)), labels=labels, rows=np.arange(count) % len(pool)
    )
    images.conditions = made_up(diffusion, count)
    return images


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
