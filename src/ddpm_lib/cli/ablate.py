"""`ddpm ablate DATA`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
import yaml

from ddpm_lib.ablation import ablate
from ddpm_lib.cli import arguments, options
from ddpm_lib.cli.missing_data import missing_data
from ddpm_lib.core.plots import need_matplotlib
from ddpm_lib.training import ConfigError

DESCRIPTION = (
    "Compare settings: train every combination with several seeds on equally many images, and"
    " measure all alike. Finished cells are skipped, a stopped ablation goes on with the same"
    " command. Writes table.md, table.csv and plot.png."
)


@dataclass(frozen=True, kw_only=True)
class AblateCommand:
    """Options of `ddpm ablate`."""

    data: tyro.conf.Positional[str] = "toy:ring"
    """toy:ring, toy:grid, toy:moons, toy:swiss_roll, toy:checkerboard, shapes, or a source of
    images.
    """
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Values of one setting, NAME=A,B,C; once per setting. Names: model.…, diffusion.…, sample.…,
    or an option of training.
    """
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of all cells, NAME=VALUE; once per setting."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions."""
    images: int = 200_000
    """Images seen in training, the same for all cells."""
    image_size: int = 16
    """Side of the images (toys have none)."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGB with alpha (toys have two coordinates)."""
    num_samples: int | None = None
    """Samples to draw and data to compare them with, a quarter of given images at most; default:
    5,000 points or 512 images.
    """
    data_root: str | None = None
    """Where the files of torchvision's sets lie; default: $DDPM_LIB_DATA, else datasets in the
    library's cache.
    """
    download: bool = False
    """Let torchvision download what is missing there."""
    output_dir: str | None = None
    """Default: runs/ablation- and the name of the data."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""


def main(args: list[str]) -> int:
    """Run the command."""
    command = read(args)
    need_matplotlib()  # for the plot, which comes after all trainings
    fixed = {}
    for text in command.set:
        name, values = read_setting(text)
        if len(values) != 1:
            raise ConfigError(
                f"--set takes one value, NAME=VALUE; got {text!r}. A list is written NAME=[1,2]."
            )
        fixed[name] = values[0]
    result = ablate(
        command.data,
        dict(map(read_setting, command.vary)),
        fixed=fixed,
        seeds=command.seeds,
        images=command.images,
        image_size=command.image_size,
        channels=command.channels,
        num_samples=command.num_samples,
        data_root=command.data_root,
        download=command.download,
        output_dir=command.output_dir,
        device=command.device,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if result.stopped:
        return result.stopped
    print(result.markdown())
    if result.failed:
        print(f"\n{result.failures_markdown()}")
    print(f"\nShare of the variance of log(measure):\n\n{result.shares_markdown()}\n")
    print(f"wrote {', '.join(map(str, result.save()))}")
    return result.exit_code


def read(args: list[str]) -> AblateCommand:
    """Read the command line.

    Raises:
        ConfigError: Also where options were given and no data.
    """
    default = AblateCommand()
    command: AblateCommand = options.parse(AblateCommand, args, default, "ddpm ablate", DESCRIPTION)
    if args and ("data",) not in arguments.read(
        arguments.options_of(AblateCommand, default), args, "ddpm ablate"
    ):
        raise missing_data(args, "ddpm ablate", default.data)
    return command


def read_setting(text: str) -> tuple[str, list[Any]]:
    """Read NAME=A,B,C; each value as in a config file, so that [1,2] is a list and 1e-4 a number.

    Raises:
        ConfigError: If it is not of that form.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ConfigError(f"Settings are written NAME=VALUE or NAME=A,B,C; got {text!r}.")
    try:
        return name, list(options.read_yaml(f"[{values}]"))
    except yaml.YAMLError as error:
        raise ConfigError(f"The values of {text!r} cannot be read: {error}") from error
