"""What is evaluated: a run or one of its checkpoints, or images; told apart by what a folder
holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub.client import is_repo_id
from ddpm_lib.core.hub.folder import is_pretrained
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.runs.checkpoint import MANIFEST, VerifiedCheckpoint
from ddpm_lib.runs.loading import LoadedRun, load_checkpoint, load_run, refuse_foreign
from ddpm_lib.runs.pretrained_model import PretrainedModel
from ddpm_lib.runs.run_status import no_run

_MARKS = (MANIFEST, "checkpoints", "status.json", "metrics.jsonl", ".lock")
"""What only runs and checkpoints hold."""
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".safetensors")


def is_run(target: Any) -> bool:
    """Say whether a target is a run, a checkpoint or a pretrained folder, rather than images.

    What does not exist, or is empty, counts as a run: looking for its checkpoints says what is
    wrong.
    """
    if not isinstance(target, (str, Path)):
        return False
    path = Path(target)
    if not path.is_dir():
        return not path.exists() or path.suffix.lower() in _WEIGHTS
    if any((path / name).exists() for name in _MARKS) or is_pretrained(path):
        return True
    if not any(path.iterdir()):
        return True
    try:
        refuse_foreign(path)
    except CheckpointError:
        return True
    return False


def refuse_neither(target: Any) -> None:
    """Refuse what is neither a run nor pictures: the folder that holds a run's checkpoints, an
    empty one, a path that does not exist.

    Raises:
        ConfigError: If it is the folder of checkpoints.
        CheckpointError: If there is nothing, naming what could be given.
    """
    inside = sorted(Path(target).glob(f"*/{MANIFEST}")) if isinstance(target, (str, Path)) else []
    if inside and not is_run(target):
        raise ConfigError(
            f"{target} holds checkpoints of a run. Give the run, {Path(target).resolve().parent},"
            f" or one of them, such as {inside[-1].parent}."
        )
    if not isinstance(target, (str, Path)):
        return
    path = Path(target)
    nothing = not any(path.iterdir()) if path.is_dir() else not path.exists()
    if nothing and not (not path.exists() and is_repo_id(target)):
        raise CheckpointError(
            f"{no_run(path)} Or give pictures: a folder of them, an .npz, .npy or .parquet file,"
            f" to be compared with those of {option('reference')}."
        )


def load_target(target: Any, options: EvaluationOptions) -> LoadedRun | None:
    """Load the run or checkpoint that a target is or names; None if it names images.

    Raises:
        ConfigError: If it is the folder that holds a run's checkpoints.
        CheckpointError: If there is no complete checkpoint.
    """
    if isinstance(target, VerifiedCheckpoint | PretrainedModel):
        return load_checkpoint(target, options.weights, options.ema_decay)
    refuse_neither(target)
    if not is_run(target):
        return None
    return load_run(target, options.checkpoint, options.weights, options.ema_decay)
