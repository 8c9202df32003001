"""A run before its first step: data opened, network in place, newest checkpoint restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.measured_runs import run_normalization
from ddpm_lib.runs.names import step_of
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.runs.state import DataDescription, RunState
from ddpm_lib.runs.versions import describe_versions
from ddpm_lib.runtime import devices
from ddpm_lib.runtime.accelerate_state import OwnState, in_own_state
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.agreement import check_output_dir, check_process, check_ranks_agree
from ddpm_lib.training.augmentation_checks import check_augmentation
from ddpm_lib.training.batches import BatchPlan
from ddpm_lib.training.by_length import OPEN, averages_are_open, chosen_words, settled
from ddpm_lib.training.callbacks import default_callbacks
from ddpm_lib.training.callbacks.base import Callback, check_callbacks, state_of
from ddpm_lib.training.callbacks.rows import TrainingRows
from ddpm_lib.training.conditions_of_data import adopt, know_texts
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.context import RunContext, TrainingData
from ddpm_lib.training.going_back import set_aside, wanted_step
from ddpm_lib.training.growing import described_as, events_of
from ddpm_lib.training.holding_out import held_fraction
from ddpm_lib.training.keeping import as_begun, keepers, kept_for_good
from ddpm_lib.training.learner import Learner
from ddpm_lib.training.optim import say_extension
from ddpm_lib.training.randomness import StepRandomness
from ddpm_lib.training.reading_alike import read_alike
from ddpm_lib.training.resume import (
    began_here,
    check_same_network,
    check_same_order,
    describe_model,
    find_checkpoint,
    named,
    restore_learner,
    restore_small_states,
    say_start,
    say_versions,
    shards_of_run,
)
from ddpm_lib.training.run_config import absolute_source, portable_options, write_run_config
from ddpm_lib.training.same_data import describe_dataset, fraction_held_out, write_data_notes
from ddpm_lib.training.sampling import check_grids
from ddpm_lib.training.saving import check_space
from ddpm_lib.training.sources import asks_for_files, data_name, open_training_data
from ddpm_lib.training.step import ForwardPass

if TYPE_CHECKING:
    from ddpm_lib.core.hub.upload import Uploaded
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.fine_tuning.starting_weights import StartingWeights


class PreparedRun(RunContext):
    """What a `Trainer` does before it trains.

    Args:
        config: The options.
        diffusion: The process with its network.
        data: The data source.
        callbacks: Of the user, one or several.
        transform: A callable on each picture, or None.

    Raises:
        ConfigError: For options that contradict each other, the process or the place of the run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        diffusion: GaussianDiffusion,
        data: Any,
        callbacks: Callback | Iterable[Callback] | None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        check_process(diffusion)
        output_dir = Path(config.output_dir or f"runs/{data_name(data)}")
        chosen = default_callbacks(config, diffusion.time_sampler.learns)
        chosen += check_callbacks(callbacks)
        if config.keep_best:
            from ddpm_lib.training.callbacks.best import check_metric

            check_metric(config)
        self._rows = TrainingRows()
        chosen.append(self._rows)
        name = str(data) if isinstance(data, (str, Path)) else type(data).__name__
        super().__init__(config, diffusion, output_dir, name, chosen)
        self.data_source, self.transform = data, transform
        check_output_dir(output_dir, data)
        self.accelerate_state = OwnState()
        self.batch_reason = ""
        self._met = self._prepared = False
        check_size = getattr(diffusion.model, "check_size", None)
        if check_size is not None:
            check_size(diffusion.image_size)
        check_augmentation(diffusion, config)
        if config.freeze:
            from ddpm_lib.training.fine_tuning.freezing import frozen_parameters

            frozen_parameters(diffusion.model, config.freeze)
        if config.sample_every:
            check_grids(diffusion, config)
        if config.stop_when:
            from ddpm_lib.training.callbacks.stop_when import check_options

            check_options(config, diffusion)

    @in_own_state
    def prepare(self) -> None:
        """Open the data, place the network, restore the newest checkpoint, as `train` does."""
        if self._prepared:
            return
        self._meet()
        config = self.config
        checkpoint = self.on_main(lambda: find_checkpoint(self.output_dir, config.resume, self.say))
        self.source_name = absolute_source(self.source_name, asks_for_files(config))
        saved = None if checkpoint is None else checkpoint.state
        began = None if saved is None or not began_here(saved) else saved
        if began is not None:
            config = self.config = as_begun(config, began.training)
            self.run_log.save_every = config.cadences.save_every
        before = None if began is None else fraction_held_out(began)
        adopt(self.diffusion, saved, self.output_dir, self.say)
        left_open = tuple(name for name in OPEN if getattr(config, name) == "auto")
        told = None if saved is None else saved.training
        self.average_is_open = averages_are_open(config, told)
        config = self.config = settled(config, told)
        starting = self._starting_weights() if saved is None else None
        units = run_normalization(began, self.output_dir)
        way = (self.diffusion, self.say, before, self.transform, units)
        images = open_training_data(self.data_source, config, *way)
        config = self.config = read_alike(config, images[0])
        self.diffusion.normalization = images[0].normalization
        know_texts(self.diffusion, *images)
        self._data = TrainingData(*images, held_fraction(config, before))
        if config.stop_when:
            from ddpm_lib.training.callbacks.stop_when import check_images

            held = 0 if self.held_out is None else len(self.held_out)
            check_images(config, len(self.dataset), held)
        there = self._rows in self.callbacks
        last = self.callbacks.index(self._rows) if there else len(self.callbacks)
        self.callbacks[last:last] = keepers(config, *self.counts)  # they hear what others log
        if starting is not None:
            self._begin_with(starting)
        self._learner = Learner.place(self.diffusion, config, self.accelerator, self.say)
        if config.batch_size == "auto":
            config = self.config = self._with_batch_size(began)
        count, steps = config.images_per_step, config.accumulation_steps
        self._plan = BatchPlan(count, self.processes, self.rank, steps)
        shards = shards_of_run(config, self.processes, saved, self.say)
        self._randomness = StepRandomness(config.seed, count, shards)
        looks = (config.horizontal_flip, config.augment, config.max_steps)
        parts = (self.diffusion, self._randomness, self.device)
        self._forward_pass = ForwardPass(*parts, *looks)
        if checkpoint is not None:
            self._restore(checkpoint)
            self.say(f"Resumed {checkpoint.path} at step {self.step:,} of {config.max_steps:,}.")
        elif chosen := chosen_words(config, left_open):
            self.say(chosen)
        self.say(self._described())
        self._prepared = True

    def _starting_weights(self) -> StartingWeights | None:
        """Find the weights to begin with, and refuse those that do not fit, before the data are
        opened.
        """
        source, which = self.config.init_from, self.config.init_weights
        if source is None:
            return None
        from ddpm_lib.training.fine_tuning.starting_weights import on_every_rank
        from ddpm_lib.training.fine_tuning.weight_sources import find_starting_weights

        size = self.diffusion.image_size
        starting = on_every_rank(lambda: find_starting_weights(source, which, size), self.ranks)
        starting.check(self.diffusion)
        return starting

    def _begin_with(self, starting: StartingWeights) -> None:
        names = self.dataset.class_names
        self.started_from = starting.load_into(self.diffusion, tuple(names) if names else None)
        if len(set(self.ranks.all_objects(self.started_from.sha256))) > 1:
            raise ConfigError(f"The processes read different weights from {starting.origin}.")
        self.say(f"Beginning with {self.started_from}.")
        for note in self.started_from.notes:
            self.say(f"  {note}")

    @in_own_state
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        license: str | None = None,
        weights: str | Sequence[str] = (),
        checkpoint: str | int = "latest",
        message: str | None = None,
        data_name: str | None = None,
    ) -> Uploaded:
        """Upload the newest complete checkpoint to the hub, with a card; to be called on every
        rank, also before or while training.

        The main process uploads, and the others wait for it, up to `process_timeout_minutes`.

        Args:
            repo_id: The repository, "owner/name", or "name" for one of your own; made if there is
                none.
            private: Nobody else may see it.
            revision: A branch to upload to, made if there is none; default: the main one.
            license: The hub's name of a licence, such as "mit"; default: none, and the card says
                so.
            weights: Which weights, those first that `from_pretrained` gives: "ema", "ema:0.999",
                "model"; default: the first average, else the trained ones.
            checkpoint: "latest", "best", a step or a directory name.
            message: Of the commit; default: the step.
            data_name: What the card calls the training data; a name on the hub, "owner/name", is
                linked. Default: the last part of their path.

        Returns:
            What was uploaded, and where it is.

        Raises:
            CheckpointError: If nothing was saved yet.
            ConfigError: For weights that were not kept, or if private was asked for and the
                repository is public.
            HubError: If the hub refuses or cannot be reached; nothing half-uploaded is visible
                there, and the run directory is only read.
        """
        self._meet()
        from ddpm_lib.runs.publishing.pushing import Publication, push_run

        what = Publication(
            repo_id=repo_id,
            private=private,
            revision=revision,
            license=license,
            weights=(weights,) if isinstance(weights, str) else tuple(weights),
            checkpoint=checkpoint,
            message=message,
            data_name=data_name,
        )
        after = "Nothing was changed here; then call push_to_hub again."
        done = self.on_main(lambda: push_run(self.output_dir, what, after)[0])
        self.say(f"Pushed {self.output_dir} to {done.url}.")
        return done

    def _with_batch_size(self, saved: RunState | None) -> TrainingConfig:
        """Return the options with a number for batch_size; a run that continues keeps its own."""
        from ddpm_lib.training.auto_batch import Trial, find_batch_size, kept_batch_size

        if saved is not None:
            size = kept_batch_size(saved.batch_size)
        else:
            machine = (self.device, self.precision, self.ranks, self.accelerator.autocast)
            size = find_batch_size(Trial(self.diffusion, self.dataset, self.config, *machine))
        self.batch_reason = size.reason
        self.say(size.reason)
        return replace(self.config, batch_size=size.images)

    def _meet(self) -> None:
        """Meet the other processes of the run, once."""
        if self._met:
            return
        config = self.config
        self._accelerator = devices.make_accelerator(
            self.output_dir,
            device=config.device,
            mixed_precision=config.mixed_precision,
            trackers=config.trackers,
            timeout_minutes=config.process_timeout_minutes,
        )
        self.ranks = self.run_log.processes = Processes.of(self._accelerator)
        check_ranks_agree(config, self.diffusion, self.ranks)
        self._met = True

    def _data_description(self) -> DataDescription:
        """Return what identifies the training data."""
        elsewhere = self.config.val_data is not None
        parts = (self.dataset, self.source_name, self.held_fraction, self.held_out, elsewhere)
        return described_as(describe_dataset(*parts), self.growth)

    def _run_state(self) -> RunState:
        """Collect everything but the tensors; on every rank, as callbacks may need all of them."""
        scaler, config = self.accelerator.scaler, self.config
        return RunState(
            **self.progress.state_dict(),
            seed=config.seed,
            batch_size=config.images_per_step,
            shards=self.randomness.shards,
            model=describe_model(self.diffusion.model),
            diffusion=self.diffusion.config,
            data=self._data_description().to_json(),
            ema_decay=list(config.ema_decay),
            dropout_masks=self.learner.dropout_masks,
            training=portable_options(config),
            callbacks={name: state_of(c, self) for name, c in named(self.callbacks).items()},
            guard=self.guard.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            versions=describe_versions(),
            origin=self.origin,
            hardware=devices.describe_hardware(self.device, self.processes, self.precision),
            started_from=None if self.started_from is None else self.started_from.to_json(),
        )

    def _described(self) -> str:
        """Say in one line what is trained, on what, how and where."""
        plan, held_out = self.plan, self.held_out
        precision = "float32" if self.precision == "no" else self.precision
        every = list(self.diffusion.model.parameters())
        size = f"{sum(p.numel() for p in every) / 1e6:.2f} M parameters"
        fixed = sum(p.numel() for p in every if not p.requires_grad)
        frozen = f", {fixed / 1e6:.2f} M of them frozen," if fixed else ""
        shared = f"{self.processes} processes, {plan.per_process} each"
        ranks = shared if self.processes > 1 else "one process"
        kept = f", {len(held_out):,} held out" if held_out is not None else ""
        layout = " in channels_last" if self.channels_last else ""
        micro = f" in micro-batches of {plan.micro}" if plan.accumulation > 1 else ""
        return (
            f"Training {size}{frozen} on {len(self.dataset):,} images{kept}; batch"
            f" {self.config.images_per_step} ({ranks}{micro}), {precision}{layout} on"
            f" {self.device}; run directory {self.output_dir}."
        )

    def _restore(self, checkpoint: VerifiedCheckpoint) -> None:
        """Load a verified checkpoint into the run."""
        state, path = checkpoint.state, checkpoint.path
        data = TrainingData(self.dataset, self.held_out, self.held_fraction)
        check_same_network(self.diffusion, state, path)
        check_same_order(self.config, data, self._data_description(), checkpoint, self.say)
        self.progress.load_state_dict(state.to_json())
        self.growth = events_of(self.dataset, state, portable_options(self.config), self.say)
        self.origin = state.origin
        self.started_from = StartedFrom.from_json(state.started_from)
        say_start(self.started_from, self.config.init_from, self.say)
        say_extension(self.config, state.step, state.training, self.say)
        restore_learner(self.learner, checkpoint, self.say)
        restore_small_states(state, path, self.accelerator.scaler, self.guard, self.callbacks)
        say_versions(state.versions, self.device, self.say)
        self.last_checkpoint = path

    def _load_newer_checkpoint(self) -> None:
        """Go on from what another process has trained since this one last looked, if anything."""

        def newer() -> bool:
            there = files.list_checkpoints(self.output_dir / "checkpoints")
            return bool(there) and step_of(there[-1]) > self.step

        if not self.on_main(newer):
            return
        found = self.on_main(lambda: find_checkpoint(self.output_dir, self.config.resume, self.say))
        if found is not None and found.state.step > self.step:
            self._restore(found)
            where = f"{found.path} at step {self.step:,}"
            self.say(f"Another process trained here meanwhile: going on from {where}.")

    def _start_records(self) -> None:
        """Begin to write: on the main process, when all that can be refused has been looked at."""
        run, config = self.output_dir, self.config
        kept = kept_for_good(config, *self.counts)
        check_space(self.learner.checkpoint_bytes(), run, config.keep_last, kept, self.say)
        self.run_log.open()
        step = wanted_step(config.resume, run)
        back = step is not None and step == self.step
        moved = set_aside(run, self.step) if back else None
        note = self.run_log.records.cut_back(self.step)
        for line in filter(None, (moved, note)):
            self.say(line)
        if self.average_is_open:  # whoever repeats the run has the choice as well
            config = replace(config, ema_decay="auto")
        write_run_config(run, self.source_name, config, self.diffusion)
        with self.tolerate_write_errors("data.npz and texts.safetensors"):
            write_data_notes(run, self.dataset, self.diffusion)
        self._record_start()

    def _record_start(self) -> None:
        from ddpm_lib.training import run_facts

        run = self.output_dir
        with self.tolerate_write_errors("about.json"):
            # The command opens data itself where the network depends on them, and says their name.
            own = self.source_name == type(self.data_source).__name__
            named = not own and self.transform is None
            learned = (self.source_name, self.dataset, self.held_out, self.diffusion, named)
            facts = run_facts.machine_facts(self.device, self.processes, self.precision)
            facts |= run_facts.network_facts(self.diffusion.model)
            run_facts.record_start(run, self.step, facts, lambda: run_facts.learned_facts(*learned))
