"""The pages of the site that are made from the library: commands, reference, switching."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from pathlib import Path
from typing import Any

import yaml
from site_names import PUBLIC_ROOMS

from ddpm_lib import GaussianDiffusion, TrainingConfig, Unet
from ddpm_lib.cli import COMMANDS, main
from ddpm_lib.core.peers_names import note, same_name

_THEIRS = yaml.safe_load(Path(__file__).with_name("peer_arguments.yaml").read_text("utf-8"))
PEERS: list[dict[str, Any]] = _THEIRS["peers"]
ANSWERS: dict[str, str] = _THEIRS["answers"]


AS_TRAIN = ("plan", "estimate", "distill")
"""Commands that take the options of `ddpm train`, which are shown once."""


def help_of(command: str) -> str:
    """Return what `ddpm COMMAND --help-all` prints, of those that train what `--help` does."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([command, "--help" if command in AS_TRAIN else "--help-all"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()


def write_commands(folder: Path) -> None:
    """Write a page with the options of every command."""
    lines = [
        "# Commands",
        "",
        "What `ddpm COMMAND --help-all` prints; `--help` shows the usual options only. "
        + ", ".join(f"`ddpm {command}`" for command in AS_TRAIN)
        + " take options of `ddpm train` besides those shown. In Python options have the same"
        " names, with _ for -.",
        "",
    ]
    for command in COMMANDS:
        lines += [f"## ddpm {command}", "", "```text", help_of(command), "```", ""]
    (folder / "commands.md").write_text("\n".join(lines), encoding="utf-8")


def write_reference(folder: Path) -> None:
    """Write a page per room with the signatures and docstrings of its public names."""
    for room in PUBLIC_ROOMS:
        examples = (
            f"Examples of what other pages do not use: [names.md](../names.md#{room.examples})."
        )
        lines = [f"# {room.title}", "", f"{room.about} {examples}", ""]
        for name in room.names:
            module, _, attribute = name.rpartition(".")
            found = getattr(__import__(module, fromlist=[attribute]), attribute)
            kind = "class" if isinstance(found, type) else "function"
            kind = kind if callable(found) else "data"  # the name of a type
            lines += [f"## {attribute}", "", "```{eval-rst}", f".. auto{kind}:: {name}"]
            lines += ["   :members:"] * (kind == "class")
            lines += ["```", ""]
        (folder / f"{room.file}.md").write_text("\n".join(lines), encoding="utf-8")


def options() -> dict[str, str]:
    """Return every option of the four main groups, and where it is given."""

    def taken(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    groups = (
        ("`Unet`, `--model.…`", taken(Unet)),
        ("`GaussianDiffusion`, `--diffusion.…`", taken(GaussianDiffusion)),
        ("`Trainer`, `ddpm train`", [field.name for field in dataclasses.fields(TrainingConfig)]),
        ("`diffusion.sample`, `ddpm sample`", taken(GaussianDiffusion.sample)),
    )
    found: dict[str, str] = {}
    for place, names in groups:
        for name in names:
            found.setdefault(name, place)
    return found


def answer(word: str) -> tuple[str, str] | None:
    """Return what another library's argument is here, and where it is given; None if that is known
    nowhere.
    """
    if word in ANSWERS:
        return ANSWERS[word], ""
    ours = options()
    name, said = same_name(word, ours), note(word, ours)
    if name is None:
        return None if said is None else (said, "")
    return f"`{name}`" + (f": {said}" if said else ""), ours[name]


def write_switching(folder: Path) -> None:
    """Write the page on switching, argument by argument."""
    lines = [
        "# Switching from another library",
        "",
        "Type the words that you know: `ddpm train --train-lr 1e-4` says what it is called here,"
        " and so does Python. The tables below are made from the same words. How implementations"
        " differ in what they compute is told in [peers.md](../peers.md).",
        "",
    ]
    for peer in PEERS:
        more = f"More: [{peer['page']}](../{peer['page']})."
        lines += [f"## {peer['title']}", "", f"{peer['first']} {more}", ""]
        for part, words in peer["arguments"].items():
            lines += [f"### {part}", "", "| there | here | given to |", "|---|---|---|"]
            for word in words.split():
                found = answer(word)
                if found is None:
                    raise LookupError(f"{peer['title']}: {part} has {word!r}, told nowhere")
                told, place = found
                lines.append(f"| `{word}` | {told.replace('|', '/')} | {place} |")
            lines.append("")
    (folder / "switching.md").write_text("\n".join(lines), encoding="utf-8")


def write_all(folder: Path) -> None:
    """Write every page that is made."""
    folder.mkdir(exist_ok=True)
    write_commands(folder)
    write_reference(folder)
    write_switching(folder)
