"""From a run directory to a repository of the hub."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub.failures import Errand
from ddpm_lib.core.hub.upload import Uploaded, check_ready, upload_folder
from ddpm_lib.core.text import printable
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.loading import find_checkpoints
from ddpm_lib.runs.publishing.card import PICTURE, SETTINGS, run_card
from ddpm_lib.runs.publishing.facts import RunFacts, collect_facts
from ddpm_lib.runs.publishing.model_folder import load_first, write_model_folder
from ddpm_lib.runs.run_status import no_run

_OURS_ALONE = ("data", "output_dir", "resume", "override", "progress", "trackers")
"""Entries of config.yaml that mean something on the machine of the training only."""
_PATHS = ("val_data", "init_from", "files", "data_root")
"""Entries that may be paths, and are then left out."""
_CONDITIONS = ("condition", "add_condition", "val_condition")
_ENCODER = re.compile(r"(?<=,encoder=)[~/](?:(?!,\w+=).)*/")
"""The folders that the folder of a text encoder lies in."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What of a run is published, and how.

    Attributes:
        repo_id: The repository, "owner/name", or "name" for one of the user's own.
        private: Nobody else may see it.
        revision: A branch; None for the repository's main one.
        license: The hub's name of a licence, such as "mit"; None for none.
        weights: Names of weights, the first of which are those that loading gives: "ema",
            "ema:0.999", "model". Empty: the first average, else the trained ones.
        checkpoint: "latest", "best", a step or a directory name.
        message: Of the commit; None says the step.
        data_name: What the card calls the training data; a name on the hub, "owner/name", is
            linked. None takes the last part of their path.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    license: str | None = None
    weights: Sequence[str] = ()
    checkpoint: str | int = "latest"
    message: str | None = None
    data_name: str | None = None


def write_publication(run: str | Path, folder: Path, what: Publication) -> RunFacts:
    """Write the files of a run's repository into a new folder: weights, card, picture, settings.

    Args:
        run: A run directory or a checkpoint.
        folder: Where; it must not exist.
        what: What is published.

    Returns:
        What is known of the run, as the card words it.

    Raises:
        CheckpointError: If there is no complete checkpoint, or only Python code can build its
            network.
        ConfigError: For weights or a checkpoint that do not exist, or a folder that does.
        OSError: If the disk refuses.
    """
    return _write(_chosen(run, what.checkpoint), folder, what)


def _chosen(run: str | Path, which: str | int) -> VerifiedCheckpoint:
    """Find the checkpoint to publish; what lies here counts, the hub is not asked for runs."""
    if not Path(run).exists():
        raise CheckpointError(no_run(Path(run)))
    if which == "all":
        raise ConfigError("checkpoint must be one: 'latest', 'best', a step or a name; got 'all'.")
    found = find_checkpoints(run, which)[-1]
    if not isinstance(found, VerifiedCheckpoint):
        raise ConfigError(
            f"{printable(run)} is a pretrained folder, which has no records to make a card of."
            f" `hf upload OWNER/NAME {shlex.quote(str(run))}` uploads it as it is."
        )
    return found


def _write(checkpoint: VerifiedCheckpoint, folder: Path, what: Publication) -> RunFacts:
    loaded = load_first(checkpoint, what.weights)
    labels = write_model_folder(checkpoint, loaded, folder, what.weights)
    facts = collect_facts(loaded, labels, what.data_name)
    repo_id = what.repo_id if "/" in what.repo_id else f"OWNER/{what.repo_id}"
    card = run_card(facts, repo_id, what.license, what.revision)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if facts.grid is not None:
        shutil.copyfile(facts.grid, folder / PICTURE)
    if facts.settings is not None:
        (folder / SETTINGS).write_text(portable_settings(facts.settings), encoding="utf-8")
    return facts


def push_run(run: str | Path, what: Publication, after: str) -> tuple[Uploaded, RunFacts]:
    """Upload a run to the hub; on one process only. The run directory is only read.

    Args:
        run: A run directory or a checkpoint; training may go on meanwhile.
        what: What is published.
        after: How the user tries again, for messages.

    Raises:
        CheckpointError: See `write_publication`.
        ConfigError: See `write_publication`; or if private was asked for and the repository is
            public.
        HubError: If the hub refuses or cannot be reached; nothing half-uploaded is visible there.
        OSError: If the disk of temporary files refuses.
    """
    errand = Errand("push to", what.repo_id, what.revision, writes=True, after=after)
    checkpoint = _chosen(run, what.checkpoint)  # before anybody is asked
    errand = check_ready(errand)
    named = dataclasses.replace(what, repo_id=errand.repo_id)
    with tempfile.TemporaryDirectory(prefix="ddpm-push-") as place:
        folder = Path(place, "model")
        facts = _write(checkpoint, folder, named)
        message = what.message or f"Upload step {facts.loaded.step:,}"
        done = upload_folder(folder, errand, private=what.private, message=message)
    return done, facts


def check_dry_run(folder: Path) -> None:
    """Refuse a folder that exists, for nothing is overwritten.

    Raises:
        ConfigError: If it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{printable(folder)} exists, and nothing is overwritten. Give a name that is free."
        )


def portable_settings(file: Path) -> str:
    """Return a run's config.yaml without what concerns one machine alone, such as paths."""
    import yaml

    values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    values = values if isinstance(values, dict) else {}
    kept = {
        name: value
        for name, value in values.items()
        if name not in _OURS_ALONE and not (name in _PATHS and _is_path(value))
    }
    # Without these another network would be trained: they stay, for whoever has the like.
    for names, anywhere in ((("add_data",), _anywhere), (_CONDITIONS, _condition_anywhere)):
        for name in names:
            if isinstance(kept.get(name), list):
                kept[name] = [anywhere(str(value)) for value in kept[name]]
    head = "# How this model was trained, without paths: ddpm train DATA --config training.yaml\n"
    return head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))


def _anywhere(value: str) -> str:
    """Return a path without the folders that it lies in.

    >>> _anywhere("/home/me/more"), _anywhere("owner/name")
    ('path/to/more', 'owner/name')
    """
    return f"path/to/{Path(value).name}" if _is_path(value) else value


def _condition_anywhere(words: str) -> str:
    """Return the words of a condition without the folders that its source and encoder lie in.

    >>> _condition_anywhere("age=/home/me/meta.csv:age,drop=0.2")
    'age=path/to/meta.csv:age,drop=0.2'
    """
    from ddpm_lib.data.condition_words import read_words

    name, _, rest = words.partition("=")
    try:
        source = read_words(words).source or ""
    except ValueError:  # of another version
        source = rest
    return _ENCODER.sub("path/to/", f"{name}={_anywhere(source)}{rest.removeprefix(source)}")
