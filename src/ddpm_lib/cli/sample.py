"""`ddpm sample RUN`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.cli import autoguide, low_res, options
from ddpm_lib.cli.class_labels import condition
from ddpm_lib.cli.condition_flags import Told, read_sweep, with_columns
from ddpm_lib.cli.drawing_as_chosen import arguments_of, as_plain, chosen_by
from ddpm_lib.cli.drawn_files import Beside, check_format, write
from ddpm_lib.cli.low_res import SmallImages
from ddpm_lib.cli.output_folder import check_output, new_folder, refuse_used
from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.core.text import so_many
from ddpm_lib.guidance import Guidance
from ddpm_lib.process.autoguidance import check_scale
from ddpm_lib.process.cascade import Cascade, in_units_of, stage_seed
from ddpm_lib.process.conditions import guidable
from ddpm_lib.process.plan import SAMPLER, SPACING, usual_sampler
from ddpm_lib.process.sampling import tell_stale
from ddpm_lib.process.sampling_default import Chosen
from ddpm_lib.runs.loading import LoadedRun, find_checkpoints, load_checkpoint, load_run
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.devices import LOW_PRECISION, pick_precision
from ddpm_lib.runtime.rendezvous import destroy_group
from ddpm_lib.samplers import SAMPLERS, make_sampler
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.training import ConfigError, process_state
from ddpm_lib.training.sampling import sample_shared

DESCRIPTION = (
    "Draw images from a run's newest checkpoint. Image i depends only on the seed and i, so the"
    " same images come out whatever the batch size or number of processes. Nothing that exists is"
    " overwritten."
)


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Options of `ddpm sample`."""

    run: tyro.conf.Positional[str]
    """A run directory, one of its checkpoints, a pretrained folder, or one of the hub by its name,
    owner/name.
    """
    checkpoint: str = "latest"
    """latest, best (by keep_best), all, a step (1200) or a name (step-000001200)."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, or the raw ones."""
    ema_decay: float | None = None
    """Which average, where several were kept; default: the first."""
    num: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of images over all processes (under torchrun write -n: it takes --num for an option of
    its own); default: 16, or as many as --low-res holds, or the sources of --cond.
    """
    low_res: str | None = None
    """For super-resolution: the picture to enlarge, or a folder of them; samples take them in turn.
    """
    base: str | None = None
    """For super-resolution: a run that draws the images to enlarge, from its newest checkpoint (a
    cascade).
    """
    base_num_steps: int | None = None
    """Sampling steps of that run; default: as for --num-steps."""
    base_guidance_scale: float | None = None
    """Classifier-free guidance of that run; default: 1, none."""
    low_res_noise: float | None = None
    """Level of the noise put on the images to enlarge, against their faults; default: none."""
    format: Literal["grid", "png", "npz", "gif", "all", "npy", "tiff", "nifti"] = "grid"
    """One picture, numbered PNGs, one .npz (arr_0: NHWC, uint8, or the data's type and units for a
    run on measured values), a GIF of the denoising, or all of them; or numbered .npy, .tif or
    .nii.gz files in the data's type and units.
    """
    columns: int | None = None
    """Images per row of the grid; default: nearly square."""
    scale: int | None = None
    """Enlarge the grid by whole pixels; default: tiles of about 128 pixels."""
    output_dir: str | None = None
    """Where to write; default: samples/ in the run, a new directory per call."""
    sampler: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Sampler: {', '.join(SAMPLERS)}. Default, with steps, spacing and guidance: what"
            f" ddpm tune chose for the run, else {SAMPLER}."
        ),
    ] = None
    sampler_options: tuple[str, ...] = ()
    """Options of the sampler, as order=3 for unipc or s_churn=10 for heun."""
    num_steps: int | None = None
    """Sampling steps; default: 20 for unipc, all for ddpm, 2 for consistency, 50 for the others."""
    spacing: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Levels visited: {', '.join(SPACINGS)}, 10,15,20 or ddim25; default: {SPACING}"
            " for unipc, trailing for the others."
        ),
    ] = None
    spacing_options: tuple[str, ...] = ()
    """Options of the spacing, as rho=5 for karras."""
    eta: float | None = None
    """Noise of ddim and dpmpp samplers: 0 deterministic, 1 like ddpm."""
    guidance_scale: float | None = None
    """Classifier-free guidance; default: 1, none. Naming guidance keeps the steps that ddpm tune
    chose.
    """
    guidance_interval: tuple[float, float] | None = None
    """Guide only where low < t/T <= high; default: everywhere."""
    guidance_rescale: float | None = None
    """Against over-exposure by guidance, 0 (the default) to 1; 0.7 is usual."""
    guide_by: str | None = None
    """Autoguidance: a worse version to move away from: a step of this run (5000), model or
    ema:0.999 for other weights, or another run of the same process.
    """
    guide_scale: float | None = None
    """How far to move away from --guide-by: 1 not at all; default: 2."""
    class_label: str | None = None
    """Class name or number of all images; default: the classes in turn, or none for the pictures of
    --low-res.
    """
    cond: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A condition of all images, once per condition: age=0.3, style=round, tags=a|b, mask=m.png;
    or of each, in turn: mask=FOLDER, age=FILE:COLUMN, v=FILE.npy. NAME=none, and what is not
    named, for no value.
    """
    cond_guidance: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Guidance by single conditions instead of all, once per condition: age=3."""
    sweep: str | None = None
    """A condition that changes from column to column, each row from one noise: age, age=20..80, or
    age=20,40,80.
    """
    seed: int = 0
    """Names the images: image i is a function of seed and i."""
    first_index: int = 0
    """Number of the first image, to draw further ones of the same seed."""
    batch_size: int = 64
    """Images per forward pass and process."""
    device: str = "auto"
    """Where to sample: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network."""
    compile: bool = False
    """Compile the network's blocks with torch.compile: for many images on a GPU; the first batch
    takes long. Batches of another size are compiled anew, so let --batch-size divide --num.
    """
    progress: bool = True
    """Show a progress bar."""


def main(args: list[str]) -> int:
    """Run the command."""
    default = SampleCommand(run=tyro.MISSING)
    command: SampleCommand = options.parse(SampleCommand, args, default, "ddpm sample", DESCRIPTION)
    _check(command)
    # Before the weights are read.
    own = options.key_values(command.sampler_options, "--sampler-options")
    make_sampler(command.sampler or usual_sampler(command.eta, own), own, eta=command.eta)
    check_scale(command.guide_by, command.guide_scale)
    Guidance(
        1.0 if command.guidance_scale is None else command.guidance_scale,
        command.guidance_interval or (0.0, 1.0),
        command.guidance_rescale or 0.0,
    )
    small: SmallImages | None = None
    precision = pick_precision(command.mixed_precision, str(resolve_device(command.device)))
    state = process_state(command.device)
    chosen = find_checkpoints(command.run, command.checkpoint)
    folder: Path | None = None
    if state.is_main_process:
        check_output(command.output_dir, chosen[0].run)
    for checkpoint in chosen:
        loaded = load_checkpoint(checkpoint, command.weights, command.ema_decay)
        check_guidance(loaded, command.guidance_scale)
        check_format(command.format, loaded.diffusion.normalization)
        partner = autoguide.partner(loaded, command.guide_by, command.guide_scale)
        autoguide.place(partner, state.device, precision, compiled=command.compile)
        place_network(loaded.diffusion, state.device, precision, compiled=command.compile)
        if small is None:
            small = small_images(loaded, command, state, precision)
        command = with_columns(command, loaded)
        told = told_by(loaded, command, small)
        images, frames, how = draw(loaded, command, state, precision, small, partner, told)
        if state.is_main_process:
            folder = folder or new_folder(command.output_dir, chosen[0].run)
            prefix = f"{loaded.name}-" if len(chosen) > 1 else ""
            settings = {**options.to_plain(command), **as_plain(how, loaded.diffusion.timesteps)}
            beside = Beside.of(loaded.diffusion, small, told, len(images), command.first_index)
            units = loaded.diffusion.normalization
            written = write(images, frames, folder, prefix, command, beside, settings, units)
            drawn = f"{so_many(len(images), 'image')} -> {', '.join(written)}"
            sys.stdout.write(f"{loaded.name} ({loaded.weights}): {drawn}\n")
            sys.stdout.write(f"{how.line()}\n" if how.line() else "")
            if checkpoint is chosen[-1]:
                lines = what_was_drawn(loaded, command, len(images), small, told.columns)
                sys.stdout.writelines(f"{line}\n" for line in lines)
    destroy_group(state)
    return 0


def check_guidance(loaded: LoadedRun, scale: float | None, flag: str = "--guidance-scale") -> None:
    """Refuse guidance for a network that learned no classes.

    Raises:
        ConfigError: Saying how to train one.
    """
    if scale is not None and scale != 1 and not guidable(loaded.diffusion.conditioners):
        raise ConfigError(
            f"{flag} {scale:g} strengthens a class, and this run was trained without"
            " classes that it could also do without. Leave it out, or train another run with"
            " --class-conditional."
        )


def what_was_drawn(
    loaded: LoadedRun,
    command: SampleCommand,
    num: int,
    small: SmallImages | None,
    columns: int | None,
) -> list[str]:
    """Say which images of which seed these are, and how to get others; each row of a sweep of so
    many columns takes a seed.
    """
    last = command.first_index + num - 1
    rows = 1 if columns is None else last // columns + 1
    numbers = f"image {last}" if num == 1 else f"images {command.first_index} to {last}"
    lines = [
        f"seed {command.seed}, {numbers}: the same command draws the same. "
        f"Others: --seed {command.seed + rows}, or the next ones: --first-index {last + 1}."
    ]
    names = loaded.class_names or ()
    if names and "class_label" in (loaded.diffusion.conditioners or {}) and small is None:
        shown = ", ".join(names[:6]) + (f", … ({len(names)} classes)" if len(names) > 6 else "")
        if command.class_label is None:
            lines.append(
                f"classes in turn: {shown}. One of them: --class-label {shlex.quote(names[0])}."
            )
    return lines


def _check(command: SampleCommand) -> None:
    for name in ("num", "batch_size", "columns", "scale", "num_steps", "base_num_steps"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; got {value}.")
    if command.first_index < 0:
        raise ConfigError(f"--first-index must be 0 or more; got {command.first_index}.")
    if command.base is None and (
        command.base_num_steps is not None or command.base_guidance_scale is not None
    ):
        raise ConfigError(
            "--base-num-steps and --base-guidance-scale are for a base run. Name it with --base."
        )
    if command.output_dir is not None:
        refuse_used(Path(command.output_dir))


def small_images(
    loaded: LoadedRun, command: SampleCommand, state: Any, precision: str
) -> SmallImages | None:
    """Read the images to enlarge, or draw them with the base run, shared over the ranks; None for
    other networks.
    """
    low_res.check_low_res_options(
        loaded.diffusion, command.low_res, command.base, command.low_res_noise
    )
    if command.low_res is None and command.base is None:
        return None
    swept = read_sweep(loaded.diffusion, command.sweep)
    columns = 1 if swept is None else len(swept.values)
    if command.low_res is not None:
        small = low_res.read_small_images(command.low_res, loaded.diffusion)
        return dataclasses.replace(small, columns=columns)
    assert command.base is not None
    base = load_run(command.base, weights=command.weights)
    stages = [base.diffusion, loaded.diffusion]
    Cascade(stages)  # refuses sizes that do not fit
    if command.class_label is not None and not any(
        "class_label" in (stage.conditioners or {}) for stage in stages
    ):
        raise ConfigError(
            "--class-label was given, but both networks were trained without classes."
        )
    low_res.check_low_res_options(base.diffusion, None, None, None)
    check_guidance(base, command.base_guidance_scale, "--base-guidance-scale")
    place_network(base.diffusion, state.device, precision, compiled=command.compile)
    num = count(command, None, told_by(loaded, command, None))
    first, last = (k // columns for k in (command.first_index, command.first_index + num - 1))
    wishes = dataclasses.replace(
        command,
        num=last - first + 1,
        first_index=first,
        num_steps=command.base_num_steps,
        guidance_scale=command.base_guidance_scale,
        guide_scale=None,
        format="grid",
        cond=(),
        cond_guidance=(),
        sweep=None,
    )
    drawn, _, _ = draw(base, wishes, state, precision, None, {}, Told.none())
    drawn = in_units_of(loaded.diffusion, base.diffusion, drawn)
    return SmallImages(drawn, first_index=first, columns=columns)


def draw(
    loaded: LoadedRun,
    command: SampleCommand,
    state: Any,
    precision: str,
    small: SmallImages | None,
    partner: Mapping[str, Any],
    told: Told,
) -> tuple[Tensor, list[Tensor], Chosen]:
    """Draw the images, shared over the ranks; with a GIF also the grids of the way there. Also
    returns what decided how.
    """
    diffusion, num = loaded.diffusion, count(command, small, told)
    cond, seed = condition(loaded, command, num, told.columns), command.seed
    cond |= told.conditions(num, command.first_index)
    if small is not None:
        cond |= low_res.conditions(
            diffusion, small.take(num, command.first_index), command.low_res_noise
        )
        seed = stage_seed(seed, 1) if command.base is not None else seed
    dtype = LOW_PRECISION.get(precision)
    wants_gif = command.format in ("gif", "all")
    chosen = chosen_by(loaded, command, cond, guide_by=partner.get("guide_by"))
    if chosen.default is not None and state.is_main_process:
        tell_stale(diffusion, chosen.default)
    how = arguments_of(chosen, loaded, state.device, precision, compiled=command.compile)
    kwargs = dict(
        cond=cond,
        first_index=command.first_index,
        seed=seed,
        batch_size=command.batch_size,
        progress=command.progress and state.is_main_process,
        device=state.device,
        **how,
    )
    kwargs["seeds"] = told.seeds(num, command.first_index, seed)
    if kwargs["seeds"] is not None:
        kwargs["first_index"] = 0  # which row of a sweep it is, its seed says
    with torch.autocast(
        state.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    ):
        images = sample_shared(diffusion, num, state, **kwargs).cpu()
        frames: list[Tensor] = []
        if wants_gif and state.is_main_process:
            shown = min(num, 36)
            few: dict[str, Any] = {"cond": {k: v[:shown] for k, v in cond.items()}}
            few["seeds"] = told.seeds(shown, command.first_index, seed)
            _, states = diffusion.sample(shown, **{**kwargs, **few}, return_trajectory=40)
            frames = [
                pictures.make_grid(pictures.preview(moment), command.columns)
                for moment in states.transpose(0, 1)
            ]
    return images, frames, chosen


def count(command: SampleCommand, small: SmallImages | None, told: Told) -> int:
    """Return the number of images to draw."""
    if command.num is not None:
        return command.num
    if small is not None and small.names is not None:
        return len(small.images) * small.columns
    return told.count or 16


def told_by(loaded: LoadedRun, command: SampleCommand, small: SmallImages | None) -> Told:
    """Read what the flags say about conditions; those of pictures to enlarge by their names."""
    names = None if small is None else small.names
    return Told.read(loaded, command.cond, command.sweep, names)
