"""The training loop: it reads as a recipe, and everything that is not the recipe is a callback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError, LostProcessError
from ddpm_lib.core.spelling import option
from ddpm_lib.nn.lowering import lowered_copy
from ddpm_lib.runs.metrics_file import flat_scalars
from ddpm_lib.runtime import allocator, devices
from ddpm_lib.runtime.accelerate_state import (
    give_back_network,
    in_own_state,
    prepare_network,
)
from ddpm_lib.runtime.memory import is_out_of_memory_error
from ddpm_lib.runtime.rendezvous import destroy_group
from ddpm_lib.runtime.trackers import finishers, log_to_trackers, start_trackers
from ddpm_lib.runtime.watchdog import Watchdog, leave_at_once, rendezvous_store
from ddpm_lib.training.batches import TrainingBatches
from ddpm_lib.training.callbacks.base import Callback, TrainingView, is_the_users
from ddpm_lib.training.claim import claimed
from ddpm_lib.training.cleanup import run_all
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.examples import example_conditions
from ddpm_lib.training.goal import checked_steps, goal_reached, last_step
from ddpm_lib.training.optim import learning_rate
from ddpm_lib.training.option_help import show_options
from ddpm_lib.training.passes import MicroBatch, Pass, make_pass
from ddpm_lib.training.recovery import (
    Recovery,
    Shrink,
    handle_out_of_memory,
    translate_lost_process_errors,
)
from ddpm_lib.training.results import StepResult, StopReason, TrainingResult
from ddpm_lib.training.sampling import default_condition, sample_shared
from ddpm_lib.training.saved_run import SavedRun
from ddpm_lib.training.stopping import StopSignals, TimeLimit, agreed_reason, reason_to_stop
from ddpm_lib.training.updates import Update, make_update, rate_on

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.trainer_options import TrainerOptions


class Trainer(SavedRun):
    """Train a `GaussianDiffusion` on images; the same call continues a run that was cut off.

    Args:
        diffusion: The process with its network.
        data: A folder of images, a 🤗 dataset (path, hub name or object), a .npz or .parquet file,
            an `ImageDataset`, any torch Dataset, or "shapes" for the built-in images.
        config: The options as one object, instead of keywords.
        callbacks: One or several, added after the default ones (progress, metrics, validation,
            sample grids, checkpoints).
        transform: A callable on each picture, see `open_dataset`; also of the held-out images. No
            file holds it: pass it again to go on with the run.
        **options: The fields of `TrainingConfig`.

    Raises:
        ConfigError: For unknown, impossible or contradictory options.
        ValueError: For data that cannot be used.

    Example:
        >>> from ddpm_lib import GaussianDiffusion, Trainer, Unet              # doctest: +SKIP
        >>> diffusion = GaussianDiffusion(Unet(dim=64), image_size=64)         # doctest: +SKIP
        >>> trainer = Trainer(diffusion, "path/to/images", max_steps=5000)     # doctest: +SKIP
        >>> trainer.train()                                                    # doctest: +SKIP
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: Any = "shapes",
        *,
        config: TrainingConfig | None = None,
        callbacks: Callback | Iterable[Callback] | None = (),
        transform: Callable[[Any], Any] | None = None,
        **options: Unpack[TrainerOptions],
    ) -> None:
        if config is not None and options:
            named = ", ".join(options)
            raise ConfigError(f"Give either config= or options, not both; got config and {named}.")
        chosen = config or TrainingConfig.from_options(options)
        super().__init__(chosen, diffusion, data, callbacks, transform)
        self._stop_reason: StopReason | None = None
        self._slowest_step = 0.0
        self._parts: tuple[Pass, Update] | None = None

    def __repr__(self) -> str:
        """Return one line: what, where and how far."""
        model = type(self.diffusion.model).__name__
        where = f"output_dir={str(self.output_dir)!r}"
        return f"Trainer({model}, {where}, step={self.step} of {self.config.max_steps})"

    @in_own_state
    def train(self, steps: int | None = None) -> TrainingResult:
        """Train until `max_steps`, a time limit or a signal, or `steps` more steps; resume from the
        newest checkpoint in the run directory.

        A run in pieces is the run in one go, bit for bit: everything follows the step and
        `max_steps`, not the calls. Each call ends with a checkpoint.

        Args:
            steps: Optimizer steps of this call, from where the run stands, at most to `max_steps`;
                default: all that are left.

        Returns:
            How it ended; call `train()` again to continue.

        Raises:
            ConfigError: If `steps` is no whole number of at least 1, or not that of all processes.
        """
        steps = checked_steps(steps)
        called = time.monotonic()
        minutes = self.config.process_timeout_minutes
        with translate_lost_process_errors(self.run_log, minutes, lambda: self.last_checkpoint):
            self._meet()
            with claimed(self.run_log):
                if self._prepared:
                    self._load_newer_checkpoint()
                self.prepare()
                first = self.step
                self._until = last_step(steps, first, self.config.max_steps, self.ranks)
                with self._session() as (network, signals):
                    limit = TimeLimit(self.config.max_hours, called)
                    while recovery := self._walk(network, signals, limit):
                        self._recover(recovery)
                return self._finish(first)

    def _walk(self, network: nn.Module, signals: StopSignals, limit: TimeLimit) -> Recovery | None:
        """Train to the end or a reason to stop: None; or to a failure to recover from."""
        batches = self._open_batches()
        try:
            self._each_callback("on_train_start")
            while not self._agree_to_stop(signals, limit) and self.step < self.until:
                began = time.monotonic()
                recovery: Recovery | None = self._try_step(network, batches)
                if recovery is None and self.step % self.config.cadences.log_every == 0:
                    recovery = self._check_numbers()
                if recovery is None:
                    self._each_callback("on_step_end")
                    recovery = self._save_if_requested()
                if recovery is not None:
                    return recovery
                self._slowest_step = max(self._slowest_step, time.monotonic() - began)
            recovery = self._save_at_end()
            if recovery is None:
                self._each_callback("on_train_end")
            return recovery
        finally:
            batches.close()

    def _try_step(self, network: nn.Module, batches: TrainingBatches) -> Shrink | None:
        """Do a step, or return how to do it in less memory."""
        try:
            self._optimizer_step(network, batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
            return handle_out_of_memory(error, self.plan, self.step, self.device)
        return None

    def _optimizer_step(self, network: nn.Module, batches: TrainingBatches) -> None:
        config, rows_of = self.config, self.plan.rows()
        self.watchdog.mark(self.step, "the next step")
        rate = rate_on(self.device, learning_rate(self.step, config))
        losses, levels = [], []
        run, update = self._parts_of(network)
        for i, rows in enumerate(rows_of):
            last = i == len(rows_of) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(network):
                where = (self.step, self.images_seen, i, len(rows_of))
                per_image, t = run(MicroBatch(next(batches), rows, *where))
            losses.append(per_image)
            levels.append(t)
        every = torch.cat(losses)
        norm = update(every, self.step + 1, rate)
        self.progress.advance(config.images_per_step)
        self.last = StepResult(every, torch.cat(levels), norm, rate)

    def _parts_of(self, network: nn.Module) -> tuple[Pass, Update]:
        """Return how micro-batches are done and how a step ends, made once for a network that
        accelerate prepared.
        """
        if self._parts is None or self._parts[0].network is not network:
            learner, accelerator, graphed = self.learner, self.accelerator, self.config.cuda_graph
            parts = (self.forward_pass, accelerator, learner.pull)
            run = make_pass(network, *parts, graphed, learner.low)
            most = self.config.max_grad_norm or float("inf")
            self._parts = run, make_update(learner, self.guard, accelerator, most, graphed)
        return self._parts

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[nn.Module, StopSignals]]:
        own_forward, failure = self.diffusion.__dict__.get("forward"), None
        self._stop_reason, self._save_requested = None, False
        self.run_log.drop_row()
        try:
            self.on_main(self._start_records)
            network = prepare_network(self.accelerator, self.diffusion)
            self.diffusion.train()
            self._parts_of(network)
            if self.config.trackers and self.step < self.config.max_steps:
                options = flat_scalars(self.config.to_dict())
                self.on_main(
                    lambda: start_trackers(self.accelerator, self.output_dir.name, options)
                )
            self.run_log.status("running", "")
            self.progress.start_clock()
            self.guard.reset(self.device)
            store = rendezvous_store(self.processes)
            seconds = 60 * self.config.stall_minutes
            watchdog = Watchdog(
                seconds,
                self.output_dir,
                self.rank,
                self.processes,
                store,
                on_lost=self._end_lost if self.ranks.wait_on_device else None,
                lost_after=60 * self.config.process_timeout_minutes,
            )
            self._watchdog = watchdog
            with (
                devices.global_state_kept(self.device, self.config.deterministic),
                StopSignals() as signals,
                watchdog,
            ):
                yield network, signals
        except BaseException as error:
            failure = error
            if self.run_log.is_open:
                self.run_log.status("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self._parts = None  # with the memory of their graphs
            steps: list[Callable[[], object]] = [
                self.checkpoints.close,
                *(callback.close for callback in self.callbacks),
            ]
            steps += [self.learner.close, *finishers(self.accelerator)]
            steps.append(lambda: give_back_network(self.accelerator, self.diffusion, own_forward))
            run_all([*steps, allocator.give_back_freed_memory], failure)

    def _end_lost(self, who: str) -> None:
        """End this process from the watchdog's thread: the main one waits for the GPU for good."""
        error = LostProcessError(
            f"Another process of this run is gone: {who}. Process {self.rank} of {self.processes}"
            f" ends at step {self.step}. Start the same command again: it continues from"
            f" {self.last_checkpoint or 'the beginning'}."
        )
        self.run_log.status("lost", str(error))
        leave_at_once(error)

    def _open_batches(self) -> TrainingBatches:
        from ddpm_lib.data import default_num_workers

        workers = self.config.num_workers
        if workers is None:
            workers = default_num_workers(in_memory=self.dataset.in_memory)
        return TrainingBatches(
            self.dataset,
            self.plan,
            self.config.seed,
            self.images_seen,
            workers,
            self.device.type == "cuda",
            self.say,
        )

    def _each_callback(self, hook: str) -> None:
        view: TrainingView = self
        for callback in self.callbacks:
            self.watchdog.mark(self.step, f"{callback.name}.{hook}")
            getattr(callback, hook)(view)
            if self.learner.low is not None and is_the_users(callback):
                self.learner.low.forget()
        row = self.run_log.flush(len(self.dataset))
        if row is not None and self.is_main:
            values = {k: v for k, v in row.items() if k != "step"}
            log_to_trackers(self.accelerator, values, self.step)

    def _agree_to_stop(self, signals: StopSignals, limit: TimeLimit) -> bool:
        """Say on every rank alike whether to stop; on a GPU the ranks ask each other every tenth
        step only.
        """
        run = self.output_dir if self.is_main else None
        reason = self._stop_reason or reason_to_stop(
            signals, limit, self._slowest_step, self.checkpoints.seconds, run
        )
        if self.processes > 1:
            if self.device.type != "cpu" and self.step % 10:
                return False
            reason = agreed_reason(reason, self.ranks, self.device)
        self._stop_reason = reason
        return reason is not None

    def _finish(self, first: int) -> TrainingResult:
        at_end = self.step >= self.config.max_steps
        done = goal_reached(self.step, self.until, self.step - first, self.config.max_steps)
        stopped = done if at_end else self._stop_reason or done
        assert stopped is not None
        reason, finished = stopped.text, at_end or bool(stopped.by)
        status = "finished" if finished else "stopped"
        self.run_log.status(status, reason, stopped.by)
        if at_end and first == self.step:
            self.say(
                f"Training was finished before, at step {self.step:,}: nothing to do. A larger"
                f" {option('max_steps')} continues it."
            )
        else:
            self.say(
                f"Training {status} at step {self.step:,}: {reason}. Checkpoint:"
                f" {self.last_checkpoint}."
            )
        ended = (status, self.step, reason, self.output_dir, self.last_checkpoint)
        return TrainingResult(*ended, stopped.signal, stopped.complete, stopped.by)

    def stop(self, reason: str) -> None:
        """Ask to stop after this step with a checkpoint, giving the reason."""
        self.end(StopReason(reason))

    def end(self, reason: StopReason) -> None:
        """Ask to stop after this step with a checkpoint, for a reason that says what it is."""
        self._stop_reason = reason

    @property
    def stop_reason(self) -> StopReason | None:
        """Why training stops before its end; None while it does not."""
        return self._stop_reason

    def close(self) -> None:
        """Leave the process group, where there is one; a script with several processes calls it at
        its end.
        """
        if self._prepared:
            destroy_group(self.accelerator)

    @in_own_state
    def sample(
        self,
        n: int = 16,
        *,
        cond: dict[str, Tensor] | None = None,
        weights: str = "ema",
        **options: Any,
    ) -> Tensor:
        """Draw images, shared over the ranks; to be called on every rank.

        Args:
            n: Number of images over all ranks.
            cond: Conditions of all n images, for example {"class_label": labels}; default: the
                classes in turn, and for super-resolution small copies of held-out images.
            weights: "ema" (the average) or "model" (the trained weights).
            **options: Further arguments of `GaussianDiffusion.sample`: sampler, num_steps, seed,
                guidance_scale, …

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
            cond = example_conditions(
                self.diffusion, self.dataset if self.held_out is None else self.held_out, n
            ) or default_condition(self.diffusion, n)
        with self.accelerator.autocast():
            return sample_shared(
                self.diffusion,
                n,
                self.accelerator,
                cond=cond,
                model=network,
                device=self.device,
                **options,
            )


show_options(Trainer, TrainingConfig)
