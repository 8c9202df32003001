"""`ddpm prepare sysu SRC OUT`, `ddpm prepare mnist --download`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.next_steps import after_preparing
from ddpm_lib.core import spelling
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name

if TYPE_CHECKING:
    from ddpm_lib.data.sysu import SysuSummary

DESCRIPTION = (
    "sysu: make train_data, eval_data and normalized_eval_data from a clone of the SYSU-Shape"
    " dataset. masked: the object's contour mask on white; fit: a crop around the object "
    "without invented borders; stretch: the whole photo squashed to a square. A set of "
    "torchvision (mnist, cifar10, celeba, …): check that its files are there, and download "
    "them where --download says so; on a cluster that is a job for the login node."
)


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Options of `ddpm prepare`."""

    dataset: tyro.conf.Positional[str]
    """Which dataset: sysu, or a set of torchvision such as mnist."""
    src: tyro.conf.Positional[str] = ""
    """sysu: the dataset's folder, with one sub-folder per class."""
    out: tyro.conf.Positional[str] = ""
    """sysu: where to write."""
    data_root: str | None = None
    """Where the files of torchvision's sets lie; default: $DDPM_LIB_DATA, else datasets in the
    library's cache.
    """
    download: bool = False
    """Let torchvision download what is missing there."""
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
    default = PrepareCommand(dataset=tyro.MISSING)
    command: PrepareCommand = options.parse(
        PrepareCommand, args, default, "ddpm prepare", DESCRIPTION
    )
    if command.dataset != "sysu":
        print("\n".join(check_files(command)))
        return 0
    if not command.out:
        raise ConfigError("sysu takes two folders: ddpm prepare sysu SRC OUT.")
    if command.data_root is not None or command.download:
        raise ConfigError(
            "--data-root and --download are for the sets of torchvision, not for sysu."
        )
    from ddpm_lib.data import prepare_sysu
    from ddpm_lib.runtime.devices import pick_device

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(line)

    summary = prepare_sysu(
        command.src,
        command.out,
        size=command.size,
        mode=command.mode,
        val_fraction=command.val_fraction,
        seed=command.seed,
        num_workers=command.num_workers,
        log=say,
    )
    print("\n".join(line for line in told(summary) if line not in said))
    out = Path(command.out)
    lines = after_preparing(
        out / "train_data",
        out / "normalized_eval_data",
        command.size,
        accelerator=pick_device("auto") != "cpu",
    )
    print("\n".join(["\nNext,", *lines]))
    return 0


def check_files(command: PrepareCommand) -> list[str]:
    """Open every split of a set of torchvision, and say what is there.

    Raises:
        ConfigError: For a set that is not known, and options that are for sysu.
        FileNotFoundError: If files are missing or damaged, or cannot be downloaded.
    """
    from ddpm_lib.data.torchvision_sets import PREFIX, SETS, count_images, default_root, set_named

    name = set_named(command.dataset, asked=True)
    if name is None:
        choices = ["sysu", *SETS]
        shown = shlex.quote(command.dataset)
        if command.dataset == "shapes" or Path(command.dataset).exists():
            raise ConfigError(f"{shown} needs no preparing. Next: ddpm train {shown}")
        raise ConfigError(unknown_name("dataset", command.dataset.removeprefix(PREFIX), choices))
    default = PrepareCommand(dataset="sysu")
    given = [
        name
        for name in ("src", "out", "size", "mode", "val_fraction", "seed", "num_workers")
        if getattr(command, name) != getattr(default, name)
    ]
    if command.src:
        place = shlex.quote(command.out or command.src)
        raise ConfigError(
            f"{name} is not written anew, but read where torchvision's files lie. For files in"
            f" {place}: ddpm prepare {name} --data-root {place}"
            f"{' --download' if command.download else ''}"
        )
    if given:
        raise ConfigError(
            f"{', '.join(map(spelling.option, given))}: for sysu alone. The files of a set of"
            " torchvision lie where --data-root says, and are only checked."
        )
    root = Path(command.data_root).expanduser() if command.data_root else default_root()
    entry = SETS[name]
    lines = [f"torchvision's {entry.cls} in {root}:"]
    width = max(map(len, entry.splits))
    for split in entry.splits:
        count = count_images(name, split, root, command.download)
        use = {entry.trained_on: "  trained on", entry.held_out: "  validated on"}.get(split, "")
        lines.append(f"  {split:{width}}  {count:9,} images{use}")
    at = f" --data-root {shlex.quote(command.data_root)}" if command.data_root else ""
    return [*lines, "", "Next:", f"  ddpm train {name}{at}"]


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
