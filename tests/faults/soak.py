"""Train for long with periodic faults, validation and sampling; watch memory and open files.

    python tests/faults/soak.py --minutes 120 --data path/to/images

A child trains; every `--fault-every` minutes it gets SIGTERM or SIGKILL in turn, and is started again. Each child notes its
resident memory and open files every 50 steps. Reported: the slope of memory over steps after a warm-up, by least squares in
each child, and the range of open files.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
WARM_UP = 300


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def child(run: Path, data: str, minutes: float) -> int:
    import torch

    torch.set_num_threads(1)
    from ddpm_lib import GaussianDiffusion, Trainer, Unet
    from ddpm_lib.training import Callback

    class Watch(Callback):
        """Note step of this process, memory and open files."""

        def on_train_start(self, trainer):
            self.first, self.until = trainer.step, time.monotonic() + 60 * minutes

        def on_step_end(self, trainer):
            if trainer.step % 50 == 0:
                row = [os.getpid(), trainer.step - self.first, resident_megabytes(), len(os.listdir("/proc/self/fd"))]
                with (run.parent / "soak.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if time.monotonic() > self.until:
                trainer.stop("the time is over")

    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, dropout=0.1)
    diffusion = GaussianDiffusion(model, image_size=16, timesteps=100)
    options = {
        "val_every": 200,
        "val_max_images": 32,
        "sample_every": 400,
        "sample_count": 4,
        "sample_steps": 5,
        "save_every": 100,
    }
    trainer = Trainer(
        diffusion, data, output_dir=str(run), max_steps=10**7, batch_size=8, progress=False, device="cpu", save_async=True,
        log_every=20, callbacks=[Watch()], mixed_precision="no", num_workers=0, keep_best="val_loss", **options,
    )  # fmt: skip
    return trainer.train().exit_code


def slope(rows: list[tuple[float, float]]) -> float:
    """Least-squares slope of the second over the first."""
    n = len(rows)
    mean_x, mean_y = sum(x for x, _ in rows) / n, sum(y for _, y in rows) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in rows) / sum((x - mean_x) ** 2 for x, _ in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--fault-every", type=float, default=10)
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        return child(Path(args.child[0]), args.data, float(args.child[1]))
    folder, end, faults = Path(tempfile.mkdtemp(prefix="ddpm-soak-")), time.monotonic() + 60 * args.minutes, 0
    while (left := (end - time.monotonic()) / 60) > 0.1:
        command = [sys.executable, __file__, "--data", args.data, "--child", str(folder / "run"), str(min(left, 10**6))]
        process = subprocess.Popen(command, stderr=(folder / "log").open("a"))
        try:
            process.wait(min(60 * args.fault_every, 60 * left + 120))
        except subprocess.TimeoutExpired:
            process.send_signal((signal.SIGTERM, signal.SIGKILL)[faults % 2])
            faults += 1
            process.wait(120)
        if process.returncode not in (143, -signal.SIGKILL):
            print((folder / "log").read_text()[-3000:])
            return 1
    rows = [json.loads(line) for line in (folder / "soak.jsonl").read_text().splitlines()]
    children = {pid: [r for r in rows if r[0] == pid and r[1] >= WARM_UP] for pid in dict.fromkeys(r[0] for r in rows)}
    slopes = {pid: 1000 * slope([(r[1], r[2]) for r in part]) for pid, part in children.items() if len(part) > 10}
    report = {
        "minutes": args.minutes, "faults": faults, "children": len(children),
        "steps": sum(part[-1][1] for part in children.values() if part),
        "mb_per_1000_steps": {pid: round(s, 3) for pid, s in slopes.items()},
        "memory_mb": [round(min(r[2] for r in rows)), round(max(r[2] for r in rows))],
        "open_files": sorted({r[3] for part in children.values() for r in part}),
    }  # fmt: skip
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
