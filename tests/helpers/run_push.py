"""What the test of pushing runs under torchrun: run_push.py OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    from training_helpers import tiny_trainer

    out = Path(sys.argv[1])
    trainer = tiny_trainer(out / "run", max_steps=2)
    trainer.train()
    said = [trainer.push_to_hub("tester/mine", license="mit").url]
    try:
        trainer.push_to_hub("tester/mine", private=True)
    except (ValueError, RuntimeError) as error:
        said.append(f"{type(error).__name__}: {error}")
    (out / f"rank{trainer.rank}.json").write_text(json.dumps(said))
    trainer.close()


if __name__ == "__main__":
    main()
