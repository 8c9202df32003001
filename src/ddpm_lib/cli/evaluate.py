"""`ddpm evaluate RUN|CHECKPOINT|IMAGES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ddpm_lib.cli import options
from ddpm_lib.evaluation import (
    METRICS,
    Evaluation,
    EvaluationOptions,
    evaluate,
    evaluate_checkpoints,
)
from ddpm_lib.evaluation.comparison import curve
from ddpm_lib.evaluation.evaluator import evaluate_verified
from ddpm_lib.evaluation.preflight import refuse_unwritable
from ddpm_lib.evaluation.targets import is_run, refuse_neither
from ddpm_lib.runs.loading import find_checkpoints
from ddpm_lib.runs.report import PAGE, write_report
from ddpm_lib.runs.run_log import tolerate_write_errors
from ddpm_lib.runtime.rendezvous import destroy_group
from ddpm_lib.training import process_state

DESCRIPTION = (
    f"Score a run, or a set of images. Metrics: {', '.join(METRICS)}. Samples go from the sampler"
    " to the metrics without files; image i is a function of the seed and i, so the numbers depend"
    " neither on the batch size nor on the number of processes (torchrun shares the images), and"
    " an interrupted evaluation continues where it was. Writes evaluations/eval-….json, with"
    " everything that repeating it needs, and prints a table."
)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(EvaluationOptions):
    """Options of `ddpm evaluate`."""

    run: tyro.conf.Positional[str]
    """A run directory, one of its checkpoints, a pretrained folder or one of the hub by its name,
    owner/name; or images: a folder, .npz or .npy of uint8 (n, h,
    w, c), a parquet file.
    """
    num: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of samples (default: 10,000; with metrics auto as many as training images, 64 to
    1,000), and of images spread evenly over the data (default: all). More than there are is
    clamped, with a note. Under torchrun write -n: it takes --num for an option of its own.
    """
    condition: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where the conditions of --data are, NAME=SOURCE[:COLUMN], once per condition, where that is a
    folder, file or dataset; default: where those of the training images are.
    """
    output_dir: str | None = None
    """Where to write eval-….json, for runs that cannot be written to; default: evaluations/ in the
    run, or here for images.
    """


def check_output(output_dir: str | None, run: Path | None) -> None:
    """Refuse a place that cannot be written to before hours of work.

    Args:
        output_dir: Where to write, if that was said.
        run: The run directory, None where images are scored.

    Raises:
        ConfigError: Saying where to write instead.
    """
    folder = Path("evaluations") if run is None else run / "evaluations"
    refuse_unwritable(folder if output_dir is None else Path(output_dir), "--output-dir")


def show(result: Evaluation, output_dir: str | None = None) -> None:
    """Write an evaluation's file, then print it: what took hours must not be lost to a terminal
    that cannot show a letter.

    Raises:
        OSError: If the file cannot be written; the numbers are printed all the same.
    """
    try:
        path = result.save(output_dir)
    except OSError:
        print(result.table())
        raise
    print(result.table())
    print(f"wrote {path}")


def refresh_page(run: Path) -> None:
    """Bring the page of a run up to date with its evaluations, where it has one."""
    if (run / PAGE).is_file():
        with tolerate_write_errors(str(run / PAGE)):
            write_report(run, picture=False)


def main(args: list[str]) -> int:
    """Run the command; 1 says that a metric had to be left out."""
    command: EvaluateCommand = options.parse(
        EvaluateCommand, args, EvaluateCommand(run=tyro.MISSING), "ddpm evaluate", DESCRIPTION
    )
    chosen = {f.name: getattr(command, f.name) for f in dataclasses.fields(EvaluationOptions)}
    every = command.checkpoint == "all"
    state, results = process_state(command.device), []
    refuse_neither(command.run)
    found = find_checkpoints(command.run, command.checkpoint) if is_run(command.run) else []
    if state.is_main_process:
        check_output(command.output_dir, found[-1].run if found else None)
    if found:
        scored: Iterable[Evaluation] = evaluate_verified(found, **chosen)
    else:
        scored = (
            evaluate_checkpoints(command.run, **chosen)
            if every
            else [evaluate(command.run, **chosen)]
        )
    for result in scored:
        results.append(result)
        if state.is_main_process:  # each as soon as it is known
            show(result, command.output_dir)
    if every and state.is_main_process:
        print(curve(results))
    if found and state.is_main_process:
        refresh_page(found[-1].run)
    destroy_group(state)
    return int(any(result.about["skipped"] for result in results))
