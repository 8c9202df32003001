"""What this process may really use of the machine, and how loader workers behave.

CPUs and memory are the least of what the affinity mask, the control group (walked to the root) and
the batch system allow. The number of cores in the machine is never the answer on a shared node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from ddpm_lib.core.health import Check
from ddpm_lib.core.spelling import option
from ddpm_lib.runtime.limits import available_cpus, cpus_and_why, local_world_size

MAX_WORKERS = 8
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_JOB_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
]


def default_num_workers(local_ranks: int | None = None, in_memory: bool = False) -> int:
    """Return a sensible number of loader workers: 0 for sets in RAM, else 0 … 8, the CPUs per rank
    but one.
    """
    if in_memory:
        return 0
    share = available_cpus() // max(
        1, local_ranks if local_ranks is not None else local_world_size()
    )
    return max(0, min(MAX_WORKERS, share - 1))


def check_num_workers(n: int | None) -> str | None:
    """Return a warning line when `n` workers are more than the CPUs allowed, else None.

    Raises:
        ValueError: If `n` is negative or not a whole number.
    """
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(
            f"{option('num_workers')} must be a whole number ≥ 0, or None for automatic; got {n!r}."
        )
    cpus = available_cpus()
    if n > cpus:
        return (
            f"{option('num_workers', n)} is more than the {cpus} CPUs this process may use: the"
            " workers will"
            f" only slow each other down. Use {default_num_workers()} or leave it out."
        )
    return None


def check_workers() -> Iterator[Check]:
    """Say how many loader workers there would be, and why."""
    count, ranks = default_num_workers(), local_world_size()
    share = f", shared by {ranks} processes" if ranks > 1 else ""
    says = f"{count} for sets that do not fit into RAM: {cpus_and_why()}{share}"
    if available_cpus() // ranks < 2:
        remedy = "ask for more CPUs (SLURM: --cpus-per-task=4), or keep sets small enough for RAM"
        yield Check("workers", "note", says, remedy)
    else:
        yield Check("workers", "ok", says)


def ignore_signals() -> None:
    """Ignore the signals that batch systems send to whole jobs: the trainer decides when workers
    end.
    """
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold those signals back while workers are forked, so that none can hit one that does not
    ignore them yet.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def allow_open_files() -> None:
    """Raise this process's limit of open files to what the system allows it: workers hand over
    tensors as open files.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start_method() -> str | None:
    """Return how to start workers: "fork" on Linux (no copy of the dataset, 0.2 s), else the
    system's default.
    """
    return "fork" if sys.platform == "linux" else None


def worker_init(worker_id: int) -> None:
    """Prepare a loader worker: one thread, and deaf to SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and
    SIGHUP.
    """
    ignore_signals()
    one_thread()


def one_thread() -> None:
    """Make this process compute in one thread: pools of threads of the parent do not survive a
    fork, and hang.
    """
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are first loaded here
    opencv = sys.modules.get("cv2")
    if opencv is not None:
        opencv.setNumThreads(0)


def die_with_parent(parent: int, thread_stays: bool = True) -> None:
    """End this forked process when its parent ends, however that happens.

    Args:
        parent: Process number of the parent.
        thread_stays: Whether the thread that forked lives as long as it needs this process: to the
            kernel, that thread is the parent.
    """
    prctl = None
    if thread_stays and sys.platform == "linux":
        prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None or prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def introduce_worker(worker_id: int, count: int, dataset: Any) -> None:
    """Let `torch.utils.data.get_worker_info()` answer in this process as in a worker of a
    DataLoader of `dataset`.
    """
    import torch
    from torch.utils.data._utils import worker

    seed = worker_id if worker._worker_info is None else worker._worker_info.seed
    torch.default_generator.manual_seed(seed)
    worker._worker_info = worker.WorkerInfo(
        id=worker_id, num_workers=count, seed=seed, dataset=dataset
    )
