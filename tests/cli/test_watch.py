"""`ddpm watch`: what a picture shows, and following a run in a real terminal."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib.cli import main, text_plots
from ddpm_lib.cli.text_plots import Axis, Canvas, Series, legend, plot, thinned
from ddpm_lib.cli.watch import frame, packed
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.runs.metrics_file import write_status
from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.verdict import headline, judge


def row(step: int, **more: Any) -> dict[str, Any]:
    known = {"step": step, "loss": 1 / step, "images": 4 * step, "images_per_second": 8.0}
    return (
        known | ({"val_loss": 1.2 / step, "val_loss_error": 0.01} if step % 5 == 0 else {}) | more
    )


def write_run(run: Path, rows: list[dict[str, Any]], word: str = "finished") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    write_status(run, status=word, step=len(rows), max_steps=200, reason="reached max_steps 200")
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return run


def test_dots_stand_where_the_values_are() -> None:
    """The line y = x from corner to corner, and its logarithm on a logarithmic axis."""
    for points in ([(k, k) for k in range(-3, 5)], [(k, 2.0**k) for k in range(8)]):
        text = plot([Series("y", points)], 10 + 8, 2 + 8, braille=False)
        assert [line[10:].rstrip() for line in text[:8]] == [" " * (7 - k) + "*" for k in range(8)]
    canvas = Canvas(1, 1)
    for x in range(2):
        for y in range(4):
            canvas.dot(x, y, 0)
    assert canvas.lines(False) == ["⣿"]
    canvas.dot(2, 0, 0)
    canvas.dot(0, -1, 0)
    assert canvas.lines(False) == ["⣿"]


def test_axes() -> None:
    assert Axis.around([1.0, 4.0]) == Axis(1.0, 4.0)
    assert Axis.around([1.0, 10.0]).log
    assert not Axis.around([0.0, 10.0]).log, "zero has no logarithm"
    assert Axis.around([1e-12, 1.0]).low == 1 / text_plots.DECADES
    flat = Axis.around([3.0, 3.0])
    assert flat.place(3.0) == pytest.approx(0.5)
    for axis in (Axis(2.0, 7.0), Axis(2.0, 7.0, log=True)):
        for share in (0.0, 0.3, 1.0):
            assert axis.place(axis.at(share)) == pytest.approx(share)


def test_many_points_are_means_of_groups() -> None:
    points = [(float(k), float(k % 2)) for k in range(1000)]
    few = thinned(points, 10)
    assert [p[1] for p in few] == [0.5] * 10
    assert math.fsum(p[0] for p in few) == pytest.approx(10 * 499.5)
    assert thinned(points, 1000) == points


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (200, 50)])
@pytest.mark.parametrize("count", [0, 1, 2, 150, 3000])
@pytest.mark.parametrize("braille", [True, False])
def test_a_picture_fits_every_terminal(
    tmp_path: Path, size: tuple[int, int], count: int, braille: bool
) -> None:
    rows = [row(k) for k in range(1, count + 1)]
    records = read_records(write_run(tmp_path / "run", rows))
    for metrics in ((), ("loss", "images")):
        lines = frame(records, metrics, *size, braille=braille)
        assert len(lines) < size[1], "a full last line would scroll"
        assert max(map(len, lines)) <= size[0]
        assert all(line.isprintable() for line in lines)
        assert braille or all(ord(c) < 0x2000 for line in lines for c in line.replace("…", ""))
    assert ("no line of metrics yet" in lines[-1]) == (count == 0)


def test_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(k) for k in range(1, 101)]
    rows += [
        row(105, val_loss=0.5, val_gap=0.25, val_gap_adjusted=0.2, val_gap_adjusted_error=0.01)
    ]
    run = write_run(tmp_path / "a run", rows)
    for args in ([], ["--once"]):
        assert main(["watch", str(run), *args]) == 0
        out = capsys.readouterr().out
        assert f"{run}: finished" in out
        assert "held-out 0.5 ± 0.01 (lowest 0.012 at step 100)" in out
        assert "gap +0.2 ± 0.01" in out, "the sets' own difference is taken off"
        assert "step 105" in out
        assert headline(judge(read_records(run))) in out
        assert "\x1b" not in out
    assert main(["watch", str(run), "--metric", "los"]) == 2
    assert "Unknown metric 'los'. Did you mean 'loss'?" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "a ru")]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert main(["watch", str(run), "--interval", "0"]) == 2


def test_damage_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [row(1), row(2, loss=None), row(3, loss="x"), row(4)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    lines = frame(read_records(run), (), 60, 20, braille=False)
    assert "loss 0.25" in "".join(lines)
    assert any(line.endswith("step 4") for line in lines)


def test_curves_are_told_apart_without_colours() -> None:
    curves = [Series("a", [(0, 0), (9, 0)]), Series("b", [(0, 1), (9, 1)]), Series("none", [])]
    for braille, marks in ((True, "━━ a   oo b"), (False, "** a   oo b")):
        assert legend(curves, braille=braille) == marks
        text = plot(curves, 40, 8, braille=braille)
        assert "o" in text[0]
        assert "o" not in text[5]
    assert "\x1b[36m" in "".join(plot(curves, 40, 8, colours=True))


def test_packing() -> None:
    assert packed(["aa", "bb", "c" * 9, "d"], 8) == ["aa   bb", "c" * 9, "d"]


class Terminal:
    """`ddpm watch` in a terminal of its own."""

    def __init__(self, run: Path, columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "ddpm_lib", "watch", str(run), "--interval", "0.1"]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Read on until a text comes; return what came up to then."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.said[-2000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self._read()
        before, _, self.said = self.said.partition(text)
        return before + text

    def end(self) -> tuple[int, str]:
        try:
            code = self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        while select.select([self.master], [], [], 0.1)[0] and self._read():
            pass
        os.close(self.master)
        return code, self.said

    def _read(self) -> bool:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is gone
            return False
        self.said += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, RunLock]]:
    run = write_run(tmp_path / "run", [row(k) for k in range(1, 31)], "running")
    lock = RunLock(run)
    lock.acquire()
    yield run, lock
    lock.release()


def test_it_follows_resizes_and_ends_with_the_run(running: tuple[Path, RunLock]) -> None:
    run, lock = running
    screen = Terminal(run, 70, 20)
    first = screen.wait_for("Ctrl-C ends watching")
    assert first.startswith("\x1b[?1049h\x1b[?25l")
    assert "run: running" in first
    assert "step 30 of 200 (15%)" in first
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(40)) + "\n")
    screen.wait_for("step 40 of 200")
    screen.resize(110, 30)
    wide = screen.wait_for(f"└{'─' * 100}\x1b[K")
    assert "step 40" in wide
    write_status(run, status="finished", step=200, max_steps=200, reason="reached max_steps 200")
    lock.release()
    code, rest = screen.end()
    assert code == 0
    left = rest.rpartition("\x1b[?25h\x1b[?1049l")[2]
    assert "run: finished" in left, "the last picture stays"
    assert "step 200 of 200 (100%)" in left


def test_ctrl_c_is_a_clean_end(running: tuple[Path, RunLock]) -> None:
    run, _ = running
    screen = Terminal(run, 70, 20)
    screen.wait_for("Ctrl-C ends watching")
    os.killpg(screen.process.pid, signal.SIGINT)
    code, rest = screen.end()
    assert code == 0
    assert "Traceback" not in rest
    assert "\x1b[?25h\x1b[?1049l" in rest, "the terminal is as it was"
    assert "the run itself was not touched" in rest
