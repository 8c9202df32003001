"""What `ddpm plan` gains: ten small sets at equal processor minutes, against defaults.

    python benchmarks/ten_sets.py --root runs/ten

It compares what `quality.py train` has left there for the arms default, plan and lucidrains:
`plan` is what `ddpm plan` proposes for these minutes, `default` is `ddpm train FOLDER` with the
same length, lucidrains is denoising-diffusion-pytorch as its README runs it. All of a table is to
be measured on one machine. As lucidrains draws 64 images only, it is compared by the distance of
64 of each; distances shrink with the number of samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quality import FEW, read
from quality_sets import SETS

ARMS = ("plan", "default", "lucidrains")
SHOWN = {"frechet_256": "VGG stage 3", "frechet_512": "stage 5", "frechet_8x8": "8×8 pixels"}


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown, a row per set and a last row of how often the plan is nearer."""
    by_set: dict[str, dict[str, dict[str, Any]]] = {}
    for one in found:
        by_set.setdefault(one["set"], {})[one["arm"]] = one
    head = ["set", "steps: plan, default, lucidrains"]
    head += [f"{words}: plan, default" for words in SHOWN.values()]
    head += ["recall: plan, default", f"stage 3 of {FEW}: plan, default, lucidrains"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    complete = [name for name in SETS if set(by_set.get(name, ())) >= set(ARMS)]
    for name in complete:
        arms = by_set[name]
        cells = [name, ", ".join(f"{arms[arm]['steps']:,}" for arm in ARMS)]
        cells += [_values([arms[arm][key] for arm in ARMS[:2]]) for key in SHOWN]
        cells.append(_values([arms[arm]["recall"] for arm in ARMS[:2]]))
        cells.append(_values([arms[arm][f"frechet_256_of_{FEW}"] for arm in ARMS]))
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["plan nearer", ""]
    for key in SHOWN:
        nearer = sum(by_set[name]["plan"][key] < by_set[name]["default"][key] for name in complete)
        cells.append(f"{nearer} of {len(complete)}")
    more = sum(
        by_set[name]["plan"]["recall"] > by_set[name]["default"]["recall"] for name in complete
    )
    cells.append(f"{more} of {len(complete)}")
    key = f"frechet_256_of_{FEW}"
    against = [
        sum(by_set[name]["plan"][key] < by_set[name][arm][key] for name in complete)
        for arm in ARMS[1:]
    ]
    cells.append(f"{against[0]} and {against[1]} of {len(complete)}")
    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _values(values: list[float]) -> str:
    return " / ".join(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in values)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("runs/ten"))
    options = parser.parse_args(arguments)
    print(table(read(options.root)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
