"""All settings of a run, laid over each other: defaults, preset, config file, flags."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro

from ddpm_lib.cli import arguments, help, init_from, options
from ddpm_lib.cli.chosen_network import AUTO, choose_network, optimizer_of_run
from ddpm_lib.cli.missing_data import missing_data
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import short
from ddpm_lib.data.torchvision_sets import SETS, set_named
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn import PRESETS, Unet
from ddpm_lib.process.presets import PROCESS_PRESETS
from ddpm_lib.training import ConfigError, TrainingConfig
from ddpm_lib.training.run_config import in_its_run
from ddpm_lib.training.sources import asks_for_files

UnetOptions = options.options_class(
    "UnetOptions", Unet, leave_out=("channels", "conditions", "dims")
)
DiffusionOptions = options.options_class(
    "DiffusionOptions", GaussianDiffusion, leave_out=("model", "image_size", "channels")
)

SHAPES_DEFAULTS: dict[str, Any] = {
    "image_size": [32],
    "preset": "tiny",
    "class_conditional": True,
    "max_steps": 900,
    "batch_size": 32,
    "optimizer": "muon",
    "val_max_images": 256,
    "sample_count": 36,
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
    """A folder or archive of images, a dataset (path or hub name), a set of torchvision (mnist, …),
    a .npz or .parquet file, or shapes for the built-in images.
    """
    image_size: tuple[int, ...] = (64,)
    """One number, height and width, or three of volumes."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGB with alpha; of measured values any."""
    preset: str = AUTO
    """Network: tiny, small, cifar10, imagenet64, or all of a published run (docs/unet.md); other
    flags change it. auto: that of the run which goes on; else small, and on a CPU tiny with patches
    that predicts x0.
    """
    condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What comes with each image and is learned, once per condition: NAME=SOURCE[:COLUMN], such as
    age=meta.csv:age, style=:style for a column of the data itself, mask=path/to/masks.
    """
    add_data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """More images to train on, of any source, once each; a run that goes on with them notes it, and
    what it holds out stays the same.
    """
    add_condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where the conditions of what --add-data adds are, NAME=SOURCE[:COLUMN], for each of it in
    order, if not in its own columns, nor in a table or folder that has all names.
    """
    val_condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where the conditions of --val-data are, NAME=SOURCE[:COLUMN], once per condition, if not
    where those of the training data are, as for names that both have.
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
        if len(self.image_size) not in (1, 2, 3) or min(self.image_size) < 1:
            raise ConfigError(
                f"image_size must be one number or height and width; got {list(self.image_size)}."
            )
        if len(self.image_size) == 3 and self.normalize is None:
            raise ConfigError(
                f"image_size must be one number or height and width; got {list(self.image_size)}:"
                " three are for volumes of measured values, with normalize (--normalize affine)."
            )

    @property
    def size(self) -> tuple[int, ...]:
        """Return (height, width), or the three sizes of volumes."""
        if len(self.image_size) == 3:
            return self.image_size
        return self.image_size[0], self.image_size[-1]

    def training(self) -> TrainingConfig:
        """Return the part that the Trainer takes."""
        return TrainingConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainingConfig)}
        )


C = TypeVar("C", bound=RunConfig)


Given = dict[tuple[str, ...], Any]
"""Options that were given, by their path."""


def layered(
    args: Sequence[str],
    cls: type[C],
    prog: str,
    description: str,
    planning: Callable[[Given, dict[str, Any]], dict[str, Any]] | None = None,
) -> C:
    """Lay the defaults, the preset, the config file and the flags over each other, in this order.

    Args:
        args: The words after the command's name.
        cls: The settings of a run, with what else the command takes.
        prog: Name of the command.
        description: For its help.
        planning: From the flags and the config file to what takes the place of the file.

    Raises:
        ConfigError: For anything unknown, impossible or missing.
    """
    base = cls()
    table = arguments.options_of(cls, base)
    if help.wanted(args):
        options.show_help(cls, table, args, prog, description, arguments.flatten(SHAPES_DEFAULTS))
    given = arguments.read(table, args, prog)
    path = config_path(given)
    file, note = in_its_run(path, options.read_config(path)) if path else ({}, None)
    flags = {words[1]: value for words, value in given.items() if words[0] == "diffusion"}
    if isinstance(file.get("diffusion"), dict):
        process = dict(file["diffusion"])
        for name in replaced_options(process, flags):
            del process[name]
        file = {**file, "diffusion": process}
    if note and ("output_dir",) not in given:
        print(note, file=sys.stderr)

    def over(base: C) -> C:
        said = file.get("diffusion")
        above = {**(said if isinstance(said, dict) else {}), **flags}
        lost = dict.fromkeys(replaced_options(vars(base.diffusion), above))
        base = dataclasses.replace(base, diffusion=dataclasses.replace(base.diffusion, **lost))
        known = options.from_mapping(cls, file, base, f"the config file {path}")
        return cast(C, arguments.set_values(known, given))

    # One pass finds the data and the preset, on which the other defaults depend.
    asked = given.get(("preset",), file.get("preset"))
    if asked not in (None, AUTO):
        with_preset(base, str(asked))  # what is wrong in any case is said first
    named = over(base)
    if ("data",) not in given and "data" not in file and given.keys() - TRAINS_NOTHING:
        raise missing_data(args, prog, "shapes", given.get(("output_dir",)))
    if planning is not None:
        file = planning(given, file)
        asked, named = given.get(("preset",), file.get("preset")), over(base)
    if named.data == "shapes":
        values = {**SHAPES_DEFAULTS, **_optimizer_of(named)}
        base = options.from_mapping(cls, values, base, "SHAPES_DEFAULTS")
    base = like_published(base, named)
    if named.init_from is not None:
        base = with_start(base, named, {**given, **arguments.flatten(file)})
    if asked == AUTO:
        asked = None
    if named.init_from is None or asked is not None:
        preset = base.preset if asked is None else str(asked)
        if preset == AUTO:
            words = {**arguments.flatten(file), **given}
            base = with_chosen_network(base, over(base), words)
        else:
            base = with_preset(base, preset)
    command = over(base)
    if not command.class_conditional and options.to_plain(command.model)["num_classes"] is None:
        # The guidance that suits the shapes needs their classes; one that was asked for stays, and
        # is refused later.
        command = over(dataclasses.replace(base, sample_guidance_scale=1.0))
    return command


def replaced_options(below: Mapping[str, Any], above: Mapping[str, Any]) -> list[str]:
    """Return which options of one layer of a process mean nothing under the next: those of a
    parametrization, say, where the next layer names another one and no options for it.

    Args:
        below: What one layer says of the process; where it names nothing, its options stay.
        above: What is laid over it.
    """
    return [
        f"{name}_options"
        for name, value in above.items()
        if below.get(f"{name}_options") and name in below and below[name] != value
        if f"{name}_options" not in above
    ]


def config_path(given: Given) -> str | None:
    """Return the config file that is given, by --config or in the place of the data, from which it
    is then taken away.

    Raises:
        ConfigError: If it is given in both ways.
    """
    path, data = given.get(("config",)), given.get(("data",))
    if not isinstance(data, str) or Path(data).suffix.lower() not in (".yaml", ".yml"):
        return path
    if path is not None:
        raise ConfigError(
            f"{data} is a config file, and --config names another one, {path}. Give one of them, or"
            " the data and --config."
        )
    del given[("data",)]
    return data


def given_settings(given: Given, cls: type) -> dict[str, Any]:
    """Return the settings of a run among what was given, by dotted name; without the data.

    Args:
        given: Options by their path.
        cls: The command, whose own options are left out.
    """
    own = {f.name for f in dataclasses.fields(cls)} - {
        f.name for f in dataclasses.fields(RunConfig)
    }
    return {
        ".".join(path): value
        for path, value in given.items()
        if path[0] not in own and path[0] != "data"
    }


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


def with_chosen_network(config: C, known: RunConfig, given: dict[tuple[str, ...], Any]) -> C:
    """Set the network's options to what suits the run; see `choose_network`.

    Args:
        config: The defaults so far.
        known: The command as far as it is known: size, device, run directory.
        given: The options that were given, by their path.
    """
    chosen = choose_network(given, known.size, known.device, _run_to_continue(known))
    base = with_preset(config, chosen.preset)
    if chosen.words:
        print(chosen.words, file=sys.stderr)
    return options.from_mapping(type(config), dict(chosen.values), base, "config.yaml of the run")


def _run_to_continue(named: RunConfig) -> Path | None:
    if named.resume == "never":
        return None
    return Path(named.output_dir or f"runs/{default_name(named.data)}")


def _optimizer_of(named: RunConfig) -> dict[str, str]:
    run = _run_to_continue(named)
    return {} if run is None else optimizer_of_run(run)


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


def default_name(data: str) -> str:
    """Return the run directory's name for a data source."""
    from ddpm_lib.training.sources import data_name

    return data_name(data)
