"""Kill training runs, continue them by the same command, and compare every one that finishes with
its uninterrupted twin.

    python tests/faults/harness.py random --kills 100
    python tests/faults/harness.py writes --kills 100
    python tests/faults/harness.py worlds --kills 100
    python tests/faults/harness.py workers --kills 40
    python tests/faults/harness.py students --kills 40

A fork server: torch is imported once, every attempt is a fork of this process, so that a kill costs
well under a second. This process itself never runs autograd, which does not survive a fork. Each
run lives in a directory of its own and is started again and again until it finishes; then weights,
averages, optimizer and metrics.jsonl must be those of the twin, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch

torch.set_num_threads(1)

STEPS = {"random": 40, "writes": 40, "worlds": 30, "workers": 40, "students": 40}
LIMIT = 120.0  # seconds until an attempt counts as hung


@dataclass
class Report:
    """What a series of kills came to."""

    mode: str
    kills: int = 0
    inside_a_write: int = 0
    finished: int = 0
    equal: int = 0
    worlds: dict[str, int] = field(default_factory=dict)
    lost_said: int = 0
    passed_over: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failures and self.equal == self.finished > 0


def preload() -> None:
    """Import what an attempt needs, before any fork; run nothing."""
    for name in (
        "accelerate.utils",
        "ema_pytorch",
        "safetensors.torch",
        "tqdm.auto",
        "PIL.Image",
    ):
        importlib.import_module(name)
    for name in (
        "ddpm_lib.data",
        "ddpm_lib.training.trainer",
        "training_helpers",
        "ddpm_lib.training.resume",
    ):
        importlib.import_module(name)


def trainer_of(run: Path, mode: str, world: int) -> Any:
    """The one command of a mode; the number of processes is the launcher's."""
    from training_helpers import tiny_diffusion, tiny_trainer

    options: dict[str, Any] = {
        "max_steps": STEPS[mode],
        "batch_size": 4,
        "save_every": 5,
        "log_every": 2,
        "keep_last": 3,
        "ema_decay": (0.9, 0.99),
        "process_timeout_minutes": 0.3,
        "stall_minutes": 0.15,
    }
    model: dict[str, Any] = {"dim": 4, "dim_mults": (1,)}
    process: dict[str, Any] = {}
    if mode == "random":  # also kills inside validations and sample grids, and a memory of losses
        options |= {
            "val_every": 6,
            "val_fraction": 0.2,
            "val_max_images": 8,
            "keep_best": "val_loss",
            "mixed_precision": "bf16",
        }
        options |= {"sample_every": 10, "sample_count": 2, "sample_steps": 2, "save_async": True}
        process = {"time_sampler": "loss_aware", "time_sampler_options": {"history": 2}}
    if mode == "students":  # whose loss changes with the step
        process = {"loss": "consistency", "time_sampler": "log_normal_sigma"}
        options |= {"val_every": 6, "val_fraction": 0.2, "val_max_images": 8, "sample_every": 10}
        options |= {"sample_sampler": "consistency", "sample_count": 2, "sample_steps": 2}
    if mode == "worlds":
        options |= {"accumulation_steps": 2 // world, "shards": 2}
    if mode == "workers":
        options |= {
            "data": str(run.parents[0] / "images"),
            "cache": "none",
            "num_workers": 2,
            "max_steps": STEPS[mode],
        }
    diffusion = tiny_diffusion(
        **model, num_classes=6 if mode != "workers" else None, class_drop_prob=0.2
    )
    if process:
        from ddpm_lib import GaussianDiffusion

        diffusion = GaussianDiffusion(diffusion.model, image_size=8, timesteps=50, **process)
    return tiny_trainer(run, diffusion, **options)


def attempt(run: Path, mode: str, world: int, rank: int, port: int) -> None:
    """Body of a forked process; never returns."""
    code = 1
    try:
        log = os.open(
            run.parent / f"{run.name}.rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        if world > 1:
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
                "MASTER_PORT": port,
            }
            os.environ.update({k: str(v) for k, v in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
            os.environ["ACCELERATE_USE_CPU"] = "1"
        if mode == "writes":
            slow_down_writes()
        from ddpm_lib.training import LostProcessError

        try:
            trainer = trainer_of(run, mode, world)
            code = trainer.train().exit_code
        except LostProcessError as error:
            print(f"LostProcessError: {error}", file=sys.stderr)
            code = 75
        except BaseException:
            import traceback

            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def slow_down_writes() -> None:
    """Four milliseconds more for every flush, so that a save is long enough to be hit in the
    middle.
    """
    from ddpm_lib.runs import checkpoint

    real = checkpoint.flush

    def flush(path: Path) -> None:
        time.sleep(0.004)
        real(path)

    checkpoint.flush = flush


def start(run: Path, mode: str, world: int) -> list[int]:
    """Fork the processes of one attempt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            attempt(run, mode, world, rank, port)
        pids.append(pid)
    return pids


def ended(pids: dict[int, int | None], limit: float) -> bool:
    """Collect exit codes until all have ended or the limit (seconds) is over."""
    deadline = time.monotonic() + limit
    while None in pids.values():
        for pid in [p for p, code in pids.items() if code is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                pids[pid] = os.waitstatus_to_exitcode(status)
        if None in pids.values():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
    return True


def writing(run: Path, pids: Iterable[int]) -> bool:
    """Whether a checkpoint of these processes is half-written; what earlier attempts left behind
    does not count.
    """
    folder = run / "checkpoints"
    ends = tuple(f"-{pid}" for pid in pids)
    return folder.is_dir() and any(
        n.startswith(".tmp-step") and n.endswith(ends) for n in os.listdir(folder)
    )


def lines_of(run: Path) -> int:
    """Lines of metrics.jsonl, one per two steps."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_moment(run: Path, mode: str, pids: dict[int, int | None], draw: random.Random) -> bool:
    """Wait for the moment to kill; False if the run ended before.

    Moments are random in steps, not in seconds, so that a busy machine changes little: from a start
    that has done nothing yet to some sixteen steps, and some milliseconds.
    """
    if mode != "writes":
        lines, more = lines_of(run), draw.randint(0, 8)
        while lines_of(run) < lines + more:
            if ended(pids, 0.003):
                return False
        return not ended(pids, draw.uniform(0.0, 0.03 if more else 0.5))
    for skipped in range(draw.randint(0, 2), -1, -1):  # not always the first checkpoint
        while not writing(run, pids):
            if ended(pids, 0.0005):
                return False
        until = time.monotonic() + draw.uniform(0.0, 0.03)
        while writing(run, pids) and (skipped or time.monotonic() < until):
            if ended(pids, 0.0005):
                return False
    return not ended(pids, 0.0)


def kill(pids: dict[int, int | None], mode: str, draw: random.Random) -> None:
    """SIGKILL all processes, or one of two; loader workers are left to themselves."""
    alive = [pid for pid, code in pids.items() if code is None]
    victims = alive if len(alive) < 2 or draw.random() < 0.5 else [draw.choice(alive)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Final tensors, and metrics.jsonl without what clocks say."""
    from training_helpers import curve, final_tensors

    return final_tensors(run), [json.dumps(row) for row in curve(run)]


def same(run: Path, twin: tuple[dict[str, torch.Tensor], list[str]]) -> str:
    """Empty if the run is the twin, else what differs."""
    tensors, lines = outcome(run)
    wrong = [k for k in twin[0] if k not in tensors or not torch.equal(tensors[k], twin[0][k])]
    if wrong or tensors.keys() != twin[0].keys():
        return f"{run.name}: {len(wrong)} tensors differ, the first is {wrong[:1]}"
    if lines != twin[1]:
        at = next(
            (i for i, pair in enumerate(zip(lines, twin[1])) if pair[0] != pair[1]),
            min(len(lines), len(twin[1])),
        )
        return (
            f"{run.name}: metrics.jsonl differs in line {at + 1} of {len(lines)} ({len(twin[1])} in"
            " the twin)"
        )
    return ""


def make_images(folder: Path) -> None:
    """Picture files for the mode with loader workers."""
    from PIL import Image

    for k in range(24):
        path = folder / "images" / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        draw = random.Random(k)
        Image.frombytes("RGB", (8, 8), bytes(draw.randrange(256) for _ in range(192))).save(path)


def series(mode: str, kills: int, seed: int, folder: Path) -> Report:
    """Kill until `kills` are reached and the last run has finished."""
    began, report, draw, worlds = (
        time.monotonic(),
        Report(mode),
        random.Random(seed),
        Counter[str](),
    )
    make_images(folder)
    twin_run = folder / "twin"
    pids = dict.fromkeys(start(twin_run, mode, 1))
    if not ended(pids, LIMIT) or any(pids.values()):
        report.failures.append("the twin failed:\n" + log_tail(twin_run))
        return report
    twin, number = outcome(twin_run), 0
    while report.kills < kills or number > report.finished:
        run = folder / f"run-{report.finished:03d}"
        number = report.finished + 1
        world = draw.choice([1, 2]) if mode == "worlds" else 1
        pids = dict.fromkeys(start(run, mode, world))
        worlds[str(world)] += 1
        last = report.kills >= kills
        if not last and wait_for_moment(run, mode, pids, draw):
            kill(pids, mode, draw)
            report.kills += 1
            report.inside_a_write += writing(run, pids)
            if not ended(pids, LIMIT):
                report.failures.append(
                    f"{run.name}: a process did not end after the kill of another"
                )
        elif not ended(pids, LIMIT):
            report.failures.append(f"{run.name}: did not end in {LIMIT:.0f} s")
        report.lost_said += sum(code == 75 for code in pids.values())
        strange = [code for code in pids.values() if code not in (0, 75, -signal.SIGKILL)]
        if strange or report.failures:
            report.failures.append(f"{run.name}: exit codes {list(pids.values())}\n{log_tail(run)}")
            for pid, code in pids.items():
                if code is None:
                    os.kill(pid, signal.SIGKILL)
            break
        if set(pids.values()) == {0}:
            report.finished += 1
            difference = same(run, twin)
            report.equal += not difference
            if difference:
                report.failures.append(difference)
            log = run / "train.log"
            report.passed_over += log.read_text().count("Passed over")
            shutil.rmtree(run)
    report.worlds = dict(worlds)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def log_tail(run: Path) -> str:
    """The last lines of what every rank said."""
    found = sorted(run.parent.glob(f"{run.name}.rank*.log"))
    return "\n".join(
        f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-25:]) for path in found
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modes", nargs="+", choices=list(STEPS))
    parser.add_argument(
        "--kills",
        type=int,
        nargs="+",
        default=[20],
        help="one number for all modes, or one per mode",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    preload()
    good = True
    for mode, kills in zip(
        args.modes, args.kills if len(args.kills) > 1 else args.kills * len(args.modes), strict=True
    ):
        folder = Path(tempfile.mkdtemp(prefix=f"ddpm-faults-{mode}-"))
        report = series(mode, kills, args.seed, folder)
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(asdict(report)), flush=True)
        good &= report.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
