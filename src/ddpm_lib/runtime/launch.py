"""Who started this process: what launchers and SLURM leave in the environment, and whether it can
be true.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator

import torch

from ddpm_lib.core.errors import ConfigError

logger = logging.getLogger("ddpm_lib")

WAITING_SECONDS = 20.0
"""After so long without the other processes a line says what is waited for."""

_MPI = {
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
_OTHER_WAYS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
_RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def under_torchrun() -> bool:
    """Say whether an elastic launcher (torchrun, accelerate launch --multi_gpu) runs this
    process.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def adopt_slurm_ranks() -> None:
    """Take the ranks from SLURM where `srun` started several tasks and no other launcher set them
    (accelerate does not look).

    The first node of the step is where the processes meet, at a port made from the job's number,
    below those that the system gives away.
    """
    env = os.environ
    tasks = env.get(
        "SLURM_STEP_NUM_TASKS", "1"
    )  # set by srun only: a batch script itself is one process
    if "RANK" in env or not tasks.isdigit() or int(tasks) < 2:
        return
    names = {
        "RANK": "SLURM_PROCID",
        "LOCAL_RANK": "SLURM_LOCALID",
        "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    }
    if any(not env.get(source, "").isdigit() for source in names.values()):
        return
    job, step = (
        int(env.get(name, "0")) if env.get(name, "0").isdigit() else 0
        for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    env.update({name: env[source] for name, source in names.items()})
    if (
        gpus := torch.cuda.device_count()
    ):  # a task may see one of the node's GPUs alone, as number 0
        env["LOCAL_RANK"] = str(int(env["LOCAL_RANK"]) % gpus)
    env.setdefault("MASTER_ADDR", first_host(env.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1")
    env.setdefault("MASTER_PORT", str(20_000 + (17 * job + step) % 12_000))


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list.

    >>> [first_host(s) for s in ("n1", "gpu[03-05,9],cpu1", "r[0-1]n[2-3]-ib,x", "")]
    ['n1', 'gpu03', 'r0n2-ib', '']
    """
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\d*)[^\]]*\]", r"\1", first[0]) if first else ""


def launched_processes(cpu: bool) -> int:
    """Return how many processes the environment says there are, of which this is one.

    Args:
        cpu: Whether they compute on the CPU, where the variables of MPI count too.

    Raises:
        ConfigError: If the variables contradict each other or lack what a meeting needs: then
            nobody can be coming.
    """
    size = _number("WORLD_SIZE") or 1
    if cpu:
        size = max([size, *(_number(name) or 1 for name in _MPI)])
    if size < 2:
        return 1
    env = os.environ
    rank_names = ["RANK", *(_MPI.values() if cpu else ())]
    rank = next((found for name in rank_names if (found := _number(name)) is not None), None)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    missing += ["RANK"] if rank is None else []
    missing += ["LOCAL_RANK"] if _number("LOCAL_RANK") is None and not cpu else []
    if missing:
        raise ConfigError(
            f"The environment says that this is one of {size} processes ({_said()}), but not"
            f" {' and '.join(missing)}: the others cannot be found. {how_to_be_one()} For {size}"
            " processes let a launcher start them and set all of it: torchrun --nproc_per_node"
            f" {size} …"
        )
    if rank is not None and rank >= size:
        raise ConfigError(
            f"The environment contradicts itself ({_said()}): ranks go from 0 to WORLD_SIZE − 1."
            f" {how_to_be_one()}"
        )
    return size


def _number(name: str) -> int | None:
    """Return a variable's whole number, None where it is not set (launchers write −1 for that)."""
    text = os.environ.get(name, "").strip()
    if not text or text == "-1":
        return None
    if not text.isdigit():
        raise ConfigError(
            f"The environment variable {name} must be a whole number; got {text!r}."
            f" {how_to_be_one()}"
        )
    return int(text)


def _said() -> str:
    sizes = [name for name in (*_RANKS, *_MPI, *_MPI.values()) if name in os.environ]
    return ", ".join(f"{name}={os.environ[name]}" for name in sizes)


def how_to_be_one() -> str:
    """Say how this becomes a single process."""
    env = os.environ
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if (
        tasks.isdigit()
        and int(tasks) > 1
        and env.get("RANK", env.get("SLURM_PROCID")) == env.get("SLURM_PROCID")
    ):
        return (
            f"SLURM started {tasks} tasks; for one process: srun --ntasks 1 …, or unset"
            " SLURM_STEP_NUM_TASKS."
        )
    names = [*_RANKS, *(name for name in (*_MPI, *_MPI.values()) if name in env)]
    return f"If they are left over and this is to be one process: `unset {' '.join(names)}`."


def check_ways_of_sharing() -> None:
    """Refuse ways of training that accelerate's configuration asks for and this library has not.

    Raises:
        ConfigError: Naming the variable, which `accelerate launch` sets.
    """
    for variable, name in _OTHER_WAYS.items():
        if os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "y", "on", "t"):
            raise ConfigError(
                f"{variable}={os.environ[variable]} asks accelerate for {name}, with which this"
                " library does not train: averages, checkpoints and sampling need whole weights on"
                " every process. Choose plain data parallelism (`accelerate config`, or torchrun"
                f" --nproc_per_node N …), or unset {variable}."
            )


@contextlib.contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Hide the ranks of a single process, which needs no meeting: left over, or those of `torchrun
    --nproc_per_node 1`.
    """
    names = [name for name in (*_RANKS, *_MPI) if name in os.environ]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def explain_rendezvous_errors() -> Iterator[None]:
    """Say what is waited for while processes meet, and turn a failure into an error that says what
    to set.

    Raises:
        ConfigError: If the port is taken.
        LostProcessError: If the other processes cannot be reached.
    """
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    waiting = threading.Timer(
        WAITING_SECONDS,
        logger.warning,
        ("Waiting at %s for the other processes (%s). %s", place, _said(), how_to_be_one()),
    )
    waiting.daemon = True
    waiting.start()
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "address already in use" in text.lower() or "EADDRINUSE" in text:
            raise ConfigError(
                f"The processes were to meet at {place}, but that port is in use. Set MASTER_PORT"
                " to a free one (torchrun --standalone, or --master_port, finds or takes another)."
            ) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
            from ddpm_lib.core.errors import LostProcessError

            raise LostProcessError(
                f"The processes could not meet at {place}. If none died, check MASTER_ADDR and"
                " MASTER_PORT; on nodes with several networks name the right one:"
                f" GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME. {how_to_be_one()} [{text[:300]}]"
            ) from error
        raise
    finally:
        waiting.cancel()
