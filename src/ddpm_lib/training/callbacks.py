"""What happens around the training loop: progress, metrics, validation, sample grids, checkpoints.

A callback has three hooks, which run on every rank at every step; it keeps its own cadence, reads the trainer, and may only
`trainer.save()` or `trainer.stop(reason)`. Because every rank runs it, it may use collectives, but never inside `if is_main`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.progress import in_notebook
from ddpm_lib.training.batches import batch_to_device
from ddpm_lib.training.examples import beside_examples

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.training.config import TrainingConfig
    from ddpm_lib.training.trainer import Trainer


class Callback:
    """Base of all callbacks; override the hooks you need."""

    @property
    def name(self) -> str:
        """Names this callback's state in checkpoints."""
        return type(self).__name__

    def on_train_start(self, trainer: Trainer) -> None:
        """Run before the first step of a call of `train`, and again after a roll-back (then `close` has run between)."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after every optimizer step; `trainer.step` counts the steps done, `trainer.last` holds the step's tensors."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Run after the last step, when the final checkpoint is written."""

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return JSON-able state to save with checkpoints; runs on every rank, the main process's answer is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (an empty dict where the checkpoint has none)."""

    def keeps(self) -> set[int]:
        """Return steps whose checkpoints are not to be removed."""
        return set()

    def close(self) -> None:
        """Let go of what is open; runs last, also when training ends in an error."""


class MetricLogger(Callback):
    """Average the loss, also by quarter of t, and the gradient norm, and log them every `every` steps.

    Sums stay on the device in float64 where it has that, so that nothing waits for the device between two lines. The window
    is part of the checkpoint: a resumed run writes the same lines.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._sums: Tensor | None = None
        self._restored: list[float] | None = None
        self._clock = (0.0, 0)

    def on_train_start(self, trainer: Trainer) -> None:
        """Start the window, from the checkpoint's sums where there are some; a second call of `train` continues it."""
        if self._sums is None:
            start = self._restored if self._restored and trainer.is_main else [0.0] * 10
            self._sums = torch.tensor(start, dtype=trainer.sum_dtype, device=trainer.device)
        self._clock = (time.monotonic(), trainer.images_seen)

    def on_step_end(self, trainer: Trainer) -> None:
        """Add this step; write a line when the window is full."""
        assert self._sums is not None
        assert trainer.last is not None
        losses, levels = trainer.last.losses.to(self._sums.dtype), trainer.last.levels
        quarter = ((levels - 1) * 4 // trainer.diffusion.timesteps).long().clamp(0, 3)
        quarter = to_device(quarter, losses.device)
        # 0-3 loss sums by quarter, 4-7 counts by quarter, 8 gradient norms, 9 steps
        self._sums.index_add_(0, quarter, losses)
        self._sums.index_add_(0, quarter + 4, torch.ones_like(losses))
        if trainer.is_main:
            self._sums[8] += trainer.last.grad_norm.to(self._sums)
            self._sums[9] += 1
        if trainer.step % self.every == 0 or trainer.step == trainer.config.max_steps:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        assert self._sums is not None
        assert trainer.last is not None
        sums = trainer.sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        quarters = {f"loss_q{i + 1}": sums[i] / sums[4 + i] if sums[4 + i] else float("nan") for i in range(4)}
        now = time.monotonic()
        since, images = self._clock
        self._clock = (now, trainer.images_seen)
        trainer.log(
            {
                "loss": sum(sums[:4]) / sum(sums[4:8]),
                **quarters,
                "grad_norm": sums[8] / sums[9],
                "learning_rate": trainer.last.learning_rate,
                "images_per_second": (trainer.images_seen - images) / max(now - since, 1e-9),
            }
        )

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return the window, summed over the ranks."""
        return {} if self._sums is None else {"sums": trainer.sum_over_ranks(self._sums).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the window.

        Raises:
            ValueError: If it is none.
        """
        sums = state.get("sums")
        if sums is not None and (len(sums) != 10 or not all(isinstance(v, (int, float)) for v in sums)):
            raise ValueError("sums must be 10 numbers")
        self._sums, self._restored = None, sums


class LossAwareTimes(Callback):
    """Tell a time sampler that learns the losses of all ranks in the order of the global batch, and keep its state.

    Reading the losses makes every step wait for the device.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Hand over what a checkpoint held; a new run starts without a memory."""
        if self._restored is not None or not trainer.step:
            trainer.diffusion.time_sampler.load_state_dict(self._restored or {})
            self._restored = None

    def on_step_end(self, trainer: Trainer) -> None:
        """Tell the losses of this step."""
        assert trainer.last is not None
        losses = trainer.last.losses
        seen = torch.stack([to_device(trainer.last.levels.to(losses.dtype), losses.device), losses], 1)
        seen = trainer.accelerator.gather(seen).cpu() if trainer.processes > 1 else seen.cpu()
        trainer.diffusion.time_sampler.update(seen[:, 0].long(), seen[:, 1].double())

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return the sampler's state, the same on every rank."""
        return trainer.diffusion.time_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._restored = state


class Validation(Callback):
    """Loss of the averaged weights on held-out images and on as many training images, with the same noise every time.

    Levels are spread evenly over the images, noise and levels are functions of the image's index, so the curves are smooth and
    the gap between them is over-fitting, nothing else. Each rank takes its share.
    """

    def __init__(self, every: int, max_images: int, seed: int) -> None:
        self.every, self.max_images, self.seed = every, max_images, seed

    def on_step_end(self, trainer: Trainer) -> None:
        """Validate when it is time."""
        if trainer.held_out is None or (trainer.step % self.every and trainer.step != trainer.config.max_steps):
            return
        n = min(self.max_images, len(trainer.held_out))
        held_out = self.losses(trainer, trainer.held_out, n)
        train = self.losses(trainer, trainer.dataset, min(n, len(trainer.dataset)))
        error, gap_error = standard_errors(held_out, train, trainer.diffusion.timesteps)
        val, fixed = float(held_out.mean()), float(train.mean())
        trainer.log(
            {
                "val_loss": val,
                "val_loss_error": error,
                "train_fixed_loss": fixed,
                "val_gap": val - fixed,
                "val_gap_error": gap_error,
            }
        )

    def losses(self, trainer: Trainer, dataset: ImageDataset, n: int) -> Tensor:
        """Return the losses (n,) of images spread over the dataset, on every rank, on the CPU."""
        spread = np.arange(n) * len(dataset) // n
        own = np.arange(n)[trainer.rank :: trainer.processes]
        found = torch.zeros(n, dtype=trainer.sum_dtype, device=trainer.device)
        network = trainer.averaged_network()
        size = max(trainer.plan.micro, 16)
        trainer.diffusion.eval()  # no dropout, no hidden labels
        try:
            for start in range(0, len(own), size):
                rows = own[start : start + size]
                values = self._losses(trainer, network, dataset, spread[rows], rows).to(found.dtype)
                found.index_copy_(0, to_device(torch.from_numpy(rows), trainer.device), values)
        finally:
            trainer.diffusion.train()
        return trainer.sum_over_ranks(found).cpu()

    def _losses(
        self, trainer: Trainer, network: nn.Module, dataset: ImageDataset, indices: np.ndarray, rows: np.ndarray
    ) -> Tensor:
        diffusion = trainer.diffusion
        batch = batch_to_device(dataset.batch(indices.tolist()), trainer.device)
        images = batch.pop("image")
        t = spread_levels(rows, diffusion.timesteps)
        shape = tuple(images.shape[1:])
        noise = torch.stack(
            [torch.randn(shape, generator=keys.generator("cpu", int(row), self.seed, "validation")) for row in rows]
        )
        cond = trainer.conditions(batch)
        with torch.inference_mode(), trainer.accelerator.autocast():
            return diffusion(images, cond, t=t, noise=to_device(noise, trainer.device), reduction="none", model=network)


def spread_levels(rows: np.ndarray, timesteps: int) -> Tensor:
    """Return a level in 1 … T for each row: a golden-ratio sequence, even however many rows there are."""
    spread = torch.from_numpy((rows * 0.6180339887498949 + 0.5) % 1.0)
    return (spread * timesteps).long().clamp_(0, timesteps - 1) + 1


def standard_errors(held_out: Tensor, train: Tensor, timesteps: int) -> tuple[float, float]:
    """Return the standard errors of the mean held-out loss and of its difference to the training images' mean.

    Row i of both sets has the same level and the same noise. The levels are spread evenly, so how the loss depends on them is no
    error: what counts is how rows of neighbouring levels differ, Σ(l_{i+1} − l_i)² / (2(n−1)), the estimate for systematic
    samples (Wolter 2007, §8.2). In the difference of pairs what the noise does to both sides cancels as well.

    Args:
        held_out: Losses (n,).
        train: Losses (m,), m ≤ n.
        timesteps: T.

    Returns:
        Both errors; NaN where there is one row only.
    """

    def error(values: Tensor) -> float:
        n = len(values)
        if n < 2:
            return float("nan")
        order = torch.argsort(spread_levels(np.arange(n), timesteps), stable=True)
        steps = values.double()[order].diff()
        return float((steps.square().sum() / (2 * (n - 1)) / n).sqrt())

    if len(train) == len(held_out):
        return error(held_out), error(held_out - train)
    return error(held_out), float(np.hypot(error(held_out), error(train)))


class SampleGrid(Callback):
    """Draw a grid of samples from fixed seeds every `every` steps into `samples/`, shared over the ranks.

    Of a super-resolution network it shows held-out images: small copy, sample, truth.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, trainer: Trainer) -> None:
        """Sample when it is time, and after the last step."""
        config = trainer.config
        if trainer.step % self.every and trainer.step != config.max_steps:
            return
        batch = trainer.sample(
            config.sample_count,
            sampler=config.sample_sampler,
            num_steps=min(config.sample_steps, trainer.diffusion.timesteps),
            seed=config.sample_seed,
            guidance_scale=config.sample_guidance_scale,
            progress=False,
        )
        if trainer.is_main and batch.ndim == 4 and batch.shape[1] in (1, 3, 4):
            scale = max(1, 128 // max(batch.shape[-2:]))
            path = trainer.output_dir / "samples" / f"step-{trainer.step:09d}.png"
            tiles, columns = beside_examples(trainer, batch)
            with trainer.going_on(str(path)):
                trainer.last_grid = pictures.save_grid(tiles, path, columns, scale)
                trainer.note("grid saved")
                _show_inline(path)


def _show_inline(path: Any) -> None:
    # In a notebook the grid belongs under the cell; elsewhere there is nothing to show it in.
    if in_notebook():
        from IPython.display import Image, display

        display(Image(filename=str(path)))


class SaveCheckpoints(Callback):
    """Ask for a checkpoint every `every` steps."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, trainer: Trainer) -> None:
        """Save when it is time."""
        if trainer.step % self.every == 0:
            trainer.save()


def check_callbacks(given: Callback | Iterable[Callback] | None) -> list[Callback]:
    """Return the callbacks of a user as a list.

    Args:
        given: Several, one, or none.

    Raises:
        TypeError: If one is no `Callback`, saying what to make of it.
    """
    if given is None or isinstance(given, Callback):
        return [given] if given is not None else []
    if not isinstance(given, Iterable):
        given = [given]
    found = list(given)
    for callback in found:
        if isinstance(callback, Callback):
            _check_hooks(callback)
            continue
        if isinstance(callback, type) and issubclass(callback, Callback):
            way = f"the class {callback.__name__}: pass an instance, {callback.__name__}()"
        else:
            kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            way = (
                f"{kind}: derive it from ddpm_lib.training.Callback, which has every hook, and override "
                "on_train_start(trainer), on_step_end(trainer) or on_train_end(trainer)"
            )
        raise TypeError(f"A callback must be an instance of a Callback; got {way}.")
    return found


def _check_hooks(callback: Callback) -> None:
    kind, hooks = type(callback), [name for name in dir(Callback) if name.startswith("on_")]
    unknown = [
        name for name in dir(kind) if name.startswith("on_") and name not in hooks and callable(getattr(kind, name))
    ]
    if unknown:
        raise TypeError(
            f"{kind.__name__} has {', '.join(unknown)}, which nothing would call: the hooks of a Callback are "
            f"{', '.join(hooks)}. Use one of them, or another name for a method of your own."
        )


def default_callbacks(config: TrainingConfig, learns_times: bool = False) -> list[Callback]:
    """Return the callbacks that the options, and a time sampler that learns, ask for, in the order in which they run."""
    chosen: list[Callback] = [MetricLogger(config.log_every)]
    if learns_times:
        chosen.append(LossAwareTimes())
    if config.val_every:
        chosen.append(Validation(config.val_every, config.val_max_images, config.seed))
    if config.sample_every:
        chosen.append(SampleGrid(config.sample_every))
    if config.posthoc_ema:
        from ddpm_lib.training.posthoc import PostHocSnapshots

        chosen.append(PostHocSnapshots(config.posthoc_every))
    chosen.append(SaveCheckpoints(config.save_every))
    if config.progress:
        from ddpm_lib.training.display import ProgressBar

        chosen.append(ProgressBar())
    return chosen
