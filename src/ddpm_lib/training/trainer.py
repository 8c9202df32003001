"""The training loop: it reads as a recipe, and everything that is not the recipe is a callback."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.nn.lowering import lowered_copy
from ddpm_lib.nn.memory_format import use_channels_last
from ddpm_lib.runs.metrics_file import flat_scalars
from ddpm_lib.runs.names import checkpoint_name
from ddpm_lib.runtime import allocator, devices
from ddpm_lib.runtime.accelerate_state import OwnState, give_back_network, in_own_state
from ddpm_lib.runtime.compiling import compile_regions, wants_compile
from ddpm_lib.runtime.rendezvous import leave
from ddpm_lib.runtime.trackers import finishers, start_trackers
from ddpm_lib.runtime.watchdog import Watchdog, meeting_store
from ddpm_lib.training import failures
from ddpm_lib.training.agreement import check_alike, check_place, check_process
from ddpm_lib.training.auto_batch import with_batch_size
from ddpm_lib.training.batches import BatchPlan, TrainingBatches
from ddpm_lib.training.callbacks import default_callbacks
from ddpm_lib.training.callbacks.base import Callback, check_callbacks
from ddpm_lib.training.callbacks.best import KeepBest, check_metric
from ddpm_lib.training.callbacks.rows import TrainingRows
from ddpm_lib.training.claim import claimed, look_again, start_records
from ddpm_lib.training.cleanup import run_all
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.context import RunContext
from ddpm_lib.training.ema import WeightAverages
from ddpm_lib.training.examples import example_conditions
from ddpm_lib.training.forward import forward_rows
from ddpm_lib.training.optim import learning_rate, make_optimizer, set_learning_rate
from ddpm_lib.training.option_help import show_options
from ddpm_lib.training.posthoc import PostHocAverages
from ddpm_lib.training.randomness import StepRandomness
from ddpm_lib.training.results import StepResult, StopReason, TrainingResult
from ddpm_lib.training.resume import describe_run, find_checkpoint, restore, shards_of_run
from ddpm_lib.training.run_config import absolute_source
from ddpm_lib.training.same_data import fraction_held_out
from ddpm_lib.training.sampling import check_grids, default_condition, sample_shared
from ddpm_lib.training.saving import Saver
from ddpm_lib.training.sources import check_augmentation, data_name, held_fraction, open_training_data
from ddpm_lib.training.stopping import StopSignals, TimeLimit, reason_to_stop

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

logger = logging.getLogger("ddpm_lib")


class Trainer(RunContext):
    """Train a `GaussianDiffusion` on images; the same call continues a run that was cut off.

    Args:
        diffusion: The process with its network.
        data: A folder of images, a 🤗 dataset (path, hub name or object), a .npz or .parquet file, an `ImageDataset`, any torch
            Dataset, or "shapes" for the built-in images.
        config: The options as one object, instead of keywords.
        callbacks: One or several, added after the default ones (progress, metrics, validation, sample grids, checkpoints).
        **options: The fields of `TrainingConfig`.

    Raises:
        ConfigError: For unknown, impossible or contradictory options.
        ValueError: For data that cannot be used.

    Example:
        >>> from ddpm_lib import GaussianDiffusion, Trainer, Unet                                  # doctest: +SKIP
        >>> diffusion = GaussianDiffusion(Unet(dim=64), image_size=64)                             # doctest: +SKIP
        >>> Trainer(diffusion, "path/to/images", output_dir="runs/mine", max_steps=5000).train()   # doctest: +SKIP
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: Any = "shapes",
        *,
        config: TrainingConfig | None = None,
        callbacks: Callback | Iterable[Callback] | None = (),
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise ConfigError(f"Give either config= or options, not both; got config and {', '.join(options)}.")
        self.config = config or TrainingConfig.from_options(options)
        check_process(diffusion)
        self.diffusion = diffusion
        self.data_source = data
        self.source_name = str(data) if isinstance(data, (str, Path)) else type(data).__name__
        self.callbacks: list[Callback] = default_callbacks(self.config, diffusion.time_sampler.learns)
        self.callbacks += check_callbacks(callbacks)
        if self.config.keep_best:  # last, so that it hears what other callbacks log
            check_metric(self.config)
            self.callbacks.append(KeepBest(self.config.keep_best))
        self.callbacks.append(TrainingRows())
        self.output_dir = Path(self.config.output_dir or f"runs/{data_name(data)}")
        check_place(self.output_dir, data)
        self.step = 0
        self.images_seen = 0
        self.elapsed_seconds = 0.0
        self.last: StepResult | None = None
        self.metrics: dict[str, Any] = {}
        self.last_checkpoint: Path | None = None
        self.last_grid: Path | None = None
        self._row: dict[str, Any] = {}
        self._lines: list[str] = []
        self._met = self._prepared = False
        self._notes: list[str] = []
        self.accelerate_state = OwnState()
        self.rank, self.processes, self.is_main = 0, 1, True  # until the processes have met
        self._stop_reason: StopReason | None = None
        self._save_requested = False
        self.saver = Saver(self.config.save_async)
        self._slowest_step = 0.0
        self.guard = failures.NonFiniteGuard(self.config.on_nonfinite, self.config.max_nonfinite)
        check_size = getattr(diffusion.model, "check_size", None)
        if check_size is not None:
            check_size(diffusion.image_size)
        check_augmentation(diffusion, self.config)
        if self.config.sample_every:
            check_grids(diffusion, self.config)

    @in_own_state
    def train(self) -> TrainingResult:
        """Train until `max_steps`, a time limit or a signal; resume from the newest checkpoint in the run directory.

        Returns:
            How it ended; call `train()` again to continue after an interruption.
        """
        called = time.monotonic()
        with failures.losses_explained(self):
            self._meet()
            with claimed(self):
                if self._prepared:
                    look_again(self)
                self.prepare()
                first = self.step
                with self._session() as (network, signals):
                    limit = TimeLimit(self.config.max_hours, called)
                    while True:
                        try:
                            self._walk(network, signals, limit)
                            break
                        except failures.StartOver as again:
                            again.apply(self)
                return self._finish(first)

    def _walk(self, network: nn.Module, signals: StopSignals, limit: TimeLimit) -> None:
        """Train from the present state to the end, a reason to stop, or a failure that means to start over."""
        batches = self._open_batches()
        try:
            self._each_callback("on_train_start")
            while self.step < self.config.max_steps and not self._agree_to_stop(signals, limit):
                began = time.monotonic()
                with failures.memory_answered(self):
                    self._optimizer_step(network, batches)
                if self.step % self.config.log_every == 0:
                    self.guard.look(self)
                self._each_callback("on_step_end")
                self._save_if_requested()
                self._slowest_step = max(self._slowest_step, time.monotonic() - began)
            self._save_at_end()
            self._each_callback("on_train_end")
        finally:
            batches.close()

    def _optimizer_step(self, network: nn.Module, batches: TrainingBatches) -> None:
        config, rows_of = self.config, self.plan.rows()
        self.watchdog.at(self.step, "the next step")
        rate = learning_rate(self.step, config)
        set_learning_rate(self.optimizer, rate)
        losses, levels = [], []
        for i, rows in enumerate(rows_of):
            last = i == len(rows_of) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(network):
                per_image, t = self._forward(network, next(batches), rows)
                self.accelerator.backward(per_image.mean() / len(rows_of))
            losses.append(per_image.detach())
            levels.append(t)
        norm = self.accelerator.clip_grad_norm_(self.diffusion.parameters(), config.max_grad_norm or float("inf"))
        loss = torch.cat(losses)
        self.guard.step(self, loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self.posthoc.update(self.step)
        self.images_seen += config.images_per_step
        self.last = StepResult(loss, torch.cat(levels), norm, rate)

    def _forward(self, network: nn.Module, batch: dict[str, Any], rows: range) -> tuple[Tensor, Tensor]:
        """Return the losses of some rows of the present step's batch, and their levels."""
        return forward_rows(self, network, batch, rows)

    def conditions(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """Pick the fields of a batch that the network is conditioned on."""
        names = getattr(self.diffusion.model, "conditioners", {})
        cond = {name: batch[name] for name in names if name in batch}
        return cond or None

    @in_own_state
    def prepare(self) -> None:
        """Open the data, place the network, and restore the newest checkpoint; `train` calls it, calling it first is allowed."""
        if self._prepared:
            return
        self._meet()
        config = self.config
        checkpoint = self.on_main(lambda: find_checkpoint(self.output_dir, config.resume, self.say))
        saved = None if checkpoint is None else checkpoint.state
        self.source_name = absolute_source(self.source_name)
        before = None if saved is None else fraction_held_out(saved)
        self.held_fraction = held_fraction(config, before)
        self.dataset, self.held_out = open_training_data(self.data_source, config, self.diffusion, self.say, before)
        self._place_network()
        config = self.config = with_batch_size(self, checkpoint)
        self.plan = BatchPlan(config.images_per_step, self.processes, self.rank, config.accumulation_steps)
        shards = shards_of_run(config, self.processes, saved, self.say)
        self.randomness = StepRandomness(config.seed, config.images_per_step, shards)
        if checkpoint is not None:
            restore(self, checkpoint)
            self.last_checkpoint = checkpoint.path
            self.say(f"Resumed {checkpoint.path} at step {self.step:,} of {config.max_steps:,}.")
        self.say(describe_run(self))
        self._prepared = True

    def _meet(self) -> None:
        """Meet the other processes of the run, once."""
        if self._met:
            return
        config = self.config
        self._join(
            devices.make_accelerator(
                self.output_dir,
                device=config.device,
                mixed_precision=config.mixed_precision,
                trackers=config.trackers,
                timeout_minutes=config.process_timeout_minutes,
            )
        )
        self.precision = str(self.accelerator.mixed_precision)
        check_alike(self.config, self.diffusion, self.processes)
        self._met = True

    def _place_network(self) -> None:
        config, model = self.config, self.diffusion.model
        self.channels_last = getattr(model, "dims", None) == 2 and use_channels_last(
            config.channels_last, self.device.type, self.precision
        )
        self.diffusion.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        self.ema = WeightAverages(model, config.ema_decay, config.ema_power) if config.ema_decay else None
        self.posthoc = PostHocAverages(model, config.posthoc_ema)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.diffusion, config, self.device))
        if wants_compile(config.compile, self.device.type):
            compile_regions(model, config.compile, self.say)

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[nn.Module, StopSignals]]:
        own_forward, failure = self.diffusion.__dict__.get("forward"), None
        self._stop_reason, self._save_requested, self._row = None, False, {}
        try:
            self.on_main(lambda: start_records(self))
            network = self.accelerator.prepare_model(self.diffusion)
            self.diffusion.train()
            if self.config.trackers and self.step < self.config.max_steps:
                options = flat_scalars(self.config.to_dict())
                self.on_main(lambda: start_trackers(self.accelerator, self.output_dir.name, options))
            self._status("running", "")
            self._clock = time.monotonic() - self.elapsed_seconds
            self.guard.reset(self.device)
            store = meeting_store(self.processes)
            self.watchdog = Watchdog(60 * self.config.stall_minutes, self.output_dir, self.rank, self.processes, store)
            with (
                devices.global_state_kept(self.device, self.config.deterministic),
                StopSignals() as signals,
                self.watchdog,
            ):
                yield network, signals
        except BaseException as error:
            failure = error
            if self.log_is_open:
                self._status("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            steps: list[Callable[[], object]] = [self.saver.close, *(callback.close for callback in self.callbacks)]
            steps += finishers(self.accelerator)
            steps.append(lambda: give_back_network(self.accelerator, self.diffusion, own_forward))
            run_all([*steps, allocator.give_back_freed_memory], failure)

    def _open_batches(self) -> TrainingBatches:
        from ddpm_lib.data import default_num_workers

        workers = self.config.num_workers
        if workers is None:
            workers = default_num_workers(in_memory=self.dataset.in_memory)
        return TrainingBatches(
            self.dataset, self.plan, self.config.seed, self.images_seen, workers, self.device.type == "cuda", self.say
        )

    def _each_callback(self, hook: str) -> None:
        for callback in self.callbacks:
            self.watchdog.at(self.step, f"{callback.name}.{hook}")
            getattr(callback, hook)(self)
        self._flush_row()

    def _agree_to_stop(self, signals: StopSignals, limit: TimeLimit) -> bool:
        """Say on every rank alike whether to stop; on a GPU the ranks ask each other every tenth step only."""
        run = self.output_dir if self.is_main else None
        reason = self._stop_reason or reason_to_stop(signals, limit, self._slowest_step, self.saver.seconds, run)
        if self.processes > 1:
            if self.device.type != "cpu" and self.step % 10:
                return False
            flag = torch.tensor(float(reason is not None), device=self.device)
            if not float(self.sum_over_ranks(flag)):
                return False
            from accelerate.utils import gather_object

            reason = next(r for r in gather_object([reason]) if r is not None)
        self._stop_reason = reason
        return reason is not None

    def _save_if_requested(self) -> None:
        if not self._save_requested:
            return
        self._save_requested = False
        self.guard.look(self)
        self.watchdog.at(self.step, "saving")
        self.elapsed_seconds = time.monotonic() - self._clock
        self.saver.save(self)

    def _save_at_end(self) -> None:
        name = checkpoint_name(self.step)
        self.saver.settle(self)
        if self.last_checkpoint is not None and self.last_checkpoint.name == name:
            return
        self._save_requested = True
        self._save_if_requested()
        self.saver.settle(self)
        if self.last_checkpoint is None or self.last_checkpoint.name != name:
            raise CheckpointError(
                f"The last checkpoint (step {self.step}) could not be written. Free space in {self.output_dir} and run again."
            )

    def _finish(self, first: int) -> TrainingResult:
        finished = self.step >= self.config.max_steps
        status = "finished" if finished else "stopped"
        reached = StopReason(f"reached max_steps {self.config.max_steps}")
        stopped = reached if finished else self._stop_reason
        assert stopped is not None
        reason, last = stopped.text, self.last_checkpoint
        self._status(status, reason)
        if finished and first == self.step:
            self.say(
                f"Training was finished before, at step {self.step:,}: nothing to do. A larger max_steps continues it."
            )
        else:
            self.say(f"Training {status} at step {self.step:,}: {reason}. Checkpoint: {self.last_checkpoint}.")
        return TrainingResult(status, self.step, reason, self.output_dir, last, stopped.signal)

    def save(self) -> None:
        """Ask for a checkpoint after this step; to be called on every rank."""
        self._save_requested = True

    def stop(self, reason: str) -> None:
        """Ask to stop after this step with a checkpoint, giving the reason."""
        self._stop_reason = StopReason(reason)

    def close(self) -> None:
        """Leave the process group, where there is one; a script with several processes calls it at its end."""
        if self._prepared:
            leave(self.accelerator)

    def averaged_network(self) -> nn.Module:
        """Return the EMA network, or the trained one where no average is kept."""
        return self.ema.network() if self.ema is not None else self.diffusion.model

    @in_own_state
    def sample(
        self, n: int = 16, *, cond: dict[str, Tensor] | None = None, weights: str = "ema", **options: Any
    ) -> Tensor:
        """Draw images, shared over the ranks; to be called on every rank.

        Args:
            n: Number of images over all ranks.
            cond: Conditions of all n images, for example {"class_label": labels}; default: the classes in turn, and for
                super-resolution small copies of held-out images.
            weights: "ema" (the average) or "model" (the trained weights).
            **options: Further arguments of `GaussianDiffusion.sample`: sampler, num_steps, seed, guidance_scale, …

        Returns:
            float32 (n, c, h, w) in [0, 1], on every rank.
        """
        self.prepare()
        if weights not in ("ema", "model"):
            raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
        network = self.averaged_network() if weights == "ema" else self.diffusion.model
        if self.ema is not None and self.precision in devices.LOW_PRECISION:
            network = lowered_copy(network, devices.LOW_PRECISION[self.precision])
        if cond is None:
            cond = example_conditions(self, n) or default_condition(self.diffusion, n)
        with self.accelerator.autocast():
            return sample_shared(
                self.diffusion, n, self.accelerator, cond=cond, model=network, device=self.device, **options
            )


show_options(Trainer, TrainingConfig)
