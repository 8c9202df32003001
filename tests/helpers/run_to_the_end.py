"""Trains under torchrun and writes the threads that it ends with: run_to_the_end.py OUT.

gloo's threads come to everything late.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def write_threads() -> None:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    (Path(sys.argv[1]) / f"threads{os.environ['RANK']}.json").write_text(json.dumps(names))


def make_threads_late() -> None:
    """Let gloo's threads run only when nothing else wants their CPU, and keep that CPU busy beyond
    the end of this process.
    """
    cpu = sorted(os.sched_getaffinity(0))[int(os.environ["RANK"]) % len(os.sched_getaffinity(0))]
    tasks = Path("/proc/self/task").iterdir()
    late = [int(task.name) for task in tasks if "gloo_runloop" in (task / "comm").read_text()]
    assert late
    for task in [0, *late]:
        os.sched_setaffinity(task, {cpu})
    for task in late:
        os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
    subprocess.Popen(["timeout", "6", "sh", "-c", "while :; do :; done"])
    time.sleep(0.5)


if __name__ == "__main__":
    atexit.register(write_threads)  # the first to register is the last to run
    from training_helpers import tiny_trainer

    trainer = tiny_trainer(Path(sys.argv[1]) / "run", batch_size=6, max_steps=2)
    trainer.train()
    make_threads_late()
    for _ in range(3):
        trainer.sample(3, sampler="ddim", num_steps=2)
    trainer.close()
