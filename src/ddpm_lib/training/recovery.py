"""When training cannot go on as it is: a roll-back, too little memory, a lost process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm_lib.core.errors import LostProcessError, OutOfMemoryError
from ddpm_lib.runs.run_log import RunLog
from ddpm_lib.runtime.memory import memory_numbers
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.batches import BatchPlan


@dataclass(frozen=True)
class RollBack:
    """Go back to the last good checkpoint, with the images after those of the failed step.

    Attributes:
        step: The step that was not finite, counted from 1.
        images_seen: Slots used up to and with that step.
        message: What happened.
    """

    step: int
    images_seen: int
    message: str


@dataclass(frozen=True)
class Shrink:
    """Do the same batch in more, smaller forward passes.

    Attributes:
        accumulation: Forward passes per step from now on.
        message: What happened.
    """

    accumulation: int
    message: str


Recovery = RollBack | Shrink
"""How training goes on after a failure; the same on every rank after the same step."""


def handle_out_of_memory(
    error: BaseException, plan: BatchPlan, step: int, device: torch.device
) -> Shrink:
    """Return smaller forward passes where one process can make them by itself.

    Args:
        error: What the device or the machine said.
        plan: How the batch is shared now.
        step: Optimizer steps done.
        device: Where memory ran out.

    Raises:
        OutOfMemoryError: Where it cannot, with the numbers and what helps.
    """
    numbers = memory_numbers(device)
    what = f"Out of memory with {plan.micro} images per forward pass at step {step + 1}"
    message = f"{what} ({numbers})."
    more = range(plan.accumulation + 1, plan.per_process + 1)
    finer = [a for a in more if plan.per_process % a == 0]
    if finer and plan.processes == 1:
        return Shrink(finer[0], message)
    if finer:
        flag = f"--accumulation-steps {finer[0]}"
        remedy = f"Start again with {flag}: the batch stays the same, and the run continues."
    else:
        remedy = (
            "One image per forward pass is the least: use a smaller network, patches, gradient"
            " checkpointing or bf16."
        )
    first = " ".join(str(error).split())[:300]
    raise OutOfMemoryError(f"{message} {remedy} [{type(error).__name__}: {first}]") from None


@contextlib.contextmanager
def translate_lost_process_errors(
    log: RunLog, timeout_minutes: float, last_checkpoint: Callable[[], Path | None]
) -> Iterator[None]:
    """Turn errors that mean the loss of another process into one clear error, noted in status.json.

    Args:
        log: Of the run; knows its processes and its step.
        timeout_minutes: How long processes wait for each other.
        last_checkpoint: Says where the run will continue.

    Raises:
        LostProcessError: Where another process is gone or silent.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process_error(error, log.processes):
            raise
        step, checkpoint = log.progress.step, last_checkpoint()
        lost = lost_process_error(error, log.processes, timeout_minutes, step, checkpoint)
        log.status("lost", str(lost))
        raise lost from error


def is_lost_process_error(error: BaseException, processes: Processes) -> bool:
    """Whether an error of torch means that another process of the run is gone or silent."""
    if processes.count == 1 or isinstance(error, LostProcessError):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    # torch has no class of its own for errors of gloo's and nccl's transports.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in text for w in ("gloo", "nccl", "tcpstore"))


def lost_process_error(
    error: BaseException,
    processes: Processes,
    timeout_minutes: float,
    step: int,
    checkpoint: Path | None,
) -> LostProcessError:
    """Return the error for users for one of which `is_lost_process_error` is true.

    Args:
        error: What torch said.
        processes: Of the run.
        timeout_minutes: How long they wait for each other.
        step: Optimizer steps done.
        checkpoint: The newest checkpoint.
    """
    text = " ".join(str(error).split())
    hint = ""
    if "connectFullMesh" in text:
        names = "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        hint = f" On nodes with several networks name the right one: {names}."
    limit = f"{timeout_minutes:g} minutes (process_timeout_minutes)"
    silent = any(w in text.lower() for w in ("timed out", "timeout"))
    what = f"has not answered for {limit}" if silent else "is gone"
    return LostProcessError(
        f"Another process of this run {what}; process {processes.rank} of {processes.count} ends "
        f"at step {step}.{hint} Start the same command again: it continues from "
        f"{checkpoint or 'the beginning'}. [{text[:300]}]"
    )
