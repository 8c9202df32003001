"""The bare training step at equal architecture: forward, loss, backward, clipping, optimizer.

    python benchmarks/train_step.py --width 64 --output train_step_64.json

Ours runs in fp32 and in the precision and memory layout that the library chooses on this device.
diffusers' network is the same, parameter by parameter; denoising-diffusion-pytorch's is of the
nearest number of multiplications. Both run as shipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import common
import peers


def build(
    asked: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Return the steps by name, and for each what it runs: parameters, MACs, precision."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (asked.batch, 3, asked.size, asked.size), dtype=torch.uint8).to(
        device
    )
    steps: dict[str, Callable[[], object]] = {}
    facts: dict[str, Any] = {}

    def add(
        name: str, model: torch.nn.Module, precision: str, make: Callable[[], Callable[[], object]]
    ) -> None:
        parameters, macs = peers.count(model, asked.size)
        facts[name] = {"parameters": parameters, "macs": macs, "precision": precision}
        one = make()
        steps[name] = lambda: [one() for _ in range(asked.steps)]

    default, _ = peers.our_precision("auto", device)
    ours = ("no", default) if asked.precision == "both" else (asked.precision,)
    for wanted in dict.fromkeys(ours):
        model = peers.our_unet(asked.width)
        facts_macs = model.summary(asked.size).macs  # the library's own count
        name = f"ours, {'fp32' if wanted == 'no' else wanted}"
        add(
            name,
            model,
            wanted,
            lambda m=model, w=wanted: peers.our_step(m, images, device, w, asked.compile),
        )
        facts[name]["macs"] = facts_macs
    if not asked.no_peers:
        model = peers.diffusers_unet(asked.width, asked.size)
        add(
            "diffusers",
            model,
            asked.peer_precision,
            lambda: peers.diffusers_step(model, images, device, asked.peer_precision),
        )
        other = peers.lucidrains_unet(facts_macs, asked.size, tuple(asked.mults))
        add(
            "lucidrains",
            other,
            asked.peer_precision,
            lambda: peers.lucidrains_step(other, images, device, asked.peer_precision),
        )
    return steps, facts


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
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.width, asked.size, asked.batch, asked.steps, asked.rounds = 32, 8, 2, 1, 1
    if not asked.no_peers:
        peers.require_peers()
    if asked.cpu_time and torch.get_num_threads() > 1:
        parser.error("--cpu-time wants one thread: set OMP_NUM_THREADS=1")
    device = common.pick_device(asked.device)
    timer = common.cpu_seconds if asked.cpu_time else common.seconds
    rates = common.ceilings(device, small=asked.quick, timer=timer)
    common.show_ceilings(rates)
    steps, facts = build(asked, device)
    times = common.interleave(steps, asked.rounds, device, timer=timer)
    return common.finish(asked, device, ceilings=rates, variants=table(times, facts, rates, asked))


if __name__ == "__main__":
    main()
