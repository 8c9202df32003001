"""A small run whose global batch has two shares, whoever works on them: run_cluster.py RUN STEPS
[SECONDS_PER_STEP].
"""

import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))

if __name__ == "__main__":
    import os

    from ddpm_lib.runtime.launch import adopt_slurm_ranks
    from ddpm_lib.training import Callback
    from training_helpers import tiny_diffusion, tiny_trainer

    class Slow(Callback):
        def on_step_end(self, trainer):
            time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)

    adopt_slurm_ranks()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = tiny_trainer(
        Path(sys.argv[1]),
        tiny_diffusion(dim=4, dim_mults=(1,)),
        max_steps=int(sys.argv[2]),
        save_every=10,
        keep_last=3,
        accumulation_steps=2 // world,
        shards=2,
        process_timeout_minutes=0.3,
        stall_minutes=0.1,
        callbacks=[Slow()],
    )
    try:
        code = trainer.train().exit_code
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 75
    sys.exit(code)
