"""From the snapshots of post-hoc averages to an average of any length, as a checkpoint that
everything else reads.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import utf8_name
from ddpm_lib.core.paths import another
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import Verify
from ddpm_lib.runs.names import checkpoint_name, step_of
from ddpm_lib.runs.run_status import is_run, no_run
from ddpm_lib.runs.snapshots import FOLDER, Snapshot, combine, gamma_of, list_snapshots


@dataclass(frozen=True)
class SynthesisedEma:
    """What `synthesise_ema` made.

    Attributes:
        path: A checkpoint directory for `load_run`, `ddpm sample` and `ddpm evaluate`.
        sigma_rel: The length.
        step: The step at which the average ends.
        snapshots: How many stored averages were combined.
        profile_error: ‖p − Σ c_i p_i‖ / ‖p‖: how far the combined weighting in time is from the
            wanted one.
    """

    path: Path
    sigma_rel: float
    step: int
    snapshots: int
    profile_error: float


def available_snapshots(run: Path, verify: Verify = files.verify) -> list[Snapshot]:
    """Return the snapshots of a run, and the averages in its checkpoints of other steps.

    The oldest come first.

    Args:
        run: The run directory.
        verify: Verifies a checkpoint; one that remembers spares hashing it again.

    Raises:
        CheckpointError: If one is damaged.
    """
    found = list_snapshots(run)
    for path in files.list_checkpoints(run / "checkpoints"):
        averages = path / f"{FOLDER}.safetensors"
        if averages.is_file() and step_of(path) not in {s.step for s in found}:
            kept = tuple(verify(path).state.training.get("posthoc_ema", ()))
            found.append(Snapshot(step_of(path), kept, averages))
    return sorted(found, key=lambda s: s.step)


def posthoc_weights(
    snapshots: list[Snapshot], sigma_rel: float, step: int
) -> tuple[dict[str, Tensor], float, int]:
    """Combine stored averages up to a step into one of another length, summed in float64.

    Returns:
        The weights by name, in float32 where they were; the profile's error; the number of averages
        combined.
    """
    from safetensors import safe_open

    parts = [(s, kept) for s in snapshots if s.step <= step for kept in s.sigma_rels]
    times, gammas = [float(s.step) for s, _ in parts], [gamma_of(kept) for _, kept in parts]
    coefficients, error = combine(times, gammas, float(step), gamma_of(sigma_rel))
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for (snapshot, kept), coefficient in zip(parts, coefficients.tolist()):
        with utf8_name(snapshot.path) as path, safe_open(path, framework="pt") as file:
            for full in file.keys():  # noqa: SIM118 - it is no mapping
                prefix, _, name = full.partition("/")
                if prefix == str(kept):
                    last[name] = file.get_tensor(full)
                    if last[name].is_floating_point():
                        term = last[name].double() * coefficient
                        sums[name] = sums[name].add_(term) if name in sums else term
    return (
        {
            name: sums[name].to(tensor.dtype) if name in sums else tensor
            for name, tensor in last.items()
        },
        error,
        len(parts),
    )


def _snapshots_to(run: Path, step: int | None, verify: Verify) -> tuple[list[Snapshot], int]:
    """Return the stored averages, and the step at which the one to be made ends.

    Raises:
        ConfigError: If there are none, or none of that step.
        CheckpointError: If one is damaged.
    """
    there = available_snapshots(run, verify)
    if not there and not is_run(run):
        raise ConfigError(no_run(run))
    if not there:
        raise ConfigError(
            f"{run} holds no post-hoc averages. They are kept from the first step on, with"
            " posthoc_ema (--posthoc-ema 0.05 0.1)."
        )
    step = there[-1].step if step is None else step
    if step not in [s.step for s in there]:
        near = min(there, key=lambda s: abs(s.step - step)).step
        raise ConfigError(
            f"{run} stored averages at {len(there)} steps from {there[0].step} to {there[-1].step},"
            f" not at {step}. The nearest is {near}."
        )
    return there, step


def synthesise_ema(
    run: str | Path, sigma_rel: float, step: int | None = None, output_dir: str | Path | None = None
) -> SynthesisedEma:
    """Make the weight average of any length from what a run with `posthoc_ema` has stored (Karras
    et al. 2024, §3).

    Args:
        run: The run directory.
        sigma_rel: Standard deviation of the average's weighting in time, relative to the step: 0.05
            gives weight to about the last sixth of the run, 0.1 to the last third; below 0.288.
        step: Step at which it ends, one of the stored ones; default: the newest.
        output_dir: Where to write the checkpoint; default: ema/ in the run, named by length and
            step.

    Raises:
        ConfigError: If the length or the step cannot be made, or the directory exists.
        CheckpointError: If the run has no complete checkpoint, or a snapshot is damaged.
    """
    run = Path(run)
    gamma_of(sigma_rel)
    verify = functools.cache(files.verify)
    there, step = _snapshots_to(run, step, verify)
    name = f"sigma_rel-{sigma_rel:g}-{checkpoint_name(step)}"
    final = Path(output_dir) if output_dir is not None else run / "ema" / name
    if final.exists():
        advice = f"Choose {another(final)}, or use it as it is."
        raise ConfigError(f"{final} exists, and nothing is overwritten. {advice}")
    newest, _ = files.find_newest(run / "checkpoints", verify=verify)
    if newest is None:
        missing = f"{run} holds no complete checkpoint"
        raise CheckpointError(f"{missing}, which says what network the averages are of.")
    weights, error, count = posthoc_weights(there, sigma_rel, step)
    label = f"sigma_rel={sigma_rel:g}"
    about = {"sigma_rel": sigma_rel, "averages": count, "profile_error": error}
    state = dataclasses.replace(
        newest.state,
        step=step,
        images_seen=step * newest.state.batch_size,
        ema_decay=[label],
        callbacks={},
        scaler=None,
        extra={**newest.state.extra, "posthoc": about},
    )
    aside = final.parent / f".tmp-ema-{os.getpid()}"
    saved = files.save_checkpoint(
        aside, step, {"ema": {f"{label}/{k}": v for k, v in weights.items()}}, state.to_json()
    )
    os.rename(saved.path, final)
    aside.rmdir()
    return SynthesisedEma(final, sigma_rel, step, count, error)
