"""`ddpm prepare sysu SRC OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.next_steps import after_preparing

if TYPE_CHECKING:
    from ddpm_lib.data.sysu import SysuSummary

DESCRIPTION = (
    "Make train_data, eval_data and normalized_eval_data from a clone of the SYSU-Shape dataset."
    " masked: the object's contour mask on white; fit: a crop around the object without invented"
    " borders; stretch: the whole photo squashed to a square."
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
    command: PrepareCommand = options.parse(
        PrepareCommand, args, default, "ddpm prepare", DESCRIPTION
    )
    from ddpm_lib.data import prepare_sysu
    from ddpm_lib.runtime.devices import pick_device

    summary = prepare_sysu(
        command.src,
        command.out,
        size=command.size,
        mode=command.mode,
        val_fraction=command.val_fraction,
        seed=command.seed,
        num_workers=command.num_workers,
        log=print,
    )
    print("\n".join(told(summary)))
    out = Path(command.out)
    lines = after_preparing(
        out / "train_data",
        out / "normalized_eval_data",
        command.size,
        accelerator=pick_device("auto") != "cpu",
    )
    print("\n".join(["\nNext,", *lines]))
    return 0


def told(summary: SysuSummary) -> list[str]:
    """Say what was written."""
    width = max(len("class"), *map(len, summary.train))
    lines = [
        f"\n{summary.out}: {summary.num_train:,} training images, {summary.num_eval:,} held out",
        "",
    ]
    lines.append(f"  {'class':{width}}  {'training':>8}  {'held out':>8}")
    lines += [
        f"  {name:{width}}  {n:8,}  {summary.eval.get(name, 0):8,}"
        for name, n in summary.train.items()
    ]
    lines.append("")
    if summary.duplicates:
        lines.append(
            f"{len(summary.duplicates):,} groups of near-duplicates, each kept on one side of the"
            " split"
        )
    lines += summary.notes
    lines += [
        f"train_data            training images ({summary.out}/train_data)",
        "eval_data             the held-out photos as they are",
        (
            "normalized_eval_data  the held-out photos made alike to the training images: validate"
            " and score with these"
        ),
    ]
    return lines
