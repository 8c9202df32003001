"""The state of one training run, and what callbacks may see of it; the Trainer adds the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ddpm_lib.runs.counters import Progress
from ddpm_lib.runs.run_log import RunLog, tolerate_write_errors
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.runtime.watchdog import Watchdog
from ddpm_lib.training.batches import BatchPlan
from ddpm_lib.training.callbacks.base import Callback
from ddpm_lib.training.callbacks.samples import SampleGrid
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.ema import WeightAverages
from ddpm_lib.training.learner import Learner
from ddpm_lib.training.nonfinite import NonFiniteGuard
from ddpm_lib.training.posthoc import PostHocAverages
from ddpm_lib.training.randomness import StepRandomness
from ddpm_lib.training.results import StepResult
from ddpm_lib.training.saving import RunCheckpoints
from ddpm_lib.training.step import ForwardPass, conditions_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Args:
        dataset: What is trained on.
        held_out: What is validated on, None where there is nothing.
        held_fraction: The val_fraction that holds images out of the training; 0: none are.
    """

    dataset: ImageDataset
    held_out: ImageDataset | None
    held_fraction: float


class RunContext:
    """What a run is made of: given at construction, or made when it is prepared.

    Reading a part that is made later is an AttributeError that says what to call first.

    Args:
        config: The options.
        diffusion: The process with its network.
        output_dir: The run directory.
        source_name: What the data is opened from, in words.
        callbacks: In the order in which they run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        diffusion: GaussianDiffusion,
        output_dir: Path,
        source_name: str,
        callbacks: list[Callback],
    ) -> None:
        self.config, self.diffusion = config, diffusion
        self.source_name, self.callbacks = source_name, callbacks
        self.guard = NonFiniteGuard(config.on_nonfinite, config.max_nonfinite)
        self.progress = Progress()
        self.ranks = Processes()  # until the processes have met
        steps = {"max_steps": config.max_steps, "save_every": config.cadences.save_every}
        self.run_log = RunLog(output_dir, self.progress, **steps)
        self.checkpoints = RunCheckpoints(self.run_log, config)
        self.origin: dict[str, Any] | None = None
        self.started_from: StartedFrom | None = None
        self.growth: list[dict[str, Any]] = []
        self.last: StepResult | None = None
        self.last_checkpoint: Path | None = None
        self.average_is_open = config.ema_decay == "auto"
        self._accelerator: Accelerator | None = None
        self._data: TrainingData | None = None
        self._learner: Learner | None = None
        self._plan: BatchPlan | None = None
        self._randomness: StepRandomness | None = None
        self._forward_pass: ForwardPass | None = None
        self._watchdog: Watchdog | None = None
        self._until: int | None = None
        self._save_requested = False

    def _repr_html_(self) -> str:
        from ddpm_lib.training.training_html import trainer_html

        return trainer_html(self)

    @property
    def output_dir(self) -> Path:
        """The run directory."""
        return self.run_log.output_dir

    @property
    def step(self) -> int:
        """Optimizer steps done, in the whole run."""
        return self.progress.step

    @property
    def until(self) -> int:
        """The step at which this call of `train` is to end: `max_steps`, or after its `steps`."""
        return self.config.max_steps if self._until is None else self._until

    @property
    def images_seen(self) -> int:
        """Images used by all processes, in the whole run."""
        return self.progress.images_seen

    @property
    def elapsed_seconds(self) -> float:
        """Time spent training, up to the last checkpoint."""
        return self.progress.elapsed_seconds

    @property
    def metrics(self) -> dict[str, Any]:
        """The newest logged value of every name."""
        return self.run_log.metrics

    @property
    def accelerator(self) -> Accelerator:
        """Accelerate's object."""
        return _made(self._accelerator, "accelerator")

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = _made(self._accelerator, "device").device
        return device

    @property
    def precision(self) -> str:
        """Of the forward pass: "no", "bf16" or "fp16"."""
        return str(_made(self._accelerator, "precision").mixed_precision)

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest floating-point type that the device can sum in."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def dataset(self) -> ImageDataset:
        """The training images."""
        return _made(self._data, "dataset").dataset

    @property
    def held_out(self) -> ImageDataset | None:
        """The held-out images, None where there are none."""
        return _made(self._data, "held_out").held_out

    @property
    def counts(self) -> tuple[int, bool]:
        """The number of training images, and whether there are held-out ones."""
        return len(self.dataset), self.held_out is not None

    @property
    def held_fraction(self) -> float:
        """The val_fraction that holds images out of the training; 0: none are."""
        return _made(self._data, "held_fraction").held_fraction

    @property
    def learner(self) -> Learner:
        """The network on its device, its optimizer and averages."""
        return _made(self._learner, "learner")

    @property
    def optimizer(self) -> Any:
        """Accelerate's wrapper of the optimizer."""
        return _made(self._learner, "optimizer").optimizer

    @property
    def ema(self) -> WeightAverages | None:
        """The averages of the weights, None where none is kept."""
        return _made(self._learner, "ema").ema

    @property
    def posthoc(self) -> PostHocAverages:
        """The post-hoc averages."""
        return _made(self._learner, "posthoc").posthoc

    @property
    def channels_last(self) -> bool:
        """Whether the weights lie in channels_last."""
        return _made(self._learner, "channels_last").channels_last

    @property
    def plan(self) -> BatchPlan:
        """How the batch is shared over processes and forward passes."""
        return _made(self._plan, "plan")

    @property
    def randomness(self) -> StepRandomness:
        """Noise and uniform numbers of every step."""
        return _made(self._randomness, "randomness")

    @property
    def forward_pass(self) -> ForwardPass:
        """From images to losses."""
        return _made(self._forward_pass, "forward_pass")

    @property
    def watchdog(self) -> Watchdog:
        """The thread that says where training hangs; made when training starts."""
        return _made(self._watchdog, "watchdog")

    @property
    def rank(self) -> int:
        """This process among those of the run; 0 until they have met."""
        return self.ranks.rank

    @property
    def processes(self) -> int:
        """How many processes the run has; 1 until they have met."""
        return self.ranks.count

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.ranks.is_main

    @property
    def last_grid(self) -> Path | None:
        """The newest grid of samples of this process, None where there is none."""
        grids = [c.last_grid for c in self.callbacks if isinstance(c, SampleGrid)]
        return grids[0] if grids else None

    def averaged_network(self) -> nn.Module:
        """Return the EMA network, or the trained one where no average is kept."""
        return _made(self._learner, "averaged network").averaged()

    @property
    def chooses_average(self) -> bool:
        """Whether the average to use is chosen at the end: there are several, and nobody named
        them.
        """
        return self.average_is_open and len(self.config.ema_decay) > 1

    def averaged_networks(self) -> dict[float, nn.Module]:
        """Return the networks of all averages by decay, the one in use first."""
        ema = _made(self._learner, "averaged network").ema
        return {} if ema is None else {decay: ema.network(decay) for decay in ema.decays}

    def use_average(self, decay: float) -> None:
        """Make an average the one that validates, samples and is taken from checkpoints by default;
        on every rank.
        """
        ema = _made(self._learner, "averaged network").ema
        assert ema is not None
        ema.put_first(decay)
        self.config = replace(self.config, ema_decay=ema.decays)

    def conditions(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """Pick the fields of a batch that the network is conditioned on."""
        return conditions_of(self.diffusion, batch)

    def log(self, values: dict[str, Any]) -> None:
        """Add values to this step's row of metrics and to the trackers; to be called on every
        rank.
        """
        self.run_log.log(values)

    def logged(self, name: str) -> Any:
        """Return what was logged under a name in this step so far, or None."""
        return self.run_log.logged(name)

    def note(self, text: str) -> None:
        """Add a word to the next row on the console: what happened besides the numbers."""
        self.run_log.note(text)

    def notes(self) -> list[str]:
        """Return the words since the last call, each once, and forget them."""
        return self.run_log.notes()

    def say(self, line: str) -> None:
        """Show one line to the user and keep it in train.log; the main process speaks."""
        self.run_log.info(line)

    def tolerate_write_errors(self, what: str) -> AbstractContextManager[None]:
        """Turn a disk that refuses a record into a warning: training goes on without it."""
        return tolerate_write_errors(what)

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; the argument stays as it is."""
        return self.ranks.sum(tensor)

    def from_main(self, value: T) -> T:
        """Return the main process's value on every rank."""
        return self.ranks.from_main(value)

    def on_main(self, function: Callable[[], T]) -> T:
        """Run a function on the main process and return its value on every rank.

        Raises:
            RuntimeError: On the other ranks, where it failed on the main one, saying with what.
        """
        return self.ranks.on_main(function)


def _made(part: T | None, name: str) -> T:
    """Return a part of a run that is made after construction.

    Raises:
        AttributeError: Where it is not made yet.
    """
    if part is None:
        first = "Call prepare() first, or train(), which does."
        raise AttributeError(f"The Trainer has no {name} yet. {first}")
    return part
