"""The whole training loop: loader, averages, clipping and records, in images per second.

    python benchmarks/train_loop.py --data path/to/images --output train_loop.json

Our `Trainer`, denoising-diffusion-pytorch's `Trainer` and diffusers' script train on the same
folder, each in its own process; windows of steps take turns. "our bare step" is the step of the
same run (same network, optimizer, precision, batch) on images that lie in memory, without loader,
named noise, averages, records and callbacks: what the loop adds to it is the overhead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import common
import loop_servers
import peers


def options_for(which: str, asked: argparse.Namespace) -> list[str]:
    """Return the command line of one loop."""
    shared = {
        "width": asked.width,
        "size": asked.size,
        "batch": asked.batch,
        "device": asked.device,
    }
    shared["precision"] = asked.precision if which == "ours" else asked.peer_precision
    words = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    words += ["--log-every", str(min(50, asked.window)), "--mults", *map(str, asked.mults)]
    return words + (["--compile"] if asked.compile and which == "ours" else [])


def measure(
    asked: argparse.Namespace, data: Path, logs: Path
) -> tuple[common.Times, dict[str, Any]]:
    """Start the loops and let windows of their steps take turns."""
    names = ["ours"] + ([] if asked.no_peers else ["lucidrains", "diffusers"])
    servers: dict[str, loop_servers.Server] = {}
    try:
        for name in names:
            command = [str(Path(loop_servers.__file__)), name, "--data", str(data)]
            log = logs / f"{name}.log"
            servers[name] = loop_servers.Server([*command, *options_for(name, asked)], log)
        variants: dict[str, tuple[loop_servers.Server, str]] = {
            "ours": (servers["ours"], "loop"),
            "our bare step": (servers["ours"], "bare"),
        }
        variants |= {name: (servers[name], "loop") for name in names[1:]}
        calls: dict[str, Callable[[], object]] = {
            n: lambda s=s, w=w: s.run(w, asked.window) for n, (s, w) in variants.items()
        }
        # The processes keep the time; what they answer is what counts.
        times = common.interleave(calls, asked.rounds, timer=lambda call, _: float(call()))  # type: ignore[arg-type]
        return times, {name: server.facts for name, (server, _) in variants.items()}
    finally:
        for server in servers.values():
            server.close()


def table(
    times: common.Times, facts: dict[str, Any], rates: dict[str, float], asked: argparse.Namespace
) -> dict[str, Any]:
    """Print a line per loop and the overhead of ours, and return the numbers."""
    images, found, rows = asked.batch * asked.window, {}, []
    for name, middle in common.medians(times).items():
        fact = facts[name]
        share = 6 * fact["macs"] * images / middle / 1e9 / common.limit(rates, fact["precision"])
        slower = common.ratio(times, name, "ours")
        found[name] = {
            **fact,
            "images_per_second": images / middle,
            "share_of_limit": share,
            "times as long as ours": slower,
            "seconds": times[name],
        }
        shown = (
            f"{fact['parameters'] / 1e6:.2f}",
            f"{fact['macs'] / 1e9:.3f}",
            fact["precision"],
            f"{images / middle:.2f}",
        )
        rows.append((name, *shown, f"{share:.0%}", common.show_ratio(slower)))
    head = (
        f"training loop, batch {asked.batch}",
        "M parameters",
        "GMAC",
        "precision",
        "images/s",
        "of limit",
        "as long as ours",
    )
    common.print_table(head, rows)
    over = {k: 100 * (v - 1) for k, v in common.ratio(times, "ours", "our bare step").items()}
    print(
        f"overhead of our loop over its bare step: {over['median']:.1f} % ({over['low']:.1f} …"
        f" {over['high']:.1f})\n"
    )
    return {"loops": found, "overhead_percent": over}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of images; default: 1,024 JPEGs of the built-in shapes, 64×64",
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=10, help="steps per round")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", *common.DTYPES], help="ours"
    )
    peers.add_arguments(parser, None)
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.width, asked.size, asked.batch, asked.window, asked.rounds = 32, 8, 16, 1, 1
    if not asked.no_peers:
        peers.require_peers()
    device = common.pick_device(asked.device)
    # The README of denoising-diffusion-pytorch sets amp=True, which needs a GPU.
    asked.peer_precision = asked.peer_precision or ("fp16" if device.type == "cuda" else "no")
    rates = common.ceilings(device, small=asked.quick)
    common.show_ceilings(rates)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with TemporaryDirectory() as folder:
        data = asked.data or common.rows_written(
            Path(folder) / "images", 128 if asked.quick else 1024, 64
        )
        times, facts = measure(asked, data, Path(folder))
    return common.finish(asked, device, ceilings=rates, **table(times, facts, rates, asked))


if __name__ == "__main__":
    main()
