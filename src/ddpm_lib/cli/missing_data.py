"""What a command says that was given options and no data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ddpm_lib.core.errors import ConfigError


def missing_data(
    args: Sequence[str], prog: str, built_in: str, output_dir: str | None = None
) -> ConfigError:
    """Word that options were given and no data, so that a forgotten path does not train the
    built-in data.
    """
    rest = f" {shlex.join(args)}" if args else ""
    ways = [
        ("your own images", f"{prog} path/to/images{rest}"),
        ("the built-in data", f"{prog} {built_in}{rest}"),
    ]
    if output_dir is not None and (Path(output_dir) / "config.yaml").is_file():
        ways.append(
            ("the run that is there", f"{prog} --config {shlex.quote(output_dir + '/config.yaml')}")
        )
    lines = "".join(f"\n  {what:22}{command}" for what, command in ways)
    return ConfigError(f"on which data? Name them, before or after the options:{lines}")
