"""batch_size="auto": the largest batch that fits, chosen once and kept in the checkpoints of the
run.

A GPU is asked: forward and backward passes of growing batches, in the run's precision and layout,
with room set aside for what training allocates later. A CPU has no such limit that could be met
without harm to the machine; there the memory is computed.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError, OutOfMemoryError
from ddpm_lib.core.spelling import option
from ddpm_lib.nn.summary import saved_bytes
from ddpm_lib.runtime import devices
from ddpm_lib.runtime.compiling import wants_compile
from ddpm_lib.runtime.memory import device_module, free_bytes, is_out_of_memory_error
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.memory import activation_bytes, state_bytes, working_bytes
from ddpm_lib.training.randomness import DataOrder, StepRandomness
from ddpm_lib.training.step import ForwardPass

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

CPU_LIMIT = 64
"""Images per forward pass on a CPU, which takes as long per image from there on: more would only
mean fewer steps.
"""
GPU_LIMIT = 4096
"""Images per forward pass on a GPU: the largest batch that published networks of this kind were
trained with (EDM).
"""
GPU_SHARE = 0.9
"""Share of the memory of a GPU that the trial may use; the rest is for fragmentation, validation
and sample grids.
"""
CPU_SHARE = 0.8
Stance = Literal["default", "force_eager"]
_GIB = 2.0**30


@dataclass(frozen=True)
class Choice:
    """How many images a forward pass takes, 0 where not even one fits, and why."""

    images: int
    why: str


@dataclass(frozen=True)
class Trial:
    """What batches are tried with; the network is in its place.

    Args:
        diffusion: The process.
        dataset: The training images.
        config: The options of the run.
        device: Where it trains.
        precision: "no", "bf16" or "fp16".
        processes: Of the run.
        autocast: Gives the context of a forward pass.
    """

    diffusion: GaussianDiffusion
    dataset: ImageDataset
    config: TrainingConfig
    device: torch.device
    precision: str
    processes: Processes
    autocast: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class BatchSize:
    """The batch size of a run that was asked to find one.

    Attributes:
        images: Images per optimizer step.
        reason: A line for the user.
    """

    images: int
    reason: str


def kept_batch_size(images: int) -> BatchSize:
    """Return the batch size that a run began with."""
    return BatchSize(
        images, f"{option('batch_size')} auto: {images} images, which this run began with."
    )


def find_batch_size(trial: Trial) -> BatchSize:
    """Find the largest batch that fits; to be called on every rank.

    Weights, averages and random state stay as they are.

    Raises:
        OutOfMemoryError: If not even one image fits.
    """
    config, processes = trial.config, trial.processes
    passes = processes.count * config.accumulation_steps
    limit, reason = _limit(trial, passes)
    search = _search if has_own_memory(trial.device) else _estimate
    choice = search(trial, limit, reason)
    images, why = min(processes.all_objects((choice.images, choice.why)))
    if not images:
        raise OutOfMemoryError(
            f"{option('batch_size')} auto: {why} Use a smaller network, patches (patch_size=2),"
            " gradient_checkpointing or bf16."
        )
    images = _shared_evenly(images, passes, config.shards)
    shares = [f"{processes.count} processes"] * (processes.count > 1)
    steps = config.accumulation_steps
    shares += [f"{steps} accumulation steps"] * (steps > 1)
    made = f" = {' × '.join([*shares, str(images)])}" if shares else ""
    return BatchSize(
        images * passes,
        f"{option('batch_size')} auto: {images * passes} images per step{made}, because {why} The"
        " run keeps"
        " this number.",
    )


def has_own_memory(device: torch.device) -> bool:
    """Say whether the device has memory of its own, which can be filled without harm to the rest of
    the machine.
    """
    return device.type in ("cuda", "xpu")


def largest_that_fits(fits: Callable[[int], bool], limit: int) -> tuple[int, int | None]:
    """Find the largest of the sizes 1, 2, 4, 8, 10, 12, 14, 16, 20, … ≤ limit that fits: by
    doubling, then between.

    Args:
        fits: Says whether a batch fits; a larger one is only asked for after a smaller one did.
        limit: No larger one is asked for.

    Returns:
        The size, 0 for none, and the smallest that was tried and did not fit, if any.

    >>> [largest_that_fits(lambda n: n <= most, 64) for most in (0, 7, 13, 47, 999)]
    [(0, 1), (7, 8), (12, 14), (40, 48), (64, None)]
    """
    low, high = 0, None
    while high is None and low < limit:
        size = min(limit, max(1, 2 * low))
        if fits(size):
            low = size
        else:
            high = size
    step = max(1, low // 4)
    while high is not None and low and high - low > step:
        size = low + step * max(1, (high - low) // (2 * step))
        if fits(size):
            low = size
        else:
            high = size
    return low, high


def more_if_compiled(fits: Callable[[int], bool], images: int, limit: int) -> int | None:
    """Say how many images more fit compiled than the search without found; None for no more.

    Compiled blocks keep up to half as much. Each size is compiled anew, which takes a minute, so
    only twice as many and half as many more are tried.

    Args:
        fits: Says whether a batch fits compiled.
        images: What fits uncompiled.
        limit: No larger one is asked for.

    >>> [more_if_compiled(lambda n: n <= most, 16, 64) for most in (16, 24, 31, 32, 64)]
    [None, 24, 24, 32, 32]
    """
    tried = [rounded(min(limit, n)) for n in (2 * images, images + images // 2)]
    return next((n for n in tried if n > images and fits(n)), None)


def rounded(n: int) -> int:
    """Return the largest of the sizes 1 … 8, 10, 12, 14, 16, 20, … that is at most n.

    >>> [rounded(n) for n in (0, 1, 7, 9, 13, 47, 64)]
    [0, 1, 7, 8, 12, 40, 64]
    """
    step = 2 ** max(0, n.bit_length() - 3)
    return n // step * step


def _limit(trial: Trial, passes: int) -> tuple[int, str]:
    """Return the most images of a forward pass, whatever the memory, and the reason in words."""
    if has_own_memory(trial.device):
        most, reason = GPU_LIMIT, f"{GPU_LIMIT} per forward pass is the most that auto takes."
    else:
        most, reason = (
            CPU_LIMIT,
            f"more than {CPU_LIMIT} per forward pass make no {trial.device.type} faster.",
        )
    there = max(1, len(trial.dataset) // passes)
    if there > most:
        return most, reason
    return rounded(there), f"there are only {len(trial.dataset):,} training images."


def _shared_evenly(images: int, passes: int, shards: int | None) -> int:
    """Return the most images per forward pass, at most `images`, with which `shards` divides the
    batch.
    """
    unit = 1 if shards is None else shards // math.gcd(shards, passes)
    if images < unit:
        raise ConfigError(
            f"{option('batch_size')} auto: {images * passes} images fit, which is less than shards"
            f" {shards}."
        )
    return images // unit * unit


def _estimate(trial: Trial, limit: int, reason: str) -> Choice:
    """Compute how many images fit beside what else is there; every rank of the machine gets its
    share.
    """
    free = int(free_bytes(trial.device) * CPU_SHARE)
    one, two = (_activations(trial, n) for n in (1, 2))
    each = max(1, two - one)
    # What does not grow with the batch: under bf16 there are copies of the weights.
    room = free - _bytes_to_come(trial) - max(0, one - each)
    need = working_bytes(trial.diffusion.model, each)
    numbers = (
        f"an image takes about {need / 2**20:.1f} MiB in training and {free / _GIB:.2f} GiB may be"
        " used"
    )
    fitting = max(0, room // need)
    if fitting >= limit:
        return Choice(limit, f"{reason} ({numbers[0].upper()}{numbers[1:]}.)")
    more = "." if fitting else ", not enough for one."
    return Choice(rounded(fitting), numbers + more)


def _activations(trial: Trial, images: int) -> int:
    """Return what a forward pass keeps for the backward pass: counted for a `Unet`, else by doing
    it.
    """
    diffusion = trial.diffusion
    counted = activation_bytes(diffusion.model, diffusion.image_size, images, trial.precision)
    if counted is not None:
        return counted
    with _passes(trial) as run:
        return saved_bytes(lambda: run(images, False), diffusion)


def _search(trial: Trial, limit: int, reason: str) -> Choice:
    """Try growing batches on the device until one does not fit."""
    memory = device_module(trial.device)
    ballast: Tensor | None = None
    more = None

    def release() -> None:
        trial.diffusion.zero_grad(set_to_none=True)
        gc.collect()
        memory.empty_cache()

    release()
    free, total = memory.mem_get_info(trial.device)
    room = int(GPU_SHARE * (free + memory.memory_reserved(trial.device)))
    with _passes(trial) as run:

        def fits(images: int, stance: Stance = "force_eager") -> bool:
            memory.reset_peak_memory_stats(trial.device)
            enough = True
            try:
                with torch.compiler.set_stance(stance):
                    run(images, True)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory_error(error):
                    raise
                enough = False
            used = memory.max_memory_reserved(trial.device)
            release()
            return bool(enough and used <= room)

        try:
            # Moments of the optimizer, and gradient buckets of several processes, come with the
            # first step.
            later = _bytes_to_come(trial) - _gradient_bytes(trial.diffusion)
            ballast = torch.empty(max(0, later), dtype=torch.uint8, device=trial.device)
            images, too_many = largest_that_fits(fits, limit)
            if too_many and wants_compile(trial.config.compile, trial.device.type):
                more = more_if_compiled(lambda n: fits(n, "default"), images, limit)
        except torch.OutOfMemoryError:
            images, too_many = 0, 1
        finally:
            del ballast
            release()
    share = f"{room / _GIB:.1f} of {total / _GIB:.1f} GiB on {trial.device}"
    if not images:
        return Choice(0, f"Not even one image per forward pass fits in {share}.")
    if too_many is None:
        return Choice(images, f"{reason} (They fit in {share}.)")
    if more is not None:
        uncompiled = f"uncompiled it would be {rounded(images)}"
        return Choice(more, f"{more} per forward pass fit compiled in {share}; {uncompiled}.")
    return Choice(
        rounded(images), f"{images} per forward pass fit in {share} and {too_many} do not."
    )


def _bytes_to_come(trial: Trial) -> int:
    """Return what training allocates with the first step: gradients, moments, buckets."""
    processes = trial.processes.count
    return state_bytes(trial.diffusion, trial.config, processes, to_come=True)


def _gradient_bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


@contextlib.contextmanager
def _passes(trial: Trial) -> Iterator[Callable[[int, bool], Tensor]]:
    """Give a function that does the forward pass of n images and, if told to, the backward pass;
    then put everything back.
    """
    diffusion, dataset = trial.diffusion, trial.dataset
    modes = {module: module.training for module in diffusion.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in diffusion.buffers()]
    order = DataOrder(len(dataset), trial.config.seed)
    images = dataset.batch(order.indices(0, min(8, len(dataset))).tolist())

    def run(n: int, backward: bool) -> Tensor:
        config, randomness = trial.config, StepRandomness(trial.config.seed, n, 1)
        forward = ForwardPass(
            diffusion, randomness, trial.device, config.horizontal_flip, config.augment
        )
        rows = torch.arange(n) % len(images["image"])
        batch = {name: value[rows] for name, value in images.items()}
        with trial.autocast():
            loss = forward(diffusion, batch, range(n), step=0, slot=0)[0].float().mean()
        if backward:
            loss.backward()
        return loss.detach() if backward else loss

    try:
        with (
            devices.global_state_kept(trial.device, trial.config.deterministic),
            torch.compiler.set_stance(
                "force_eager"
            ),  # compiling every size that is tried would take minutes
        ):
            diffusion.train()
            yield run
    finally:
        diffusion.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode
