"""`ddpm slurm run.yaml`: write the batch script of a training; nothing is submitted."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.text import printable
from ddpm_lib.runtime.slurm_script import (
    LONGEST,
    MARGIN,
    UNKNOWN,
    Job,
    hours_to_ask_for,
    slurm_script,
    time_limit,
)

if TYPE_CHECKING:
    from ddpm_lib.cli.train import RunConfig

DESCRIPTION = (
    "Write a script for sbatch that trains what a YAML file says. Nothing is submitted. The script"
    " is that of docs/clusters.md: the job stops before its time limit, and goes back into the"
    " queue until the run is finished, so the limit is that of one stay. Without --hours it comes"
    " from the speed of a few steps, where this machine has the device that is asked for."
)


@dataclass(frozen=True, kw_only=True)
class SlurmCommand:
    """Options of `ddpm slurm`."""

    config: tyro.conf.Positional[str]
    """YAML file for `ddpm train --config`, which `ddpm train … --print-config` writes; or that of a
    run.
    """
    output: str | None = None
    """The script to write, which must not exist; default: the file's name with .slurm.sh, here."""
    hours: float | None = None
    """Time limit of the job; default: from `ddpm estimate`, with a margin."""
    gpus: int = 1
    """GPUs per node, each with a process of its own; 0 trains on the CPU."""
    nodes: int = 1
    """Nodes."""
    cpus: int = 4
    """CPUs per process: loader workers run on them."""
    memory: str | None = None
    """Memory of a node, as 32G; default: 16G on one GPU, else the cluster's own."""
    partition: str | None = None
    """Partition; default: the cluster's."""
    account: str | None = None
    """Account that pays; default: yours."""
    job_name: str | None = None
    """Name of the job; default: that of the run."""
    probe_steps: int = 5
    """Steps to time for the estimate; 0: none."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    command: SlurmCommand = options.parse(
        SlurmCommand, args, SlurmCommand(config=missing), "ddpm slurm", DESCRIPTION
    )
    script = Path(command.output or f"{Path(command.config).stem}.slurm.sh")
    if os.path.lexists(script):
        raise _exists(script)
    job = job_of(command, UNKNOWN, "ddpm")  # refuses what is impossible before torch is loaded

    from ddpm_lib.cli import train
    from ddpm_lib.cli.chosen_network import is_choice_for_cpus

    line = ["--config", command.config]
    settings = train.settings_of(train.layered(line, train.TrainCommand, "ddpm slurm", ""))
    run = settings.output_dir or f"runs/{train.default_name(settings.data)}"
    refuse_uneven(settings, job)
    hours, why = limit(command, settings, job)
    job = job_of(command, hours, Path(run).name.replace(" ", "-"))
    words = ["ddpm", "train", *line, "--output-dir", run, "--no-progress"]
    if not job.gpus:
        words += ["--device", "cpu"]
    try:
        with script.open("x", encoding="utf-8") as file:
            file.write(slurm_script(job, words, run))
    except FileExistsError:
        raise _exists(script) from None
    print(f"wrote {printable(script)}: {what_it_asks(job)}")
    print(f"  time limit {time_limit(job.hours)}: {why}")
    if job.gpus and is_choice_for_cpus(settings):
        print(
            "  the file holds the small network that is chosen on machines without a GPU, as login"
            " nodes are; to train the usual one, write the file again with --preset small"
        )
    print(f"submit it here:  sbatch {shlex.quote(str(script))}")
    print(f"then:            ddpm status {shlex.quote(run)}")
    return 0


def job_of(command: SlurmCommand, hours: float, name: str) -> Job:
    """Return what the job asks for."""
    one_gpu = command.nodes == 1 and command.gpus == 1
    return Job(
        name=command.job_name or name,
        hours=command.hours if command.hours is not None else hours,
        nodes=command.nodes,
        gpus=command.gpus,
        cpus=command.cpus,
        memory=command.memory or ("16G" if one_gpu else None),
        partition=command.partition,
        account=command.account,
    )


def refuse_uneven(settings: RunConfig, job: Job) -> None:
    """Refuse a number of processes that does not divide the batch.

    Raises:
        ConfigError: Naming numbers that do.
    """
    batch = settings.batch_size
    if batch != "auto" and batch % job.processes:
        fits = [n for n in range(1, batch + 1) if batch % n == 0]
        near = sorted(sorted(fits, key=lambda n: abs(n - job.processes))[:3])
        raise ConfigError(
            f"{job.processes} processes do not divide the batch of {batch} images. Ask for"
            f" {', '.join(map(str, near))} GPUs over all nodes, or set another batch_size in the"
            " file."
        )


def limit(command: SlurmCommand, settings: RunConfig, job: Job) -> tuple[float, str]:
    """Return the hours of the job, and where they come from."""
    if command.hours is not None:
        return command.hours, "as asked for (--hours)"
    elsewhere = (
        f"a guess: this machine has no GPU to time steps on; `ddpm estimate --config"
        f" {shlex.quote(command.config)}` does so where there is one. The job goes back into the"
        " queue until the run is finished"
    )
    import torch

    if job.gpus and not torch.cuda.is_available():
        return UNKNOWN, elsewhere
    if not command.probe_steps:
        return UNKNOWN, "a guess, as no steps were timed (--probe-steps 0)"
    estimated = estimated_hours(settings, command.probe_steps, "auto" if job.gpus else "cpu")
    if estimated is None:
        return UNKNOWN, "a guess: the steps did not fit into this machine's memory"
    hours = hours_to_ask_for(estimated, job.processes)
    told = f"all steps take {estimated:.2g} hours in one process here; × {MARGIN}, and 15 minutes"
    if job.processes > 1:
        told += f", over {job.processes} processes if they share the work evenly"
    if hours == LONGEST:
        told += f"; {LONGEST:g} hours at a time, which --hours changes"
    return hours, told


def estimated_hours(settings: RunConfig, probe_steps: int, device: str) -> float | None:
    """Return the hours of all steps in one process of this machine, None where they do not fit."""
    import dataclasses

    from ddpm_lib.cli import train
    from ddpm_lib.training.estimate import estimate

    print(f"timing {probe_steps} steps after a warm-up …", file=sys.stderr, flush=True)
    settings = dataclasses.replace(settings, device=device)
    diffusion, data = train.build(settings)
    images = None if isinstance(data, str) else len(data)
    result = estimate(diffusion, settings.training(), probe_steps, images)
    return None if result is None else result.hours


def what_it_asks(job: Job) -> str:
    """Word what a job asks for."""
    nodes = "1 node" if job.nodes == 1 else f"{job.nodes} nodes"
    gpus = f" with {job.gpus} GPU{'s' if job.gpus > 1 else ''}" if job.gpus else " without a GPU"
    each = " each" if job.nodes > 1 and job.gpus else ""
    return f"{nodes}{gpus}{each}, {job.cpus} CPUs per process"


def _exists(script: Path) -> ConfigError:
    return ConfigError(
        f"{printable(script)} exists, and nothing is overwritten. Choose another --output."
    )
