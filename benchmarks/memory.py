"""Peak memory of training by batch size, what gradient checkpointing saves and costs, and what a
loader worker takes.

    python benchmarks/memory.py --width 64 --batches 1 4 16 --output memory.json

Every line is a fresh process. On a CPU the peak is the highest resident size during a step (VmHWM,
reset before it); on CUDA, max_memory_allocated. What lies there between two steps, and the
gradients, are subtracted: what is left are the activations.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import common
import peers

MIB = 2**20


def resident(kind: str) -> int:
    """Read VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def settle() -> None:
    """Give freed memory back to the system and forget the highest resident size so far."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def probe(asked: argparse.Namespace) -> dict[str, float]:
    """Train a few steps in this process and return its memory in bytes and its seconds per step."""
    device = common.pick_device(asked.device)
    torch.manual_seed(0)
    model = peers.our_unet(asked.width, gradient_checkpointing=asked.checkpointing)
    images = torch.randint(0, 256, (asked.batch, 3, asked.size, asked.size), dtype=torch.uint8).to(
        device
    )
    step = peers.our_step(model, images, device, asked.precision)
    step()
    gradients = 4 * peers.parameters_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize()
        rest = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated()
    else:
        settle()
        rest = resident("VmRSS")
        step()
        peak = resident("VmHWM")
    times = [common.seconds(step, device) for _ in range(asked.steps)]
    return {
        "rest": rest,
        "peak": peak,
        "activations": max(0, peak - rest - gradients),
        "seconds": min(times),
    }


def in_fresh_process(
    asked: argparse.Namespace, batch: int, checkpointing: bool
) -> dict[str, float]:
    words = {
        "width": asked.width,
        "size": asked.size,
        "device": asked.device,
        "precision": asked.precision,
        "steps": asked.steps,
    }
    command = [sys.executable, __file__, "--probe", "--batch", str(batch)]
    command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
    command += ["--checkpointing"] if checkpointing else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The process ended early:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def training(asked: argparse.Namespace) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    """Measure every batch size with and without gradient checkpointing, in turn."""
    found, rows = [], []
    for batch in asked.batches:
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(asked.rounds):
            for checkpointing, results in runs.items():
                results.append(in_fresh_process(asked, batch, checkpointing))
        plain, less = (
            {key: common.medians({key: [r[key] for r in results]})[key] for key in results[0]}
            for results in runs.values()
        )
        slower = common.ratio(
            {n: [r["seconds"] for r in rs] for n, rs in zip(("a", "b"), runs.values())}, "b", "a"
        )
        saved = 1 - less["activations"] / max(1.0, plain["activations"])
        estimate = peers.our_unet(asked.width).summary(asked.size, batch).activation_bytes
        found.append(
            {
                "batch": batch,
                "plain": plain,
                "checkpointed": less,
                "saved": saved,
                "time": slower,
                "estimated_fp32": estimate,
            }
        )
        shown = [
            f"{v / MIB:,.0f}"
            for v in (
                plain["peak"],
                plain["activations"],
                estimate,
                less["peak"],
                less["activations"],
            )
        ]
        rows.append((str(batch), *shown, f"{saved:.0%}", f"{100 * (slower['median'] - 1):+.0f} %"))
    return found, rows


def workers(asked: argparse.Namespace) -> list[dict[str, float]]:
    """Return the memory of each worker of a streaming loader at work, in bytes."""
    import psutil

    from ddpm_lib import open_dataset
    from ddpm_lib.data import make_loader

    with TemporaryDirectory() as folder:
        data = open_dataset(
            common.rows_written(Path(folder), 64, 64),
            image_size=asked.size,
            labels="none",
            cache="none",
            verify=False,
        )
        loader = make_loader(
            data,
            ([i % 64 for i in range(k, k + 8)] for k in range(10**9)),
            num_workers=asked.workers,
        )
        try:
            for _ in range(8 * asked.workers):
                next(loader)
            time.sleep(0.2)
            children = psutil.Process().children(recursive=True)
            memory = [child.memory_full_info() for child in children]
        finally:
            loader.close()
    return [{"uss": m.uss, "pss": getattr(m, "pss", 0), "rss": m.rss} for m in memory]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precision", default="auto", choices=["auto", *common.DTYPES])
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps per process; the fastest counts"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader workers to look at")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.probe:
        found = probe(asked)
        print(json.dumps(found))
        return found
    if asked.quick:
        asked.width, asked.size, asked.batches, asked.rounds, asked.steps, asked.workers = (
            32,
            16,
            [8],
            1,
            1,
            1,
        )
    device = common.pick_device(asked.device)
    rates = common.ceilings(device, small=asked.quick)
    common.show_ceilings(rates)
    taken = workers(asked)  # first: what this process holds is inherited by the workers
    found, rows = training(asked)
    head = (
        "batch",
        "peak MiB",
        "activations",
        "estimate fp32",
        "checkpointed peak",
        "activations",
        "saved",
        "time",
    )
    common.print_table((f"training, width {asked.width}", *head[1:]), rows)
    rows = [
        (f"loader worker {i}", *(f"{m[k] / MIB:,.1f}" for k in ("uss", "pss", "rss")))
        for i, m in enumerate(taken)
    ]
    common.print_table(("MiB", "own (USS)", "share (PSS)", "RSS"), rows)
    return common.finish(asked, device, ceilings=rates, training=found, workers=taken)


if __name__ == "__main__":
    main()
