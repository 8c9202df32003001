"""The batch script of a training for a SLURM cluster; docs/clusters.md says why it is as it is."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from ddpm_lib.core.errors import ConfigError

MARGIN = 1.25
"""How many times the estimated hours a job asks for: validations, grids and checkpoints take time,
and another node may be slower.
"""

START = 0.25
"""Hours added for what comes before the first step: data that are opened, blocks that compile."""

LONGEST = 24.0
"""Hours that a job asks for at most without being told: longer ones wait longer in the queue, and
a run that is not finished goes back into it.
"""

UNKNOWN = 4.0
"""Hours where nothing is known of the speed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job asks the batch system for.

    Attributes:
        name: Its name.
        hours: Time limit of one stay in the cluster.
        nodes: Nodes.
        gpus: GPUs per node, each with a process; 0: one process on the CPU.
        cpus: CPUs per process.
        memory: Memory of a node, as 16G; None for the cluster's default.
        partition: Partition, None for the cluster's default.
        account: Account, None for the user's default.
    """

    name: str = "ddpm"
    hours: float = UNKNOWN
    nodes: int = 1
    gpus: int = 1
    cpus: int = 4
    memory: str | None = None
    partition: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "cpus": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}.")
        if not (0 < self.hours < 10_000):
            raise ConfigError(f"hours must be a positive number; got {self.hours:g}.")
        for name in ("name", "memory", "partition", "account"):
            value = getattr(self, name)
            if value is not None and (not value or not value.isprintable() or " " in value):
                raise ConfigError(f"{name} must be one word; got {value!r}.")

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.nodes * max(1, self.gpus)


def time_limit(hours: float) -> str:
    """Write hours as SLURM does, rounded up to whole minutes.

    >>> time_limit(4), time_limit(0.51), time_limit(30.5)
    ('04:00:00', '00:31:00', '1-06:30:00')
    """
    minutes = max(1, math.ceil(60 * hours - 1e-9))
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def hours_to_ask_for(estimated: float, processes: int) -> float:
    """Return the hours of a job whose steps take some on one such device.

    Args:
        estimated: Hours of all steps in one process.
        processes: How many will share them.
    """
    return min(LONGEST, START + MARGIN * estimated / processes)


def slurm_script(job: Job, train: list[str], run: str) -> str:
    """Write the script: it trains, keeps the exit code, and puts the job back into the queue where
    the run was cut off and goes on.

    Args:
        job: What to ask for.
        train: The words of the training command, from "ddpm" on.
        run: The run directory, whose state decides.
    """
    asked = [f"job-name={job.name}", f"time={time_limit(job.hours)}"]
    several = job.processes > 1
    if several:
        asked += [f"nodes={job.nodes}", f"ntasks-per-node={max(1, job.gpus)}"]
        asked += [f"gpus-per-node={job.gpus}"] if job.gpus else []
        asked.append(f"cpus-per-task={job.cpus}")
    else:
        asked += ["ntasks=1", f"cpus-per-task={job.cpus}"]
    asked += [f"mem={job.memory}"] if job.memory else []
    asked += ["gres=gpu:1"] if not several and job.gpus else []
    asked += [f"partition={job.partition}"] if job.partition else []
    asked += [f"account={job.account}"] if job.account else []
    asked += ["requeue", "open-mode=append"]
    run = shlex.quote(run)
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{option}" for option in asked),
        "",
        "export HF_HUB_OFFLINE=1",
        # Since SLURM 22.05 srun does not ask for what the job has: a task would get one CPU.
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        f"srun {'--kill-on-bad-exit=1 ' if several else ''}{shlex.join(train)}",
        "code=$?",
        f'case "$(ddpm status --word {run})" in',
        '    stopped | lost | killed) scontrol requeue "$SLURM_JOB_ID" ;;',
        "esac",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
