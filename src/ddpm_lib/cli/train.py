"""`ddpm train [DATA]`."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from ddpm_lib.cli import init_from, options
from ddpm_lib.cli.end_of_training import report
from ddpm_lib.cli.plan import plan_to_train
from ddpm_lib.cli.run_settings import (
    RunConfig,
    changes_of_preset,
    default_name,
    layered,
    settings_of,
    start_of,
)
from ddpm_lib.cli.streams import reader_left
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.paths import another
from ddpm_lib.data.condition_words import read_all_words
from ddpm_lib.data.torchvision_sets import set_named
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn import Unet
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state
from ddpm_lib.runs.lock import refuse_taken
from ddpm_lib.training import Callback, ConfigError, Trainer
from ddpm_lib.training.agreement import check_output_dir
from ddpm_lib.training.augmentation import AUGMENT_DIM
from ddpm_lib.training.sources import asks_for_files, unused_classes

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.data import ImageDataset


DESCRIPTION = (
    "Train on a folder of images, a dataset or the built-in shapes. The same command continues a"
    " run that was cut off. Flags win over --config, which wins over --preset. Exit codes: 0"
    " finished, 130 Ctrl-C, 143 stopped early with a checkpoint, 75 a process was lost, 2 wrong"
    " input."
)


@dataclass(frozen=True, kw_only=True)
class TrainCommand(RunConfig):
    """What the command takes besides the settings of a run."""

    config: str | None = None
    """YAML file of these options (groups are nested keys)."""
    print_config: bool = False
    """Print the resolved configuration as YAML and stop."""
    dry_run: bool = False
    """Open the data, build the network, show both, and stop."""
    hours: float | None = None
    """Plan a run of so many hours, and train it; see `ddpm plan`."""
    purpose: Annotated[
        Literal["samples", "likelihood"] | None,
        tyro.conf.arg(aliases=("--for",), help="What --hours plans for; default: samples."),
    ] = None
    final_samples: int = 64
    """After the last step, draw and score so many samples, fewer where they would take more than a
    twentieth of the training's time or a minute, none below 20; 0: never.
    """


def resolve(args: list[str]) -> TrainCommand:
    """Return what `ddpm train` is to do."""
    began = time.monotonic()
    planning = functools.partial(plan_to_train, cls=TrainCommand, began=began)
    return layered(args, TrainCommand, "ddpm train", DESCRIPTION, planning)


def build(config: RunConfig) -> tuple[GaussianDiffusion, str | ImageDataset]:
    """Build the process and its network from the seed, and open the data where the network depends
    on it.
    """
    import torch

    data: str | ImageDataset = config.data
    model_options = options.to_plain(config.model)
    start = None if config.init_from is None else start_of(config, config.image_size)
    if config.class_conditional and model_options["num_classes"] is None:
        if start is not None and start.weights is not None:  # before the data are opened
            with torch.device("meta"):
                model = network_of(config, {**model_options, "num_classes": 1}, start)
            start.weights.check(process_of(config, model))
        opened = open_data(config)
        if not opened.num_classes:
            other = "" if start is None else ", or do without classes: --no-class-conditional"
            raise ConfigError(
                f"class_conditional needs labels, but {config.data} has none. Sort the images into"
                f" one sub-folder per class{other}."
            )
        model_options["num_classes"] = opened.num_classes
        # By its name, a set of torchvision has its test split as well.
        data = data if set_named(data, asks_for_files(config)) else opened
    if config.condition:
        table = conditions_of_run(config)
        if table is None:
            opened = data if not isinstance(data, str) else open_data(config)
            table = opened.condition_table
            data = data if set_named(data, asks_for_files(config)) else opened
        model_options["conditions"] = table
    torch.manual_seed(config.seed)
    return process_of(config, network_of(config, model_options, start)), data


def conditions_of_run(config: RunConfig) -> dict[str, Any] | None:
    """Return the conditions that a run which goes on was built with, None for a new one.

    Raises:
        ConfigError: If it was built with others than those that are named.
    """
    run = Path(config.output_dir or f"runs/{default_name(config.data)}")
    there = [] if config.resume == "never" else list_checkpoints(run / "checkpoints")
    for checkpoint in reversed(there):
        try:
            table = read_state(checkpoint)["model"]["config"]["conditions"] or {}
        except (CheckpointError, KeyError, TypeError):
            continue  # what is wrong with it is said where the run looks for what to go on from
        asked = [words.name for words in read_all_words(config.condition)]
        if set(asked) != set(table):
            raise ConfigError(
                f"{run} was trained with the conditions {', '.join(table) or 'none'}; now"
                f" {', '.join(asked)} are named. Name the same, or begin {another(run)}."
            )
        return {name: dict(entry) for name, entry in table.items()}
    return None


def network_of(
    config: RunConfig, model_options: dict[str, Any], start: init_from.Start | None
) -> nn.Module:
    """Build the network, completing options that follow from others."""
    if start is not None and start.described.network != "Unet":
        return init_from.build_network(start)
    if config.augment and model_options["augment_dim"] is None:
        model_options["augment_dim"] = AUGMENT_DIM
    learned = options.to_plain(config.diffusion)["variance"] == "learned_range"
    if learned and model_options["out_channels"] is None:
        model_options["out_channels"] = 2 * config.channels  # the second half says the variance
    return Unet(channels=config.channels, dims=len(config.size), **model_options)


def process_of(config: RunConfig, model: nn.Module) -> GaussianDiffusion:
    """Build the process around a network."""
    process = options.to_plain(config.diffusion)
    return GaussianDiffusion(model, image_size=config.size, channels=config.channels, **process)


def open_data(config: RunConfig) -> ImageDataset:
    """Open the training data as the Trainer would."""
    from ddpm_lib.nn.text_vectors import known_texts
    from ddpm_lib.runs.stored_texts import read_texts
    from ddpm_lib.training.sources import open_images

    run = Path(config.output_dir or f"runs/{default_name(config.data)}")
    own = config.resume != "never" and bool(config.condition)
    with known_texts([*read_texts(run).values()] if own else []):
        return open_images(
            config.data,
            config,
            config.size,
            config.channels,
            config.split,
            functools.partial(print, file=sys.stderr),
            config.class_conditional,
        )


def main(args: list[str]) -> int:
    """Run the command."""
    command = resolve(args)
    settings = settings_of(command)
    if command.print_config:
        print(options.dump(settings), end="")
        return 0
    for line in changes_of_preset(settings):
        print(line, file=sys.stderr)
    output_dir = settings.output_dir or f"runs/{default_name(settings.data)}"
    check_output_dir(Path(output_dir), settings.data)
    if not command.dry_run:
        refuse_taken(Path(output_dir))  # before the data are opened, which building may need
    init_from.check_options(settings, Path(output_dir))
    callbacks = final_score(command)
    diffusion, data = build(settings)
    if command.dry_run:
        return dry_run(settings, diffusion, data)
    training = dataclasses.replace(settings.training(), output_dir=output_dir)
    trainer = Trainer(diffusion, data, config=training, callbacks=callbacks)
    trainer.source_name = settings.data
    result = trainer.train()
    if trainer.is_main:
        try:
            idle = trainer.last is None and result.status == "finished"
            report(result, settings, trainer.dataset, idle)
            sys.stdout.flush()
        except (
            BrokenPipeError
        ):  # nobody reads on, but the work is done: the exit code is that of the training
            reader_left()
    trainer.close()
    return result.exit_code


def final_score(command: TrainCommand) -> list[Callback]:
    """Return the callback that scores what is trained, if it is asked for."""
    from ddpm_lib.evaluation import FinalScore

    return [FinalScore(command.final_samples)] if command.final_samples else []


def dry_run(config: RunConfig, diffusion: GaussianDiffusion, data: str | ImageDataset) -> int:
    """Show what would be trained."""
    dataset = open_data(config) if isinstance(data, str) else data
    classes = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    classes += "".join(f", {name}" for name in dataset.conditions)
    print(
        f"data: {len(dataset):,} images of"
        f" {'×'.join(map(str, (dataset.channels, *config.size)))}{classes}"
    )
    if dataset.num_classes and "class_label" not in (diffusion.conditioners or {}):
        print(unused_classes(dataset.num_classes))
    size = 1 if config.batch_size == "auto" else config.batch_size
    print(cast(Unet, diffusion.model).summary(image_size=config.size, batch_size=size))
    if config.batch_size == "auto":
        print("batch size: auto, chosen when training starts; `ddpm estimate` tells it before")
    print(f"run directory: {config.output_dir or 'runs/' + default_name(config.data)}")
    return 0
