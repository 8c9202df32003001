"""`ddpm prepare sysu SRC OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ddpm_lib.cli import options

DESCRIPTION = (
    "Make train_data, eval_data and normalized_eval_data from a clone of the SYSU-Shape dataset. "
    "masked: the object's contour mask on white; fit: a crop around the object without invented borders; "
    "stretch: the whole photo squashed to a square."
)


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Options of `ddpm prepare`."""

    dataset: tyro.conf.Positional[Literal["sysu"]]
    """Which dataset: sysu."""
    src: tyro.conf.Positional[str]
    """The dataset's folder, with one sub-folder per class."""
    out: tyro.conf.Positional[str]
    """Where to write."""
    size: int = 64
    """Side of the images in pixels."""
    mode: Literal["masked", "fit", "stretch"] = "masked"
    """What to make of a photo."""
    val_fraction: float = 0.185
    """Share of each class held out, by hash of the file name."""
    seed: int = 0
    """Names the split."""
    num_workers: int | None = None
    """Processes; default: the CPUs this process may use."""


def main(args: list[str]) -> int:
    """Run the command."""
    default = PrepareCommand(dataset=tyro.MISSING, src=tyro.MISSING, out=tyro.MISSING)
    command: PrepareCommand = options.parse(PrepareCommand, args, default, "ddpm prepare", DESCRIPTION)
    from ddpm_lib.data import prepare_sysu

    summary = prepare_sysu(
        command.src, command.out, size=command.size, mode=command.mode, val_fraction=command.val_fraction, seed=command.seed,
        num_workers=command.num_workers, log=print,
    )  # fmt: skip
    print(summary)
    print(
        f"\nNext:\n  ddpm train {command.out}/train_data --val-data {command.out}/normalized_eval_data --val-labels prefix "
        f"--image-size {command.size} --horizontal-flip"
    )
    return 0
