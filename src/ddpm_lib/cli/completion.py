"""`ddpm completion bash|zsh|fish`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.text import printable

DESCRIPTION = (
    "Print what completes commands, options, values and run directories when you press the"
    " tabulator key. With --install it is put where the shell looks: bash finds it by its package"
    " bash-completion, zsh after the line that is printed, fish by itself. Without, add it to the"
    " present shell: source <(ddpm completion bash). Make it anew after an upgrade."
)


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Options of `ddpm completion`."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""
    install: bool = False
    """Write it where the shell looks, instead of printing it."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    command: CompletionCommand = options.parse(
        CompletionCommand, args, CompletionCommand(shell=missing), "ddpm completion", DESCRIPTION
    )
    from ddpm_lib.cli import completion_scripts
    from ddpm_lib.cli.completion_tables import entries

    text: str = getattr(completion_scripts, command.shell)(entries())
    if not command.install:
        print(text, end="")
        return 0
    path, then = place(command.shell)
    if path.exists() and completion_scripts.MARK not in path.read_text(errors="replace")[:200]:
        raise ConfigError(
            f"{printable(path)} is not of this command, and nothing of others is overwritten."
            f" Remove it, or print the text: ddpm completion {command.shell}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    print(f"wrote {printable(path)}")
    print(then)
    return 0


def place(shell: str) -> tuple[Path, str]:
    """Return where a shell looks for completions of the user, and what is still to do."""
    new = "It works in new shells."
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    if shell == "bash":
        own = os.environ.get("BASH_COMPLETION_USER_DIR")
        folder = Path(own) if own else data / "bash-completion"
        return folder / "completions" / "ddpm", f"{new} They need the package bash-completion."
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        return config / "fish" / "completions" / "ddpm.fish", new
    line = "fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit"
    home = Path(os.environ.get("ZDOTDIR") or "~").expanduser() / ".zshrc"
    return Path("~/.zfunc/_ddpm").expanduser(), f"Add to {home}, once:  {line}"
