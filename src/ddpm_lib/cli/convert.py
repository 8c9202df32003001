"""`ddpm convert IN OUT`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub.folder import is_pretrained
from ddpm_lib.core.paths import fresh
from ddpm_lib.core.text import printable
from ddpm_lib.interop.given import GivenOptions, option_names
from ddpm_lib.runs.checkpoint import MANIFEST
from ddpm_lib.runs.run_status import is_run
from ddpm_lib.runs.state import STATE

if TYPE_CHECKING:
    from ddpm_lib.interop.imported import Imported
    from ddpm_lib.interop.openai_flags import TranslatedFlags

DESCRIPTION = (
    "Make a run of another library's checkpoint: ddpm sample, ddpm evaluate and ddpm train take it"
    " like any other. The format is recognised by the names and shapes of the weights; nothing in"
    " the file is executed. What the file does not say is assumed as published, and said: the other"
    " options set it. docs/interop.md has a table of formats."
)


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(GivenOptions):
    """Options of `ddpm convert`."""

    source: tyro.conf.Positional[str | None] = None
    """A file, or a folder of files that belong together."""
    out: tyro.conf.Positional[str | None] = None
    """The run directory to make; it must not exist."""
    format: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "auto"
    """The format, where it cannot be recognised: openai, openai-classifier, edm, lucidrains,
    pytorch-ddpm, ddpm-torch, simple-ddpm, diffusers.
    """
    flags: str | None = None
    """The flags of a published model of improved-diffusion or guided-diffusion, as their READMEs
    have them, in one text; without a file, the command that trains such a model is printed.
    """


def main(args: list[str]) -> int:
    """Run the command."""
    from ddpm_lib.interop import read_flagged, read_foreign, translate_flags

    command: ConvertCommand = options.parse(
        ConvertCommand, args, ConvertCommand(), "ddpm convert", DESCRIPTION
    )
    flags = None if command.flags is None else translate_flags(command.flags)
    if flags is not None and command.source is None:
        print("\n".join(flags_report(flags)))
        return 0
    if command.source is None or command.out is None:
        raise ConfigError(
            "Name the file and the run directory to make of it: ddpm convert model.pt runs/theirs."
        )
    if command.format not in ("auto", "openai") and flags is not None:
        raise ConfigError(f"--flags are those of the format openai; got --from {command.format}.")
    out = Path(command.out)
    if os.path.lexists(out):
        raise ConfigError(
            f"{printable(out)} exists, and nothing is overwritten. Choose another name, such as"
            f" {printable(fresh(out))}."
        )
    _refuse_ours(Path(command.source))
    given = {name: getattr(command, name) for name in option_names()}
    if flags is not None:
        imported = read_flagged(command.source, flags, given)
    else:
        imported = read_foreign(command.source, given, command.format)
    write(imported, out)
    print("\n".join(report(imported, out)))
    return 0


def _refuse_ours(source: Path) -> None:
    """Refuse what is a run of this library already, or a part of one.

    Raises:
        ConfigError: Naming the command that reads it.
    """
    inside = source.parent if source.is_file() else source
    checkpoint = all((inside / name).is_file() for name in (MANIFEST, STATE))
    if checkpoint or (source.is_dir() and (is_run(source) or is_pretrained(source))):
        raise ConfigError(
            f"{printable(source)} is of this library, and needs no conversion: ddpm sample"
            f" {shlex.quote(printable(inside))}"
        )


def flags_report(flags: TranslatedFlags) -> list[str]:
    """Say in lines how to train, and to sample, what flags describe."""
    lines = ["train:", f"  {train_command(flags)}"]
    if flags.sampling:
        words = ["ddpm", "sample", "RUN", *_flags(flags.sampling)]
        lines += ["sample:", f"  {shlex.join(words)}"]
    return [*lines, *(f"note: {note}" for note in flags.notes)]


def train_command(flags: TranslatedFlags) -> str:
    """Return the command that trains what flags describe."""
    process = dict(flags.process)
    network = {k: v for k, v in flags.network.items() if k not in ("out_channels", "num_classes")}
    size = {"image_size": process.pop("image_size")}
    if flags.network["num_classes"] is not None:
        size["class_conditional"] = True
    words = ["ddpm", "train", "path/to/images", *_flags({**size, **flags.training})]
    words += [*_flags(network, "model."), *_flags(process, "diffusion.")]
    return shlex.join(words)


def _flags(values: Mapping[str, Any], group: str = "") -> list[str]:
    """Write options as words of a command."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{group}{name.replace('_', '-')}"
        if isinstance(value, bool):
            switched_off = f"--{group}no-{name.replace('_', '-')}"
            words.append(flag if value else switched_off)
        elif isinstance(value, (list, tuple)):
            words += [flag, *(str(v) for v in value)] if value else [f"{flag}="]
        elif value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def write(imported: Imported, out: Path) -> None:
    """Write a run; of a network that belongs to no process, a pretrained folder."""
    if imported.process is None:
        write_network(imported, out)
        return
    from ddpm_lib.runs.new_run import write_new_run

    write_new_run(
        out,
        model={"class": imported.network, "config": imported.network_config},
        diffusion=imported.process,
        weights=imported.weights,
        averages=imported.averages,
        optimizer=imported.optimizer,
        step=imported.step,
        training=imported.training,
        class_names=imported.class_names,
        origin={"source": str(imported.source), "format": imported.format},
        notes=imported.notes,
    )


def write_network(imported: Imported, out: Path) -> None:
    """Write a network alone as a pretrained folder."""
    from ddpm_lib.nn import NETWORKS
    from ddpm_lib.nn.pretrained import save_pretrained

    network = NETWORKS[imported.network](**imported.network_config)
    averages = {f"ema:{decay}": average for decay, average in imported.averages.items()}
    network.load_state_dict(imported.weights or next(iter(imported.averages.values())))
    save_pretrained(network, out, averages=averages)


def report(imported: Imported, out: Path) -> list[str]:
    """Say in lines what was read, what was assumed and what to do next."""
    averages = ", ".join(map(str, imported.averages))
    carried = [
        "weights" if imported.weights is not None else None,
        f"average{'s' if len(imported.averages) > 1 else ''} {averages}" if averages else None,
        f"Adam's moments, step {imported.step:,}" if imported.optimizer else None,
    ]
    any_weights = imported.weights or next(iter(imported.averages.values()))
    count = sum(tensor.numel() for tensor in any_weights.values())
    lines = [
        f"recognised: {imported.format}",
        f"network: {imported.network}, {count / 1e6:,.2f} M parameters",
        *process_lines(imported),
        f"carried over: {'; '.join(part for part in carried if part)}",
    ]
    notes = list(imported.notes)
    if imported.weights is None:
        notes.append("There are averages alone, so training goes on from the first of them.")
    lines += [f"note: {note}" for note in notes]
    return [*lines, "", "Next:", *next_lines(imported, out)]


def process_lines(imported: Imported) -> list[str]:
    """Describe the process in a line, if there is one."""
    process = imported.process
    if process is None:
        return []
    size = "×".join(map(str, process["image_size"]))
    return [
        f"process: {process.get('timesteps', 1000)} levels, schedule {process.get('schedule')},"
        f" predicts {process.get('parametrization')}, variance {process.get('variance')}, images"
        f" {size}"
    ]


def next_lines(imported: Imported, out: Path) -> list[str]:
    """Return what to do with what was written."""
    place = shlex.quote(str(out))
    if imported.process is None:
        return [
            f"  in Python: from ddpm_lib.nn import {imported.network}",
            f"             network = {imported.network}.from_pretrained({str(out)!r})",
        ]
    weights = "" if imported.averages else " --weights model"
    lines = [f"  ddpm sample {place}{weights}"]
    if imported.network == "Unet":
        steps = imported.step + 10_000
        lines.append(
            f"  ddpm train path/to/images --config {place}/config.yaml --max-steps {steps}"
        )
    return lines
