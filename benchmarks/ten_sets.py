"""What `ddpm plan` gains: ten small sets at equal processor minutes, against defaults.

    python benchmarks/ten_sets.py table --root runs/ten
    python benchmarks/ten_sets.py page --root runs/ten     # store it, and fill docs/planning.md

It compares what `quality.py train --arms plan former lucidrains --minutes 2` has left there (the
whole command is on docs/planning.md), and the arm default where that is there too. `plan` is what
`ddpm plan` proposes for these minutes, `former` the library's defaults from before plans (a U-Net
of width 32 that predicts v), `default` is `ddpm train FOLDER` with the same length, which takes
most of a plan's choices by now, lucidrains is denoising-diffusion-pytorch as its README runs it.
All of a table is to be measured on one machine. As lucidrains draws 64 images only, it is compared
by the distance of 64 of each; distances shrink with the number of samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import write_atomically
from quality import FEW, fill, read
from quality_sets import SETS

ARMS = ("plan", "former", "default", "lucidrains")
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"
RESULTS = ROOT / "benchmarks" / "results" / "ten_sets.json"
NEEDED = {"plan", "former", "lucidrains"}
SHOWN = {
    "frechet_256": "VGG stage 3",
    "frechet_512": "stage 5",
    "frechet_8x8": "8×8 pixels",
    "recall": "recall",
    f"frechet_256_of_{FEW}": f"stage 3 of {FEW}",
}


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown, a row per set and a last row of how often the plan is better."""
    by_set: dict[str, dict[str, dict[str, Any]]] = {}
    for one in found:
        by_set.setdefault(one["set"], {})[one["arm"]] = one
    complete = [name for name in SETS if set(by_set.get(name, ())) >= NEEDED]
    there = [arm for arm in ARMS if complete and all(arm in by_set[name] for name in complete)]
    drawn = {key: _arms(key, there) for key in SHOWN}
    head = ["set", f"steps: {', '.join(there)}"]
    head += [f"{words}: {', '.join(drawn[key])}" for key, words in SHOWN.items()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in complete:
        arms = by_set[name]
        cells = [name, ", ".join(f"{arms[arm]['steps']:,}" for arm in there)]
        cells += [_values([arms[arm][key] for arm in drawn[key]]) for key in SHOWN]
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["plan better", ""]
    for key in SHOWN:
        wins = [_wins(key, arm, by_set, complete) for arm in drawn[key][1:]]
        cells.append(f"{', '.join(map(str, wins))} of {len(complete)}")
    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arms(key: str, there: list[str]) -> list[str]:
    """Return who is compared by a number: lucidrains by that of few samples alone."""
    return there if key.endswith(f"_of_{FEW}") else [arm for arm in there if arm != "lucidrains"]


def _wins(
    key: str, arm: str, by_set: dict[str, dict[str, dict[str, Any]]], names: list[str]
) -> int:
    """Return on how many sets the plan is better than an arm."""
    sign = -1 if key == "recall" else 1
    return sum(sign * (by_set[n]["plan"][key] - by_set[n][arm][key]) < 0 for n in names)


def _values(values: list[float]) -> str:
    return " / ".join(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values)


def blocks(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return what belongs on the page, by its mark."""
    return {"ten sets": f"\n{table(found)}\n\n"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    for what, words in (("table", "print the table"), ("page", "store it, and fill the page")):
        one = parts.add_parser(what, help=words)
        one.add_argument("--root", type=Path, default=Path("runs/ten"))
    options = parser.parse_args(arguments)
    found = read(options.root)
    if options.what == "table":
        print(table(found))
        return 0
    write_atomically(RESULTS, json.dumps(found, indent=1) + "\n")
    fill(PAGE, blocks(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
