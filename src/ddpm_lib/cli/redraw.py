"""What `ddpm edit`, `inpaint` and `restore` share: their options, reading pictures, writing
results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.cli import autoguide, options
from ddpm_lib.cli.class_labels import label_of
from ddpm_lib.cli.condition_flags import read_cond
from ddpm_lib.cli.drawing_as_chosen import guidance_scales
from ddpm_lib.cli.drawn_files import write_table
from ddpm_lib.cli.low_res import refuse_enlarging
from ddpm_lib.cli.output_folder import check_output, new_folder, refuse_used
from ddpm_lib.cli.sample import check_guidance
from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.text import so_many
from ddpm_lib.data.decode import Decoded, ImageError, decode
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.autoguidance import check_scale
from ddpm_lib.process.conditions import check_guided, check_parts, for_sampling
from ddpm_lib.process.plan import resolve_num_steps
from ddpm_lib.runs.loading import LoadedRun, find_checkpoints, load_checkpoint
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runs.told_conditions import ToldConditions, Values
from ddpm_lib.runtime.devices import LOW_PRECISION, pick_precision
from ddpm_lib.samplers import SAMPLERS
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.training import ConfigError


@dataclass(frozen=True, kw_only=True)
class DrawCommand:
    """Options of all three commands."""

    run: tyro.conf.Positional[str]
    """A run directory, one of its checkpoints, a pretrained folder, or one of the hub by its name,
    owner/name.
    """
    checkpoint: str = "latest"
    """latest, best (by keep_best), a step (1200) or a name (step-000001200)."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, or the raw ones."""
    ema_decay: float | None = None
    """Which average, where several were kept; default: the first."""
    variants: int = 1
    """Results per picture, each with noise of its own."""
    output_dir: str | None = None
    """Where to write; default: samples/ in the run, a new directory per call."""
    scale: int | None = None
    """Enlarge the grid by whole pixels; default: tiles of about 128 pixels."""
    sampler: Annotated[str, tyro.conf.arg(help=f"{', '.join(SAMPLERS)}.")] = "ddpm"
    sampler_options: tuple[str, ...] = ()
    """Options of the sampler, as s_churn=10 for heun."""
    num_steps: int | None = None
    """Steps from pure noise down; default: 250 in inpaint, else all for ddpm, 50 for most."""
    spacing: Annotated[
        str, tyro.conf.arg(help=f"Levels visited: {', '.join(SPACINGS)}, 10,15,20 or ddim25.")
    ] = "trailing"
    spacing_options: tuple[str, ...] = ()
    """Options of the spacing, as rho=5 for karras."""
    eta: float | None = None
    """Noise of ddim and dpmpp samplers: 0 deterministic, 1 like ddpm."""
    class_label: str | None = None
    """Class name or number of all results; default: none."""
    cond: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A condition of all results, once per condition: age=0.3, style=round, tags=a|b, mask=m.png;
    or of each picture, by its name: mask=FOLDER, age=FILE:COLUMN, in their order v=FILE.npy.
    NAME=none, and what is not named, for no value.
    """
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1: none."""
    cond_guidance: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Guidance by single conditions instead of all, once per condition: age=3."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only where low < t/T <= high."""
    guidance_rescale: float = 0.0
    """Against over-exposure by guidance, 0 to 1; 0.7 is usual."""
    guide_by: str | None = None
    """Autoguidance: a worse version to move away from: a step of this run (5000), model or
    ema:0.999 for other weights, or another run of the same process.
    """
    guide_scale: float | None = None
    """How far to move away from --guide-by: 1 not at all; default: 2."""
    seed: int = 0
    """Names the noise."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, kw_only=True)
class RedrawCommand(DrawCommand):
    """Options of `ddpm edit` and `ddpm inpaint`."""

    images: tyro.conf.Positional[str]
    """A picture, or a folder of pictures; those of another size are cropped and resized to the
    model's.
    """


class Picture(NamedTuple):
    """A picture as the model takes it, uint8 (c, h, w), with the name and size it has on the disk,
    and what was done to it (`data.decode`).
    """

    name: str
    pixels: Tensor
    width: int
    height: int
    flags: int = 0


def read_pictures(path: str, image_size: Sequence[int], channels: int) -> list[Picture]:
    """Read a picture, or those of a folder in the order of their names.

    Raises:
        ConfigError: If there is none, or one cannot be read.
    """
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise ConfigError(f"{lost(path)} Give a picture or a folder of pictures.")
    files = (
        [place]
        if place.is_file()
        else sorted(p for p in place.iterdir() if p.suffix.lower().encode() in PICTURES)
    )
    if not files:
        below = sorted(p.name for p in place.iterdir() if p.is_dir() and p.name[:1] != ".")
        inside = f" There are folders in it: {', '.join(below[:6])}; give one." if below else ""
        raise ConfigError(f"The folder {path} holds no pictures. Give PNG or JPEG files.{inside}")
    spec = make_spec(tuple(image_size), channels)
    found = []
    for file in files:
        try:
            decoded: Decoded = decode(str(file), spec)
        except ImageError as error:
            raise ConfigError(f"{file} cannot be used: {error}.") from error
        found.append(
            Picture(
                file.stem,
                torch.tensor(decoded.pixels),
                decoded.width,
                decoded.height,
                decoded.flags,
            )
        )
    refuse_namesakes(found, path)
    return found


def refuse_namesakes(found: Sequence[Picture], path: str) -> None:
    """Refuse pictures whose results would have one name.

    Raises:
        ConfigError: Naming it.
    """
    names = [p.name for p in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"Two pictures in {path} are named {twice}, and so would be their results. Rename one."
        )


def stacked(found: Sequence[Picture]) -> Tensor:
    """Return the pixels of pictures of one size, (n, c, h, w)."""
    return torch.stack([picture.pixels for picture in found])


class Redrawing(NamedTuple):
    """What is to be drawn, and shown beside it.

    Args:
        pictures: What the results are called after, one each.
        images: What the method takes, a row per picture.
        method: Called as method(images, **options), every picture repeated for its variants.
        before: Pictures (n, c, h, w) to show before the results.
        after: Pictures to show after them.
        remark: What to say of the results (n·variants, c, h, w), a line or nothing.
    """

    pictures: list[Picture]
    images: Tensor
    method: Callable[..., Tensor]
    before: list[Tensor]
    after: Sequence[Tensor] = ()
    remark: Callable[[Tensor], str] = lambda results: ""


def check(command: DrawCommand) -> None:
    """Refuse what cannot work before anything is read.

    Raises:
        ConfigError: If an option is out of range, or there are several processes.
    """
    for name in ("variants", "batch_size", "scale", "num_steps"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; got {value}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "This command runs as one process. Start it without torchrun or accelerate launch."
        )
    check_scale(command.guide_by, command.guide_scale)
    if command.output_dir is not None:
        refuse_used(Path(command.output_dir))


def redraw(
    command: DrawCommand, word: str, prepare: Callable[[GaussianDiffusion], Redrawing]
) -> str:
    """Load the run and the pictures, draw, write, and return the line to print.

    Args:
        command: The options.
        word: Names the directory.
        prepare: Reads the pictures for a process.
    """
    chosen = find_checkpoints(command.run, command.checkpoint)[-1]
    check_output(command.output_dir, chosen.run)
    loaded = load_checkpoint(chosen, command.weights, command.ema_decay)
    diffusion = loaded.diffusion
    refuse_values(diffusion, word)
    refuse_enlarging(diffusion, word)
    if len(diffusion.image_size) != 2:
        raise ConfigError(
            "This run was not trained on pictures. Use diffusion.edit, diffusion.inpaint and"
            " diffusion.restore in Python."
        )
    partner = autoguide.partner(loaded, command.guide_by, command.guide_scale)
    said = read_cond(loaded, command.cond, fit="crop")  # as the pictures are
    if not said.sources:  # what needs no picture is refused before any is read
        conditions(loaded, command, said.values(), 1)
    job = prepare(diffusion)
    values = values_of(said, job.pictures)
    told = conditions(loaded, command, values, len(job.pictures))
    device = resolve_device(command.device)
    precision = pick_precision(command.mixed_precision, str(device))
    place_network(diffusion, device, precision)
    autoguide.place(partner, device, precision)
    dtype = LOW_PRECISION.get(precision)
    how: dict[str, Any] = steps(command, diffusion.timesteps)
    how |= {"seed": command.seed, "batch_size": command.batch_size, "progress": command.progress}
    how |= {**told, **partner}
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        results = job.method(job.images.repeat_interleave(command.variants, 0), **how).cpu()
    folder = new_folder(command.output_dir, chosen.run, word)
    shown = _shown(values, diffusion)
    told_lines = write(command, folder, job._replace(before=[*job.before, *shown]), results)
    if values.many:
        names = [picture.name for picture in job.pictures]
        write_table(folder / "conditions.csv", {"picture": names, **values.told})
    return told_lines + job.remark(results)


def values_of(said: ToldConditions, found: Sequence[Picture]) -> Values:
    """Return the conditions of pictures: their own, by their names, and those of all.

    Raises:
        ConfigError: If a picture has none in a source.
    """
    return said.values([p.name for p in found], [(p.width, p.height) for p in found])


def _shown(values: Values, diffusion: GaussianDiffusion) -> list[Tensor]:
    """Return the masks or images of the pictures to show beside them, (n, c, h, w) each."""
    name = values.pictures(diffusion.conditioners)
    if name is None:
        return []
    known = data_conditions(diffusion.conditioners)[name]
    shown = known.picture(values.many[name], diffusion.channels)
    for axis in (2, 3):
        shown = shown.repeat_interleave(diffusion.image_size[axis - 2] // shown.shape[axis], axis)
    return [shown]


def conditions(
    loaded: LoadedRun, command: DrawCommand, values: Values, count: int
) -> dict[str, Any]:
    """Return what the flags say about class and conditions, and how strongly they guide, as
    arguments of `GaussianDiffusion.sample`.

    Args:
        loaded: The run.
        command: The flags.
        values: The conditions of the data.
        count: Number of pictures.

    Raises:
        ConfigError: For what the network does not take.
        ValueError: For a condition that is missing, and for guidance by none.
    """
    known, each = loaded.diffusion.conditioners, command.variants
    label = label_of(loaded, command.class_label)
    cond = {} if label is None else {"class_label": torch.tensor(label)}
    cond |= values.fixed
    cond |= {name: value.repeat_interleave(each, 0) for name, value in values.many.items()}
    whole = None if command.guidance_scale == 1 else command.guidance_scale
    scale = guidance_scales(whole, command.cond_guidance)
    check_guidance(loaded, whole)
    as_taken = for_sampling(known, cond, count * each)
    check_guided(known, as_taken, command.guidance_scale)
    check_parts(known, as_taken, list(scale) if isinstance(scale, dict) else [])
    return {"cond": cond, "guidance_scale": 1.0 if scale is None else scale}


def refuse_values(diffusion: GaussianDiffusion, word: str) -> None:
    """Refuse runs on measured values: a picture has no units, and results would lose theirs.

    Args:
        diffusion: The process.
        word: The method, as it is called in Python.

    Raises:
        ConfigError: Saying how it is done in Python.
    """
    units = diffusion.normalization
    if units is not None:
        raise ConfigError(
            f"This run learns measured values ({units.channels} × {units.dtype}), and the command"
            " reads and writes pictures, which have no units. In Python: images ="
            " torch.from_numpy(diffusion.normalization.forward(values)), then"
            f" diffusion.normalization.inverse(diffusion.{word}(images, …))."
        )


def steps(command: Any, timesteps: int) -> dict[str, Any]:
    """Return what the flags say about sampler, steps and where to guide, as arguments of
    `GaussianDiffusion.sample`.
    """
    wanted = command.num_steps
    return {
        "sampler": command.sampler,
        "sampler_options": options.key_values(command.sampler_options, "--sampler-options"),
        "num_steps": resolve_num_steps(command.sampler, wanted, timesteps, command.spacing),
        "spacing": command.spacing,
        "spacing_options": options.key_values(command.spacing_options, "--spacing-options"),
        "eta": command.eta,
        "guidance_interval": command.guidance_interval,
        "guidance_rescale": command.guidance_rescale,
    }


def write(command: DrawCommand, folder: Path, job: Redrawing, results: Tensor) -> str:
    """Write each result, a grid with a row for each picture and the settings; return the line to
    print.
    """
    drawn = pictures.to_uint8(results).unflatten(0, (len(job.pictures), command.variants))
    rows: list[Tensor] = []
    for i, picture in enumerate(job.pictures):
        for k, result in enumerate(drawn[i]):
            end = f"-{k + 1}" if command.variants > 1 else ""
            pictures.save_image(result, folder / "images" / f"{picture.name}{end}.png")
        rows += [s[i] for s in job.before]
        rows += [*drawn[i], *(s[i] for s in job.after)]
    scale = command.scale or max(1, 128 // max(results.shape[-2:]))
    pictures.save_grid(
        torch.stack(rows), folder / "grid.png", len(rows) // len(job.pictures), scale
    )
    (folder / "settings.yaml").write_text(options.dump(command), encoding="utf-8")
    return f"{so_many(len(results), 'image')} -> {folder}/images/*.png, {folder}/grid.png\n"
