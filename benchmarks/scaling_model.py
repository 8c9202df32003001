"""What data parallelism costs: a model of DDP's step, checked on this machine's processes.

    python benchmarks/scaling_model.py --processes 2 4 --output scaling_model.json

The processes talk over gloo through the machine's own memory, and the network's work is replaced by
waiting, in forward and backward pass, so that many processes fit on few cores: what is checked is
how work and sums overlap, not how fast a network is. First the sums alone give latency and
bandwidth; then steps of DDP are compared with what the model makes of these.

    python benchmarks/scaling_model.py --table

prints what the model says of the presets on GPUs, measuring nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import common

LINKS = {
    "NVLink, 300 GB/s": (300e9, 5e-6),
    "InfiniBand, 40 GB/s": (40e9, 15e-6),
    "Ethernet, 10 GB/s": (10e9, 30e-6),
    "Ethernet, 1 GB/s": (1e9, 50e-6),
}
"""What connects GPUs: bytes per second of each, and seconds of a message. Assumed, not measured."""
RATE = 250e12
"""Operations per second that a GPU is assumed to do in training, an H100 in bf16."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sums at once."""


@dataclass(frozen=True)
class Link:
    """What connects the processes.

    Args:
        bandwidth: Bytes per second that a process sends while it receives as many.
        latency: Seconds that one message takes in any case.
        trees: Whether sums may go up and down a tree, as NCCL's between many processes.
    """

    bandwidth: float
    latency: float
    trees: bool = False

    def sum_seconds(self, size: float, processes: int) -> float:
        """Time to sum `size` bytes over all: a ring sends 2(N − 1) parts of size/N each, a tree all
        of it 2·log₂N times, in a pipeline.
        """
        ring = 2 * (processes - 1) * (self.latency + size / processes / self.bandwidth)
        if not self.trees:
            return ring
        return min(ring, 2 * math.log2(processes) * self.latency + 2 * size / self.bandwidth)


def step_seconds(forward: float, backward: float, size: float, processes: int, link: Link) -> float:
    """Time of a step: sums of buckets run beside the backward pass, one after the other, each when
    its gradients are there; the last one begins when the pass ends.

    Args:
        forward: Seconds of the forward pass, and of all else that is not the backward pass.
        backward: Seconds of the backward pass alone.
        size: Bytes of all gradients.
        processes: How many there are.
        link: What connects them.
    """
    if processes == 1:
        return forward + backward
    buckets = max(1, round(size / BUCKET))
    each, free = link.sum_seconds(size / buckets, processes), 0.0
    for k in range(1, buckets + 1):
        free = max(free, backward * k / buckets) + each
    return forward + max(free, backward)


def fitted(sizes: list[float], seconds: list[float], processes: int) -> Link:
    """Fit latency and bandwidth to times of sums."""
    messages = 2 * (processes - 1)
    rows = torch.tensor([[1.0, size / processes] for size in sizes], dtype=torch.float64)
    wanted = torch.tensor(seconds, dtype=torch.float64)[:, None] / messages
    scale = 1 / wanted  # relative errors
    found = torch.linalg.lstsq(rows * scale, wanted * scale).solution.flatten().tolist()
    return Link(1 / max(found[1], 1e-15), max(found[0], 0.0))


def table() -> dict[str, dict[str, float]]:
    """Return which part of N times one GPU's speed the presets reach, by the model."""
    from ddpm_lib import Unet

    found: dict[str, dict[str, float]] = {}
    for preset, side, images in (("small", 32, 64), ("cifar10", 32, 64), ("imagenet64", 64, 32)):
        with torch.device("meta"):
            model = Unet.preset(preset)
        numbers, macs = sum(p.numel() for p in model.parameters()), model.summary(side).macs
        alone = 6 * macs * images / RATE
        name = f"{preset}: {numbers / 1e6:.0f} M weights, {images} images in {1e3 * alone:.1f} ms"
        found[name] = {
            f"{link}, {n} GPUs": alone
            / step_seconds(alone / 3, alone * 2 / 3, 4.0 * numbers, n, Link(*speed, trees=True))
            for link, speed in LINKS.items()
            for n in (8, 64, 512)
        }
    return found


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward: float, backward: float) -> Tensor:
        ctx.seconds = backward
        ctx.save_for_backward(weight)
        time.sleep(forward)
        return x + 0 * weight.view(-1)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        time.sleep(ctx.seconds)
        (weight,) = ctx.saved_tensors
        return grad, torch.ones_like(weight), None, None


class _Waiting(nn.Module):
    """As many weights as asked for, and work that takes its time without a processor."""

    def __init__(self, numbers: int, layers: int, forward: float, backward: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(numbers // layers) for _ in range(layers))
        self.forward_each, self.backward_each = forward / layers, backward / layers

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = _Wait.apply(x, weight, self.forward_each, self.backward_each)
        return x


def _steps(network: nn.Module, rounds: int) -> float:
    """Return the seconds of the fastest step: other programs on the machine only slow it down."""
    times = []
    for turn in range(rounds + 2):  # DDP rebuilds its buckets in the first
        torch.distributed.barrier()
        start = time.perf_counter()
        network(torch.ones(1, requires_grad=True)).sum().backward()
        if turn >= 2:
            times.append(time.perf_counter() - start)
    return min(times)


def work(rank: int, processes: int, folder: str, asked: argparse.Namespace) -> None:
    """Take part in sums and steps; the first process writes the times."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(minutes=5),
    )
    found: dict[str, Any] = {"sums": {}, "steps": {}}
    for numbers in asked.sums:
        x = torch.ones(numbers)
        torch.distributed.all_reduce(x)
        times = []
        for _ in range(asked.rounds):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(x)
            times.append(time.perf_counter() - start)
        found["sums"][numbers] = min(times)
    for numbers in asked.weights:
        for compute in asked.compute:
            model = _Waiting(numbers, asked.layers, compute / 3, compute * 2 / 3)
            alone = _steps(model, asked.rounds)
            network = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            found["steps"][f"{numbers} {compute}"] = [alone, _steps(network, asked.rounds)]
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument(
        "--sums", type=int, nargs="+", default=[2**18, 2**20, 2**22, 2**23], help="numbers summed"
    )
    parser.add_argument(
        "--weights", type=int, nargs="+", default=[9_000_000, 36_000_000], help="of the network"
    )
    parser.add_argument(
        "--compute", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="seconds of a step alone"
    )
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--table", action="store_true", help="show the model, measure nothing")
    asked = parser.parse_args(arguments)
    if asked.table:
        said = table()
        cells = [[f"{v:.0%}" for v in each.values()] for each in said.values()]
        for name, row in zip(said, cells):
            rows = zip(LINKS, row[::3], row[1::3], row[2::3], strict=True)
            common.print_table((name, "8 GPUs", "64", "512"), rows)
        return {"table": said}
    if asked.quick:
        asked.processes, asked.sums, asked.weights = [2], [2**10, 2**14], [20_000]
        asked.compute, asked.layers, asked.rounds = [0.01], 4, 1
    rates = common.ceilings("cpu", small=True, rounds=1)
    results: dict[str, Any] = {}
    for processes in asked.processes:
        with TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(work, (processes, folder, asked), nprocs=processes)
            found = json.loads(Path(folder, "found.json").read_text())
        sizes = [4.0 * int(numbers) for numbers in found["sums"]]
        link = fitted(sizes, list(found["sums"].values()), processes)
        rows, compared = [], {}
        for name, (alone, seconds) in found["steps"].items():
            numbers, compute = int(name.split()[0]), float(name.split()[1])
            said = step_seconds(compute / 3, alone - compute / 3, 4.0 * numbers, processes, link)
            compared[name] = {"measured": seconds, "model": said, "alone": alone}
            shown = (f"{alone:.3f}", f"{seconds:.3f}", f"{said:.3f}", f"{seconds / said:.2f}")
            rows.append((f"{numbers / 1e6:g} M weights", *shown))
        head = (
            f"{processes} processes: {link.bandwidth / 1e9:.2f} GB/s, {1e6 * link.latency:.0f} µs"
        )
        common.print_table((head, "alone s", "measured s", "model s", "ratio"), rows)
        results[str(processes)] = {**vars(link), "sums": found["sums"], "steps": compared}
    return common.finish(asked, "cpu", ceilings=rates, processes=results)


if __name__ == "__main__":
    main()
