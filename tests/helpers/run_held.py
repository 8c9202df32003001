"""A small training run that waits at two places until a file appears: run_held.py RUN STEPS.

After it has found its checkpoint and opens its data it makes RUN.opening and waits for RUN.open;
before it writes its last checkpoint it makes RUN.saving and waits for RUN.save.
"""

import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def wait(run: Path, mark: str, sign: str) -> None:
    run.with_suffix(f".{mark}").touch()
    deadline = time.monotonic() + 120
    while not run.with_suffix(f".{sign}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    from ddpm_lib.runs import checkpoint
    from ddpm_lib.training import prepared_run
    from training_helpers import tiny_trainer

    run, steps = Path(sys.argv[1]), int(sys.argv[2])
    really_open, really_save = prepared_run.open_training_data, checkpoint.save_checkpoint

    def open_held(*args):
        wait(run, "opening", "open")
        return really_open(*args)

    def save_held(folder, step, *args):
        if step == steps:
            wait(run, "saving", "save")
        return really_save(folder, step, *args)

    prepared_run.open_training_data, checkpoint.save_checkpoint = open_held, save_held
    sys.exit(tiny_trainer(run, max_steps=steps, save_every=2).train().exit_code)
