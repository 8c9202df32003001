"""Run the cells of an ablation, each in a run directory of its own, so that a second call continues
and skips.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.ablation.grid import Cell, Grid, digest
from ddpm_lib.ablation.grid_report import AblationResult, Outcome
from ddpm_lib.ablation.subjects import Subject, make_subject
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.paths import another
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.sampling import check_sampler_fits, planned
from ddpm_lib.process.sampling_default import GUIDANCE, STEPS
from ddpm_lib.runtime.launch import how_to_be_one, launched_processes
from ddpm_lib.training import DivergedError, Trainer
from ddpm_lib.training.agreement import refuse_pictures
from ddpm_lib.training.optim import make_optimizer
from ddpm_lib.training.sources import data_name

MEASURES_VERSION = 1
"""Part of what names a file of measures: a change of the yardsticks measures finished cells anew.
"""


def ablate(
    data: str,
    vary: Mapping[str, Sequence[Any]],
    *,
    fixed: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    images: int = 200_000,
    image_size: int = 16,
    channels: int = 3,
    num_samples: int | None = None,
    data_root: str | None = None,
    download: bool = False,
    output_dir: str | Path | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> AblationResult:
    """Train and measure every combination of settings with every seed; what is finished already is
    not done again.

    Cells of one seed share their initial weights where the networks agree, and the order, levels
    and noise of training. A combination that the library refuses is reported with the reason, and
    so is one that fails while it trains or is sampled; the same call tries that one again. Call it
    in one process.

    Args:
        data: "toy:ring" (or another toy), "shapes", or a source of images.
        vary: Values by dotted name, such as {"diffusion.schedule": ["linear", "cosine"]};
            `model.…`, `diffusion.…`, `sample.…`, or an option of training. Cells that differ in
            `sample.…` only share their trained runs.
        fixed: Settings of all cells by dotted name.
        seeds: Names of the repetitions.
        images: Images seen in training, the same for all cells, a multiple of every batch size.
        image_size: Side of the images (not for toys).
        channels: Channels of the images (not for toys).
        num_samples: Samples to draw and data to compare them with; default: 5,000 points or 512
            images. Of images that are given, a quarter at most.
        data_root: Where the files of torchvision's sets lie.
        download: Whether to let torchvision download them.
        output_dir: Default: runs/ablation- and the name of the data.
        device: As for training.
        log: Gets a line per cell.

    Returns:
        The measures of all cells, and of data against data; its exit code is 1 where cells failed.
        Partial, with another exit code, where training was stopped.

    Raises:
        ConfigError: For unknown names, a value with which no cell can be built, or a directory of
            another ablation.
    """
    if launched_processes(cpu=True) > 1:
        raise ConfigError(
            "An ablation runs in one process. Start it without torchrun, or several with different"
            " --seeds. " + how_to_be_one()
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be one or more different numbers; got {list(seeds)}.")
    count = num_samples or (5000 if data.startswith("toy:") else 512)
    subject = make_subject(data, image_size, channels, count, data_root, download)
    for note in subject.notes:
        log(note)
    grid = Grid(vary, fixed or {}, subject.defaults, subject.network)
    cells = grid.cells()
    steps = {cell.name: _steps(cell, images) for cell in cells}
    folder = Path(output_dir or f"runs/ablation-{data_name(data.replace(':', '-'))}")
    reasons = _refusals(subject, grid, cells, steps, folder, device)
    if not (folder / "runs").is_dir():
        refuse_pictures(folder)
    about = {
        "data": data,
        "images": images,
        "image_size": list(subject.size),
        "channels": subject.channels,
        "num_samples": len(subject.others[0]),
        "network": subject.network.__name__,
    }
    outcomes: list[Outcome] = []
    work = [(cell, why, seed) for cell, why in zip(cells, reasons) for seed in seeds]
    for k, (cell, why, seed) in enumerate(work, 1):
        if why:
            outcome = Outcome(cell.varied, seed, "refused", why, {}, 0.0)
        else:
            run = folder / "runs" / cell.name / f"seed-{seed}"
            found = _run_cell(subject, cell, seed, run, steps[cell.name], about, device)
            if isinstance(found, int):
                log(f"[{k}/{len(work)}] stopped; the same command continues.")
                return AblationResult(
                    tuple(outcomes), dict(vary), subject.floor(), about, folder, stopped=found
                )
            outcome = found
        outcomes.append(outcome)
        log(f"[{k}/{len(work)}] {outcome}")
    return AblationResult(tuple(outcomes), dict(vary), subject.floor(), about, folder)


def _steps(cell: Cell, images: int) -> int:
    size = cell.settings["training"]["batch_size"]
    if size == "auto":
        raise ConfigError(
            "An ablation compares settings at equal images seen: batch_size must be a number, not"
            " 'auto'."
        )
    size = int(size)
    if images < size or images % size:
        near = max(1, round(images / size)) * size
        raise ConfigError(
            f"images must be a multiple of the batch size {size}; got {images}. The nearest is"
            f" {near}."
        )
    return images // size


def _refusals(
    subject: Subject,
    grid: Grid,
    cells: list[Cell],
    steps: Mapping[str, int],
    folder: Path,
    device: str,
) -> list[str]:
    """Build every cell once, with its trainer and its way of sampling; return for each why the
    library refuses it, "" where it does not.

    Raises:
        ConfigError: If a value works in no cell: that is a mistake rather than a finding.
    """
    reasons = []
    for cell in cells:
        try:
            diffusion = _build(subject, cell, 0)
            options = _training_options(cell, 0, steps[cell.name], device)
            run = str(folder / "runs" / cell.name / "seed-0")
            trainer = Trainer(diffusion, subject.train, output_dir=run, progress=False, **options)
            make_optimizer(diffusion, trainer.config, torch.device("cpu"))
            _check_sampling(diffusion, cell.settings["sample"])
        except (TypeError, ValueError) as error:
            reasons.append(str(error) or type(error).__name__)
        else:
            reasons.append("")
    for name, values in grid.vary.items():
        for value in values:
            having = [why for cell, why in zip(cells, reasons) if cell.varied[name] == value]
            if all(having):
                raise ConfigError(f"No cell with {name}={value} can be built: {having[0]}")
    return reasons


def _check_sampling(diffusion: GaussianDiffusion, sample: Mapping[str, Any]) -> None:
    """Refuse a way of sampling now that could not be drawn by when all is trained."""
    weights = sample.get("weights", "ema")
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
    wishes: dict[str, Any] = {name: sample.get(name) for name in (*STEPS, *GUIDANCE)}
    check_sampler_fits(diffusion.denoiser, planned(diffusion, None, **wishes).sampler)


def _build(subject: Subject, cell: Cell, seed: int) -> GaussianDiffusion:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return subject.build(cell.settings["model"], cell.settings["diffusion"])


def _training_options(cell: Cell, seed: int, steps: int, device: str) -> dict[str, Any]:
    """Return the options of a cell's training, but for the run directory."""
    return {
        "val_every": 0,
        "sample_every": 0,
        "save_every": steps,
        "keep_last": 2,
        "keep_best": None,
        "keep_early": "no",
        "log_every": max(1, steps // 20),
        **cell.settings["training"],
        "max_steps": steps,
        "seed": seed,
        "device": device,
    }


def _run_cell(
    subject: Subject,
    cell: Cell,
    seed: int,
    run: Path,
    steps: int,
    about: dict[str, Any],
    device: str,
) -> Outcome | int:
    """Train and measure one cell, or read what an earlier call found; an exit code where training
    was stopped. What fails is not kept, so that the next call tries it again.
    """
    trained = {k: v for k, v in cell.settings.items() if k != "sample"}
    _check_same(run / "cell.json", {**about, "seed": seed, "settings": trained})
    sampled = {
        "sample": cell.settings["sample"],
        "num_samples": about["num_samples"],
        "version": MEASURES_VERSION,
    }
    path = run / f"measures-{digest(sampled)}.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(
            cell.varied, seed, known["status"], known["reason"], known["measures"], known["seconds"]
        )
    options = _training_options(cell, seed, steps, device)
    diffusion = _build(subject, cell, seed)
    trainer = Trainer(diffusion, subject.train, output_dir=str(run), progress=False, **options)
    status, reason, measures = "measured", "", {}
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # what the trainer says stands in the train.log of each run
            result = trainer.train()
        if result.status != "finished":
            return result.exit_code or 143
        sample = cell.settings["sample"]
        trained = sample.get("weights", "ema") == "model"
        network = trainer.diffusion.model if trained else trainer.averaged_network()
        count = len(subject.others[0])
        options = {"seed": seed, "batch_size": 1024, "progress": False, **sample}
        measures = _measure(subject, diffusion, network, trainer.sample(count, **options))
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except Exception as error:  # whatever it is, the other cells have nothing to do with it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(cell.varied, seed, "failed", reason, {}, round(trainer.elapsed_seconds, 2))
    seconds = round(trainer.elapsed_seconds, 2)
    found = {"status": status, "reason": reason, "measures": measures, "seconds": seconds}
    write_atomically(path, json.dumps({**found, **sampled}, indent=1) + "\n")
    return Outcome(cell.varied, seed, status, reason, measures, seconds)


def _measure(
    subject: Subject, diffusion: GaussianDiffusion, network: nn.Module, samples: Tensor
) -> dict[str, float]:
    first, points = subject.others[0], subject.points(samples)
    if not torch.isfinite(points).all():
        raise DivergedError("The samples hold NaN or infinite values.")
    distances = {name: measure(points, first) for name, measure in subject.measures.items()}
    return {**distances, **subject.denoising(diffusion, network)}


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    """Write what a cell is, or refuse a directory in which it was something else."""
    text = json.dumps(wanted, indent=1, sort_keys=True) + "\n"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} is of an ablation with other settings (data, images, sizes or --set). "
            f"Repeat those, or choose {another(path.parents[3])}."
        )
