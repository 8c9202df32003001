"""Draw images from a run of train_sysu.py, from its latest or a named checkpoint.

    python examples/sample_sysu.py runs/sysu --num 25
    python examples/sample_sysu.py runs/sysu --checkpoint 5000 --class-label bicycle
    torchrun --nproc_per_node 2 examples/sample_sysu.py runs/sysu -n 1000 --format npz

This is `ddpm sample` with the defaults that suit the dataset; image i depends only on the seed and i.
"""

from __future__ import annotations

import argparse
import sys

from ddpm_lib.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/sysu", help="run directory, or one of its checkpoints")
    parser.add_argument("-n", "--num", default="25", help="number of images over all processes")
    parser.add_argument("--checkpoint", default="latest", help="latest, all, a step or a name")
    known, further = parser.parse_known_args()
    sys.exit(main(["sample", known.run, "--num", known.num, "--checkpoint", known.checkpoint, *further]))
