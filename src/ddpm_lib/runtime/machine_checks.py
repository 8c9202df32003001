"""What the machine offers to training: processor, accelerators, memory, disk, batch system."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from ddpm_lib.core.health import Check
from ddpm_lib.runtime.devices import LOW_PRECISION, describe_hardware, pick_precision
from ddpm_lib.runtime.limits import local_world_size, memory_limits

GIB = 2.0**30

LEAST_SHM = 2**30
"""Bytes of /dev/shm below which loader workers may run out of it: containers give 64 MiB."""

LEAST_DISK = 5 * 2**30
LEAST_MEMORY = 2 * 2**30


def check_torch() -> Iterator[Check]:
    """Say which torch it is, and whether it computes."""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    threads = torch.get_num_threads()
    yield Check("torch", "ok", f"{torch.__version__}, {built}, {threads} threads")


def devices() -> list[torch.device]:
    """Return what torch can compute on, accelerators first."""
    found = []
    if torch.cuda.is_available():
        found += [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [torch.device("xpu", k) for k in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, torch.device("cpu")]


def check_devices() -> Iterator[Check]:
    """Compute a step's worth on every device, and say which precision training would choose."""
    found = devices()
    for device in found:
        name = "cpu" if device.type == "cpu" else str(device)
        precision = pick_precision("auto", str(device))
        about = describe_hardware(device, 1, precision)
        says = f"{about['name']}, trains in {about['precision']}"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            says += f", {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        wrong = try_device(device, precision)
        if wrong:
            remedy = "update its driver, or leave it out: --device cpu"
            yield Check(name, "broken", f"{says}; {wrong}", remedy)
        elif device.type == "cuda" and precision == "no":
            yield Check(name, "note", says, "older than bf16: --mixed-precision fp16 is faster")
        else:
            yield Check(name, "ok", says)
    if len(found) == 1:
        yield _no_accelerator()


def _no_accelerator() -> Check:
    cards = _nvidia_cards()
    if cards and not torch.version.cuda:
        remedy = "install torch for CUDA: https://pytorch.org/get-started/locally"
        return Check("gpu", "broken", f"{cards[0]} is here, but this torch is for CPUs", remedy)
    if cards:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        says = f"{cards[0]} is here, but torch does not see it"
        if hidden is not None:
            return Check("gpu", "note", f"{says}: CUDA_VISIBLE_DEVICES={hidden!r}", "unset it")
        return Check("gpu", "broken", says, "update its driver (nvidia-smi names the version)")
    remedy = "begin small: --preset tiny --image-size 32; `ddpm estimate` tells the hours"
    return Check("gpu", "note", "none: training runs on the CPU", remedy)


def _nvidia_cards() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU \d+: (.*?) \(UUID", done.stdout, re.MULTILINE)


def try_device(device: torch.device, precision: str) -> str:
    """Do a convolution forward and backward on a device; return what is wrong with its gradient.

    Args:
        device: It.
        precision: "no", "bf16" or "fp16".
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    wanted = torch.autograd.functional.vjp(lambda w: F.conv2d(x, w).square().sum(), weight)[1]
    own = weight.to(device).requires_grad_()
    dtype = LOW_PRECISION.get(precision, torch.bfloat16)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=precision in LOW_PRECISION):
            F.conv2d(x.to(device), own).float().square().sum().backward()
        assert own.grad is not None
        got = own.grad.cpu().float()
    except RuntimeError as error:
        return f"it does not compute ({str(error).splitlines()[0][:200]})"
    off = float((got - wanted).norm() / wanted.norm())
    return "" if off < 0.05 else f"it computes wrongly (relative error {off:.2g})"


def check_compiling() -> Iterator[Check]:
    """Say whether training compiles the network."""
    if devices()[0].type != "cuda":
        yield Check("torch.compile", "ok", "not used without a CUDA GPU")
    elif importlib.util.find_spec("triton") is None:
        remedy = "pip install triton"
        yield Check("torch.compile", "note", "Triton is missing: networks run uncompiled", remedy)
    else:
        yield Check("torch.compile", "ok", "Triton is here: training compiles by itself")


def check_memory() -> Iterator[Check]:
    """Say how much memory is left, and who limits it."""
    limits = memory_limits()
    if not limits:
        yield Check("memory", "note", "this system does not say how much is free")
        return
    who, left = min(limits.items(), key=lambda item: item[1])
    says = f"{left / GIB:.1f} GiB free, limited by the {who}"
    ranks = local_world_size()
    if ranks > 1:
        says += f", shared by {ranks} processes"
    low = left < LEAST_MEMORY
    remedy = "ask for more (SLURM: --mem=16G), or use smaller batches" if low else ""
    yield Check("memory", "note" if low else "ok", says, remedy)


def check_shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Check]:
    """Say whether loader workers have room to hand their batches over."""
    if not place.is_dir():
        yield Check("/dev/shm", "ok", "this system hands batches over without it")
        return
    usage = shutil.disk_usage(place)
    says = f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
    if usage.free < LEAST_SHM:
        remedy = "in a container: --shm-size=8g or --ipc=host; else --num-workers 0"
        yield Check("/dev/shm", "note", f"{says}: little for loader workers", remedy)
    else:
        yield Check("/dev/shm", "ok", says)


def check_disk(place: Path) -> Iterator[Check]:
    """Say how much room there is where runs would be written, and whether that may be."""
    there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    says = f"{usage.free / GIB:,.1f} GiB free for {place}"
    if not os.access(there, os.W_OK):
        remedy = "choose a place of your own: --output-dir"
        yield Check("disk", "note", f"{there} cannot be written to", remedy)
    elif usage.free < LEAST_DISK:
        remedy = "fewer checkpoints (--keep-last 1), or another --output-dir"
        yield Check("disk", "note", f"{says}: little", remedy)
    else:
        yield Check("disk", "ok", says)


def check_slurm() -> Iterator[Check]:
    """Say whether a SLURM cluster is here, and whether this is inside one of its jobs."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        inside = f"inside job {job}"
        yield Check("SLURM", "ok", inside)
    elif shutil.which("sbatch"):
        remedy = "`ddpm slurm run.yaml` writes a batch script; train in jobs, not here"
        yield Check("SLURM", "ok", "a cluster's commands are here, this is no job", remedy)
    else:
        yield Check("SLURM", "ok", "not here")
