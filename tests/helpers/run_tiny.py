"""A small training run in a process of its own, for tests that kill it: run_tiny.py RUN STEPS."""

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    from training_helpers import tiny_trainer

    trainer = tiny_trainer(
        Path(sys.argv[1]),
        max_steps=int(sys.argv[2]),
        save_every=5,
        keep_last=3,
        mixed_precision="no",
    )
    sys.exit(trainer.train().exit_code)
