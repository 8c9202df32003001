"""How processes find each other, also when torchrun has started them before, and how they part.

torchrun keeps one store for all its restarts, and torch writes under the same names each time: a
process that comes first reads the address that its peer had in the attempt before. Then the meeting
fails, or, where both take themselves for the one that is called, hangs. So under torchrun the
processes first agree on a name that no attempt before has used, and keep to it.
`TORCHELASTIC_RESTART_COUNT` is no such name: each node counts by itself.

gloo's threads drop the tensors of a finished collective a moment after those who waited for it have
gone on. A Python interpreter that ends in this moment takes the process down with SIGABRT
(pytorch#190489), and a finished training becomes a failure for its launcher. So before the
interpreter ends the group must be gone, not only its name: its destructor waits for the threads.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.core.spelling import option

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

_SCHEME = "ddpm-lib"
_KEY = "ddpm_lib/meeting"


NCCL_LATER = 2.0
"""Minutes that NCCL waits longer than our watchdog, which ends the process with a status."""


def group_options(minutes: float, device: str = "cpu") -> dict[str, Any]:
    """Return the arguments of `init_process_group` for this launcher.

    Args:
        minutes: How long the processes wait for each other, here and in every collective.
        device: What they compute on.
    """
    later = NCCL_LATER if device == "cuda" else 0.0
    options: dict[str, Any] = {"timeout": timedelta(minutes=minutes + later)}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _register()
        options["init_method"] = f"{_SCHEME}://"
    return options


@functools.cache
def _register() -> None:
    from torch.distributed.rendezvous import register_rendezvous_handler

    register_rendezvous_handler(_SCHEME, _meet)


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """Meet as torch does by the environment, in a part of the store that is this attempt's own."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    for store, rank, processes in rendezvous(
        url.replace(_SCHEME, "env", 1), timeout=timeout, **options
    ):
        name = agree_on_name(store, rank, processes, timeout.total_seconds())
        yield PrefixStore(f"{_KEY}/{name}", store), rank, processes


def agree_on_name(store: Any, rank: int, processes: int, seconds: float) -> str:
    """Return the same name on every process, one that no earlier attempt has used; whatever those
    left is harmless.

    Every process asks under a name of its own, so that an answer cannot be an old one; process 0
    answers, also those who died long ago, until all of now have confirmed.

    Args:
        store: A torch `Store` that all of them reach.
        rank: This process.
        processes: How many there are.
        seconds: How long to wait.

    Raises:
        torch.distributed.DistStoreError: Naming the processes that did not come.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    if rank:
        store.set(f"{_KEY}/asks/{rank}", own)
        while not store.check([f"{_KEY}/told/{own}"]):
            _pause(deadline, seconds, [0])
        name: str = store.get(f"{_KEY}/told/{own}").decode()
        store.set(f"{_KEY}/knows/{name}/{rank}", "")
        return name
    missing = list(range(1, processes))
    while missing:
        for other in missing:
            if store.check([f"{_KEY}/asks/{other}"]):
                store.set(f"{_KEY}/told/{store.get(f'{_KEY}/asks/{other}').decode()}", own)
        missing = [other for other in missing if not store.check([f"{_KEY}/knows/{own}/{other}"])]
        if missing:
            _pause(deadline, seconds, missing)
    return own


def _pause(deadline: float, seconds: float, missing: list[int]) -> None:
    if time.monotonic() > deadline:
        who = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise torch.distributed.DistStoreError(
            f"process {who} has not come within {seconds / 60:g} minutes"
            f" ({option('process_timeout_minutes')})"
        )
    time.sleep(0.02)


def before_rendezvous() -> None:
    """Import what would keep the group for good if it were imported later: its functions have the
    group as a default.
    """
    import torch.distributed.nn.functional  # noqa: F401


def after_rendezvous() -> None:
    """See to it that a process that ends well, without `destroy_group`, leaves its group before the
    interpreter ends.
    """
    atexit.unregister(_leave_at_exit)  # once is enough
    atexit.register(_leave_at_exit)


def destroy_group(state: PartialState | Accelerator) -> None:
    """Wait for the others, leave the process group and see its threads end; nothing for a single
    process.

    Args:
        state: accelerate's state or its `Accelerator`.
    """
    if state.num_processes > 1:
        state.wait_for_everyone()
        _drop_group()


def abandon_group() -> None:
    """Leave no group at the end of this process: it failed, and a collective that the others never
    join would hold it.
    """
    atexit.unregister(_leave_at_exit)


def _leave_at_exit() -> None:
    if getattr(sys, "last_value", None) is None:
        _drop_group()


def _drop_group() -> None:
    from accelerate import PartialState

    gc.collect()  # DDP's wrappers hold the group, in cycles
    if torch.distributed.is_initialized():
        PartialState().destroy_process_group()
