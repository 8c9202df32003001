"""Mean and covariance of features, streamed in float64, merged over parts and processes, and read
from published files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.files import open_own, write_aside
from ddpm_lib.core.foreign import read_tensors
from ddpm_lib.metrics.neighbours import TooFewImagesError

_NAMES = (("mu", "sigma"), ("m1", "s1"), ("m", "s"), ("mean", "cov"))
_SPATIAL = ("mu_s", "sigma_s")


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features.

    Attributes:
        mean: float64 (d,).
        cov: float64 (d, d), unbiased (divided by n - 1).
        n: Number of images; None where a published file does not say.
    """

    mean: Tensor
    cov: Tensor
    n: int | None = None


class Moments:
    """Count, mean and scatter matrix, updated block by block and merged exactly (Chan, Golub &
    LeVeque 1979).

    The means of blocks are subtracted before anything is squared, so that large means do not
    cancel.

    Args:
        dim: Number of features.
        device: Where to add up.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor, block: int = 4096) -> Moments:
        """Add features (m, dim), of any floating type, in blocks that bound the memory."""
        for part in features.split(block):
            if len(part):
                x = part.to(self.mean)
                mean = x.mean(0)
                x = x - mean
                self._add(len(x), mean, x.T @ x)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add what another object has seen."""
        if other.n:
            self._add(other.n, other.mean.to(self.mean), other.scatter.to(self.scatter))
        return self

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        delta = mean - self.mean
        self.mean = self.mean + delta * (n / total)
        self.scatter += scatter
        self.scatter += torch.outer(delta, delta) * (self.n * n / total)
        self.n = total

    def statistics(self) -> Statistics:
        """Return mean and unbiased covariance, on the CPU.

        Raises:
            TooFewImagesError: For fewer than two images, which have no covariance.
        """
        if self.n < 2:
            raise TooFewImagesError(
                f"A covariance needs at least 2 images; got {self.n}. Use more images."
            )
        return Statistics(self.mean.cpu(), (self.scatter / (self.n - 1)).cpu(), self.n)


def statistics_of(features: Tensor) -> Statistics:
    """Return the Gaussian of features (n, d)."""
    return Moments(features.shape[1]).update(features).statistics()


def save_statistics(path: str | Path, statistics: Statistics, **about: str) -> Path:
    """Write `mu`, `sigma` (what pytorch-fid reads) and `n` as .npz, with lines of text on where
    they come from.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.cov.numpy()}
    count = {} if statistics.n is None else {"n": np.array(statistics.n)}
    texts = {k: np.array(v) for k, v in about.items()}

    def write(aside: Path) -> None:  # through a handle: to a name, NumPy would append .npz
        with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            np.savez(file, **arrays, **count, **texts)  # type: ignore[arg-type]

    write_aside(path, write)
    return path


def read_statistics(path: str | Path, spatial: bool = False) -> tuple[Statistics, dict[str, str]]:
    """Read mean and covariance from a file, and the lines on where they come from.

    Args:
        path: .npz with mu/sigma, m1/s1 (TTUR, EDM), m/s or mean/cov; or torch-fidelity's cache
            (….pt).
        spatial: Read mu_s/sigma_s instead, the spatial features of ADM's reference batches.

    Raises:
        ValueError: If it holds neither, or they do not fit each other.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth"):
        found = {k: np.asarray(v) for k, v in _read_cache(path).items()}
    else:
        with np.load(path, allow_pickle=False) as archive:
            found = {k: archive[k] for k in archive.files if k != "arr_0"}
    names = (_SPATIAL,) if spatial else _NAMES
    pair = next((p for p in names if p[0] in found and p[1] in found), None)
    if pair is None:
        raise ValueError(
            f"{path} holds no statistics: expected one of {', '.join('/'.join(p) for p in names)};"
            f" got {', '.join(found)}."
        )
    mean = torch.from_numpy(np.atleast_1d(found[pair[0]]).astype(np.float64))
    cov = torch.from_numpy(np.atleast_2d(found[pair[1]]).astype(np.float64))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path}: a mean of shape {tuple(mean.shape)} with a covariance of {tuple(cov.shape)}."
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"{path} holds NaN or infinite values. Compute the statistics again.")
    n = int(found["n"]) if "n" in found else None
    return Statistics(mean, cov, n), {k: str(v) for k, v in found.items() if v.dtype.kind == "U"}


def contents(path: Path) -> set[str]:
    """Say what a file holds: "statistics", "spatial" statistics, "images" (arr_0)."""
    if path.suffix in (".pt", ".pth"):
        return {"statistics"}
    if path.suffix != ".npz":
        return set()
    with np.load(path, allow_pickle=False) as archive:
        there = set(archive.files)
    kinds = {
        "statistics": any(a in there and b in there for a, b in _NAMES),
        "spatial": set(_SPATIAL) <= there,
    }
    return {kind for kind, present in {**kinds, "images": "arr_0" in there}.items() if present}


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    """Read a torch-fidelity cache: statistics as a dict of two NumPy arrays, or features (n, d),
    whose statistics are taken.
    """
    found = read_tensors(path)
    if isinstance(found, Tensor) and found.ndim == 2:
        own = statistics_of(found)
        return {"mu": own.mean.numpy(), "sigma": own.cov.numpy(), "n": np.array(own.n)}
    if not isinstance(found, dict) or not all(
        isinstance(v, (np.ndarray, Tensor)) for v in found.values()
    ):
        raise ValueError(
            f"{path} must hold mu and sigma, or features (n, d); got {type(found).__name__}."
        )
    return {k: np.asarray(v) for k, v in found.items()}
