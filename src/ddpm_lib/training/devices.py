"""Choices that depend on the hardware: device, precision, memory layout, and the accelerate object that carries them."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddpm_lib.training.config import ConfigError, TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that autocast computes in."""


def pick_device(wanted: str) -> str:
    """Return the device type to use: "cuda", "mps", "xpu" or "cpu".

    Raises:
        ConfigError: If the wanted device is not there.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, there in present.items() if there)
    if not present[wanted]:
        built = f"torch {torch.__version__}"
        there = ", ".join(name for name, ok in present.items() if ok)
        raise ConfigError(f"device={wanted!r} is not available here ({built}); available: {there}. Use --device auto.")
    return wanted


def cpu_has_bf16() -> bool:
    """Say whether the CPU multiplies bf16 matrices in hardware (AMX or AVX-512 BF16)."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


def pick_precision(wanted: str, device: str) -> str:
    """Return "no", "bf16" or "fp16"; auto is bf16 where the hardware has it.

    Raises:
        ConfigError: If the device cannot do what is wanted.
    """
    has_bf16 = {
        "cuda": device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": cpu_has_bf16(),
        "xpu": True,
        "mps": False,
    }[device]
    if wanted == "auto":
        return "bf16" if has_bf16 else "no"
    if wanted == "bf16" and device == "cuda" and not has_bf16:
        raise ConfigError("mixed_precision='bf16' needs a GPU of compute capability 8.0 or newer. Use fp16 or no.")
    if wanted == "fp16" and device in ("cpu", "mps"):
        raise ConfigError(f"mixed_precision='fp16' does not train on {device}. Use bf16 or no.")
    return wanted


def use_channels_last(wanted: str, device: str, precision: str) -> bool:
    """Say whether a pixel's channels lie side by side in memory.

    That is the faster layout on GPUs and for float32 on CPUs; in bf16 on CPUs it is with the kernel of `nn.kernels` only,
    because torch's own normalisation then loses more than the convolutions gain.
    """
    if wanted == "auto":
        if device == "cpu" and precision == "bf16":
            from ddpm_lib.nn.kernels import library

            return library() is not None
        return device in ("cuda", "xpu") or (device == "cpu" and precision == "no")
    return wanted == "yes"


def under_torchrun() -> bool:
    """Say whether an elastic launcher (torchrun, accelerate launch --multi_gpu) runs this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def adopt_slurm_ranks() -> None:
    """Take the ranks from SLURM where `srun` started several tasks and no other launcher set them (accelerate does not look).

    The first node of the step is where the processes meet, at a port made from the job's number.
    """
    env = os.environ
    tasks = env.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun only: a batch script itself is one process
    if "RANK" in env or not tasks.isdigit() or int(tasks) < 2:
        return
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
    if any(not env.get(source, "").isdigit() for source in names.values()):
        return
    job, step = (
        int(env.get(name, "0")) if env.get(name, "0").isdigit() else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    env.update({name: env[source] for name, source in names.items()})
    env.setdefault("MASTER_ADDR", first_host(env.get("SLURM_STEP_NODELIST", "")) or "127.0.0.1")
    env.setdefault("MASTER_PORT", str(20_000 + (17 * job + step) % 20_000))


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list.

    >>> [first_host(s) for s in ("n1", "gpu[03-05,9],cpu1", "a-b[7]", "")]
    ['n1', 'gpu03', 'a-b7', '']
    """
    match = re.match(r"([^\[,]*)(?:\[(\d+))?", nodes)
    return (match[1] + (match[2] or "")) if match else ""


def process_state(device: str = "auto", timeout_minutes: float = 10.0) -> PartialState:
    """Join the other processes that a launcher started, if any; `main_process_first()` of the result orders file work.

    Args:
        device: As for `pick_device`. With "cpu", or where there is no accelerator, the processes meet over gloo.
        timeout_minutes: How long they wait for each other; the first call decides.
    """
    from accelerate import PartialState

    from ddpm_lib.training import meeting
    from ddpm_lib.training.allocator import keep_freed_memory

    if pick_device(device) == "cpu":
        keep_freed_memory()
    adopt_slurm_ranks()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        meeting.before_meeting()
    with meeting_explained():
        state = PartialState(cpu=pick_device(device) == "cpu", **meeting.group_options(timeout_minutes))
    if state.num_processes > 1:
        meeting.after_meeting()
    elif state.device.type != pick_device(device):
        # accelerate's state is one per process, and a trainer on another device may live in it: ours is a copy.
        state = copy.copy(state)
        state.device = torch.device(pick_device(device))
    return state


def make_accelerator(config: TrainingConfig, run: Path) -> Accelerator:
    """Build accelerate's Accelerator for a training run; data order, files and random state stay ours."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration

    device = pick_device(config.device)
    precision = pick_precision(config.mixed_precision, device)
    # accelerate's state is one per process: a notebook that trains twice would get the first device, or be refused
    # another precision.
    if PartialState._shared_state and PartialState().num_processes == 1 and PartialState().device.type != device:
        AcceleratorState._reset_state(reset_partial_state=True)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state(reset_partial_state=False)
    for tracker in config.trackers:
        _check_tracker(tracker)
    # Before accelerate does it: InitProcessGroupKwargs drops ten minutes as its default, where gloo waits thirty.
    process_state(device, config.process_timeout_minutes)
    return Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        # Ours are counted in the loop; without this, a launcher's setting would divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "trackers")),
        # No second copy of the gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


@contextlib.contextmanager
def meeting_explained() -> Iterator[None]:
    """Turn a failure of the processes to meet into an error that says what to set.

    Raises:
        ConfigError: If the port is taken.
        LostProcessError: If the other processes cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        if "address already in use" in text.lower() or "EADDRINUSE" in text:
            raise ConfigError(
                f"The processes were to meet at {place}, but that port is in use. Set MASTER_PORT to a free one "
                "(torchrun --standalone, or --master_port, finds or takes another)."
            ) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
            from ddpm_lib.training.results import LostProcessError

            raise LostProcessError(
                f"The processes could not meet at {place}. If none died, check MASTER_ADDR and MASTER_PORT; on nodes with "
                f"several networks name the right one: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME. [{text[:300]}]"
            ) from error
        raise


def claim_precision(precision: str) -> None:
    """Tell accelerate's process-wide state the precision of the trainer at work, another of which may have run since."""
    from accelerate.state import AcceleratorState

    AcceleratorState()._mixed_precision = precision


@contextlib.contextmanager
def global_state_kept(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Give torch's random state and determinism switches back as they were.

    Args:
        device: Where training runs; dropout is seeded anew at every step there and on the CPU.
        deterministic: Whether to allow deterministic kernels only meanwhile.
    """
    switches = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    torch.backends.cudnn.benchmark = not deterministic  # every batch has the same shape
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    indices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(indices):
            yield
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(switches[0], warn_only=switches[1])
        torch.backends.cudnn.benchmark = switches[2]


def _check_tracker(name: str) -> None:
    import importlib.util

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    known = [str(t) for t in LoggerType if str(t) != "all"]
    if name not in known:
        from ddpm_lib.registry import unknown_name

        raise ConfigError(unknown_name("tracker", name, known))
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"The tracker {name!r} needs its package. Install it with: pip install {name}")
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"The tracker {name!r} is not usable with this version of accelerate.")
