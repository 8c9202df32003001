"""What this process may really use of the machine, and how loader workers behave.

CPUs and memory are the least of what the affinity mask, the control group (walked to the root) and the batch system
allow. The number of cores in the machine is never the answer on a shared node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
MAX_WORKERS = 8
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_JOB_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]


def available_cpus() -> int:
    """Return how many CPUs this process may use, at least 1.

    The least of the affinity mask, the CPU quota of every control group above this process (v1 and v2) and what the
    batch system granted (SLURM_CPUS_PER_TASK, PBS_NUM_PPN, NSLOTS).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    limits = [float(len(affinity(0)) if affinity else _machine_cpus())]
    limits += _cgroup_cpus()
    for name in ("SLURM_CPUS_PER_TASK", "PBS_NUM_PPN", "NSLOTS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            limits.append(float(value))
    return max(1, int(min(limits)))


def _machine_cpus() -> int:
    """Count logical CPUs where the system knows no affinity (macOS, Windows)."""
    import torch

    return torch.get_num_threads()


def local_world_size() -> int:
    """Return how many ranks of this job share the machine (torchrun, Open MPI or an srun step say it), or 1."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        found = re.match(r"\d+", os.environ.get(name, ""))
        if found and int(found.group()) > 0:
            return int(found.group())
    return 1


def default_num_workers(local_ranks: int | None = None, in_memory: bool = False) -> int:
    """Return a sensible number of loader workers: 0 for sets in RAM, else 0 … 8, the CPUs per rank but one."""
    if in_memory:
        return 0
    share = available_cpus() // max(1, local_ranks if local_ranks is not None else local_world_size())
    return max(0, min(MAX_WORKERS, share - 1))


def check_num_workers(n: int | None) -> str | None:
    """Return a warning line when `n` workers are more than the CPUs allowed, else None.

    Raises:
        ValueError: If `n` is negative or not a whole number.
    """
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"num_workers must be a whole number ≥ 0, or None for automatic; got {n!r}.")
    cpus = available_cpus()
    if n > cpus:
        return (
            f"num_workers={n} is more than the {cpus} CPUs this process may use: the workers will only slow each "
            f"other down. Use {default_num_workers()} or leave it out."
        )
    return None


def available_memory() -> int:
    """Return how many bytes this process can still allocate.

    The least of the machine's free memory, what is left in every control group above this process and what SLURM
    granted.
    """
    limits = [*_machine_memory(), *_cgroup_memory(), *_slurm_memory()]
    return max(0, min(limits)) if limits else 1 << 30


def ignore_signals() -> None:
    """Ignore the signals that batch systems send to whole jobs: the trainer decides when workers end."""
    for number in _JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold those signals back while workers are forked, so that none can hit one that does not ignore them yet."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def allow_open_files() -> None:
    """Raise this process's limit of open files to what the system allows it: workers hand over tensors as open files."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start_method() -> str | None:
    """Return how to start workers: "fork" on Linux (no copy of the dataset, 0.2 s), else the system's default."""
    return "fork" if sys.platform == "linux" else None


def worker_init(worker_id: int) -> None:
    """Prepare a loader worker: one thread, and deaf to SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGHUP."""
    ignore_signals()
    one_thread()


def one_thread() -> None:
    """Make this process compute in one thread: pools of threads of the parent do not survive a fork, and hang."""
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
    """Let `torch.utils.data.get_worker_info()` answer in this process as in a worker of a DataLoader of `dataset`."""
    import torch
    from torch.utils.data._utils import worker

    seed = worker_id if worker._worker_info is None else worker._worker_info.seed
    torch.default_generator.manual_seed(seed)
    worker._worker_info = worker.WorkerInfo(id=worker_id, num_workers=count, seed=seed, dataset=dataset)


def _memberships() -> Iterator[tuple[str, str]]:
    """Yield (controllers, path) of this process's control groups; no controllers means v2."""
    text = _read(_PROC / "self" / "cgroup")
    for line in (text or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield parts[1], parts[2]


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) from this process's group up to the root, for v2 and for the v1 `controller`."""
    for controllers, path in _memberships():
        names = controllers.split(",")
        if not controllers:
            roots, version = [_CGROUP, _CGROUP / "unified"], 2
        elif controller in names:
            roots, version = [_CGROUP / controllers, _CGROUP / controller], 1
        else:
            continue
        for root in roots:
            if not root.is_dir():
                continue
            folder = root / path.lstrip("/")
            while True:
                if folder.is_dir():
                    yield folder, version
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent


def _cgroup_cpus() -> list[float]:
    limits = []
    for folder, version in _groups("cpu"):
        if version == 2:
            words = (_read(folder / "cpu.max") or "").split()
            quota, period = (words[0], words[1]) if len(words) == 2 else ("max", "1")
        else:
            quota = (_read(folder / "cpu.cfs_quota_us") or "-1").strip()
            period = (_read(folder / "cpu.cfs_period_us") or "100000").strip()
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            limits.append(int(quota) / int(period))
    return limits


def _cgroup_memory() -> list[int]:
    limits = []
    for folder, version in _groups("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = ((_read(folder / name) or "").strip() for name in names)
        if not limit.isdigit() or int(limit) >= 1 << 60:
            continue
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE)
        reclaimable = int(found.group(1)) if found else 0
        limits.append(int(limit) - (int(used) if used.isdigit() else 0) + reclaimable)
    return limits


def _machine_memory() -> list[int]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo") or "", re.MULTILINE)
    return [int(found.group(1)) * 1024] if found else []


def _slurm_memory() -> list[int]:
    """What SLURM granted on this node, in bytes; it does not say how much is used, so half counts as free."""
    per_node, per_cpu = os.environ.get("SLURM_MEM_PER_NODE", ""), os.environ.get("SLURM_MEM_PER_CPU", "")
    cpus = re.match(r"\d+", os.environ.get("SLURM_CPUS_ON_NODE", ""))
    granted = []
    if per_node.isdigit() and int(per_node) > 0:
        granted.append(int(per_node))
    if per_cpu.isdigit() and cpus:
        granted.append(int(per_cpu) * int(cpus.group()))
    return [megabytes * (1 << 20) // 2 for megabytes in granted]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
