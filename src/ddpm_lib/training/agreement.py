"""What must be so before a run begins: all processes were started alike, and nothing is written among the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.training.config import ConfigError
from ddpm_lib.training.resume import describe_versions, differences

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


def check_alike(trainer: Trainer) -> None:
    """Compare options, process and versions of all ranks; to be called on every rank.

    Raises:
        ConfigError: On every rank, naming what differs from the main process.
    """
    if trainer.processes == 1:
        return
    from accelerate.utils import gather_object

    versions = {k: v for k, v in describe_versions().items() if k != "threads"}
    own: dict[str, Any] = {
        "options": trainer.config.to_dict(),
        "diffusion": trainer.diffusion.config,
        "versions": versions,
    }
    everyone = list(gather_object([own]))
    for rank, other in enumerate(everyone):
        found = [line.replace(" in the checkpoint", " on process 0") for line in differences(everyone[0], other)]
        if found:
            told = "\n  ".join(line.removesuffix("now") + f"on process {rank}" for line in found[:5])
            raise ConfigError(
                f"The processes of this run were not started alike:\n  {told}\nStart all with the same command."
            )


def check_place(output_dir: Path, data: Any) -> None:
    """Refuse to write into the folder of the images: the next start would train on its own samples.

    Raises:
        ConfigError: Naming both.
    """
    if not isinstance(data, (str, Path)) or not Path(data).is_dir():
        return
    images, run = Path(data).resolve(), output_dir.resolve()
    if run == images or images in run.parents:
        raise ConfigError(
            f"The run directory {output_dir} lies in the folder of the images, {data}: its pictures would be taken for training "
            "data. Choose an output_dir outside."
        )
