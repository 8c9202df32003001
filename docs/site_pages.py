"""The pages of the site that are made from the library: commands, reference, switching."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from pathlib import Path

from ddpm_lib import GaussianDiffusion, TrainingConfig, Unet
from ddpm_lib.cli import COMMANDS, main
from ddpm_lib.core.peers_names import note, same_name
from peer_arguments import ANSWERS, PEERS
from site_names import PUBLIC_ROOMS


def help_of(command: str) -> str:
    """Return what `ddpm COMMAND --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()


def write_commands(folder: Path) -> None:
    """Write a page with the options of every command."""
    lines = [
        "# Commands",
        "",
        "What `ddpm COMMAND --help` prints. In Python an option has the same name, with underscores.",
        "",
    ]
    for command in COMMANDS:
        lines += [f"## ddpm {command}", "", "```text", help_of(command), "```", ""]
    (folder / "commands.md").write_text("\n".join(lines), encoding="utf-8")


def write_reference(folder: Path) -> None:
    """Write a page per room with the signatures and docstrings of its public names."""
    for room in PUBLIC_ROOMS:
        lines = [f"# {room.title}", "", room.about, ""]
        for name in room.names:
            module, _, attribute = name.rpartition(".")
            found = getattr(__import__(module, fromlist=[attribute]), attribute)
            kind = "class" if isinstance(found, type) else "function"
            lines += [f"## {attribute}", "", "```{eval-rst}", f".. auto{kind}:: {name}"]
            lines += ["   :members:"] * (kind == "class")
            lines += ["```", ""]
        (folder / f"{room.file}.md").write_text("\n".join(lines), encoding="utf-8")


def options() -> dict[str, str]:
    """Return every option of the four main groups, and where it is given."""
    groups = (
        ("`Unet`, `--model.…`", list(inspect.signature(Unet).parameters)),
        ("`GaussianDiffusion`, `--diffusion.…`", list(inspect.signature(GaussianDiffusion).parameters)),
        ("`Trainer`, `ddpm train`", [field.name for field in dataclasses.fields(TrainingConfig)]),
        ("`diffusion.sample`, `ddpm sample`", list(inspect.signature(GaussianDiffusion.sample).parameters)),
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
        "Type the words that you know: `ddpm train --train-lr 1e-4` says what it is called here, and so does Python. The tables below are made from"
        " the same words. How implementations differ in what they compute is told in [peers.md](../peers.md).",
        "",
    ]
    for peer in PEERS:
        lines += [f"## {peer.title}", "", f"{peer.first} More: [{peer.file}](../{peer.file}).", ""]
        for part in peer.parts:
            lines += [f"### {part.name}", "", "| there | here | given to |", "|---|---|---|"]
            for word in part.words.split():
                found = answer(word)
                assert found is not None, f"{peer.title}: {part.name} has {word!r}, which is told nowhere"
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
