"""What this process may really use of the machine.

CPUs and memory are the least of what the affinity mask, the control group (walked to the root) and
the batch system allow. The number of cores in the machine is never the answer on a shared node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


_PROC = Path("/proc")


def available_cpus() -> int:
    """Return how many CPUs this process may use, at least 1.

    The least of the affinity mask, the CPU quota of every control group above this process (v1 and
    v2) and what the batch system granted (SLURM_CPUS_PER_TASK, PBS_NUM_PPN, NSLOTS).
    """
    return max(1, int(min(cpu_limits().values())))


def cpu_limits() -> dict[str, float]:
    """Return how many CPUs each of those that limit this process allows, by what it is called."""
    affinity = getattr(os, "sched_getaffinity", None)
    limits = {"affinity mask": float(len(affinity(0)) if affinity else _machine_cpus())}
    quotas = _cgroup_cpus()
    if quotas:
        limits["control group"] = min(quotas)
    for name in ("SLURM_CPUS_PER_TASK", "PBS_NUM_PPN", "NSLOTS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            limits[name] = float(value)
    return limits


def cpus_and_why() -> str:
    """Word how many CPUs this process may use, and what says so."""
    limits = cpu_limits()
    who, least = min(limits.items(), key=lambda item: item[1])
    others = [f"{name} {value:g}" for name, value in limits.items() if name != who]
    also = f" (others: {', '.join(others)})" if others else ""
    return f"{max(1, int(least))} CPUs by the {who}{also}"


def _machine_cpus() -> int:
    """Count logical CPUs where the system knows no affinity (macOS, Windows)."""
    import torch

    return torch.get_num_threads()


def local_world_size() -> int:
    """Return how many ranks of this job share the machine (torchrun, Open MPI or an srun step say
    it), or 1.
    """
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        found = re.match(r"\d+", os.environ.get(name, ""))
        if found and int(found.group()) > 0:
            return int(found.group())
    return 1


def available_memory() -> int:
    """Return how many bytes this process can still allocate.

    The least of the machine's free memory, what is left in every control group above this process
    and what SLURM granted.
    """
    limits = memory_limits()
    return max(0, min(limits.values())) if limits else 1 << 30


def memory_limits() -> dict[str, int]:
    """Return how many bytes each of those that limit this process leaves it, by what it is
    called.
    """
    found = {
        "machine": _machine_memory(),
        "control group": _cgroup_memory(),
        "SLURM": _slurm_memory(),
    }
    return {name: min(limits) for name, limits in found.items() if limits}


def _memberships() -> Iterator[tuple[str, str]]:
    """Yield (controllers, path) of this process's control groups; no controllers means v2."""
    text = _read(_PROC / "self" / "cgroup")
    for line in (text or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield parts[1], parts[2]


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) from this process's group up to the root, for v2 and for the v1
    `controller`.
    """
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
        names = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        limit, used = ((_read(folder / name) or "").strip() for name in names)
        if not limit.isdigit() or int(limit) >= 1 << 60:
            continue
        found = re.search(
            r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE
        )
        reclaimable = int(found.group(1)) if found else 0
        limits.append(int(limit) - (int(used) if used.isdigit() else 0) + reclaimable)
    return limits


def _machine_memory() -> list[int]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo") or "", re.MULTILINE)
    return [int(found.group(1)) * 1024] if found else []


def _slurm_memory() -> list[int]:
    """What SLURM granted on this node, in bytes; it does not say how much is used, so half counts
    as free.
    """
    per_node, per_cpu = (
        os.environ.get("SLURM_MEM_PER_NODE", ""),
        os.environ.get("SLURM_MEM_PER_CPU", ""),
    )
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
