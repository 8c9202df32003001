"""The table of docs/recipes.md: what `ddpm plan` proposes by images, size and hours.

    python benchmarks/recipes.py --output benchmarks/results/recipes.json
    python benchmarks/recipes.py --write             # fill the page from the stored file

A plan times a few steps on this machine and trains nothing. The pictures are the built-in shapes;
`--images`, `--sizes`, `--hours` and `--device` ask for other plans.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import ddpm_lib
from common import cpu_name
from ddpm_lib import Shapes

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "recipes.md", ROOT / "benchmarks" / "results" / "recipes.json"
MADE = re.compile(r"(?<=<!-- recipes -->\n).*?(?=<!-- end of recipes -->)", re.S)


def planned(data: Shapes, hours: str, device: str) -> dict[str, Any]:
    """Plan, and return what the table shows."""
    size = data.image_size[0]
    plan = ddpm_lib.plan(data, hours=float(Fraction(hours)), image_size=size, device=device)
    settings = plan.settings
    model, diffusion = settings.get("model", {}), settings.get("diffusion", {})
    return {
        "images": len(data),
        "size": size,
        "hours": hours,
        "parameters": plan.estimate.parameters,
        "macs": plan.estimate.macs,
        "patch_size": model.get("patch_size", 1),
        "predicts": diffusion.get("parametrization", "v"),
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "dropout": model.get("dropout", 0.0),
        "augment": settings.get("augment", 0.0),
        "classes": bool(settings.get("class_conditional")),
        "stop_when": list(settings.get("stop_when", ())),
        "steps": plan.steps,
        "seconds_per_step": plan.estimate.seconds_per_step,
        "minutes": plan.seconds / 60,
        "passes": plan.passes,
        "copies_from": plan.copies_from,
        "notes": list(plan.notes),
    }


def significant(value: float) -> str:
    """Two digits of a number, in full.

    >>> significant(1234.5), significant(0.0123), significant(2.0)
    ('1,200', '0.012', '2')
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def row(one: dict[str, Any]) -> str:
    """Return one line of the table."""
    extras = [f"dropout {one['dropout']:g}"] * (one["dropout"] > 0)
    extras += [f"augment {one['augment']:g}"] * (one["augment"] > 0)
    extras += ["classes"] * one["classes"]
    end = " ".join(f"`{word}`" for word in one["stop_when"]) or "its steps"
    budget = f"{60 * Fraction(one['hours'])} min"
    cells = [
        f"{one['images']:,}",
        f"{one['size']}",
        budget,
        f"{one['batch_size']}",
        f"{one['steps']:,}",
        significant(one["seconds_per_step"]),
        significant(one["passes"]),
        significant(one["copies_from"]),
        end,
        ", ".join(extras) or "–",
    ]
    return "| " + " | ".join(cells) + " |"


def network(one: dict[str, Any]) -> str:
    """Return a plan's network in words."""
    patches = f" on patches of {one['patch_size']}×{one['patch_size']}"
    size = f"{one['parameters'] / 1e6:.1f} million parameters"
    return size + patches * (one["patch_size"] > 1) + f", predicting `{one['predicts']}`"


HEAD = (
    "| images | side | budget | batch | steps | s/step | passes | copies from (prior) | ends by |"
    " besides |"
)


def table(found: dict[str, Any]) -> str:
    """Return the table of the page, with the line on where it was measured."""
    networks = sorted(set(map(network, found["plans"])))
    about = (
        f"Plans on one thread of {found['machine']}, torch {found['torch']}, with a load of"
        f" {found['load']:.0f} on {found['cores']} cores. The network: {', '.join(networks)}."
    )
    return "\n".join([about, "", HEAD, "|---" * 10 + "|", *map(row, found["plans"]), ""])


def main(arguments: list[str] | None = None) -> None:
    """Plan, or write the table of what was planned."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[60, 300, 1500, 10_000, 50_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--hours", nargs="+", default=["1/6", "2"], help="as 2, 0.5 or 1/6")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table of the stored file")
    args = parser.parse_args(arguments)
    if args.write:
        found = json.loads(RESULTS.read_text("utf-8"))
        text = MADE.sub(lambda old: table(found), PAGE.read_text("utf-8"))
        PAGE.write_text(text, "utf-8")
        return
    plans = []
    for n in args.images:
        for size in args.sizes:
            data = Shapes(size=size, n=n)
            for hours in args.hours:
                plans.append(planned(data, hours, args.device))
                print(row(plans[-1]))
    found = {
        "machine": cpu_name(),
        "torch": torch.__version__.partition("+")[0],
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "plans": plans,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
