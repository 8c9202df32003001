"""Where trained weights lie: in a run, a checkpoint, a folder of `save_pretrained`, a repository,
or another library's file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import PARTNER
from ddpm_lib.core.hub.folder import PretrainedFolder, is_pretrained
from ddpm_lib.core.spelling import option
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.loading import choose_weights, find_checkpoints
from ddpm_lib.runs.measured_runs import normalization_in, run_normalization
from ddpm_lib.runs.pretrained_model import PretrainedModel
from ddpm_lib.runs.run_status import is_run
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.training.fine_tuning.network_changes import Described
from ddpm_lib.training.fine_tuning.starting_weights import StartingWeights
from ddpm_lib.training.fine_tuning.weight_mapping import Weights
from ddpm_lib.training.sources import data_name

WhichWeights = Literal["auto", "ema", "model"]
_NO_AVERAGE = "It keeps no average, so its trained weights are taken."


def find_starting_weights(
    source: str, which: WhichWeights = "auto", image_size: Sequence[int] | None = None
) -> StartingWeights:
    """Find trained weights and read what they were trained in; the weights stay unread if they can.

    Args:
        source: A run, a checkpoint, a folder of `save_pretrained`, a repository, or another
            library's file.
        which: "ema" for the average, "model" for the trained weights, "auto" for the average where
            there is one.
        image_size: Of the run to come, for files that do not say theirs.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
        ConfigError: If the weights asked for were not kept.
    """
    path = Path(os.path.expanduser(source))
    ours = (path / files.MANIFEST).is_file() or is_run(path) or is_pretrained(path)
    if path.exists() and not ours:
        return of_foreign(path, which, image_size)
    chosen = find_checkpoints(path if path.exists() else source)[-1]
    if not isinstance(chosen, PretrainedModel):
        found = of_checkpoint(chosen, which)
    elif chosen.folder.downloaded:
        return of_folder(chosen.folder, which)
    else:
        found = of_folder(chosen.folder, which)
    return replace(found, origin=replace(found.origin, source=os.path.abspath(path)))


def of_checkpoint(checkpoint: VerifiedCheckpoint, which: WhichWeights = "auto") -> StartingWeights:
    """Take the weights of a checkpoint."""
    state = checkpoint.state
    kept = [d if isinstance(d, str) else float(d) for d in state.ema_decay]
    average = kept[0] if kept and which != "model" else None
    _refuse_none(str(checkpoint.path), average is None and which == "ema")

    def read() -> Weights:
        kind = "model" if average is None else "ema"
        return choose_weights(checkpoint, kept, kind, average)[0]

    names, data = state.data.get("class_names"), state.data.get("source")
    return StartingWeights(
        described=Described(
            network=state.model["class"], config=state.model["config"], process=state.diffusion
        ),
        class_names=tuple(names) if names else None,
        origin=StartedFrom(
            source=os.path.abspath(checkpoint.run),
            kind="run",
            step=state.step,
            weights="model" if average is None else f"ema {average}",
            sha256="",
            data=data_name(data) if data and isinstance(data, str) else None,
        ),
        read=read,
        notes=(_NO_AVERAGE,) if average is None and which == "auto" else (),
        normalization=run_normalization(state, checkpoint.path),
    )


def of_folder(folder: PretrainedFolder, which: WhichWeights = "auto") -> StartingWeights:
    """Take the weights of a pretrained folder."""
    config = folder.config
    averages = [name for name in config.weights if name not in ("model", PARTNER)]
    _refuse_none(folder.source, which == "ema" and not averages)
    name = averages[0] if averages and which != "model" else "model"
    return StartingWeights(
        described=Described(
            network=config.model["class"], config=config.model["config"], process=config.diffusion
        ),
        class_names=config.class_names,
        origin=StartedFrom(
            source=folder.source,
            kind="pretrained",
            revision=folder.path.name if folder.downloaded else None,
            weights=name.replace(":", " "),
            sha256="",
        ),
        read=lambda: folder.weights(name)[1],
        notes=(_NO_AVERAGE,) if not averages and which == "auto" else (),
        normalization=normalization_in(config.normalization, folder.source),
    )


def of_foreign(
    path: Path, which: WhichWeights = "auto", image_size: Sequence[int] | None = None
) -> StartingWeights:
    """Take the weights of another library's file."""
    from ddpm_lib.interop import READERS
    from ddpm_lib.interop.imported_checks import with_usable_weights
    from ddpm_lib.interop.opening import open_foreign
    from ddpm_lib.interop.reading import read_opened, recognised

    opened = open_foreign(path)
    reader = recognised(READERS, opened)
    takes_size = image_size is not None and "image_size" in reader.options
    given = {"image_size": tuple(image_size)} if image_size is not None and takes_size else {}
    found = with_usable_weights(read_opened(reader, opened, given))
    averages = dict(found.averages) if which != "model" else {}
    _refuse_none(str(path), which == "ema" and not averages)
    label, weights = next(iter(averages.items()), ("model", found.weights))
    if weights is None:
        raise ConfigError(
            f"{path} holds averages alone. Set {option('init_weights', 'ema')}, or leave it out."
        )
    none = label == "model" and which == "auto"
    return StartingWeights(
        described=Described(
            network=found.network, config=found.network_config, process=found.process
        ),
        class_names=found.class_names,
        origin=StartedFrom(
            source=os.path.abspath(path),
            kind=found.format,
            step=found.step,
            weights="model" if label == "model" else f"ema {label}",
            sha256="",
        ),
        read=lambda: dict(weights),
        notes=(*found.notes, *((_NO_AVERAGE,) if none else ())),
    )


def _refuse_none(where: str, lacking: bool) -> None:
    """Refuse a source without the average that is asked for."""
    if lacking:
        raise ConfigError(
            f"{where} keeps no average. Set {option('init_weights', 'model')}, or leave it out."
        )
