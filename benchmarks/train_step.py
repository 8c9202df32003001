"""The bare training step at equal architecture: forward, loss, backward, clipping, optimizer.

    python benchmarks/train_step.py --width 64 --output train_step_64.json

Ours runs in fp32 and in the precision and memory layout that the library chooses on this device.
diffusers' network is the same, parameter by parameter; denoising-diffusion-pytorch's is of the
nearest number of multiplications. Both run as shipped. Each is a process of its own, since what
the library sets for its process (what the C library does with freed memory) is its own matter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import common
import loop_servers
import peers
from ddpm_lib.runtime.allocator import keep_freed_memory


def names_of(asked: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """Return what is measured, and its precision."""
    default, _ = peers.our_precision("auto", device)
    ours = ("no", default) if asked.precision == "both" else (asked.precision,)
    found = {f"ours, {'fp32' if one == 'no' else one}": one for one in dict.fromkeys(ours)}
    if not asked.no_peers:
        found |= dict.fromkeys(("diffusers", "lucidrains"), asked.peer_precision)
    return found


def build(
    name: str, precision: str, asked: argparse.Namespace, device: torch.device
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Return one step by name, and what it runs: parameters, MACs, precision."""
    torch.manual_seed(0)
    shape = (asked.batch, 3, asked.size, asked.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    ours = peers.our_unet(asked.width)
    macs = ours.summary(asked.size).macs  # the library's own count
    if name.startswith("ours"):
        model, step = ours, peers.our_step(ours, images, device, precision, asked.compile)
        parameters, _ = peers.count(model, asked.size)
    elif name == "diffusers":
        model = peers.diffusers_unet(asked.width, asked.size)
        parameters, macs = peers.count(model, asked.size)
        step = peers.diffusers_step(model, images, device, precision)
    else:
        model = peers.lucidrains_unet(macs, asked.size, tuple(asked.mults))
        parameters, macs = peers.count(model, asked.size)
        step = peers.lucidrains_step(model, images, device, precision)
    return step, {"parameters": parameters, "macs": macs, "precision": precision}


def serve(name: str, asked: argparse.Namespace, device: torch.device) -> None:
    """Say what one variant is, and time its steps for whoever asks."""
    line = loop_servers.Line()
    if name.startswith("ours") and device.type == "cpu":
        keep_freed_memory()  # as training does
    timer = common.cpu_seconds if asked.cpu_time else common.seconds
    step, facts = build(name, names_of(asked, device)[name], asked, device)
    line.answer(facts)
    for _, steps in line.commands():
        line.answer(timer(lambda n=steps: [step() for _ in range(n)], device))


def measure(
    asked: argparse.Namespace, device: torch.device, arguments: list[str]
) -> tuple[common.Times, dict[str, Any]]:
    """Start a process for each variant and let their steps take turns."""
    servers: dict[str, loop_servers.Server] = {}
    with TemporaryDirectory() as logs:
        try:
            for k, name in enumerate(names_of(asked, device)):
                command = [__file__, *arguments, "--serve", name]
                servers[name] = loop_servers.Server(command, Path(logs) / f"{k}.log")
            calls: dict[str, Callable[[], object]] = {
                name: lambda s=server: s.run("step", asked.steps)
                for name, server in servers.items()
            }
            # The processes keep the time; what they answer is what counts.
            times = common.interleave(
                calls,
                asked.rounds,
                timer=lambda call, _: float(call()),  # type: ignore[arg-type]
            )
            return times, {name: server.facts for name, server in servers.items()}
        finally:
            for server in servers.values():
                server.close()


def table(
    times: common.Times, facts: dict[str, Any], rates: dict[str, float], asked: argparse.Namespace
) -> dict[str, Any]:
    """Print a line per variant and return the numbers."""
    images = asked.batch * asked.steps
    middle, found, rows = common.medians(times), {}, []
    fastest = next(name for name in reversed(facts) if name.startswith("ours"))
    for name, fact in facts.items():
        rate = 6 * fact["macs"] * images / middle[name] / 1e9  # backward is twice the forward
        share = rate / common.limit(rates, fact["precision"])
        faster = common.ratio(times, name, fastest)
        found[name] = {
            **fact,
            "ms_per_image": 1000 * middle[name] / images,
            "gflops": rate,
            "share_of_limit": share,
            f"times as long as {fastest}": faster,
            "seconds": times[name],
        }
        shown = (
            f"{fact['parameters'] / 1e6:.2f}",
            f"{fact['macs'] / 1e9:.3f}",
            f"{1000 * middle[name] / images:.2f}",
        )
        rows.append((name, *shown, f"{rate:,.0f}", f"{share:.0%}", common.show_ratio(faster)))
    head = (
        f"training step, width {asked.width}",
        "M parameters",
        "GMAC",
        "ms/image",
        "GFLOP/s",
        "of limit",
        f"as long as {fastest}",
    )
    common.print_table(head, rows)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure processor time instead of the clock: one thread on a busy machine",
    )
    parser.add_argument(
        "--precision",
        choices=("both", *common.DTYPES),
        default="both",
        help="of ours; both: fp32 and the library's choice here (with --compile one is enough)",
    )
    peers.add_arguments(parser)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = sys.argv[1:] if arguments is None else arguments
    asked = parser.parse_args(given)
    if asked.quick:
        asked.width, asked.size, asked.batch, asked.steps, asked.rounds = 32, 8, 2, 1, 1
    if not asked.no_peers:
        peers.require_peers()
    if asked.cpu_time and torch.get_num_threads() > 1:
        parser.error("--cpu-time wants one thread: set OMP_NUM_THREADS=1")
    device = common.pick_device(asked.device)
    if asked.serve:
        serve(asked.serve, asked, device)
        return {}
    timer = common.cpu_seconds if asked.cpu_time else common.seconds
    rates = common.ceilings(device, small=asked.quick, timer=timer)
    common.show_ceilings(rates)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    times, facts = measure(asked, device, given)
    return common.finish(asked, device, ceilings=rates, variants=table(times, facts, rates, asked))


if __name__ == "__main__":
    main()
