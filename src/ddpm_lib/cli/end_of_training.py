"""What `ddpm train` says at its end: verdict, scores, files, and what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_lib.cli import options
from ddpm_lib.cli.next_steps import Finished, after_training
from ddpm_lib.runs.end_screen import (
    average_lines,
    end_lines,
    file_lines,
    next_lines,
    score_lines,
    section,
    verdict_lines,
)
from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.verdict import judge, next_steps

if TYPE_CHECKING:
    from ddpm_lib.cli.run_settings import RunConfig
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.training import TrainingResult


def report(result: TrainingResult, config: RunConfig, dataset: ImageDataset, idle: bool) -> None:
    """Say how the run went and what a user would do next.

    Args:
        result: How training ended.
        config: All settings of the run.
        dataset: The training images.
        idle: Whether the run was finished before.
    """
    run = result.output_dir
    records = read_records(run)
    verdict = judge(records)
    if idle and not result.stopped_by:
        print(f"\n{run} is already finished at step {result.step:,}: nothing was to do.")
    ways = after_training(known_at_the_end(result, config, dataset), next_steps(records, verdict))
    parts = [
        section("END", end_lines(records)),
        section("VERDICT", verdict_lines(verdict)),
        section("WEIGHTS", average_lines(records)),
        section("SCORE", score_lines(records)),
        section("FILES", [] if idle else file_lines(run)),
        section("NEXT", next_lines(ways)),
    ]
    print("\n" + "\n\n".join(part for part in parts if part))


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
    )
