"""What must be so before a run begins: all processes were started alike, and nothing is written
among the images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.paths import another
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable
from ddpm_lib.core.validation import is_path, shown
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.network_calls import weights_dtype
from ddpm_lib.runs.run_status import is_run, pictures_in
from ddpm_lib.runs.state import differences
from ddpm_lib.runs.versions import describe_versions

if TYPE_CHECKING:
    from ddpm_lib.runtime.processes import Processes
    from ddpm_lib.training.config import TrainingConfig


def check_process(diffusion: Any) -> None:
    """Refuse what is no process as the first argument of a Trainer, and weights of 16 bits, in
    which small updates would be rounded away.

    Raises:
        ConfigError: Saying what to make of it.
    """
    if isinstance(diffusion, GaussianDiffusion):
        dtype = weights_dtype(diffusion.model)
        if dtype not in (torch.bfloat16, torch.float16):
            return
        name = str(dtype).removeprefix("torch.")
        sixteen = option("mixed_precision", "bf16")
        raise ConfigError(
            f"The weights of the network are {name}, whose last bit is larger than most updates:"
            f" train float32 weights (diffusion.float()) and compute in 16 bits ({sixteen})."
        )
    if isinstance(diffusion, nn.Module):
        fix = "Wrap the network: GaussianDiffusion(model, image_size=64)."
    else:
        fix = "Pass the process first and the data second: Trainer(diffusion, data)."
    raise ConfigError(f"diffusion must be a GaussianDiffusion; got {shown(diffusion)}. {fix}")


def check_ranks_agree(
    config: TrainingConfig, diffusion: GaussianDiffusion, processes: Processes
) -> None:
    """Compare options, process and versions of all ranks; to be called on every rank.

    Args:
        config: The options of this rank.
        diffusion: Its process.
        processes: Of the run.

    Raises:
        ConfigError: On every rank, naming what differs from the main process.
    """
    if processes.count == 1:
        return
    versions = {k: v for k, v in describe_versions().items() if k != "threads"}
    own: dict[str, Any] = {
        "options": config.to_dict(),
        "diffusion": diffusion.config,
        "versions": versions,
    }
    everyone = processes.all_objects(own)
    for rank, other in enumerate(everyone):
        found = differences(everyone[0], other)
        if found:
            told = "\n  ".join(d.worded("on process 0", f"on process {rank}") for d in found[:5])
            raise ConfigError(
                f"The processes of this run were not started alike:\n  {told}\nStart all with the"
                " same command."
            )


def check_output_dir(output_dir: Path, data: Any) -> None:
    """Refuse to write into the folder of the images, or among other images: whoever trains on those
    would train on samples.

    Raises:
        ConfigError: Naming both.
    """
    _refuse_no_data(data)
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(
            f"{output_dir} is a file. {option('output_dir')} names a folder; choose"
            f" {another(output_dir)}."
        )
    refuse_pictures(output_dir)
    if not isinstance(data, (str, Path)) or not Path(data).is_dir():
        return
    images, run = Path(data).resolve(), output_dir.resolve()
    if run == images or images in run.parents:
        raise ConfigError(
            f"The run directory {output_dir} lies in the folder of the images, {data}: its pictures"
            f" would be taken for training data. Choose an {option('output_dir')} outside."
        )


def _refuse_no_data(data: Any) -> None:
    """Refuse, before anything else is said of it, an empty path and a run directory.

    Raises:
        ConfigError: Saying what may have been meant.
    """
    if not is_path(data):
        return
    if not os.fspath(data):
        raise ConfigError(lost(data))
    from ddpm_lib.data.run_folders import is_a_run, is_run_directory

    folder = Path(data).expanduser()
    if folder.is_dir() and is_run_directory(set(map(os.fsencode, os.listdir(folder)))):
        raise ConfigError(is_a_run(folder))


def refuse_pictures(output_dir: Path) -> None:
    """Refuse a directory that holds somebody's pictures or data and is no run.

    Raises:
        ConfigError: Naming a file in it.
    """
    if not output_dir.is_dir() or is_run(output_dir):
        return
    from ddpm_lib.data.suffixes import PICTURES

    found = pictures_in(
        output_dir, frozenset(e.decode() for e in PICTURES) | {".npz", ".npy", ".parquet", ".arrow"}
    )
    if found is not None:
        raise ConfigError(
            f"{output_dir} is no run and holds data ({printable(found)}): a run in it would put its"
            f" samples among them. Choose {another(output_dir)}."
        )
