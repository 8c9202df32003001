"""Archives as data: which files of which split, and the source of their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_lib.data.archives.archive_tree import ArchiveTree
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.folders import FolderSource, Table, with_labels
from ddpm_lib.data.source import Source
from ddpm_lib.data.split_files import split_files, split_in

Options = Mapping[str, Any]


def open_archives(paths: Sequence[Path], inside: str, options: Options) -> Source:
    """Open the pictures in archives: one, or the shards of one set.

    Args:
        paths: The archives.
        inside: The folder in one that is meant; "": all of it.
        options: Those of `find_source`.

    Raises:
        ValueError: If an archive is damaged, or an option does not fit.
        FileNotFoundError: If the folder is not in it, or no picture.
    """
    check_fits("an archive of pictures", options)
    split = options["split"]
    whole = split is not None and not inside and split_in(paths[0]) == split
    if len(paths) > 1 or whole:  # what is called train.tar is that split
        paths, split = split_files(list(paths), split, paths[0].parent), None
    table = Table(options["image_column"], options["label_column"])
    tree = ArchiveTree(paths, inside, split)
    return with_labels(
        FolderSource(tree, options["labels"], options["frames"], table), options["insist"]
    )
