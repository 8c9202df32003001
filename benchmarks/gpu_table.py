"""Turn what `benchmarks/gpu.sh` wrote into the table for docs/performance.md.

python benchmarks/gpu_table.py gpu-results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(folder: Path) -> str:
    """Write the results of a folder as Markdown; what is missing or failed is a line too."""
    profiles = {path.stem: read(path) for path in sorted(folder.glob("profile-*.json"))}
    smoke = read(folder / "smoke.json")
    about = next((f["about"] for f in (smoke, *profiles.values()) if f), None)
    if about is None:
        return f"{folder} holds no results.\n"
    lines = [
        f"{about['device']}, torch {about['torch']}, Python {about['python']}:",
        "`bash benchmarks/gpu.sh`",
        "",
        "| network, batch | compiled | images/s | TFLOP/s | ms/step | kernels | GPU busy | peak |"
        " first step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in profiles.items():
        lines.append(row(found["profile"]) if found else f"| {name} | failed |" + " |" * 7)
    if smoke is not None:
        lines += ["", "| check | result | seconds | found |", "|---|---|---|---|"]
        for name, check in smoke["checks"].items():
            detail = check["detail"].replace("|", "/")
            lines.append(f"| {name} | {check['result']} | {check['seconds']:.0f} | {detail} |")
    return "\n".join(lines) + "\n"


def row(found: dict[str, Any]) -> str:
    """Write one profile as a row."""
    peak = f"{found['peak_bytes'] / 2**30:.1f} GiB" if "peak_bytes" in found else "–"
    cells = (
        f"{found['network']} {found['precision']}, {found['batch']}",
        found["compile"],
        f"{found['images_per_second']:,.0f}",
        f"{found['tflops']:,.3g}",
        f"{1000 * found['seconds_per_step']:,.1f}",
        f"{found['kernels']:,.0f}",
        f"{found['busy_seconds'] / found['profiled_seconds_per_step']:.0%}",
        peak,
        f"{found['first_step_seconds']:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None where the part that writes it did not come to its end."""
    if not path.is_file() or not path.stat().st_size:
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main(argv: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where gpu.sh wrote its results")
    text = table(parser.parse_args(argv).folder)
    print(text, end="")
    return text


if __name__ == "__main__":
    main()
