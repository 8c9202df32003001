"""A pretrained folder, or a repository of the hub, in the place of a run's checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub.client import is_repo_id, open_pretrained
from ddpm_lib.core.hub.folder import PretrainedFolder, is_pretrained
from ddpm_lib.core.text import short


@dataclass(frozen=True)
class PretrainedModel:
    """A model that was opened to sample or to evaluate it.

    Attributes:
        folder: It.
    """

    folder: PretrainedFolder

    @property
    def path(self) -> Path:
        """The folder; of a repository, the copy in the cache."""
        return self.folder.path

    @property
    def run(self) -> Path:
        """Where what is made of it is written: the folder, or for a repository, here."""
        return Path() if self.folder.downloaded else self.folder.path

    @property
    def name(self) -> str:
        """How people call it: the folder's name, or the repository's and its commit."""
        if self.folder.downloaded:
            return f"{self.folder.source}@{self.folder.path.name[:12]}"
        return self.folder.path.resolve().name

    def weights_name(self, weights: str, decay: float | str | None) -> str | None:
        """Return the folder's name for weights as they are asked for of runs.

        Args:
            weights: "ema" or "model".
            decay: Which average, by its decay or its label.

        Returns:
            None for those that the folder gives first: for "ema" of one that holds no averages,
            and so has nothing better.
        """
        there = self.folder.config.weights
        if weights == "model":
            return weights
        if decay is not None:
            return f"ema:{decay}"
        averages = [name for name in there if name.startswith("ema")]
        return "ema" if "ema" in there else averages[0] if averages else None

    def sha256(self, weights: str) -> str:
        """Return the SHA-256 of the file of weights; of several, that of their digests."""
        _, stem = self.folder.config.choose(weights, self.folder.source)
        found = [_sha256(path) for path in self.folder.files(stem)]
        return found[0] if len(found) == 1 else _joined(found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def find_pretrained(path: str | Path, which: str | int) -> PretrainedModel | None:
    """Open what a path or a name means, if that is a pretrained folder or a repository; a
    repository is asked for only if nothing of its name, nor a folder of its owner's, lies here.

    Args:
        path: What the user gave.
        which: The checkpoint asked for.

    Raises:
        ConfigError: If another checkpoint than the latest is asked for; there are none.
        CheckpointError: If it is damaged or of another library.
        HubError: If the hub cannot be reached, or says no.
    """
    here = Path(path)
    if not is_pretrained(here) and not is_repository(path):
        return None
    found = PretrainedModel(open_pretrained(str(path)))
    if str(which) not in ("latest", "all"):
        raise ConfigError(
            f"{found.folder.source} is a pretrained folder, which holds no checkpoints to choose"
            f" from; got checkpoint={short(which, 60)}. Leave it out."
        )
    return found


def is_repository(path: object) -> bool:
    """Say whether something that is no path here is the name of a repository.

    >>> is_repository("owner/name"), is_repository("./runs/mine")
    (True, False)
    """
    return is_repo_id(path) and not Path(str(path)).exists() and not Path(str(path)).parent.exists()
