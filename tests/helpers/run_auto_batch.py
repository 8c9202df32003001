"""Trains with batch_size="auto" under torchrun and never closes the trainer: run_auto_batch.py
OUT.
"""

from __future__ import annotations

import atexit
import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    from run_to_the_end import write_threads

    atexit.register(write_threads)  # the first to register is the last to run
    from ddpm_lib import Shapes
    from ddpm_lib.training import auto_batch
    from training_helpers import tiny_diffusion, tiny_trainer

    out = Path(sys.argv[1])
    diffusion = tiny_diffusion()
    each = 1.5 * diffusion.model.summary(8, 1).activation_bytes
    state = 16 * sum(p.numel() for p in diffusion.parameters())
    trainer = tiny_trainer(
        out / "run",
        diffusion,
        Shapes(size=8, n=200),
        batch_size="auto",
        val_fraction=0.0,
        max_steps=2,
    )
    # Before the processes have met, nobody knows his rank: it is asked when the memory is.
    auto_batch.free_bytes = lambda device: int(((20.5, 12.5)[trainer.rank] * each + state) / 0.8)
    trainer.train()
    report = {
        "batch_size": trainer.config.batch_size,
        "per_process": trainer.plan.per_process,
        "step": trainer.step,
    }
    (out / f"rank{trainer.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
