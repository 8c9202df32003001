"""What a run is about, for whoever reads it later: about.json; reading it loads no torch.

The facts of the first start stay; every later start adds what may differ in it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.progress import in_notebook

FILE = "about.json"

STARTS_KEPT = 200
"""Starts that are recorded: the first, and the newest ones."""

_MOST = 2**24  # bytes of an about.json; one of 100,000 classes has three million
_PATIENCE = 5.0  # seconds to wait for git, which may have to read a slow disk
_DESCRIBED = re.compile(r"(?:(?P<tag>.+)-(?P<since>\d+)-g)?(?P<commit>[0-9a-f]{40,64})")


def command_line(arguments: Sequence[str], original: Sequence[str]) -> str | None:
    """Return a process's command as a shell takes it, None in a notebook, which has none.

    Args:
        arguments: `sys.argv`.
        original: `sys.orig_argv`, which begins with the interpreter.
    """
    if in_notebook() or not arguments:
        return None
    program = os.path.basename(arguments[0])
    if program == "ddpm":
        return shlex.join([program, *arguments[1:]])
    if not original:
        return shlex.join(arguments)
    return shlex.join([os.path.basename(original[0]), *original[1:]])


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return which commit the files of a directory are of: commit, dirty and describe.

    Files that git does not follow are no change. None outside of a repository, before its first
    commit, and where git is missing or does not answer.
    """
    command = ["git", "-C", str(directory), "describe", "--always", "--long", "--tags", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=64"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode("utf-8", "replace").strip()
    dirty = text.endswith("-dirty")
    found = _DESCRIBED.fullmatch(text.removesuffix("-dirty"))
    if done.returncode or found is None:
        return None
    tag, since, commit = found["tag"], int(found["since"] or 0), found["commit"]
    name = commit[:12] if tag is None else f"{tag}-{since}-g{commit[:12]}" if since else tag
    return {"commit": commit, "dirty": dirty, "describe": name + ("-dirty" if dirty else "")}


def this_start(step: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a start of training in this process, now.

    Args:
        step: The step that it goes on from.
        facts: What else is known, for example versions, device and precision.
    """
    directory = Path.cwd()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": command_line(sys.argv, sys.orig_argv),
        "directory": str(directory),
        "git": git_state(directory),
        **facts,
    }


def with_start(
    about: dict[str, Any], start: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return about.json with one start more.

    A run that begins, at step 0, is about what it is now; one that goes on stays about what it
    began with.

    Args:
        about: What `read_about` returned.
        start: What `this_start` returned.
        facts: Parameters, data and the like, which a start repeats.
    """
    starts = [*about.get("starts", ()), start]
    if len(starts) > STARTS_KEPT:
        starts = [starts[0], *starts[1 - STARTS_KEPT :]]
    now = {**facts, **{name: value for name, value in start.items() if name != "step"}}
    before = {} if not start["step"] else {k: v for k, v in about.items() if k != "starts"}
    return {**now, **before, "starts": starts}


def write_about(run: Path, about: dict[str, Any]) -> None:
    """Write about.json.

    Raises:
        OSError: If the disk refuses.
    """
    write_atomically(run / FILE, json.dumps(about, indent=1) + "\n")


def read_about(run: Path) -> dict[str, Any]:
    """Return what about.json says, empty where it is missing or damaged.

    What is an object by its format (data, git, versions, device) is one or None, and "starts" is a
    list of objects.
    """
    try:
        with (run / FILE).open("rb") as file:
            about = json.loads(file.read(_MOST).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(about, dict):
        return {}
    for name in ("data", "git", "versions", "device"):
        if not isinstance(about.get(name), dict):
            about[name] = None
    starts = about.get("starts")
    about["starts"] = (
        [one for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []
    )
    return about
