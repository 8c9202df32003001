"""Two processes by accelerate's notebook_launcher: run_notebook_launcher.py RUN."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def train(run: str) -> None:
    import torch

    from training_helpers import tiny_trainer

    torch.set_num_threads(1)
    trainer = tiny_trainer(Path(run))
    trainer.train()
    (Path(run) / f"rank{trainer.rank}-of-{trainer.processes}").touch()
    trainer.close()


if __name__ == "__main__":
    from accelerate import notebook_launcher

    notebook_launcher(train, (sys.argv[1],), num_processes=2)
