"""Draw images from a run of train_sysu.py, from its latest or a named checkpoint.

    python examples/sample_sysu.py runs/sysu --num 25
    python examples/sample_sysu.py runs/sysu --checkpoint 5000 --class-label bicycle
    torchrun --nproc_per_node 2 examples/sample_sysu.py runs/sysu -n 1000 --format npz

This is `ddpm sample` with the defaults that suit the dataset; image i depends only on the seed and
i.
"""

from __future__ import annotations

import sys

from ddpm_lib.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", "--num", "25", *sys.argv[1:]]))  # what is given wins
