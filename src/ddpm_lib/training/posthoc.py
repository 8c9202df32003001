"""Post-hoc EMA: power-function averages, from whose snapshots any other length is synthesised after training.

Karras et al. 2024 ("EDM2"), section 3 and appendix C. The power-function average at time t weights the weights of time τ by
p(τ) = (γ+1) τ^γ / t^{γ+1}: its width grows with t, so that it forgets the beginning without a warm-up. Its length is named by
σ_rel, the standard deviation of p over t. A few such averages, stored every now and then, span nearly every other one:
`combine` finds the linear combination of snapshots whose profile is closest.

Time counts optimizer steps, θ_k being the weights after step k. The update below makes the weight of θ_k exactly the
integral of p from k − 1 to k.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.core.files import utf8_name
from ddpm_lib.core.spelling import option
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.standing import another
from ddpm_lib.training.callbacks import Callback
from ddpm_lib.training.config import ConfigError

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer

FOLDER = "posthoc"
"""Where a run directory holds its snapshots."""


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent γ > 0 of a relative width: σ_rel² = (γ+1) / ((γ+2)² (γ+3)).

    Raises:
        ConfigError: If the width is not in (0, 0.288): γ = 0, the plain mean of all weights, has √(1/12).

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)
    (16.97, 6.94)
    """
    if not 0.0 < sigma_rel < 0.288:
        raise ConfigError(
            f"sigma_rel must lie between 0 and 0.288, that is of a plain mean; got {sigma_rel}. Use 0.05 … 0.2."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def gram(times: np.ndarray, gammas: np.ndarray, other_times: np.ndarray, other_gammas: np.ndarray) -> np.ndarray:
    """Return ∫ p_a(τ) p_b(τ) dτ for all pairs of profiles, float64 (n, m), in closed form.

    With u the smaller of the two times: (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · u^{γ_a+γ_b+1} / (t_a^{γ_a+1} t_b^{γ_b+1}).
    """
    t_a, g_a, t_b, g_b = times[:, None], gammas[:, None], other_times[None], other_gammas[None]
    first = np.minimum(t_a, t_b)
    # In ratios: t^γ alone would overflow.
    shape = (first / t_a) ** (g_a + 1.0) * (first / t_b) ** (g_b + 1.0) / first
    return np.asarray((g_a + 1.0) * (g_b + 1.0) / (g_a + g_b + 1.0) * shape)


def combine(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> tuple[np.ndarray, float]:
    """Find the combination of profiles that is closest to a wanted one in least squares, with coefficients that sum to 1.

    The paper's solution has no such condition. With many snapshots its sum is 1 but for a trace; with few it is not, and
    weights that do not move would come out scaled.

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
    # Profiles of norm 1. Neighbouring snapshots are nearly parallel; the ridge keeps them from being played against each other
    # with coefficients so large that the rounding of the stored weights would show.
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


class PostHocAverages:
    """Power-function averages of a network's weights, in float32 on its device; on every rank.

    Args:
        model: The network to follow.
        sigma_rels: Relative widths; empty: nothing is kept.
    """

    def __init__(self, model: nn.Module, sigma_rels: Sequence[float]) -> None:
        self.model, self.sigma_rels = model, tuple(sigma_rels)
        self._gammas = [gamma_of(s) for s in sigma_rels]
        self._averages: list[dict[str, Tensor]] = [
            {name: _exact(tensor).detach().clone() for name, tensor in model.state_dict().items()} for _ in sigma_rels
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step 1, 2, …: β = (1 − 1/t)^{γ+1}."""
        if not self._averages:
            return
        now = {name: _exact(tensor).detach() for name, tensor in self.model.state_dict().items()}
        for gamma, average in zip(self._gammas, self._averages):
            weight = 1.0 if step == 1 else -math.expm1((gamma + 1.0) * math.log1p(-1.0 / step))
            moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([average[n] for n in moving], [now[n] for n in moving], weight)
            for name, tensor in now.items():
                if not tensor.is_floating_point():
                    average[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Return all averages under `<sigma_rel>/<name>`."""
        return {f"{s}/{k}": v for s, average in zip(self.sigma_rels, self._averages) for k, v in average.items()}

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Load the averages of a checkpoint.

        Raises:
            ConfigError: If it lacks one: an average that begins in the middle of a run has another profile.
        """
        kept = state["training"].get("posthoc_ema", [])
        lacking = [s for s in self.sigma_rels if s not in kept]
        if lacking and state["step"]:
            kept_words = ", ".join(map(str, kept)) or "none"
            raise ConfigError(
                f"{path} has no post-hoc average of sigma_rel {', '.join(map(str, lacking))}, and one cannot begin in the middle "
                f"of a run. Set {option('posthoc_ema')} to what this run keeps ({kept_words}), or use "
                f"{another(path.parent.parent)}."
            )
        saved = files.read_tensors(path, FOLDER) if self.sigma_rels and not lacking else {}
        for sigma_rel, average in zip(self.sigma_rels, self._averages):
            for name, tensor in average.items():
                if saved:
                    tensor.copy_(saved[f"{sigma_rel}/{name}"])


def _exact(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in at least float32: in half precision small steps would be rounded away."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class PostHocSnapshots(Callback):
    """Write the averages every `every` steps into the run directory, one file each, for good."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: Trainer) -> None:
        """Remove the snapshots after the step that the run goes on from: it will write them again."""
        if trainer.is_main:
            for step, path in _paths(trainer.output_dir):
                if step > trainer.step:
                    path.unlink()

    def on_step_end(self, trainer: Trainer) -> None:
        """Write one when it is time."""
        if trainer.is_main and trainer.step % self.every == 0:
            with trainer.going_on(f"The post-hoc snapshot of step {trainer.step}"):
                write_snapshot(trainer.output_dir, trainer.step, trainer.posthoc)


@dataclass(frozen=True)
class Snapshot:
    """A file with averages of one step, under `<sigma_rel>/<name>`."""

    step: int
    sigma_rels: tuple[float, ...]
    path: Path


def write_snapshot(run: Path, step: int, averages: PostHocAverages) -> Path:
    """Write one snapshot under a temporary name, flush it and rename it.

    Raises:
        OSError: If the disk refuses; nothing half-written stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{files.checkpoint_name(step)}.safetensors"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        # One entry only: safetensors writes several in a random order, and a resumed run shall have the same files.
        metadata = {"sigma_rel": json.dumps(averages.sigma_rels)}
        try:
            save_file(files._separate(averages.tensors()), temporary, metadata)
        except SafetensorError as error:  # what a full disk looks like from there
            raise OSError(str(error)) from error
        files._readable(temporary)
        files._flush(temporary)
        os.replace(temporary, path)
        files._flush(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def list_snapshots(run: Path) -> list[Snapshot]:
    """Return the snapshots of a run directory from oldest to newest.

    Raises:
        CheckpointError: If one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found = []
    for step, path in _paths(run):
        try:
            with utf8_name(path) as name, safe_open(name, framework="pt") as file:
                metadata = file.metadata()
            found.append(Snapshot(step, tuple(json.loads(metadata["sigma_rel"])), path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise files.CheckpointError(
                f"The snapshot {path} cannot be read ({type(error).__name__}: {error}). Move it away: the others do without it."
            ) from error
    return found


def _paths(run: Path) -> list[tuple[int, Path]]:
    """Return the steps and paths of the snapshots, oldest first, as their names say."""
    paths = (run / FOLDER).glob("step-*.safetensors")
    return sorted((files.step_of(path.with_suffix("")), path) for path in paths)
