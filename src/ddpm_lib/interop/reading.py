"""Finding the reader of a foreign file, and reading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.registry import Registry, unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable
from ddpm_lib.interop.edm import refuse_persistent_pickle
from ddpm_lib.interop.given import checked
from ddpm_lib.interop.imported import Imported, Opened, Reader
from ddpm_lib.interop.opening import open_foreign


def read_with(
    readers: Registry[Reader],
    path: str | Path,
    given: Mapping[str, Any] | None = None,
    format: str = "auto",
) -> Imported:
    """Read a file or folder with the one of several readers that recognises it; see
    `interop.read_foreign`.
    """
    if format != "auto" and format not in readers:
        raise ConfigError(unknown_name("format", format, ["auto", *readers]))
    refuse_persistent_pickle(Path(path).expanduser())
    opened = open_foreign(path)
    reader = recognised(readers, opened) if format == "auto" else readers[format]
    if format != "auto" and not reader.recognises(opened):
        raise CheckpointError(
            f"{opened.path} is not of the format {reader.name} ({reader.reads}). Leave out"
            f" {option('format')}, or choose another: {', '.join(readers)}."
        )
    return read_opened(reader, opened, given or {})


def read_opened(reader: Reader, opened: Opened, given: Mapping[str, Any]) -> Imported:
    """Read an opened file with a reader that recognises it.

    Args:
        reader: The reader.
        opened: The file or folder.
        given: What the file does not say.

    Raises:
        CheckpointError: If something lies in it that this format does not have there.
        ConfigError: If something is missing, or an option does not fit.
    """
    values = checked(given, reader.options, reader.name)
    try:
        return reader.read(opened, values)
    except (CheckpointError, ConfigError):
        raise
    except ValueError as error:  # of a network with these options, or of a text for a number
        why = printable(error)
        raise ConfigError(f"{opened.path} cannot be read as {reader.name}: {why}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        # A number where a table should be, a text for a step, …: files are made by anybody.
        raise CheckpointError(
            f"{opened.path} is damaged: it has the keys of the format {reader.name}, but not what"
            f" belongs to them ({type(error).__name__}: {printable(error)[:200]})."
        ) from error


def recognised(readers: Registry[Reader], opened: Opened) -> Reader:
    """Return the reader that recognises an opened file by its keys and shapes.

    Raises:
        CheckpointError: If none does or several do, listing the formats that there are.
    """
    found = [reader for reader in readers.values() if reader.recognises(opened)]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{reader.name} ({reader.reads})" for reader in readers.values())
    if found:
        names = " and ".join(reader.name for reader in found)
        raise CheckpointError(
            f"{opened.path} could be of the formats {names}. Say which with {option('format')}."
        )
    raise CheckpointError(f"{opened.path} is of none of the formats that can be read: {listed}.")
