"""Uploading a folder to a model repository of the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub.failures import (
    Errand,
    no_token_text,
    offline_text,
    one_line,
    unreachable_text,
)
from ddpm_lib.core.hub.folder_config import LIBRARY, library_version
from ddpm_lib.core.hub.reach import can_reach
from ddpm_lib.core.text import printable

logger = logging.getLogger("ddpm_lib")

OLD_WEIGHTS = [
    f"{stem}*.safetensors{end}"
    for stem in ("model", "uncertainty", "texts")
    for end in ("", ".index.json")
]
"""What an earlier upload may have left and this one does not replace, such as further shards."""
SECONDS = {"connect": 10.0, "read": 300.0, "write": 300.0, "pool": 300.0}
"""How long single calls may take. huggingface_hub itself would wait for ever."""


@dataclass(frozen=True)
class Uploaded:
    """What an upload made.

    Attributes:
        repo_id: The repository, by the name that it has now.
        url: Its page.
        commit: The name of the commit.
        files: Path in the repository and bytes of each file.
        private: Whether others cannot see it.
    """

    repo_id: str
    url: str
    commit: str
    files: tuple[tuple[str, int], ...]
    private: bool


def files_in(folder: Path) -> tuple[tuple[str, int], ...]:
    """List the files of a folder with their sizes in bytes, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)


def check_ready(errand: Errand) -> Errand:
    """Refuse to begin where it cannot end well: names, offline, no token, nobody answers.

    Returns:
        The errand, its repository by the name that it has now, with an owner: whom the token is of,
        where none was named.

    Raises:
        HubError: Saying what helps; within two seconds where nobody answers.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import validate_repo_id

    with one_line(errand):
        validate_repo_id(errand.repo_id)
        if constants.is_offline_mode():
            raise errand.failed(offline_text())
        if get_token() is None:
            raise errand.failed(no_token_text())
        if not can_reach(constants.ENDPOINT):
            raise errand.failed(unreachable_text())
        with _patience():
            name = errand.repo_id
            if "/" not in name:
                name = f"{HfApi().whoami()['name']}/{name}"
            there = _find(name)
    if there is not None and there.name.lower() != name.lower():
        logger.warning("%s is now called %s; use that name.", printable(name), there.name)
    return dataclasses.replace(errand, repo_id=name if there is None else there.name)


def upload_folder(
    folder: Path, errand: Errand, *, private: bool = False, message: str = "Upload a model"
) -> Uploaded:
    """Upload a folder in one commit; the repository, and the branch, are made if they do not exist.

    To be called on one process. Files of the repository that the folder does not have stay, but for
    weights of an earlier upload.

    Args:
        folder: What to upload.
        errand: Whereto, and how the user tries again.
        private: Nobody else may see it.
        message: Of the commit.

    Raises:
        ConfigError: If the message is empty, or private was asked for and the repository is public.
        HubError: If the hub refuses or cannot be reached. The folder stays as it was, and the
            repository too: a commit is there as a whole or not at all.
    """
    if not message.strip():
        raise ConfigError("message must say what the commit brings; got an empty text.")
    errand = check_ready(errand)
    from huggingface_hub import HfApi

    api = HfApi(library_name=LIBRARY, library_version=library_version())
    with one_line(errand), _patience():
        name = errand.repo_id
        there = _find(name)
        if there is None:
            api.create_repo(name, private=private or None, exist_ok=True)
            there = _find(name) or _Repository(name, private)
        if private and not there.private:
            raise ConfigError(
                f"{printable(name)} exists and is public, so nothing was uploaded. Make it private"
                " in its settings, choose another name, or leave private (--private) out."
            )
        if errand.revision is not None:
            api.create_branch(name, branch=errand.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=errand.revision,
            commit_message=message,
            delete_patterns=list(OLD_WEIGHTS),
        )
    url = f"{api.endpoint}/{name}"
    if errand.revision is not None:
        url = f"{url}/tree/{errand.revision}"
    return Uploaded(name, url, str(commit.oid), files_in(folder), there.private)


class _Repository(NamedTuple):
    """A repository that exists: its name, which may have changed, and who sees it."""

    name: str
    private: bool


def _find(name: str) -> _Repository | None:
    """Look a repository up; None if there is none, or none that the token opens."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(name)
    except RepositoryNotFoundError:
        return None
    return _Repository(str(info.id), bool(info.private))


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Let no call to the hub wait for ever meanwhile."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before, session.timeout = session.timeout, tuple(SECONDS.values())
    try:
        yield
    finally:
        session.timeout = before
