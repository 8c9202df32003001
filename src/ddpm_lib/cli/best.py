"""`ddpm best RUN`: which checkpoint and which average to use, with the evidence; loads no torch."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.text_tables import Column, room, table
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.core.text import printable, sayable, so_many
from ddpm_lib.runs.choosing import Candidate, Choice, Value, choose
from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.run_status import is_run, no_run

DESCRIPTION = (
    "Say which checkpoint of a run to use, and which of its averages, with the evidence: scores of"
    " `ddpm evaluate` where several checkpoints have the same one, else the loss on held-out"
    " images. Where the evidence does not tell two apart, that is said, and the later one is taken."
    " Nothing is computed or changed."
)


@dataclass(frozen=True, kw_only=True)
class BestCommand:
    """Options of `ddpm best`."""

    run: tyro.conf.Positional[str]
    """A run directory."""
    json: bool = False
    """Print one JSON object."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    command: BestCommand = options.parse(
        BestCommand, args, BestCommand(run=missing), "ddpm best", DESCRIPTION
    )
    run = Path(command.run)
    if not is_run(run):
        raise FileNotFoundError(no_run(run))
    records = read_records(run)
    choice = choose(records)
    if command.json:
        print(json.dumps(to_json(records, choice)))
    else:
        for line in lines(records, choice, room()):
            print(sayable(line, getattr(sys.stdout, "encoding", None)))
    return 0


def to_json(records: RunRecords, choice: Choice) -> dict[str, Any]:
    """Return a choice as plain JSON values."""

    def plain(candidate: Candidate) -> dict[str, Any]:
        scores = (candidate.scores or {}).items()
        named = [{"weights": w, "name": n, **dataclasses.asdict(v)} for (w, n), v in scores]
        return {**dataclasses.asdict(candidate), "name": candidate.name, "scores": named}

    return {
        "run": printable(records.run),
        "checkpoint": choice.chosen.name,
        "step": choice.chosen.step,
        "weights": choice.weights,
        "decided_by": choice.by,
        "weights_decided_by": choice.weights_by,
        "not_told_apart": list(choice.tied),
        "candidates": [plain(candidate) for candidate in choice.candidates],
        "commands": [command for _, command in commands(records, choice)],
    }


def lines(records: RunRecords, choice: Choice, width: int | None) -> list[str]:
    """Return what the command says: what to use, why, the evidence, the commands."""
    chosen = choice.chosen
    told = [
        f"{printable(records.run)}: use {chosen.name}, {named(choice.weights)}",
        "",
        *(f"  {line}" for line in [*why_checkpoint(choice), *why_weights(choice)]),
    ]
    if records.status.word == "running":
        told.append("  The run still trains: ask again when it is done.")
    if chosen.copies is not None and chosen.copies <= COPY_ALARM:
        told.append(
            f"  Samples at this step look like copies of training images (p = {chosen.copies:.1g}):"
            f" `ddpm evaluate {shlex.quote(str(records.run))} --metrics memorisation` tells more."
        )
    told += ["", *(f"  {line}" for line in evidence(choice, width))]
    told += ["", "Next:"]
    ways = commands(records, choice)
    longest = max(len(what) for what, _ in ways)
    return [*told, *(f"  {what:{longest}}  {command}" for what, command in ways)]


def named(weights: str) -> str:
    """Word which weights are meant.

    >>> named("ema 0.999"), named("model")
    ('the average of decay 0.999', 'the trained weights themselves')
    """
    if weights == "model":
        return "the trained weights themselves"
    return f"the average of decay {weights.removeprefix('ema ')}"


def why_checkpoint(choice: Choice) -> list[str]:
    """Say what decided on the checkpoint."""
    count = len(choice.candidates)
    if choice.by == "only":
        return ["It is the only checkpoint on disk."]
    if choice.by == "latest":
        return [f"Nothing was measured that tells the {count} checkpoints apart: it is the newest."]
    what = choice.metric if choice.by == "score" else "loss on held-out images"
    apart = f" Values less than {choice.margin:.2g} apart count as equal." if choice.margin else ""
    if choice.tied:
        steps = ", ".join(f"{step:,}" for step in choice.tied)
        told = [f"By {what} it cannot be told from step {steps}; the latest is taken.{apart}"]
    else:
        told = [f"It has the lowest {what} of {so_many(count, 'checkpoint')}.{apart}"]
    low = choice.lowest
    if low is not None and not choice.lowest_kept and choice.by == "held-out":
        told.append(
            f"The lowest of all was {low.value:.4g} at step {low.step:,}, which is not kept:"
            " --keep-best val_loss keeps it."
        )
    return told


def why_weights(choice: Choice) -> list[str]:
    """Say what decided on the weights."""
    others = [weights for weights in choice.chosen.weights if weights != choice.weights]
    if choice.weights_by == "only":
        return ["The run kept no average."]
    if choice.weights_by == "habit":
        return [
            f"Of its weights it is the usual choice, not a measured one: nothing was measured of"
            f" {' and '.join(map(named, others))}."
        ]
    if choice.weights_by == "score":
        return ["Its weights have the best score of those that were evaluated."]
    average, raw = choice.chosen.held_out, choice.chosen.held_out_model
    assert average is not None
    assert raw is not None
    told = (
        f"Held-out loss {average.value:.4g} of the average, {raw.value:.4g} of the trained weights"
    )
    if choice.weights == "model":
        return [f"{told}: the average is behind (its decay is long for so few steps)."]
    return [f"{told}."]


def evidence(choice: Choice, width: int | None) -> list[str]:
    """Return the table of checkpoints."""
    columns = [
        Column("checkpoint"),
        Column(""),
        Column("held-out", right=True),
        Column("trained weights", right=True, rank=2),
    ]
    keys = list(dict.fromkeys(key for c in choice.candidates for key in c.scores or {}))
    columns += [Column(f"{name} ({weights})", right=True, rank=1) for weights, name in keys]
    rows = []
    for candidate in choice.candidates:
        mark = "*" if candidate is choice.chosen else ("=" if candidate.step in choice.tied else "")
        scores = [(candidate.scores or {}).get(key) for key in keys]
        loss, raw = candidate.held_out, candidate.held_out_model
        texts = [_worded(loss, candidate.step), _worded(raw, candidate.step)]
        rows.append([candidate.name, mark, *texts, *(_worded(v, candidate.step) for v in scores)])
    inner = None if width is None else width - 2
    legend = ["* use this"] + (["= not told apart from it"] if choice.tied else [])
    if any(c.held_out is not None and c.held_out.step != c.step for c in choice.candidates):
        legend.append("@ measured at that step")
    return [*table(columns, rows, inner), ", ".join(legend)]


def _worded(value: Value | None, step: int) -> str:
    if value is None:
        return ""
    error = f" ± {value.error:.1g}" if value.error else ""
    return f"{value.value:.4g}{error}" + (f" @{value.step:,}" if value.step != step else "")


def commands(records: RunRecords, choice: Choice) -> list[tuple[str, str]]:
    """Return the commands that use the choice, each with what it does."""
    run = shlex.quote(printable(records.run))
    name = records.run.resolve().name
    which = f"--checkpoint {choice.chosen.step}"
    if choice.weights == "model":
        which += " --weights model"
    elif choice.weights != choice.chosen.weights[0]:
        which += f" --ema-decay {choice.weights.removeprefix('ema ')}"
    small = (records.option("model", {}) or {}).get("low_res_factor")
    drawn = "--low-res path/to/small" if small else "--num 64"
    pushed = choice.weights.replace(" ", ":")
    out = shlex.quote(f"{name}-step-{choice.chosen.step}")
    ways = [
        ("draw images", f"ddpm sample {run} {which} {drawn}"),
        ("score it", f"ddpm evaluate {run} {which}"),
        ("a folder for others", f"ddpm export {run} {out} --to safetensors {which}"),
        (
            "upload it",
            f"ddpm push {run} OWNER/{shlex.quote(name)} --checkpoint"
            f" {choice.chosen.step} --weights {pushed}",
        ),
    ]
    if len(choice.candidates) > 1 and choice.by != "score":
        ways.insert(1, ("compare them all", f"ddpm evaluate {run} --checkpoint all"))
    return ways
