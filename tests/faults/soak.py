"""Train for hours in one process while things break, and watch its memory and its open files.

    python tests/faults/soak.py --data path/to/sysu-shape-dataset --hours 2 --out soak
    python tests/faults/soak.py --report soak

Real images stream through two workers; the held-out loss is computed, grids are drawn and
checkpoints written all along. Every now and then a worker is killed, a loss is not finite, the disk
is full for one checkpoint, and training is stopped and continued in the same process. `memory.csv`
gets a line every 100 steps; the report fits a slope to the resident memory after the warm-up.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.data import prepare_sysu
from ddpm_lib.training import Callback

STOP_EVERY, KILL_EVERY, BAD_EVERY, FULL_EVERY = 1500, 400, 700, 2000


def status_kb(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1])


def children() -> list[int]:
    return [int(c) for c in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


class Faults(Callback):
    """Breaks something from time to time, and writes down what the process holds."""

    def __init__(self, out: Path, deadline: float) -> None:
        self.file = (out / "memory.csv").open("a", newline="")
        self.rows = csv.writer(self.file)
        self.began, self.deadline, self.counts = (
            time.monotonic(),
            deadline,
            dict.fromkeys(("kill", "nan", "full", "stop"), 0),
        )
        self.poison = False
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, trainer: Trainer) -> None:
        step = trainer.step
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)
        self.poison = step % BAD_EVERY == BAD_EVERY - 1
        self.counts["nan"] += self.poison
        if step % KILL_EVERY == 0 and children():
            os.kill(children()[-1], signal.SIGKILL)
            self.counts["kill"] += 1
        if step % FULL_EVERY == 0:  # a checkpoint is due at this step
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, self.limit[1]))
            self.counts["full"] += 1
        if step % 100 == 0:
            held = [
                step,
                round(time.monotonic() - self.began, 1),
                status_kb("VmRSS"),
                len(os.listdir("/proc/self/fd")),
            ]
            held += [status_kb("Threads"), len(children()), *self.counts.values()]
            if step % FULL_EVERY:
                self.rows.writerow(held)
                self.file.flush()
        if time.monotonic() > self.deadline:
            trainer.stop("the soak is over")
        elif (
            step % STOP_EVERY == 0 and step % FULL_EVERY
        ):  # a disk that is full at the end is an error, as it should be
            self.counts["stop"] += 1
            trainer.stop("a stop of the soak")


def soak(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out = Path(args.out)
    prepare_sysu(args.data, out / "data", size=32, mode="masked")
    model = Unet(
        dim=16,
        dim_mults=(1, 2),
        blocks_per_level=1,
        patch_size=2,
        dropout=0.1,
        num_classes=5,
        self_condition=True,
    )
    diffusion = GaussianDiffusion(model, image_size=32)
    faults = Faults(out, time.monotonic() + args.hours * 3600)
    model.register_forward_hook(
        lambda module, inputs, output: (
            output * float("nan") if faults.poison and module.training else None
        )
    )
    trainer = Trainer(
        diffusion,
        out / "data" / "train_data",
        val_data=str(out / "data" / "normalized_eval_data"),
        val_labels="prefix",
        output_dir=str(out / "run"),
        batch_size=8,
        max_steps=10**9,
        cache="none",
        num_workers=2,
        progress=False,
        save_every=500,
        keep_last=2,
        keep_best="val_loss",
        val_every=250,
        val_max_images=64,
        sample_every=500,
        sample_count=4,
        sample_steps=5,
        sample_guidance_scale=2.0,
        on_nonfinite="skip",
        max_nonfinite=100_000,
        device="cpu",
        mixed_precision="no",
        callbacks=[faults],
    )
    while True:
        result = trainer.train()
        if result.reason == "the soak is over":
            break
    print(f"{result.step:,} steps", faults.counts)
    report(out)


def report(out: Path) -> None:
    rows = [[float(v) for v in row] for row in csv.reader((out / "memory.csv").open())]
    steps, seconds, rss, files, threads = (
        torch.tensor(c, dtype=torch.float64) for c in list(zip(*rows))[:5]
    )
    after = steps > 0.1 * steps[-1]  # the warm-up: allocators and caches fill
    x, y = steps[after] / 1000, rss[after] / 1024
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    print(
        f"{seconds[-1] / 3600:.2f} h, {int(steps[-1]):,} steps; killed workers, bad losses, full"
        f" disks, stops: {', '.join(str(int(v)) for v in rows[-1][6:])}"
    )
    print(
        f"resident memory {y[0]:.1f} -> {y[-1]:.1f} MiB after the warm-up, slope {slope:+.3f} MiB"
        " per 1,000 steps"
    )
    print(
        f"open files {int(files[after].min())} ... {int(files[after].max())}, threads"
        f" {int(threads[after].min())} ... {int(threads[after].max())}"
    )
    if slope >= 1.0:
        sys.exit("The process leaks.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", default="soak")
    parser.add_argument("--report", help="only report on this directory")
    known = parser.parse_args()
    report(Path(known.report)) if known.report else soak(known)
