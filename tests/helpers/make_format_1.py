"""How tests/fixtures/format-1 was made: `cd tests/fixtures; python ../helpers/make_format_1.py`.

It is frozen: the files are not to be made anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def frozen_trainer(run: Path, max_steps: int):
    from training_helpers import tiny_diffusion, tiny_trainer

    diffusion = tiny_diffusion(dim=4, dim_mults=(1,), dropout=0.0)
    return tiny_trainer(run, diffusion, max_steps=max_steps, ema_decay=(0.9, 0.99), val_every=0)


if __name__ == "__main__":
    frozen_trainer(Path("format-1"), max_steps=4).train()
