"""Choices that depend on the hardware: device, precision, memory layout, and the accelerate object
that carries them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runtime.accelerate_state import OwnState
from ddpm_lib.runtime.launch import (
    adopt_slurm_ranks,
    check_ways_of_sharing,
    explain_rendezvous_errors,
    hidden_from_accelerate,
    launched_processes,
)
from ddpm_lib.runtime.trackers import check_tracker

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that autocast computes in."""


def pick_device(wanted: str) -> str:
    """Return the device type to use: "cuda", "mps", "xpu" or "cpu".

    Raises:
        ConfigError: If the wanted device is not there.
    """
    return resolve_device(wanted).type


def describe_hardware(device: torch.device, processes: int, precision: str) -> dict[str, Any]:
    """Describe what a run computes on, JSON-able, for people who read its records.

    Args:
        device: Of this process.
        processes: How many train together, each on such a device.
        precision: "no", "bf16" or "fp16".

    Returns:
        device ("cuda"), name ("NVIDIA H100 80GB HBM3"), processes, and precision ("float32" for
        "no").
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    precision = "float32" if precision == "no" else precision
    return {"device": device.type, "name": name, "processes": processes, "precision": precision}


@functools.cache
def _processor_name() -> str:
    """Return the processor's name as Linux has it, else what Python knows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_has_bf16() -> bool:
    """Say whether the CPU multiplies bf16 matrices in hardware (AMX or AVX-512 BF16)."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


def pick_precision(wanted: str, device: str) -> str:
    """Return "no", "bf16" or "fp16"; auto is bf16 where the hardware has it.

    Raises:
        ConfigError: If the device cannot do what is wanted.
    """
    name, device = device, device.partition(":")[0]
    has_bf16 = {
        "cuda": device == "cuda" and _cuda_has_bf16(name),
        "cpu": cpu_has_bf16(),
        "xpu": True,
        "mps": False,
    }[device]
    if wanted == "auto":
        return "bf16" if has_bf16 else "no"
    if wanted == "bf16" and device == "cuda" and not has_bf16:
        raise ConfigError(
            f"{option('mixed_precision', 'bf16')} needs a GPU of compute capability 8.0 or newer."
            " Use fp16 or no."
        )
    if wanted == "fp16" and device in ("cpu", "mps"):
        raise ConfigError(
            f"{option('mixed_precision', 'fp16')} does not train on {device}. Use bf16 or no."
        )
    return wanted


def precision_advice(wanted: str, device: torch.device, precision: str) -> str | None:
    """Return what would be faster, where auto has chosen float32 on a GPU older than bf16."""
    if wanted != "auto" or device.type != "cuda" or precision != "no":
        return None
    name = torch.cuda.get_device_name(device)
    fp16 = option("mixed_precision", "fp16")
    return f"{name} has no bf16, so training is in float32; {fp16} is several times as fast there."


def _cuda_has_bf16(device: str) -> bool:
    with torch.cuda.device(device) if ":" in device else contextlib.nullcontext():
        return torch.cuda.is_bf16_supported(including_emulation=False)


def process_state(device: str = "auto", timeout_minutes: float = 10.0) -> PartialState:
    """Join the other processes that a launcher started, if any; `main_process_first()` of the
    result orders file work.

    Args:
        device: As for `pick_device`, or one GPU such as "cuda:1". With "cpu", or where there is no
            accelerator, the processes meet over gloo.
        timeout_minutes: How long they wait for each other; the first call decides.

    Raises:
        ConfigError: If the device is not there, or the environment speaks of processes that cannot
            be found.
        LostProcessError: If the others do not come.
    """
    with OwnState().installed():
        return join_processes(device, timeout_minutes)


def joined_state() -> PartialState:
    """Return accelerate's object that knows the processes that have met already."""
    from accelerate import PartialState

    return PartialState()


def join_processes(device: str, timeout_minutes: float) -> PartialState:
    """Do as `process_state`, leaving accelerate's state in place."""
    from accelerate import PartialState

    from ddpm_lib.runtime import rendezvous
    from ddpm_lib.runtime.allocator import keep_freed_memory

    place = resolve_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    check_ways_of_sharing()
    adopt_slurm_ranks()
    processes = launched_processes(cpu=place.type == "cpu")
    if processes > 1 and place.index is not None:
        raise ConfigError(
            f"{option('device', device)} names one GPU, but there are {processes} processes, each"
            " of which"
            f" takes its own. Use {option('device', place.type)}; CUDA_VISIBLE_DEVICES=0,1 chooses"
            " the GPUs"
            " that they share out."
        )
    if processes == 1:
        with hidden_from_accelerate():
            state = PartialState(cpu=place.type == "cpu")
        if state.num_processes == 1:
            state.device = place  # also where another launcher's setting names one
        return state
    rendezvous.before_rendezvous()
    try:
        with explain_rendezvous_errors():
            state = PartialState(
                cpu=place.type == "cpu", **rendezvous.group_options(timeout_minutes, place.type)
            )
    except BaseException:
        # half made: the next call would take it for one whose processes have met
        PartialState._reset_state()
        raise
    if state.num_processes == 1:
        PartialState._reset_state()
        raise ConfigError(
            f"There are {processes} processes, but this torch cannot let them meet on"
            f" {place.type}: each would train alone (Apple's GPUs have no way of sharing, CUDA on"
            " Windows and XPU have it in some builds only). Start one process, or use"
            f" {option('device', 'cpu')}."
        )
    rendezvous.after_rendezvous()
    return state


def make_accelerator(
    run: Path,
    *,
    device: str = "auto",
    mixed_precision: str = "auto",
    trackers: Sequence[str] = (),
    timeout_minutes: float = 10.0,
) -> Accelerator:
    """Build accelerate's Accelerator for a training run; data order, files and random state stay
    ours.

    Args:
        run: The run directory.
        device: As for `resolve_device`.
        mixed_precision: As for `pick_precision`.
        trackers: Names of accelerate's trackers.
        timeout_minutes: How long processes wait for each other.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        ProjectConfiguration,
    )

    precision = pick_precision(mixed_precision, str(resolve_device(device)))
    for tracker in trackers:
        check_tracker(tracker)
    # Before accelerate does it: InitProcessGroupKwargs drops ten minutes as its default, where gloo
    # waits thirty.
    state = join_processes(device, timeout_minutes)
    return Accelerator(
        mixed_precision=precision,
        dynamo_backend="no",  # regions are compiled by `compile`, not the whole by a launcher
        cpu=state.device.type == "cpu",
        # Ours are counted in the loop; without this, a launcher's setting would divide the loss
        # once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(
            project_dir=str(run), logging_dir=str(run / "trackers")
        ),
        # No second copy of the gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


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
    # Every batch has the same shape. On ROCm this would be MIOpen's exhaustive search.
    torch.backends.cudnn.benchmark = not deterministic and torch.version.hip is None
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    indices = (
        [torch.cuda.current_device() if device.index is None else device.index]
        if device.type == "cuda"
        else []
    )
    named = device.type == "cuda" and device.index is not None
    try:
        # What names no device, such as pinned memory and the cache of freed memory, belongs to the
        # same GPU.
        with (
            torch.cuda.device(device) if named else contextlib.nullcontext(),
            torch.random.fork_rng(indices),
        ):
            yield
    except RuntimeError as error:
        if deterministic and "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise ConfigError(
                f"{option('deterministic', True)} came too late: this process has multiplied"
                " matrices on the GPU before, and cuBLAS reads its setting at the first product"
                " only. Restart it (in a notebook the kernel) with CUBLAS_WORKSPACE_CONFIG=:4096:8"
                " set before, or train without."
            ) from error
        raise
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(switches[0], warn_only=switches[1])
        torch.backends.cudnn.benchmark = switches[2]
