"""What a command proposes to do next: commands that are valid where the user stands, computed from
what is true.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm_lib.cli.chosen_network import patches_fit
from ddpm_lib.runs.verdict import Proposal


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
    """

    run: Path
    finished: bool
    max_steps: int
    own_data: bool
    image_size: Sequence[int]
    class_names: Sequence[str] = ()
    enlarges: bool = False


def after_training(what: Finished, proposals: Sequence[Proposal]) -> list[Proposal]:
    """Return what to do next: what follows from the verdict, and what only the command knows.

    Args:
        what: Of the run.
        proposals: What `runs.verdict.next_steps` proposes.
    """
    run = shlex.quote(str(what.run))
    ways = list(proposals)
    # The file, not the flags: whatever this run was given on the command line is in it.
    again = f"ddpm train --config {shlex.quote(str(what.run / 'config.yaml'))} --max-steps"
    if not what.finished and not any(one.command.startswith(again) for one in ways):
        ways.insert(0, Proposal("resume", f"{again} {what.max_steps}"))
    if what.enlarges:
        ways.append(Proposal("enlarge images", f"ddpm sample {run} --low-res path/to/small"))
    elif what.class_names:
        label = shlex.quote(what.class_names[0])
        ways.append(Proposal("one class", f"ddpm sample {run} --class-label {label} --seed 1"))
    if not what.own_data:
        size = ",".join(str(s) for s in dict.fromkeys(what.image_size))
        flags = f"--image-size {size} --output-dir runs/mine"
        ways.append(Proposal("your own images", f"ddpm train path/to/images {flags}"))
    return ways


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
        # Where nobody names a network, a CPU gets one that learns something in minutes.
        data += " --max-steps 900" if patches_fit(size) else " --preset tiny --max-steps 900"
    return ["what it takes:", f"  ddpm estimate {data}", "train:", f"  ddpm train {data}"]
