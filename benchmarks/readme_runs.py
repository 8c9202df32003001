"""README's commands and its Python, run as they are printed: processor time and what they print.

    python benchmarks/readme_runs.py --output benchmarks/results/readme_runs.json

One thread each, in an empty folder. The clock is the processor time of the whole process, imports
included, so that other work on the machine does not count. Each run is made once: a figure of this
file says how long to wait, not which of two programs is faster.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from ddpm_lib.core.files import write_atomically

README = Path(__file__).resolve().parents[1] / "README.md"
COMMANDS = ("ddpm train", "ddpm sample runs/shapes --num 36", "ddpm evaluate runs/shapes")


def python_block(text: str) -> str:
    """Return README's Python."""
    found = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit("README.md holds no block of Python.")
    return found[1]


def run(words: list[str], folder: Path) -> dict[str, Any]:
    """Run a command; return its processor seconds and the lines that it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}:\n{done.stdout}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": round(used, 1), "printed": done.stdout.splitlines()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="write times and lines as JSON to this file")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    asked = parser.parse_args(arguments)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for command in COMMANDS:
            words = command.split()
            runs[command] = run([sys.executable, "-m", "ddpm_lib.cli", *words[1:]], folder)
            print(f"{command}: {runs[command]['cpu_seconds']:.1f} s", flush=True)
        script = folder / "shapes.py"
        write_atomically(script, python_block(README.read_text(encoding="utf-8")))
        runs["python"] = run([sys.executable, str(script.resolve())], folder)
        print(f"python: {runs['python']['cpu_seconds']:.1f} s", flush=True)
        pictures = sorted(path.name for path in folder.glob("*.png"))
    runs["python"]["pictures"] = pictures
    return common.finish(asked, "cpu", runs=runs)


if __name__ == "__main__":
    main()
