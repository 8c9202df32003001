"""`ddpm status RUN`: how a run stands, for people and for batch scripts; loads no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddpm_lib.locks import holder

DESCRIPTION = """How a run stands. The first word is one of

  running    a process trains in it now
  finished   max_steps is reached
  stopped    it ended early with a checkpoint: a signal, a time limit, a STOP file
  lost       another process of it died or fell silent
  killed     its process is gone without a word (SIGKILL, memory, power)
  failed     it ended in an error, which is shown
  none       nothing was trained there yet

After stopped, lost and killed the same command continues the run."""


def stand(run: Path) -> tuple[str, dict[str, Any]]:
    """Return the word and what status.json says.

    Raises:
        FileNotFoundError: If there is no such directory.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} does not exist. Give a run directory such as runs/shapes.")
    try:
        said = dict(json.loads((run / "status.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        said = {}
    except (ValueError, TypeError) as error:
        said = {"reason": f"status.json cannot be read ({error})"}
    word = str(said.get("status", "none"))
    if holder(run) is not None:
        word = "running"
    elif word == "running":
        word = "killed"
    return word, said


def main(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="ddpm status", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--word", action="store_true", help="print the word alone, for scripts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(args)
    word, said = stand(options.run)
    newest = max((p.name for p in (options.run / "checkpoints").glob("step-*")), default=None)
    if options.word:
        print(word)
    elif options.json:
        print(json.dumps({**said, "status": word, "checkpoint": newest}))
    else:
        print("\n".join(_lines(options.run, word, said, newest)))
    return 0


def _lines(run: Path, word: str, said: dict[str, Any], newest: str | None) -> list[str]:
    lines = [f"{word}: {run}"]
    if "step" in said:
        lines.append(f"  step        {said['step']:,} of {said.get('max_steps', 0):,}")
    owner = holder(run)
    if owner:
        lines.append(f"  held by     {owner}")
    elif said.get("reason"):
        lines.append(f"  reason      {said['reason']}")
    lines.append(f"  checkpoint  {newest or 'none yet'}")
    if word in ("stopped", "lost", "killed"):
        lines.append("  next        the same command continues it")
    return lines
