"""Several processes against one on the same cores or GPUs, at the same global batch.

    python benchmarks/scaling.py --processes 2 --output scaling.json

On a CPU one process gets as many threads as there are processes in the other variant, each of which
gets one: the same cores. Each round starts both with torchrun (or plainly, for one) and takes the
images per second of our `Trainer` after its first steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import common
import peers
from loop_servers import now


def work(asked: argparse.Namespace) -> None:
    """Train in this process, which may be one of several, and let the main one write the seconds
    per step.
    """
    from ddpm_lib import Callback, GaussianDiffusion, Shapes, Trainer

    class Clock(Callback):
        def on_step_end(self, trainer: Trainer) -> None:
            if trainer.step == asked.skip:
                self.start = now(trainer.device)
            elif trainer.step == asked.skip + asked.steps and trainer.is_main:
                took = now(trainer.device) - self.start
                asked.answer.write_text(
                    json.dumps({"seconds": took / asked.steps, "processes": trainer.processes})
                )

    torch.manual_seed(0)
    diffusion = GaussianDiffusion(peers.our_unet(asked.width), image_size=asked.size)
    trainer = Trainer(
        diffusion,
        Shapes(size=asked.size, n=256),
        output_dir=f"{asked.answer}-run",
        max_steps=asked.skip + asked.steps,
        batch_size=asked.batch,
        val_every=0,
        sample_every=0,
        save_every=10**9,
        progress=False,
        device=asked.device,
        mixed_precision=asked.precision,
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.close()


def launch(asked: argparse.Namespace, processes: int, threads: int, answer: Path) -> float:
    """Run one variant in fresh processes and return its seconds per step."""
    names = ("width", "size", "batch", "skip", "steps", "device", "precision")
    script = [__file__, "--work", "--answer", str(answer)]
    script += [word for name in names for word in (f"--{name}", str(getattr(asked, name)))]
    runner = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *runner, *script],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode or not answer.is_file():
        raise SystemExit(f"{processes} processes ended early:\n{done.stderr[-3000:]}")
    found = json.loads(answer.read_text())
    if found["processes"] != processes:
        raise SystemExit(f"{processes} processes were asked for, but {found['processes']} trained.")
    return float(found["seconds"])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="global batch")
    parser.add_argument("--skip", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--precision", default="auto", choices=["auto", *common.DTYPES])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.work:
        work(asked)
        return {}
    if asked.quick:
        asked.width, asked.size, asked.batch, asked.skip, asked.steps, asked.rounds = (
            32,
            8,
            4,
            1,
            1,
            1,
        )
    device = common.pick_device(asked.device)
    rates = common.ceilings(device, small=asked.quick)
    common.show_ceilings(rates)
    n, precision = asked.processes, peers.our_precision(asked.precision, device)[0]
    gpu = device.type == "cuda"
    one, many = (
        (f"1 process, {n} threads", f"{n} processes, 1 thread each")
        if not gpu
        else ("1 GPU", f"{n} GPUs")
    )
    threads = {one: 1 if gpu else n, many: 1}
    times: common.Times = {one: [], many: []}
    with TemporaryDirectory() as folder:
        for turn in range(asked.rounds):
            for name, processes in (
                ((one, 1), (many, n)) if turn % 2 == 0 else ((many, n), (one, 1))
            ):
                times[name].append(
                    launch(
                        asked, processes, threads[name], Path(folder) / f"{turn}-{processes}.json"
                    )
                )
    macs = peers.count(peers.our_unet(asked.width), asked.size)[1]
    rows, found = [], {}
    for name, middle in common.medians(times).items():
        rate = 6 * macs * asked.batch / middle / 1e9
        share = (
            rate / n / common.limit(rates, precision)
            if name == many or not gpu
            else rate / common.limit(rates, precision)
        )
        faster = common.ratio(times, one, name)
        found[name] = {
            "images_per_second": asked.batch / middle,
            "as fast as one": faster,
            "share": share,
            "seconds": times[name],
        }
        rows.append(
            (name, f"{asked.batch / middle:.2f}", f"{share:.0%}", common.show_ratio(faster))
        )
    # The limits are of this process's threads; those of several are taken to add up.
    per = "GPU" if gpu else f"core (limit of {torch.get_num_threads()} threads)"
    common.print_table(
        (
            f"global batch {asked.batch}",
            "images/s",
            f"of limit per {per}",
            "as fast as one process",
        ),
        rows,
    )
    return common.finish(asked, device, ceilings=rates, variants=found)


if __name__ == "__main__":
    main()
