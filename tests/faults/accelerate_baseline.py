"""The same kills on accelerate's own save_state and load_state, to see what they are worth.

    python tests/faults/accelerate_baseline.py --kills 60

A training loop as accelerate's examples write it: shuffled loader, automatic checkpoint names, two
checkpoints kept, a registered counter, `skip_first_batches`. It is killed inside saves, slowed by
four milliseconds a file, and started again by the same command. A start that cannot load ends that
run, because nobody is there to repair it: the next one begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

os.environ["ACCELERATE_USE_CPU"] = "1"
torch.set_num_threads(1)
STEPS, EVERY, PER_EPOCH = 40, 5, 12


class Counter:
    """The step, as a thing that accelerate saves."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def train(run: Path) -> None:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, set_seed

    set_seed(0)
    project = ProjectConfiguration(str(run), automatic_checkpoint_naming=True, total_limit=2)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 8))
    data = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader
    )
    counter = Counter()
    accelerator.register_for_checkpointing(counter)
    folder = run / "checkpoints"
    if folder.is_dir() and any(folder.iterdir()):
        accelerator.load_state()
        project.iteration = 1 + max(int(p.name.rsplit("_", 1)[1]) for p in folder.iterdir())
    while counter.step < STEPS:
        done = counter.step % PER_EPOCH
        for batch in accelerator.skip_first_batches(loader, done) if done else loader:
            noise = torch.randn_like(batch)
            loss = (model(batch + noise) - noise).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            counter.step += 1
            if counter.step % EVERY == 0:
                accelerator.save_state()
            if counter.step == STEPS:
                break
    save_file(
        {name: p.detach() for name, p in model.named_parameters()}, run / "result.safetensors"
    )


def attempt(run: Path) -> int:
    """Fork one start; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(run.parent / f"{run.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        slow_down()
        train(run)
        code = 0
    except BaseException as error:
        print(f"FAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
    finally:
        os._exit(code)


def slow_down() -> None:
    """Four milliseconds more for every file, as in the harness."""
    from accelerate import accelerator, checkpointing

    real = checkpointing.save

    def save(*args, **kwargs):
        time.sleep(0.004)
        return real(*args, **kwargs)

    checkpointing.save = accelerator.save = save


def series(kills: int, seed: int, folder: Path) -> dict[str, int]:
    report = dict.fromkeys(
        ("kills", "inside_a_write", "starts", "could_not_load", "finished", "equal"), 0
    )
    draw = random.Random(seed)
    twin, number = folder / "twin", 0
    twin.mkdir()
    assert os.waitpid(attempt(twin), 0)[1] == 0, (folder / "twin.log").read_text()
    expected = load_file(twin / "result.safetensors")
    while report["kills"] < kills:
        run = folder / f"run-{number}"
        run.mkdir(exist_ok=True)
        folder_of = run / "checkpoints"
        there = {p.name for p in folder_of.iterdir()} if folder_of.is_dir() else set()
        pid, killed, saves = attempt(run), False, draw.randint(1, 3)
        report["starts"] += 1
        status, seen = None, set(there)
        while status is None:
            found, code = os.waitpid(pid, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(code)
                break
            # Only what this start writes counts: an earlier one may have left half a checkpoint.
            new = (
                [p for p in folder_of.iterdir() if p.name not in seen] if folder_of.is_dir() else []
            )
            if new and not killed:
                seen.add(new[0].name)
                saves -= 1
                if not saves:
                    time.sleep(draw.uniform(0, 0.02))
                    os.kill(pid, signal.SIGKILL)
                    killed = True
                    report["kills"] += 1
                    report["inside_a_write"] += not (
                        new[0] / "custom_checkpoint_0.pkl"
                    ).exists()  # its last file
            time.sleep(0.0005)
        if status == 0:
            report["finished"] += 1
            result = load_file(run / "result.safetensors")
            report["equal"] += all(torch.equal(result[name], expected[name]) for name in expected)
        elif status == 1:
            report["could_not_load"] += 1
        if status in (0, 1):
            number += 1
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    import accelerate.utils  # noqa: F401 - before the forks
    import torch._dynamo

    where = Path(tempfile.mkdtemp(prefix="ddpm-accelerate-"))
    print(json.dumps(series(known.kills, known.seed, where)))
    said = [
        line
        for log in where.glob("*.log")
        for line in log.read_text().splitlines()
        if line.startswith("FAILED")
    ]
    for line in sorted(set(said))[:8]:
        print(f"{said.count(line)} x {line}")
    shutil.rmtree(where)
    sys.exit(0)
