"""`ddpm audit DATA`: look at a set of images before training on it; nothing is changed."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.text_tables import Column, room, table
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import NotAFileOfOursError
from ddpm_lib.core.text import printable, sayable

if TYPE_CHECKING:
    from ddpm_lib.data.auditing import Audit

DESCRIPTION = (
    "Look at a set of images before training on it: copies (exact ones, and those that were saved"
    " again, mirrored, cut, scaled, framed or turned a little), copies of held-out images among"
    " training images, files that cannot be read, blurry, constant, enlarged and mostly empty"
    " images, what a centre crop loses, sizes, classes and values. Prints a table and writes a"
    " page; --write-list writes the list of the images to train on. Nothing is deleted."
)

PAGE = "audit.html"
_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Options of `ddpm audit`."""

    data: tyro.conf.Positional[str]
    """What `ddpm train` takes: a folder, an archive, a dataset, measured values."""
    val_data: str | None = None
    """Held-out images; default: the other splits of the data, else those that training holds out.
    """
    image_size: tuple[int, ...] = ()
    """The size to train at, one side or height and width: for what a centre crop loses, and which
    images are smaller.
    """
    write_list: str | None = None
    """Write the list of the images to train on, for `ddpm train DATA --files LIST`."""
    drop: tuple[str, ...] = ("unreadable", "constant", "duplicates", "leaks")
    """What the list leaves out: unreadable, constant, duplicates (exact and near), leaks,
    conflicts, blurry, enlarged, border, grey, small.
    """
    output: str = PAGE
    """Where to write the page; none: no page."""
    json: bool = False
    """Print one JSON object, with the names of all images that were found."""
    split: str | None = None
    """Split of a dataset that has several; default: all, with the training split as the data."""
    files: str | None = None
    """Look only at the images of this list."""
    labels: Literal["auto", "folder", "prefix", "none"] = "auto"
    """Class labels: from sub-folders or columns, from prefixes, or none."""
    image_column: str | None = None
    """Column of the images in a table; default: found."""
    label_column: str | None = None
    """Column of the labels in a table; default: found."""
    data_root: str | None = None
    """Where the files of torchvision's sets lie."""
    download: bool = False
    """Let torchvision download what is missing there."""
    background: str = "white"
    """Colour under transparency, a name or #rrggbb."""
    max_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decompressed."""
    value_range: tuple[float, float] | None = None
    """What is black and what is white in images of more than 8 bits, such as 0 4095."""
    frames: Literal["first", "all"] = "first"
    """Of files with several pages or frames: the first, or all, each an image."""
    normalize: Literal["affine", "quantile"] | None = None
    """Take the data for measured values; default: where pictures cannot hold them."""
    channels: int | None = None
    """Channels of measured values; default: as found."""
    slice_axis: int | None = None
    """Axis along which measured volumes are cut."""
    few_images: int = 50
    """Name the classes with fewer images."""
    val_fraction: float = 0.05
    """The share that training would hold out."""
    seed: int = 0
    """The seed by which images are held out."""
    num_workers: int | None = None
    """Processes that read; default: by the CPUs there are."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    command: AuditCommand = options.parse(
        AuditCommand, args, AuditCommand(data=missing), "ddpm audit", DESCRIPTION
    )
    page = None if command.output.lower() == "none" else Path(command.output)
    listed = None if command.write_list is None else Path(command.write_list)
    _refuse(page, listed, command.image_size)
    from ddpm_lib.data.auditing import audit
    from ddpm_lib.data.auditing.audit_findings import dropped_kinds

    drop = dropped_kinds(command.drop)
    found = audit(
        command.data,
        val_data=command.val_data,
        image_size=_size(command.image_size),
        log=functools.partial(print, file=sys.stderr),
        **{name: getattr(command, name) for name in _PASSED},
    )
    if listed is not None:
        kept = found.save_list(listed, drop)
    if page is not None:
        from ddpm_lib.runs.report.audit_page import write_audit_page

        write_audit_page(found, page)
    if command.json:
        print(json.dumps(found.to_dict()))
        return 0
    for line in lines(found, room()):
        print(sayable(line, getattr(sys.stdout, "encoding", None)))
    print()
    if page is not None:
        size = page.stat().st_size / 1000
        print(f"wrote {printable(page)} ({size:,.0f} kB): open it in a browser")
    if listed is None:
        for line in list_proposed(found, drop):
            print(line)
    else:
        print(
            f"wrote {printable(listed)}: {kept:,} of {len(found):,} images; train on them with\n"
            f"  ddpm train {found.command} --files {shlex.quote(str(listed))}"
        )
    return 0


def list_proposed(found: Audit, drop: Sequence[str]) -> list[str]:
    """Return the line that proposes a list, of which at least half of the images are left; of a set
    whose images are all alike, that there is none.

    Args:
        found: What was found.
        drop: Kinds of findings that a list leaves out.
    """
    without_leaks = [kind for kind in drop if kind != "leaks"]
    without_near = [kind for kind in without_leaks if kind != "near"]
    most = len(found.left_out(drop))
    for kinds in (drop, without_leaks, without_near):
        out = len(found.left_out(kinds))
        if out and 2 * out <= len(found):
            flag = "" if list(kinds) == list(drop) else f" --drop {','.join(kinds)}"
            return [
                f"--write-list keep.txt{flag} writes a list without {out:,} of them"
                f" ({', '.join(kinds)}), for ddpm train {found.command} --files keep.txt"
            ]
    if not most:
        return []
    largest = max((found[kind] for kind in drop), key=lambda finding: len(finding.rows))
    copies = largest.kind in ("exact", "near")
    advice = (
        "The set is like that; samples become copies early."
        if copies
        else "--drop names the findings whose images a list leaves out."
    )
    return [
        f"No list is proposed: it would leave {len(found) - most:,} of {len(found):,} images, as"
        f" most are found under {largest.title!r}. {advice}"
    ]


_PASSED = (
    "split",
    "files",
    "labels",
    "image_column",
    "label_column",
    "data_root",
    "download",
    "background",
    "max_pixels",
    "value_range",
    "frames",
    "normalize",
    "channels",
    "slice_axis",
    "few_images",
    "val_fraction",
    "seed",
    "num_workers",
)


def lines(found: Audit, width: int | None) -> list[str]:
    """Return what the command says: what the set is like, and what was found, as a table."""
    told = [f"{printable(found.name)}: {len(found):,} images", ""]
    wide = max(len(name) for name, _ in found.properties())
    told += [f"  {name:{wide}}  {value}" for name, value in found.properties() if value]
    told += [f"  {'note':{wide}}  {printable(note)}" for note in found.notes]
    columns = [Column("found"), Column("images", right=True), Column(""), Column("such as", rank=1)]
    rows = []
    for finding in found.findings.values():
        names = [printable(found.names[row]) for row in finding.rows[:_NAMES].tolist()]
        more = ", …" if len(finding) > _NAMES else ""
        count = f"{len(finding):,}" if len(finding) else "none"
        rows.append((finding.title, count, finding.said, ", ".join(names) + more))
    return [*told, "", *(f"  {line}" for line in table(columns, rows, width and width - 2))]


def _size(sides: Sequence[int]) -> int | tuple[int, int] | None:
    if not sides:
        return None
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _refuse(page: Path | None, listed: Path | None, sides: Sequence[int]) -> None:
    """Refuse what could not be written in the end, before anything is read.

    Raises:
        ConfigError: Saying what to give instead.
        NotAFileOfOursError: If a directory lies there.
    """
    from ddpm_lib.runs.report.page_frame import is_page

    if len(sides) > 2:
        raise ConfigError(f"--image-size takes one side, or height and width; got {len(sides)}.")
    for path, option, name in ((page, "--output", PAGE), (listed, "--write-list", "keep.txt")):
        if path is None:
            continue
        if path.is_dir():
            raise NotAFileOfOursError(
                f"{printable(path)} is a directory. Name a file in it: {option}"
                f" {printable(path / name)}."
            )
        if not path.absolute().parent.is_dir():
            raise ConfigError(
                f"The folder of {option} {printable(path)} does not exist:"
                f" {printable(path.absolute().parent)}. Make it first."
            )
    if page is not None and page.exists() and not is_page(page):
        raise ConfigError(
            f"{printable(page)} exists and is no page of ours. Choose another --output."
        )
    if listed is not None and listed.exists() and not _is_list(listed):
        raise ConfigError(
            f"{printable(listed)} exists and is no list that an audit wrote. Choose another name"
            " for --write-list."
        )


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(24).startswith(b"# images to train on: ")
