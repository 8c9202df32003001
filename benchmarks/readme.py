"""README's numbers, tables and printed lines, from the files that the benchmarks wrote.

    python benchmarks/readme.py --check    # exit code 1 where README and files differ
    python benchmarks/readme.py --write

Each stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ROW = re.compile(r"\s+\d[\d,]*\s+\d+\.\d\s+\d+\.\d{3,}\s")
"""A row of training: step, epoch, loss, …"""
DETAIL = re.compile(r"features of |copying_ct|copies_random|loss_train|loss_heldout|recall|Note: ")
"""Lines and scores that README leaves out."""

LUCIDRAINS = (
    "https://github.com/lucidrains/denoising-diffusion-pytorch/blob/"
    "faed4db28e724735323fa91c70aa9b28a6e1cbac"
)
DIFFUSERS = "https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951"
IMPROVED = (
    "https://github.com/openai/improved-diffusion/blob/1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"
)
EDM = "https://github.com/NVlabs/edm/blob/008a4e5316c8e3bfe61a62f874bddba254295afb"
LUCIDRAINS_TRAINER = f"{LUCIDRAINS}/denoising_diffusion_pytorch/denoising_diffusion_pytorch.py"
DIFFUSERS_EXAMPLE = f"{DIFFUSERS}/examples/unconditional_image_generation"
DIFFUSERS_SCRIPT = f"{DIFFUSERS_EXAMPLE}/train_unconditional.py"
IMPROVED_LOOP = f"{IMPROVED}/improved_diffusion/train_util.py"
EDM_LOOP = f"{EDM}/training/training_loop.py"

PEERS = (
    "ddpm_lib",
    "lucidrains' denoising-diffusion-pytorch",
    "diffusers' script",
    "improved-diffusion",
    "EDM",
)
FACTS: tuple[tuple[str, ...], ...] = (
    (
        "your folder of images",
        "`ddpm train FOLDER`",
        f"[a script]({LUCIDRAINS}/README.md?plain=1#L57-L86)",
        f"[a script to copy]({DIFFUSERS_EXAMPLE}/README.md?plain=1#L9-L22)",
        f"[a script]({IMPROVED}/README.md?plain=1#L46-L48)",
        f"[its tool, then a script]({EDM}/README.md?plain=1#L150-L160)",
    ),
    (
        "without a GPU",
        "yes, in bf16 where the CPU has it",
        "yes",
        "yes",
        f"[one process]({IMPROVED_LOOP}#L105-L112)",
        f"[no]({EDM_LOOP}#L48)",
    ),
    (
        "continues with",
        "everything, [bit for bit](tests/faults/README.md), by itself",
        f"[weights, average, Adam; on call]({LUCIDRAINS_TRAINER}#L1031-L1049)",
        f"[accelerate's state; on request]({DIFFUSERS_SCRIPT}#L559-L594)",
        f"[weights, averages, Adam; on request]({IMPROVED_LOOP}#L114-L155)",
        f"[weights, average, Adam; on request]({EDM_LOOP}#L92-L109)",
    ),
    (
        "a checkpoint is",
        "written aside, hashed, renamed",
        f"[written in place]({LUCIDRAINS_TRAINER}#L1029)",
        f"[written in place]({DIFFUSERS_SCRIPT}#L663-L664)",
        f"[written in place]({IMPROVED_LOOP}#L280-L292)",
        f"[written in place]({EDM_LOOP}#L186-L193)",
    ),
    (
        "while training",
        "held-out loss with its error, samples",
        f"[samples, FID]({LUCIDRAINS_TRAINER}#L1086-L1102)",
        f"[samples]({DIFFUSERS_SCRIPT}#L678-L706)",
        f"[loss by noise level]({IMPROVED_LOOP}#L218-L221)",
        f"[loss]({EDM_LOOP}#L156-L169)",
    ),
    (
        "scores afterwards",
        "[FID, KID, copies, bits/dim, …](docs/evaluation.md)",
        "–",
        "–",
        f"[bits/dim]({IMPROVED}/scripts/image_nll.py)",
        f"[FID]({EDM}/README.md?plain=1#L120-L132)",
    ),
    (
        "licence",
        "MIT",
        f"[MIT]({LUCIDRAINS}/LICENSE)",
        f"[Apache 2.0]({DIFFUSERS}/LICENSE)",
        f"[MIT]({IMPROVED}/LICENSE)",
        f"[CC BY-NC-SA 4.0]({EDM}/LICENSE.txt)",
    ),
)
"""What was read in the repositories, at the linked commits."""


def results(name: str) -> dict[str, Any]:
    """Read what a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def processor(name: str) -> str:
    """Shorten a processor's name."""
    return re.sub(r"\s+\d+-Core.*| Processor.*|\(R\)|\(TM\)", "", name).strip()


def listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Make a table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def strip() -> str:
    """Say what the strip shows."""
    found = results("strip")
    minutes = listed([f"{mark['minutes']:g}" for mark in found["marks"]])
    steps = listed([f"{mark['steps']:,}" for mark in found["marks"]])
    return (
        f"{found['training_images']:,} photos of SYSU-Shape, cut out, 32×32; one network of"
        f" {found['parameters'] / 1e6:.1f} M parameters after {minutes} minutes of one CPU thread"
        f" ({processor(found['cpu'])}; {steps} steps), from the same noise. Rows: airplanes,"
        " bicycles, boats, cars, motorbikes. Made by"
    )


def machines() -> str:
    """Say what some minutes lead to."""
    runs, found = results("readme_runs"), results("strip")
    cpu = f"one CPU thread ({processor(runs['about']['device'])})"

    def minutes(name: str) -> str:
        return f"{runs['runs'][name]['cpu_seconds'] / 60:.1f}"

    last = found["marks"][-1]["minutes"]
    return table(
        ("your machine", "command", "minutes", "what you get"),
        [
            (cpu, "the Python below", minutes("python"), "36 shapes of 16×16, most of them clean"),
            (
                "the same",
                "`ddpm train`",
                minutes("ddpm train"),
                "shapes of 32×32, a run to explore",
            ),
            (
                f"one CPU thread ({processor(found['cpu'])})",
                "the strip above",
                f"{last:g}",
                "its right end",
            ),
            (
                "any, with or without GPU",
                "`ddpm estimate FOLDER`",
                "–",
                "memory, images per second, hours; no GPU was measured here",
            ),
        ],
    )


def peers() -> str:
    """Compare with other libraries: measured speed, then what was read."""
    found = results("train_step")
    rounds = found["about"]["arguments"]["rounds"]

    def times(name: str) -> str:
        one = found["variants"][name]["times as long as ours, bf16"]
        return f"{one['median']:.2f} ({one['low']:.2f} … {one['high']:.2f})"

    speed = (
        "time of a training step",
        f"**1** in bf16; in float32 {times('ours, fp32')}",
        f"{times('lucidrains')}, float32",
        f"{times('diffusers')}, float32",
        "not measured",
        "not measured",
    )
    cpu = processor(found["about"]["device"])
    text = (
        f"Times: equal networks of width 64, processor time of one thread ({cpu}), median of"
        f" {rounds} interleaved rounds (lowest … highest), each as its users run it ([how, and more"
        " figures](docs/performance.md)); our convolutions in float32 have become faster since. The"
        " rest was read at the linked lines.\n"
    )
    return text + "\n" + table(("", *PEERS), [speed, *FACTS])


def without_middle(lines: list[str]) -> list[str]:
    """Leave out all rows of training but the first and those of the last validations."""
    rows = [k for k, line in enumerate(lines) if ROW.match(line)]
    kept = {*rows[:1], *[k for k in rows if "±" in lines[k]][-2:]}
    saved = [k for k, line in enumerate(lines) if line.startswith("Saved ")]
    left_out = [*saved[:-1], *(k for k in rows if k not in kept)]
    return with_dots(lines, [k in left_out for k in range(len(lines))])


def without_details(lines: list[str]) -> list[str]:
    """Leave out progress, and scores of which others of their kind are shown."""
    left_out, flags = False, []
    for line in lines:
        if not line.startswith(" "):  # the reference rows of a score are indented
            left_out = DETAIL.match(line) is not None
        flags.append(left_out)
    return with_dots(lines, flags)


def with_dots(lines: list[str], left_out: list[bool]) -> list[str]:
    """Put … for what is left out inside."""
    shown: list[str] = []
    for line, out in zip(lines, left_out, strict=True):
        if not out:
            shown.append(line.rstrip())
        elif shown and shown[-1] != "…":
            shown.append("…")
    return shown


def printed(command: str, shorten: Callable[[list[str]], list[str]]) -> str:
    lines = results("readme_runs")["runs"][command]["printed"]
    return "```text\n" + "\n".join(shorten(lines)).strip("\n") + "\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "strip": strip,
    "train": lambda: printed("ddpm train", without_middle),
    "evaluate": lambda: printed("ddpm evaluate runs/shapes", without_details),
    "machines": machines,
    "peers": peers,
}


def filled(text: str) -> str:
    """Return README with every block as the files have it."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare, and say what differs")
    what.add_argument("--write", action="store_true", help="fill README")
    asked = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    wanted = filled(text)
    if asked.write:
        README.write_text(wanted, encoding="utf-8")
        return 0
    difference = difflib.unified_diff(
        text.splitlines(), wanted.splitlines(), "README.md", "the files", lineterm=""
    )
    sys.stdout.writelines(f"{line}\n" for line in difference)
    return int(text != wanted)


if __name__ == "__main__":
    raise SystemExit(main())
