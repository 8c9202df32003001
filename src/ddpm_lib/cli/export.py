"""`ddpm export RUN OUT --to FORMAT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.new_folders import refuse_taken
from ddpm_lib.core.text import printable

DESCRIPTION = (
    "Write a trained run in a format that other programs read: a pipeline of diffusers, an ONNX"
    " model that runs without torch, a program of torch.export that runs without this library, a"
    " pretrained folder, or the weights as NumPy arrays. ONNX needs pip install 'ddpm-lib[export]'."
)


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Options of `ddpm export`."""

    run: tyro.conf.Positional[str]
    """A run directory, one of its checkpoints, a pretrained folder, or one of the hub by its name,
    owner/name.
    """
    out: tyro.conf.Positional[str]
    """The folder to make; nothing is overwritten."""
    to: Literal["diffusers", "onnx", "torch-export", "safetensors", "npz-weights"]
    """The format."""
    checkpoint: str = "latest"
    """latest, best (by keep_best), a step (1200) or a name (step-000001200)."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, or the raw ones."""
    ema_decay: float | None = None
    """Which average, where several were kept; default: the first."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    default = ExportCommand(run=missing, out=missing, to=missing)
    command: ExportCommand = options.parse(ExportCommand, args, default, "ddpm export", DESCRIPTION)
    refuse_taken(command.out)  # before torch is loaded
    if command.checkpoint == "all":
        raise ConfigError("--checkpoint all is several; a folder holds one. Name one of them.")

    from ddpm_lib.interop.exporters import EXPORTERS
    from ddpm_lib.runs.loading import load_run

    exporter = EXPORTERS[command.to]
    exporter.check()
    loaded = load_run(command.run, command.checkpoint, command.weights, command.ema_decay)
    about = {"step": loaded.step, "weights": loaded.weights}
    folder = exporter.export(loaded.diffusion, command.out, about)
    print(f"{loaded.name} ({loaded.weights}) -> {printable(folder)}")
    print("\n".join(contents(folder)))
    chosen = loaded.diffusion.sampling_default
    if chosen is not None and not exporter.keeps_sampling:
        print(
            f"\nThe run is sampled by what {chosen.origin()} chose ({chosen.words()}), which this"
            " format does not hold: say it where you draw. --to safetensors keeps it."
        )
    print(f"\nNext:\n  {exporter.opens.format(folder=printable(folder))}")
    return 0


def contents(folder: Path) -> list[str]:
    """List the files of a folder with their sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    width = max(map(len, names))
    return [
        f"  {name:<{width}}  {path.stat().st_size / 1e6:>8,.2f} MB"
        for name, path in zip(names, files)
    ]
