"""Kills, and what comes after them: the harness in tests/faults, and launchers with two
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from locations import FAULTS, HELPERS
from training_helpers import assert_same_tensors, curve, final_tensors

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def harness(*args: str, timeout: float) -> list[dict]:
    command = [sys.executable, str(FAULTS / "harness.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)
    assert done.returncode == 0, (done.stdout[-6000:] + done.stderr[-3000:]).replace("\\n", "\n")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_few_kills() -> None:
    """Inside checkpoint writes: bitwise the twin. At random moments, and with another number of
    processes at each restart too: the slow tests.
    """
    reports = harness("writes", "--kills", "2", timeout=600)
    assert sum(report["kills"] for report in reports) == 2
    assert all(report["equal"] == report["finished"] >= 1 for report in reports)
    assert reports[0]["inside_a_write"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kills"),
    [("random", 100), ("writes", 100), ("worlds", 100), ("workers", 40), ("students", 40)],
)
def test_hundreds_of_kills(mode: str, kills: int) -> None:
    (report,) = harness(mode, "--kills", str(kills), timeout=3000)
    assert report["kills"] == kills
    assert report["equal"] == report["finished"]
    assert mode != "writes" or report["inside_a_write"] >= 40


def torchrun(run: Path, steps: int, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *flags,
    ]
    command += [str(HELPERS / "run_tiny.py"), str(run), str(steps)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_steps(
    run: Path, least: int, process: subprocess.Popen[str], limit: float = 240
) -> None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        rows = (
            (run / "metrics.jsonl").read_text().splitlines()
            if (run / "metrics.jsonl").exists()
            else []
        )
        if len(rows) * 2 >= least:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run did not come to step {least}")


@pytest.mark.slow
def test_sigterm_under_torchrun_twenty_times(tmp_path: Path) -> None:
    """Every time: both ranks stop at one step, a checkpoint is there, and the next start goes on
    from it.
    """
    draw, seconds, step = random.Random(0), [], 0
    for _ in range(20):
        process = torchrun(tmp_path, 10**6)
        wait_for_steps(tmp_path, step + 4, process)
        time.sleep(draw.uniform(0, 0.3))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while json.loads((tmp_path / "status.json").read_text())["status"] != "stopped":
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        seconds.append(time.monotonic() - began)
        _, err = process.communicate(timeout=240)
        status = json.loads((tmp_path / "status.json").read_text())
        assert status["reason"] == "received SIGTERM"
        assert status["step"] > step
        step = status["step"]
        assert f"Training stopped at step {step:,}" in err
        assert (tmp_path / "checkpoints" / f"step-{step:09d}" / "manifest.json").is_file()
    print(
        f"20 stops; from the signal to the saved checkpoint {min(seconds):.2f} …"
        f" {max(seconds):.2f} s"
    )


@pytest.mark.slow
def test_max_restarts_continues_after_a_lost_rank(tmp_path: Path) -> None:
    """One rank is killed three times; torchrun starts both again, and the end is the uninterrupted
    one.
    """
    whole = torchrun(tmp_path / "a", 40)
    whole.communicate(timeout=300)
    process = torchrun(
        tmp_path / "b", 40, "--max-restarts", "3"
    )  # one for each death: meeting again never fails
    for at in (8, 16, 24):
        wait_for_steps(tmp_path / "b", at, process)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        time.sleep(1)
    _, err = process.communicate(timeout=600)
    said = err.count("Another process of this run is gone")
    assert process.returncode == 0, err[-2000:]
    assert said >= 1
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def children_of(pid: int) -> list[int]:
    return [
        int(p)
        for p in subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True
        ).stdout.split()
    ]


def in_own_session(command: list[str], hangup: signal.Handlers) -> subprocess.Popen[str]:
    """Start with this answer to SIGHUP, however the tests themselves were started: nohup hands down
    SIG_IGN.
    """
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
    )


HANDLED = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "flags", "target", "name", "code"),
    [
        ("python", (), "launcher", "SIGTERM", 143),
        ("python", (), "group", "SIGUSR1", 143),
        ("python", (), "launcher", "SIGUSR2", 143),
        ("python", (), "launcher", "SIGHUP", 143),
        ("python", (), "group", "SIGINT", 130),
        ("torchrun", (), "launcher", "SIGTERM", 1),
        ("torchrun", (), "launcher", "SIGINT", 1),
        ("torchrun", (), "group", "SIGTERM", 1),
        ("torchrun", (), "one rank", "SIGTERM", 0),
        ("torchrun", (), "one rank", "SIGUSR1", 0),
        ("torchrun", HANDLED, "launcher", "SIGUSR1", 1),
        ("torchrun", HANDLED, "group", "SIGUSR1", 1),
        ("accelerate", (), "group", "SIGTERM", None),
        ("accelerate", (), "one rank", "SIGUSR1", None),
    ],
)
def test_signals_by_launcher(
    tmp_path: Path, launcher: str, flags: tuple, target: str, name: str, code: int | None
) -> None:
    """Wherever a handler can run: a checkpoint, the same step on all ranks, no orphan. `code` is
    the launcher's.
    """
    run, program = (
        tmp_path / "run",
        [
            str(HELPERS / "run_tiny.py"),
            str(tmp_path / "run"),
            "1000000",
        ],
    )
    start = {
        "python": [sys.executable],
        "torchrun": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            *flags,
        ],
        "accelerate": [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            "1",
            "--cpu",
        ],
    }[launcher]
    process = in_own_session([*start, *program], signal.SIG_DFL)
    try:
        wait_for_steps(run, 4, process)
        ranks = children_of(process.pid)
        began, number = time.monotonic(), getattr(signal, name)
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(ranks[-1] if target == "one rank" else process.pid, number)
        while (
            json.loads((run / "status.json").read_text())["status"] != "stopped"
            and time.monotonic() < began + 60
        ):
            time.sleep(0.01)
        seconds = time.monotonic() - began
        _, err = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    status = json.loads((run / "status.json").read_text())
    print(
        f"| {launcher} {' '.join(flags[:1])} | {target} | {name} | saved in {seconds:.1f} s |"
        f" {process.returncode} |"
    )
    assert status["status"] == "stopped", err[-2000:]
    assert status["reason"] == f"received {name}"
    assert (run / "checkpoints" / f"step-{status['step']:09d}" / "manifest.json").is_file()
    assert code is None or process.returncode == code
    assert not subprocess.run(["pgrep", "-f", str(run)], capture_output=True).stdout


@pytest.mark.slow
def test_a_closed_terminal_stops_nothing_under_nohup(tmp_path: Path) -> None:
    process = in_own_session(
        [sys.executable, str(HELPERS / "run_tiny.py"), str(tmp_path), "1000000"], signal.SIG_IGN
    )
    try:
        wait_for_steps(tmp_path, 4, process)
        process.send_signal(signal.SIGHUP)
        wait_for_steps(
            tmp_path, 2 * len((tmp_path / "metrics.jsonl").read_text().splitlines()) + 40, process
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 143
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "received SIGTERM"
