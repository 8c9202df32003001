"""Snapshots of averages in a run directory, and the algebra of averages of any length (Karras et
al. 2024).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import utf8_name, write_aside
from ddpm_lib.core.tensor_files import save_tensors
from ddpm_lib.runs.names import checkpoint_name, step_of

FOLDER = "posthoc"
"""Where a run directory holds its snapshots."""


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent γ > 0 of a relative width: σ_rel² = (γ+1) / ((γ+2)² (γ+3)).

    Raises:
        ConfigError: If the width is not in (0, 0.288): γ = 0, the plain mean of all weights, has
            √(1/12).

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)
    (16.97, 6.94)
    """
    if not 0.0 < sigma_rel < 0.288:
        raise ConfigError(
            f"sigma_rel must lie between 0 and 0.288, that is of a plain mean; got {sigma_rel}. Use"
            " 0.05 … 0.2."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def gram(
    times: np.ndarray, gammas: np.ndarray, other_times: np.ndarray, other_gammas: np.ndarray
) -> np.ndarray:
    """Return ∫ p_a(τ) p_b(τ) dτ for all pairs of profiles, float64 (n, m), in closed form.

    With u the smaller of the two times: (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · u^{γ_a+γ_b+1} / (t_a^{γ_a+1}
    t_b^{γ_b+1}).
    """
    t_a, g_a, t_b, g_b = times[:, None], gammas[:, None], other_times[None], other_gammas[None]
    first = np.minimum(t_a, t_b)
    # In ratios: t^γ alone would overflow.
    shape = (first / t_a) ** (g_a + 1.0) * (first / t_b) ** (g_b + 1.0) / first
    return np.asarray((g_a + 1.0) * (g_b + 1.0) / (g_a + g_b + 1.0) * shape)


def combine(
    times: Sequence[float], gammas: Sequence[float], time: float, gamma: float
) -> tuple[np.ndarray, float]:
    """Find the combination of profiles that is closest to a wanted one in least squares, with
    coefficients that sum to 1.

    The paper's solution has no such condition. With many snapshots its sum is 1 but for a trace;
    with few it is not, and weights that do not move would come out scaled.

    Args:
        times: Of the snapshots, > 0.
        gammas: Their exponents.
        time: Of the wanted average.
        gamma: Its exponent.

    Returns:
        Coefficients, float64 (n,), and what is left: ‖p − Σ c_i p_i‖ / ‖p‖.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    wanted = np.array([time], dtype=np.float64), np.array([gamma], dtype=np.float64)
    matrix, right = gram(t, g, t, g), gram(t, g, *wanted)[:, 0]
    # Profiles of norm 1. Neighbouring snapshots are nearly parallel; the ridge keeps them from
    # being played against each other with coefficients so large that the rounding of the stored
    # weights would show.
    norms = np.sqrt(np.diag(matrix))
    n = len(t)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = matrix / np.outer(norms, norms) + 1e-9 * np.eye(n)
    system[:n, n] = system[n, :n] = 1.0 / norms
    scaled = np.linalg.solve(system, np.append(right / norms, 1.0))[:n]
    coefficients = scaled / norms
    square = float(gram(*wanted, *wanted)[0, 0])
    left = coefficients @ matrix @ coefficients - 2.0 * coefficients @ right + square
    return coefficients, math.sqrt(max(0.0, left) / square)


@dataclass(frozen=True)
class Snapshot:
    """A file with averages of one step, under `<sigma_rel>/<name>`."""

    step: int
    sigma_rels: tuple[float, ...]
    path: Path


def write_snapshot(
    run: Path, step: int, sigma_rels: Sequence[float], tensors: dict[str, Tensor]
) -> Path:
    """Write one snapshot, see `write_aside`.

    Raises:
        OSError: If the disk refuses; nothing half-written stays.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{checkpoint_name(step)}.safetensors"
    # One entry only: safetensors writes several in a random order, and a resumed run shall have
    # the same files.
    metadata = {"sigma_rel": json.dumps(sigma_rels)}
    write_aside(path, lambda aside: save_tensors(aside, tensors, metadata))
    return path


def list_snapshots(run: Path) -> list[Snapshot]:
    """Return the snapshots of a run directory from oldest to newest.

    Raises:
        CheckpointError: If one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found = []
    for step, path in snapshot_paths(run):
        try:
            with utf8_name(path) as name, safe_open(name, framework="pt") as file:
                metadata = file.metadata()
            found.append(Snapshot(step, tuple(json.loads(metadata["sigma_rel"])), path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The snapshot {path} cannot be read ({type(error).__name__}: {error}). Move it"
                " away: the others do without it."
            ) from error
    return found


def snapshot_paths(run: Path) -> list[tuple[int, Path]]:
    """Return the steps and paths of the snapshots, oldest first, as their names say."""
    paths = (run / FOLDER).glob("step-*.safetensors")
    return sorted((step_of(path.with_suffix("")), path) for path in paths)
