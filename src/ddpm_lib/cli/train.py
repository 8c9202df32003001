"""`ddpm train [DATA]`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tyro

from ddpm_lib.cli import arguments, help, init_from, options
from ddpm_lib.cli.missing_data import missing_data
from ddpm_lib.cli.next_steps import Finished, after_training
from ddpm_lib.cli.streams import reader_left
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import short
from ddpm_lib.data.torchvision_sets import SETS, set_named
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn import PRESETS, Unet
from ddpm_lib.process.presets import PROCESS_PRESETS
from ddpm_lib.runs.lock import refuse_taken
from ddpm_lib.training import ConfigError, Trainer, TrainingConfig, TrainingResult
from ddpm_lib.training.augmentation import AUGMENT_DIM
from ddpm_lib.training.run_config import in_its_run
from ddpm_lib.training.sources import asks_for_files, unused_classes

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.data import ImageDataset

UnetOptions = options.options_class("UnetOptions", Unet, leave_out=("channels", "dims"))
DiffusionOptions = options.options_class(
    "DiffusionOptions", GaussianDiffusion, leave_out=("model", "image_size", "channels")
)

DESCRIPTION = (
    "Train a denoising diffusion model on a folder of images, a dataset or the built-in shapes. The"
    " same command continues a run that was cut off. Flags win over --config, which wins over"
    " --preset. Exit codes: 0 finished; 130 interrupted by Ctrl-C; 143 stopped early by a signal or"
    " a time limit with a checkpoint saved; 75 another process was lost; 2 wrong input."
)

SHAPES_DEFAULTS: dict[str, Any] = {
    "image_size": [32],
    "preset": "tiny",
    "class_conditional": True,
    "max_steps": 900,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup_steps": 50,
    "lr_schedule": "cosine",
    "sample_every": 300,
    "val_every": 300,
    "save_every": 300,
    "log_every": 25,
    "sample_count": 36,
    "sample_steps": 30,
    "sample_guidance_scale": 2.0,
    "model": {"patch_size": 2},
    "diffusion": {"parametrization": "x0", "weighting": "flat"},
}
"""What suits the built-in images on two CPU cores; only used for them, and every flag still wins.

Patches make the network four times cheaper, and with patches a narrow network learns to predict x0
far sooner than noise or v, whose every pixel it would have to carry through. Labels with guidance
make the shapes definite after few images.
"""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """All settings of a run: the data, the training options, and the groups model and diffusion."""

    data: tyro.conf.Positional[str] = "shapes"
    """A folder of images, a dataset (path or hub name), a set of torchvision (mnist, cifar10,
    celeba, …), a .npz or .parquet file, or shapes for the built-in images.
    """
    image_size: tuple[int, ...] = (64,)
    """Size of the images: one number for squares, or height and width."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGB with alpha."""
    preset: str = "small"
    """Network to start from: tiny, small, cifar10, imagenet64, or network, process and image size
    of a published run (docs/unet.md); other flags change it.
    """
    class_conditional: bool = False
    """Learn the classes of the data (sets model.num_classes from its labels, where that is not
    given).
    """
    model: UnetOptions = dataclasses.field(default_factory=UnetOptions)  # type: ignore[valid-type]
    """The network."""
    diffusion: DiffusionOptions = dataclasses.field(  # type: ignore[valid-type]
        default_factory=DiffusionOptions
    )
    """The diffusion process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.image_size) not in (1, 2) or min(self.image_size) < 1:
            raise ConfigError(
                f"image_size must be one number or height and width; got {list(self.image_size)}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.image_size[0], self.image_size[-1]

    def training(self) -> TrainingConfig:
        """Return the part that the Trainer takes."""
        return TrainingConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainingConfig)}
        )


@dataclass(frozen=True, kw_only=True)
class TrainCommand(RunConfig):
    """What the command takes besides the settings of a run."""

    config: str | None = None
    """YAML file with any of these options (groups as nested keys)."""
    print_config: bool = False
    """Print the resolved configuration as YAML and stop."""
    dry_run: bool = False
    """Open the data, build the network, show both, and stop."""


C = TypeVar("C", bound=RunConfig)


def resolve(args: list[str]) -> TrainCommand:
    """Return what `ddpm train` is to do."""
    return layered(args, TrainCommand, "ddpm train", DESCRIPTION)


def layered(args: Sequence[str], cls: type[C], prog: str, description: str) -> C:
    """Lay the defaults, the preset, the config file and the flags over each other, in this order.

    Args:
        args: The words after the command's name.
        cls: The settings of a run, with what else the command takes.
        prog: Name of the command.
        description: For its help.

    Raises:
        ConfigError: For anything unknown, impossible or missing.
    """
    base = cls()
    table = arguments.options_of(cls, base)
    if help.wanted(args):
        options.show_help(cls, table, args, prog, description, arguments.flatten(SHAPES_DEFAULTS))
    given = arguments.read(table, args, prog)
    path = given.get(("config",))
    file, note = in_its_run(path, options.read_config(path)) if path else ({}, None)
    if note and ("output_dir",) not in given:
        print(note, file=sys.stderr)

    def over(base: C) -> C:
        known = options.from_mapping(cls, file, base, f"the config file {path}")
        return cast(C, arguments.set_values(known, given))

    # One pass finds the data and the preset, on which the other defaults depend.
    asked = given.get(("preset",), file.get("preset"))
    if asked is not None:
        with_preset(base, str(asked))  # what is wrong in any case is said first
    named = over(base)
    if ("data",) not in given and "data" not in file and given.keys() - TRAINS_NOTHING:
        raise missing_data(args, prog, "shapes", given.get(("output_dir",)))
    if named.data == "shapes":
        base = options.from_mapping(cls, SHAPES_DEFAULTS, base, "SHAPES_DEFAULTS")
    base = like_published(base, named)
    if named.init_from is not None:
        base = with_start(base, named, {**given, **arguments.flatten(file)})
    if named.init_from is None or asked is not None:
        base = with_preset(base, str(base.preset if asked is None else asked))
    command = over(base)
    if not command.class_conditional and options.to_plain(command.model)["num_classes"] is None:
        # The guidance that suits the shapes needs their classes; one that was asked for stays, and
        # is refused later.
        command = over(dataclasses.replace(base, sample_guidance_scale=1.0))
    return command


def like_published(config: C, named: RunConfig) -> C:
    """Take the size and the channels of a set of torchvision, where the data are one."""
    name = set_named(named.data, asks_for_files(named))
    if name is None:
        return config
    entry = SETS[name]
    return dataclasses.replace(config, image_size=(entry.size,), channels=entry.channels)


TRAINS_NOTHING = {
    (name,) for name in ("dry_run", "print_config", "json", "probe_steps", "device", "progress")
}
"""Options beside which the data may be left out: a run of one's own is no matter of them."""


def settings_of(command: RunConfig) -> RunConfig:
    """Return the settings of the run alone."""
    return RunConfig(**{f.name: getattr(command, f.name) for f in dataclasses.fields(RunConfig)})


def with_preset(config: C, name: str) -> C:
    """Set the network's options to a preset's; of a published run, process, image size and the use
    of labels as well.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    if name not in PROCESS_PRESETS:
        return dataclasses.replace(
            config, preset=name, model=dataclasses.replace(config.model, **PRESETS[name])
        )
    network, process = PRESETS[name], dict(PROCESS_PRESETS[name])
    size = process.pop("image_size")
    return dataclasses.replace(
        config,
        preset=name,
        image_size=(size,),
        class_conditional="num_classes" in network,
        model=UnetOptions(**{**network, "out_channels": None}),  # which follow from the variance
        diffusion=DiffusionOptions(**process),
    )


def with_start(config: C, named: RunConfig, given: dict[tuple[str, ...], Any]) -> C:
    """Set the options of network and process to those of the weights to begin with.

    Args:
        config: The defaults so far.
        named: The command as far as it is known: data, run directory, weights.
        given: The options that were given, by their path.
    """
    start = start_of(named, given.get(("image_size",)))
    init_from.refuse_other_network(start, given)
    usual = dataclasses.replace(config, model=UnetOptions(), diffusion=DiffusionOptions())
    values = init_from.defaults_of(start, given)
    return cast(C, options.from_mapping(type(config), values, usual, str(named.init_from)))


def start_of(config: RunConfig, image_size: Sequence[int] | None) -> init_from.Start:
    """Find the weights that a run begins with."""
    run = Path(config.output_dir or f"runs/{default_name(config.data)}")
    size = None if image_size is None else tuple(image_size)
    return init_from.find_start(str(config.init_from), config.init_weights, run, size)


def changes_of_preset(command: RunConfig) -> list[str]:
    """Say in lines what a run has otherwise than the published run that its preset names."""
    if command.preset not in PROCESS_PRESETS:
        return []
    published = with_preset(RunConfig(), command.preset)
    pairs = [("image_size", command.image_size, published.image_size)]
    for group in ("model", "diffusion"):
        own, theirs = (options.to_plain(getattr(c, group)) for c in (command, published))
        pairs += [(f"{group}.{name}", own[name], theirs[name]) for name in own]
    return [
        f"preset {command.preset}: {name} is {short(own)}, published {short(theirs)}"
        for name, own, theirs in pairs
        if own != theirs
    ]


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
    torch.manual_seed(config.seed)
    return process_of(config, network_of(config, model_options, start)), data


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
    return Unet(channels=config.channels, **model_options)


def process_of(config: RunConfig, model: nn.Module) -> GaussianDiffusion:
    """Build the process around a network."""
    process = options.to_plain(config.diffusion)
    return GaussianDiffusion(model, image_size=config.size, channels=config.channels, **process)


def open_data(config: RunConfig) -> ImageDataset:
    """Open the training data as the Trainer would."""
    from ddpm_lib.training.sources import open_images

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
    if not command.dry_run:
        refuse_taken(Path(output_dir))  # before the data are opened, which building may need
    init_from.check_options(settings, Path(output_dir))
    diffusion, data = build(settings)
    if command.dry_run:
        return dry_run(settings, diffusion, data)
    training = dataclasses.replace(settings.training(), output_dir=output_dir)
    trainer = Trainer(diffusion, data, config=training)
    trainer.source_name = settings.data
    result = trainer.train()
    if trainer.is_main:
        try:
            idle = trainer.last is None and result.status == "finished"
            report(result, settings, trainer.dataset, trainer.last_grid, idle)
            sys.stdout.flush()
        except (
            BrokenPipeError
        ):  # nobody reads on, but the work is done: the exit code is that of the training
            reader_left()
    trainer.close()
    return result.exit_code


def default_name(data: str) -> str:
    """Return the run directory's name for a data source."""
    from ddpm_lib.training.sources import data_name

    return data_name(data)


def dry_run(config: RunConfig, diffusion: GaussianDiffusion, data: str | ImageDataset) -> int:
    """Show what would be trained."""
    dataset = open_data(config) if isinstance(data, str) else data
    classes = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(
        f"data: {len(dataset):,} images of"
        f" {dataset.channels}×{config.size[0]}×{config.size[1]}{classes}"
    )
    if dataset.num_classes and "class_label" not in (diffusion.conditioners or {}):
        print(unused_classes(dataset.num_classes))
    size = 1 if config.batch_size == "auto" else config.batch_size
    print(cast(Unet, diffusion.model).summary(image_size=config.size, batch_size=size))
    if config.batch_size == "auto":
        print("batch size: auto, chosen when training starts; `ddpm estimate` tells it before")
    print(f"run directory: {config.output_dir or 'runs/' + default_name(config.data)}")
    return 0


def report(
    result: TrainingResult,
    config: RunConfig,
    dataset: ImageDataset,
    last_grid: Path | None,
    idle: bool,
) -> None:
    """Say what the run made and what a user would do next.

    Args:
        result: How training ended.
        config: All settings of the run.
        dataset: The training images.
        last_grid: The newest grid of samples of this call.
        idle: Whether the run was finished before.
    """
    run, checkpoint = result.output_dir, result.checkpoint
    made = [
        (run / "samples", "sample grids" + (f", newest {last_grid.name}" if last_grid else "")),
        (
            run / "checkpoints",
            f"checkpoints, newest {checkpoint.name if checkpoint else 'none'}",
        ),
        (run / "metrics.csv", "loss, validation loss and more, also as metrics.jsonl"),
        (run / "config.yaml", "all settings; give it to --config to repeat the run"),
    ]
    width = max(len(str(path)) for path, _ in made)
    if idle:
        print(f"\n{run} is already finished at step {result.step:,}: nothing was to do.")
    else:
        print("\nWhat this run made:")
        for path, text in made:
            if path.exists():
                print(f"  {path!s:{width}}  {text}")
    print("\nNext:")
    print("\n".join(after_training(known_at_the_end(result, config, dataset))))


def known_at_the_end(result: TrainingResult, config: RunConfig, dataset: ImageDataset) -> Finished:
    """Return what the proposals for the next step depend on."""
    model = options.to_plain(config.model)
    return Finished(
        run=result.output_dir,
        finished=result.status == "finished",
        max_steps=config.max_steps,
        own_data=config.data != "shapes",
        image_size=config.image_size,
        class_names=(dataset.class_names or ()) if config.class_conditional else (),
        enlarges=model["low_res_factor"] is not None,
        images=len(dataset),
    )
