"""What all benchmarks share: interleaved rounds, the limits of the machine, tables and JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from ddpm_lib.training.results import TrainingResult

Times = dict[str, list[float]]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def seconds(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Time one call, by events on the GPU's own clock where there is one."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def cpu_seconds(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Take the processor time of one call: what other processes do meanwhile does not count, and of
    one thread on an idle machine it is the time of the clock.
    """
    start = time.process_time()
    function()
    return time.process_time() - start


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    *,
    warm_up: int = 1,
    timer: Callable[[Callable[[], object], torch.device | str], float] = seconds,
) -> Times:
    """Time every variant once per round, in turn, so that a busy moment of the machine does not
    favour one of them.

    Every other round goes through them backwards, so that none always follows the same neighbour.
    """
    for _ in range(warm_up):
        for variant in variants.values():
            variant()
    times: Times = {name: [] for name in variants}
    for turn in range(rounds):
        gc.collect()
        for name in list(variants) if turn % 2 == 0 else reversed(list(variants)):
            times[name].append(timer(variants[name], device))
    return times


def ratio(times: Times, slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` takes as `fast`: the median over the rounds, and the lowest and
    the highest.
    """
    found = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def show_ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f}× ({found['low']:.2f} … {found['high']:.2f})"


def macs_of(model: nn.Module, *inputs: Tensor) -> int:
    """Count the multiply-accumulate operations of any network's forward pass; compute it on the
    meta device for speed.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def ceilings(
    device: torch.device | str = "cpu",
    *,
    rounds: int = 5,
    small: bool = False,
    timer: Callable[[Callable[[], object], torch.device | str], float] = seconds,
) -> dict[str, float]:
    """Measure what this machine can do at most.

    Args:
        device: Where to measure.
        rounds: Interleaved rounds of which the best counts: a limit is what is reached once.
        small: Tiny sizes, to try the code.
        timer: What measures one call.

    Returns:
        Rates in GFLOP/s (two per multiply-accumulate) of square matrix products and 3×3
        convolutions in channels_last at 64 and 128 channels, in fp32 and bf16, and the copy rate in
        GiB/s (bytes copied; each is read and written).
    """
    device = torch.device(device)
    gpu = device.type == "cuda"
    n, batch, side = (64, 1, 8) if small else (8192, 256, 32) if gpu else (1024, 16, 32)
    runs: dict[str, Callable[[], object]] = {}
    work: dict[str, float] = {}

    def matrix(dtype: torch.dtype) -> Callable[[], object]:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        return lambda: a @ b

    def convolution(channels: int, dtype: torch.dtype) -> Callable[[], object]:
        layout: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "memory_format": torch.channels_last,
        }
        x = torch.randn(batch, channels, side, side).to(**layout)
        weight = torch.randn(channels, channels, 3, 3).to(**layout)
        return lambda: F.conv2d(x, weight, padding=1)

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        runs[f"matrix {name}"], work[f"matrix {name}"] = matrix(dtype), 2 * n**3 / 1e9
        for channels in (64, 128):
            key = f"conv {channels} {name}"
            runs[key], work[key] = (
                convolution(channels, dtype),
                2 * batch * side**2 * channels**2 * 9 / 1e9,
            )
    source = torch.zeros(
        (1 if small else 1024 if gpu else 256) << 20, dtype=torch.uint8, device=device
    )
    target = torch.ones_like(source)
    runs["copy"], work["copy"] = lambda: target.copy_(source), source.numel() / 2**30
    with torch.no_grad():
        times = interleave(runs, 1 if small else rounds, device, timer=timer)
    return {name: work[name] / min(t) for name, t in times.items()}


def limit(found: Mapping[str, float], precision: str) -> float:
    """Return the highest measured rate of a precision ("no", "bf16", "fp16") in GFLOP/s."""
    kind = "fp32" if precision == "no" else "bf16"
    return max(rate for name, rate in found.items() if name.endswith(kind))


def show_ceilings(found: Mapping[str, float]) -> None:
    print_table(
        ("limits of this machine", "fp32", "bf16", ""),
        [
            *(
                (f"{w}", f"{found[f'{w} fp32']:,.0f}", f"{found[f'{w} bf16']:,.0f}", "GFLOP/s")
                for w in ("matrix", "conv 64", "conv 128")
            ),
            ("copy", f"{found['copy']:,.1f}", "", "GiB/s"),
        ],
    )


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns: the first to the left, the others to the right."""
    lines = [tuple(map(str, line)) for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for k, line in enumerate(lines):
        print(
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
            ).rstrip()
        )
        if k == 0:
            print("  ".join("─" * w for w in widths))
    print(flush=True)


def make_parser(doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """Start a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="interleaved rounds; medians are shown"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", type=Path, help="write all numbers as JSON to this file")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: tries the code, measures nothing"
    )
    return parser


def pick_device(wanted: str) -> torch.device:
    """Return the device to measure, with cuDNN choosing its algorithms by trying them, as the
    library's training has it: for everyone who is measured alike.
    """
    from ddpm_lib.runtime.devices import pick_device as pick

    device = torch.device(pick(wanted))
    if device.type == "cuda" and torch.version.hip is None:
        torch.backends.cudnn.benchmark = True
    return device


def about(arguments: argparse.Namespace, device: torch.device | str) -> dict[str, Any]:
    """Say where and how numbers were taken."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
    }


def cpu_name() -> str:
    """Return the processor's name as Linux has it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def finish(
    arguments: argparse.Namespace, device: torch.device | str, **results: Any
) -> dict[str, Any]:
    """Write the results with their circumstances, where a file was asked for, and return them."""
    found = {**results, "about": about(arguments, device)}
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(f"Wrote {arguments.output}.")
    return found


def trained(result: TrainingResult) -> TrainingResult:
    """End the program where somebody ended the training: what comes after would measure less."""
    if result.signal is not None:
        raise SystemExit(result.exit_code)
    return result


def medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def rows_written(folder: Path, count: int, side: int, *, quality: int = 92, seed: int = 0) -> Path:
    """Write the built-in shapes as JPEG files of some side, as a folder of somebody's photos would
    lie there.
    """
    from PIL import Image

    from ddpm_lib import Shapes

    folder.mkdir(parents=True, exist_ok=True)
    images = Shapes(size=side, n=count, seed=seed).batch(range(count))["image"]
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(
            folder / f"{i:05d}.jpg", quality=quality
        )
    return folder
