"""Images per second of the training loop on a GPU, and what the GPU does in a step.

`benchmarks/gpu.sh` calls it for several batches. Steps 1 to 40 warm up (compiling included), 20
steps are timed, and five more are profiled: kernels, the time that the GPU is busy, and the
longest operations.

    python benchmarks/gpu_profile.py --batch 512 --output profile-512.json
    python benchmarks/gpu_profile.py --batch 128 --compile no --network small
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from common import finish, make_parser, pick_device
from ddpm_lib import Callback, GaussianDiffusion, Shapes, Trainer, Unet

ROWS = 20


class Clock(Callback):
    """Times a window of steps and profiles a few after it.

    Args:
        device: Where training runs.
        warm_up: Steps before the window.
        window: Steps that are timed.
        profiled: Steps that are profiled after them.
    """

    def __init__(self, device: torch.device, warm_up: int, window: int, profiled: int) -> None:
        self.device, self.warm_up, self.window, self.profiled = device, warm_up, window, profiled
        self.found: dict[str, Any] = {}
        self._began = self._now()
        self._profile: profile | None = None

    @property
    def steps(self) -> int:
        return self.warm_up + self.window + self.profiled + 1

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_step_end(self, trainer: Any) -> None:
        step, end = trainer.step, self.warm_up + self.window
        if step == 1:
            self.found["first_step_seconds"] = self._now() - self._began
        if step == self.warm_up:
            self._began = self._now()
        if step == end:
            self.found["seconds_per_step"] = (self._now() - self._began) / self.window
            if self.device.type == "cuda":
                self.found["peak_bytes"] = torch.cuda.max_memory_reserved(self.device)
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = profile(activities=kinds)
            self._profile.start()
            self._began = self._now()
        if step == end + self.profiled and self._profile is not None:
            self.found["profiled_seconds_per_step"] = (self._now() - self._began) / self.profiled
            self._profile.stop()
            self.found |= read(self._profile, self.profiled, self.device)


def read(taken: profile, steps: int, device: torch.device) -> dict[str, Any]:
    """Return what a profile says of a step: kernels, busy seconds, the longest operations."""
    gpu = device.type == "cuda"
    kernels = [e for e in taken.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    averages = sorted(taken.key_averages(), key=lambda e: -getattr(e, key))
    longest = [
        {"name": e.key, "ms": getattr(e, key) / 1e3 / steps, "calls": e.count / steps}
        for e in averages[:ROWS]
    ]
    busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6 / steps
    return {"kernels": len(kernels) / steps, "busy_seconds": busy, "longest": longest}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__)
    parser.add_argument("--network", default="cifar10", help="a preset of Unet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--graph", action="store_true", help="forward and backward as a CUDA graph")
    parser.add_argument("--precision", choices=("auto", "no", "bf16", "fp16"), default="auto")
    asked = parser.parse_args(argv)
    device = pick_device(asked.device)
    compiled: bool | Literal["auto"] = "auto" if asked.compile == "auto" else asked.compile == "yes"
    clock = Clock(device, *((2, 2, 1) if asked.quick else (40, 20, 5)))
    torch.manual_seed(0)
    side = 8 if asked.quick else 32
    network = Unet(dim=8, dim_mults=(1, 2)) if asked.quick else Unet.preset(asked.network)
    batch = 4 if asked.quick else asked.batch
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            GaussianDiffusion(network, image_size=side),
            Shapes(size=side, n=64 if asked.quick else max(2048, 2 * batch)),
            output_dir=folder,
            max_steps=clock.steps,
            batch_size=batch,
            val_every=0,
            sample_every=0,
            save_every=10 * clock.steps,
            progress=False,
            device=str(device),
            compile=compiled,
            mixed_precision=asked.precision,
            cuda_graph=asked.graph,
            callbacks=[clock],
        )
        trainer.train()
        precision = trainer.precision
    macs = network.summary(side).macs
    found = clock.found | {
        "network": asked.network,
        "batch": batch,
        "compile": f"{asked.compile}, graph" if asked.graph else asked.compile,
        "precision": precision,
        "images_per_second": batch / clock.found["seconds_per_step"],
        "tflops": 6e-12 * macs * batch / clock.found["seconds_per_step"],
    }
    print(
        f"{found['images_per_second']:,.0f} images/s at batch {batch} (compile {asked.compile},"
        f" {precision}); {found['kernels']:,.0f} kernels, busy"
        f" {found['busy_seconds'] / found['profiled_seconds_per_step']:.0%}"
    )
    for row in found["longest"]:
        print(f"  {row['ms']:9.3f} ms  {row['calls']:7.1f}×  {row['name'][:80]}")
    return finish(asked, device, profile=found)


if __name__ == "__main__":
    main()
