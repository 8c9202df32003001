"""Where commands write the images they draw: a new folder; nothing that exists is overwritten."""

from __future__ import annotations

from pathlib import Path

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import try_writing


def refuse_used(folder: Path) -> None:
    """Refuse a directory that holds something, and what is none."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no directory. Choose another --output-dir.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty, and nothing is overwritten. Choose another --output-dir."
        )


def new_folder(output_dir: str | None, run: Path, word: str = "draw") -> Path:
    """Make the directory to write to: the one asked for if it is empty, else a new numbered one in
    the run.

    Raises:
        ConfigError: If the directory asked for holds something.
    """
    base = _base(output_dir, run)
    try:
        if output_dir is not None:
            refuse_used(base)
        base.mkdir(parents=True, exist_ok=True)
        return base if output_dir is not None else _numbered(base, word)
    except OSError as error:
        raise _unwritable(base, error) from error


def check_output(output_dir: str | None, run: Path) -> None:
    """Refuse a place that cannot be written to before the images are drawn; see `new_folder`.

    Raises:
        ConfigError: Saying where to write instead.
    """
    base = _base(output_dir, run)
    try:
        try_writing(base)
    except OSError as error:
        raise _unwritable(base, error) from error


def _base(output_dir: str | None, run: Path) -> Path:
    return Path(output_dir) if output_dir is not None else run / "samples"


def _unwritable(base: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{base} cannot be written to ({error.strerror or error}). Say with --output-dir where the"
        " images are to go."
    )


def _numbered(base: Path, word: str) -> Path:
    for number in range(1, 10**6):
        folder = base / f"{word}-{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"{base} is full of draws. Give --output-dir.")
