"""`ddpm push RUN OWNER/NAME`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub.upload import files_in
from ddpm_lib.core.text import printable

DESCRIPTION = (
    "Upload a run to the Hugging Face hub: its averaged weights, from which"
    " GaussianDiffusion.from_pretrained loads the model, and a card that says how it was trained,"
    " its scores and its limits. Log in first with `hf auth login`, or set HF_TOKEN. A run that is"
    " still training can be pushed; the run directory is only read. Paths of this machine are left"
    " out. --dry-run DIR writes what would be uploaded into a folder to look at."
)

SAYS_NOTHING = frozenset(
    [
        "data",
        "dataset",
        "images",
        "imgs",
        "input",
        "pictures",
        "train",
        "train_data",
        "training",
        "train_images",
    ]
)
"""Names of folders that do not say what is in them."""


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Options of `ddpm push`."""

    run: tyro.conf.Positional[str]
    """A run directory, or one of its checkpoints."""
    repo_id: tyro.conf.Positional[str]
    """The repository as OWNER/NAME, or NAME for one of your own; made if there is none."""
    private: bool = False
    """Nobody else may see it."""
    revision: Annotated[str | None, tyro.conf.arg(aliases=("--branch",))] = None
    """A branch to upload to, made if there is none; default: the main one."""
    license: str | None = None
    """The hub's name of a licence, such as mit or cc-by-4.0; default: none, and the card says so.
    """
    weights: tuple[str, ...] = ()
    """Which weights, those first that loading gives: ema, ema:0.999, model (as trained); default:
    the first average.
    """
    checkpoint: str = "latest"
    """latest, best, a step (1200) or a name (step-000001200)."""
    message: str | None = None
    """Of the commit; default: the step."""
    data_name: str | None = None
    """What the card calls the training data; a name on the hub, OWNER/NAME, is linked. Default: the
    last part of their path.
    """
    dry_run: str | None = None
    """Write the folder there instead of uploading it."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    default = PushCommand(run=missing, repo_id=missing)
    command: PushCommand = options.parse(PushCommand, args, default, "ddpm push", DESCRIPTION)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "This command runs as one process. Start it without torchrun or accelerate launch."
        )
    from ddpm_lib.runs.publishing.pushing import (
        Publication,
        check_dry_run,
        push_run,
        write_publication,
    )

    values = {field.name: getattr(command, field.name) for field in fields(Publication)}
    what = Publication(**values)
    if command.dry_run is not None:
        folder = Path(command.dry_run)
        check_dry_run(folder)
        facts = write_publication(command.run, folder, what)
        print(f"Nothing was uploaded. In {printable(folder)}, of step {facts.loaded.step:,}:")
        print("\n".join(file_lines(files_in(folder))))
    else:
        again = f"Nothing was changed here; to try again: ddpm push {shlex.join(args)}"
        done, facts = push_run(command.run, what, again)
        print(f"Pushed step {facts.loaded.step:,} of {printable(command.run)} to {done.url}")
        print("\n".join(file_lines(done.files)))
        print("\n".join(next_lines(done.repo_id, command.revision)))
    print("\n".join(hint_lines(what.license, facts)))
    return 0


def file_lines(files: tuple[tuple[str, int], ...]) -> list[str]:
    """List files with their sizes."""
    width = max(len(name) for name, _ in files)
    return [f"  {name:<{width}}  {size_of(size):>9}" for name, size in files]


def size_of(size: int) -> str:
    """Word a number of bytes.

    >>> size_of(900), size_of(18_400_000)
    ('900 B', '18.4 MB')
    """
    for unit, unit_size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= unit_size:
            return f"{size / unit_size:.1f} {unit}"
    return f"{size} B"


def next_lines(repo_id: str, revision: str | None) -> list[str]:
    """Say how the model is loaded from there."""
    at = f', revision="{revision}"' if revision is not None else ""
    return ["", "Load it:", f'  GaussianDiffusion.from_pretrained("{repo_id}"{at})']


def hint_lines(license: str | None, facts: Any) -> list[str]:
    """Say what the card lacks, and how it is filled in."""
    run = shlex.quote(str(facts.loaded.run))
    missing = []
    if license is None:
        missing.append("a licence, without which nobody may use the model: --license mit, say")
    if facts.data is not None and facts.data.name.lower() in SAYS_NOTHING:
        missing.append(f"a name of the data better than {facts.data.name}: --data-name NAME")
    if not facts.measured.scores:
        missing.append(f"scores: ddpm evaluate {run}, then push again")
    elif not any(score.kind == "copies" for score in facts.measured.scores):
        missing.append(
            f"the share of copies: ddpm evaluate {run} --metrics memorisation, then push again"
        )
    if facts.grid is None:
        missing.append("a picture: the run drew no grid of samples up to this step (sample_every)")
    return ["", "Missing in the card:", *(f"  {line}" for line in missing)] if missing else []
