"""A word for `ddpm status` where a signal ends `ddpm train` while it starts; light, because loading
torch takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ddpm_lib.core.file_locks import holder
from ddpm_lib.core.files import write_atomically
from ddpm_lib.runs.run_status import is_run, run_status

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")


class _Ended(SystemExit):
    """A signal came before training has handlers of its own; the exit code is that of a run that
    was stopped.
    """


@contextlib.contextmanager
def ends_with_a_word(args: list[str]) -> Iterator[None]:
    """Note "stopped" in the run directory where a signal ends the command before training begins.

    While training runs, its own handlers are in the place of these.

    Args:
        args: The command's arguments, which name the run directory or do not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    own, old = os.getpid(), {n: signal.getsignal(n) for n in numbers}

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != own:  # a child that reads pictures
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise _Ended(143, signal.Signals(number).name)

    taken = [n for n in numbers if old[n] is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        print(f"ddpm train: received {ended.args[1]} before training began.", file=sys.stderr)
        run = _run_directory(args)
        if run is not None and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            with contextlib.suppress(OSError):  # no disk, no word
                _note(run, str(ended.args[1]))
        raise SystemExit(143) from None
    finally:
        for number in taken:
            signal.signal(number, old[number])


def _run_directory(args: list[str]) -> Path | None:
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") == "--output-dir":
            given = value if equals else (args[i + 1] if i + 1 < len(args) else "")
            return Path(given) if given else None
        if name == "--config":
            file = Path(value if equals else (args[i + 1] if i + 1 < len(args) else ""))
            if file.name == "config.yaml" and is_run(file.parent) and "--output-dir" not in args:
                return file.parent
    return None


def _note(run: Path, name: str) -> None:
    if run.exists() and not is_run(run) and (not run.is_dir() or any(run.iterdir())):
        return  # somebody else's
    run.mkdir(parents=True, exist_ok=True)
    now = run_status(run)
    if now.word == "finished" or holder(run) is not None:
        return
    words = {
        "status": "stopped",
        "step": now.step or 0,
        "max_steps": now.max_steps,
        "save_every": now.save_every,
    }
    reason = f"received {name} before training began"
    write_atomically(
        run / "status.json", json.dumps({**words, "reason": reason}, indent=1).ljust(1023) + "\n"
    )
