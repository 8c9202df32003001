"""From the name of a repository on the hub to a pretrained folder in the cache."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError, HubError
from ddpm_lib.core.hub.failures import Errand, explain, offline_text, one_line, unreachable_text
from ddpm_lib.core.hub.folder import PretrainedFolder, open_folder
from ddpm_lib.core.hub.folder_config import CONFIG
from ddpm_lib.core.hub.others import named_like
from ddpm_lib.core.hub.reach import can_reach
from ddpm_lib.core.hub.shards import index_of, single
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.text import printable, short

logger = logging.getLogger("ddpm_lib")

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_PATIENCE = 10.0
"""Seconds that the hub may take for its first answer, once a connection is made."""


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How a repository is asked for.

    Attributes:
        revision: A branch, a tag or a commit; None for the default branch.
        cache_dir: Where downloads are kept; None for the hub's own cache.
        token: To log in with; None for the one of `hf auth login` or $HF_TOKEN, False for none.
        local_files_only: Take what the cache has, and ask nobody.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False


def is_repo_id(source: object) -> bool:
    """Say whether a text could be the name of a repository.

    >>> is_repo_id("owner/name"), is_repo_id("./runs/mine"), is_repo_id("runs/mine/checkpoints")
    (True, False, False)
    """
    return isinstance(source, str) and _REPO_ID.fullmatch(source) is not None


def open_pretrained(
    source: str | os.PathLike[str], options: HubOptions | None = None
) -> PretrainedFolder:
    """Open a pretrained folder, here or on the hub; what lies here wins.

    Of a repository, config.json is downloaded now, and weights when they are read.

    Args:
        source: A folder, or the name of a repository, "owner/name".
        options: How a repository is asked for.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another library.
        ConfigError: If a revision of a folder is asked for.
        HubError: If the hub cannot be reached, or says no.
    """
    options = options or HubOptions()
    name = os.fspath(source)
    if not isinstance(name, str):
        raise ConfigError(f"A folder or a repository is named by a text; got {short(name, 80)}.")
    name = at_home(name)
    if os.path.lexists(name):
        if options.revision is not None:
            raise ConfigError(
                f"{printable(name)} is a folder here, which has no revisions; leave out revision."
            )
        return open_folder(name)
    if not is_repo_id(source):
        raise CheckpointError(
            f"{lost(name)} Give a pretrained folder, or a repository of the hub as owner/name."
        )
    try:
        return _of_repository(name, options)
    except HubError as error:
        if not os.path.isdir(os.path.dirname(name)):
            raise
        raise HubError(f"{lost(name)} {error}") from error  # a path that was mistyped


@dataclass(frozen=True)
class _Repository:
    """A repository to load from.

    Attributes:
        errand: What is done, for messages.
        options: How it is asked for.
        names: Of its files; None where the cache must do.
        why: Then why, in a sentence with a remedy.
    """

    errand: Errand
    options: HubOptions
    names: frozenset[str] | None
    why: str = ""

    def has(self, patterns: Collection[str]) -> list[str]:
        """Return the names of its files that match a pattern."""
        return [n for n in self.names or () if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    def not_cached(self, what: str) -> HubError:
        """Return the error for what the cache does not have."""
        return self.errand.failed(f"{what}. {self.why}")


def _of_repository(repo_id: str, options: HubOptions) -> PretrainedFolder:
    repo = _asked(Errand("load", repo_id, options.revision), options)
    if repo.names is not None and CONFIG not in repo.names:
        raise CheckpointError(_no_model(repo_id, repo.names))
    folder = _config_folder(repo)
    opened = open_folder(folder, repo_id)
    return replace(opened, fetch=lambda stem: _bring(repo, opened, stem))


def _bring(repo: _Repository, opened: PretrainedFolder, stem: str) -> None:
    """Bring the weights of a stem into the cache, of the commit that config.json is of.

    Raises:
        HubError: If the hub does not give them, or must not be asked and the cache has none.
        CheckpointError: If the repository has none.
    """
    if repo.names is None:
        if opened.find(single(stem)) is None and opened.find(index_of(stem)) is None:
            raise repo.not_cached(f"the cache holds its {CONFIG}, but not {single(stem)}")
        return
    wanted = [single(stem), index_of(stem), f"{stem}-[0-9]*-of-[0-9]*.safetensors"]
    names = repo.has(wanted)
    if not names:
        raise CheckpointError(
            f"{opened.source} is half uploaded: {CONFIG} is there, {single(stem)} is not. Whoever"
            " owns it has to push it again."
        )
    if any(opened.find(name) is None for name in names):
        _fetch(repo, wanted, opened.path.name)


def _no_model(repo_id: str, names: Collection[str]) -> str:
    what = named_like(names)
    if what is None:
        return f"{repo_id} is no model of ddpm_lib: it has no {CONFIG}."
    name = repo_id.split("/")[1]
    advice = what.advice(Path(name))
    download = f" Download it: hf download {repo_id} --local-dir {name}." if advice else ""
    return f"{repo_id} is {what.words}.{download}{advice}"


def _asked(errand: Errand, options: HubOptions) -> _Repository:
    """Ask the hub for a repository, unless it must not or cannot be asked.

    Raises:
        HubError: If it says no, or is in trouble and the cache has no copy.
    """
    from huggingface_hub import HfApi, constants

    if options.local_files_only:
        why = "local_files_only=True keeps the hub from being asked; leave it out."
        return _Repository(errand, options, None, why)
    if constants.HF_HUB_OFFLINE:
        return _Repository(errand, options, None, offline_text())
    if not can_reach(constants.ENDPOINT):
        _say_cached(errand, f"{constants.ENDPOINT} cannot be reached from here", options)
        return _Repository(errand, options, None, unreachable_text())
    try:
        info: Any = HfApi(token=options.token).model_info(
            errand.repo_id, revision=options.revision, timeout=_PATIENCE
        )
    except Exception as error:
        told = explain(error, _where(errand, error))
        if told is None:
            raise
        if _is_refusal(error) or _cached(errand, options) is None:
            raise told from error
        _say_cached(errand, f"{constants.ENDPOINT} is in trouble", options)
        return _Repository(errand, options, None, "The hub is in trouble; try again later.")
    if info.id and info.id.lower() != errand.repo_id.lower():
        logger.warning("%s is now called %s; use that name.", errand.repo_id, info.id)
    return _Repository(errand, options, frozenset(f.rfilename for f in info.siblings or ()))


def _where(errand: Errand, error: Exception) -> Errand:
    """Return the errand, with a hint that a folder may have been meant where nothing was found."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RepositoryNotFoundError" not in kinds or "GatedRepoError" in kinds:
        return errand
    return replace(errand, after="There is no folder of that name here either.")


def _is_refusal(error: Exception) -> bool:
    """Say whether the hub answered, and its answer was no: a cached copy does not change that."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    answered = isinstance(status, int) and status < 500 and status not in (408, 429)
    return answered or "HFValidationError" in {kind.__name__ for kind in type(error).__mro__}


def _cached(errand: Errand, options: HubOptions) -> Path | None:
    """Return the cached folder of a revision, None if there is none with a config.json."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        errand.repo_id, CONFIG, cache_dir=options.cache_dir, revision=options.revision
    )
    return Path(found).parent if isinstance(found, str) else None


def _say_cached(errand: Errand, why: str, options: HubOptions) -> None:
    found = _cached(errand, options)
    if found is not None:
        commit = found.name[:12]
        logger.warning("%s; %s is taken from the cache, commit %s.", why, errand.repo_id, commit)


def _config_folder(repo: _Repository) -> Path:
    """Bring config.json into the cache, and return the folder of its commit there.

    Raises:
        HubError: If the hub does not give it, or must not be asked and the cache has none.
    """
    from huggingface_hub import hf_hub_download

    errand, options = repo.errand, repo.options
    if repo.names is None:
        found = _cached(errand, options)
        if found is None:
            raise repo.not_cached("it is neither a folder here nor in the cache")
        return found
    with one_line(errand):
        file = hf_hub_download(
            errand.repo_id,
            CONFIG,
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token,
        )
    return Path(file).parent


def _fetch(repo: _Repository, patterns: list[str], commit: str) -> None:
    """Bring files of a commit into the cache.

    Raises:
        HubError: If the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    with one_line(repo.errand):
        snapshot_download(
            repo.errand.repo_id,
            revision=commit,
            cache_dir=repo.options.cache_dir,
            token=repo.options.token,
            allow_patterns=patterns,
        )
