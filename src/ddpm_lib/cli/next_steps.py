"""What a command proposes to do next: commands that are valid where the user stands, computed from
what is true.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONGER = 2
"""How many times as long "train longer" proposes to train."""


SCORABLE = 10
"""Training images from which on an evaluation has something to say."""


@dataclass(frozen=True)
class Finished:
    """What is known at the end of `ddpm train`.

    Args:
        run: The run directory.
        finished: Whether max_steps is reached.
        max_steps: The number of steps asked for.
        own_data: Whether the images were the user's own.
        image_size: Height and width, or one of them.
        class_names: Names of the classes that the network knows; empty for none.
        enlarges: Whether the network enlarges small images.
        images: Number of training images.
    """

    run: Path
    finished: bool
    max_steps: int
    own_data: bool
    image_size: Sequence[int]
    class_names: Sequence[str] = ()
    enlarges: bool = False
    images: int = 1000


def after_training(what: Finished) -> list[str]:
    """Return the lines `what to do   command`."""
    run = shlex.quote(str(what.run))
    # The file, not the flags: whatever this run was given on the command line is in it.
    again = f"ddpm train --config {shlex.quote(str(what.run / 'config.yaml'))}"
    ways = []
    if not what.own_data:
        size = ",".join(str(s) for s in dict.fromkeys(what.image_size))
        ways.append(
            (
                "your own images",
                f"ddpm train path/to/images --image-size {size} --output-dir runs/mine",
            )
        )
    if what.enlarges:
        ways.append(("enlarge images", f"ddpm sample {run} --low-res path/to/small"))
    else:
        ways.append(("more samples", f"ddpm sample {run} --num 64 --seed 1"))
        if what.class_names:
            label = shlex.quote(what.class_names[0])
            ways.append(("one class", f"ddpm sample {run} --class-label {label} --seed 1"))
    if what.finished:
        if what.images >= SCORABLE:
            ways.append(("score it", f"ddpm evaluate {run}"))
        ways.append(("train longer", f"{again} --max-steps {what.max_steps * LONGER}"))
    else:
        ways.append(("resume", f"{again} --max-steps {what.max_steps}"))
    return [f"  {name:17} {command}" for name, command in ways]


def after_preparing(train: Path, held_out: Path, size: int, accelerator: bool) -> list[str]:
    """Return the lines that say how to train on a prepared set, on this machine.

    Args:
        train: Folder of the training images.
        held_out: Folder of the held-out images.
        size: Side of the images.
        accelerator: Whether there is a GPU.
    """
    data = (
        f"{shlex.quote(str(train))} --val-data {shlex.quote(str(held_out))} --val-labels prefix"
        f" --image-size {size} --class-conditional --horizontal-flip"
    )
    if not accelerator:
        # What a CPU learns something from in minutes: few, large pixels, and a prediction that a
        # small network can make.
        data += (
            " --preset tiny --model.patch-size 2 --diffusion.parametrization x0"
            " --diffusion.weighting flat --learning-rate 1e-3 --lr-schedule cosine --warmup-steps"
            " 50 --ema-decay 0.995 --max-steps 600"
        )
    return ["what it takes:", f"  ddpm estimate {data}", "train:", f"  ddpm train {data}"]
