"""`ddpm doctor`: what this machine can do, a line and a remedy each."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ddpm_lib.cli import options
from ddpm_lib.cli.text_tables import room
from ddpm_lib.core.health import Check, run_checks
from ddpm_lib.core.text import printable, sayable, so_many

DESCRIPTION = (
    "Say what this machine can do, a line each, and what to do where something is missing:"
    " packages, torch and what it computes on, precision, compiler and kernel, workers, memory,"
    " disk, weights of feature extractors, the hub, SLURM. Nothing is installed or"
    " changed.\n\nThe exit code is 0 where everything that training and sampling need works, notes"
    " or not, and 1 where something is broken."
)

MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Options of `ddpm doctor`."""

    output_dir: str = "runs"
    """Where runs would be written: its disk is looked at."""
    json: bool = False
    """Print one JSON object: healthy, and the checks with name, state, says and remedy."""


def main(args: list[str]) -> int:
    """Run the command; 1 if something is broken."""
    command: DoctorCommand = options.parse(
        DoctorCommand, args, DoctorCommand(), "ddpm doctor", DESCRIPTION
    )
    found = []
    for check in run_checks(checks(Path(command.output_dir))):
        found.append(check)
        if not command.json:  # each as soon as it is known
            for line in lines_of(check, room()):
                print(sayable(line, getattr(sys.stdout, "encoding", None)), flush=True)
    broken = [check for check in found if check.state == "broken"]
    if command.json:
        listed = [dataclasses.asdict(check) for check in found]
        print(json.dumps({"healthy": not broken, "checks": listed}, indent=1))
    else:
        print(f"\n{summary(found)}")
    return 1 if broken else 0


def checks(output_dir: Path) -> Iterator[tuple[str, Callable[[], Iterable[Check]]]]:
    """Yield the checks by name, those first on which the others stand; each room's own is imported
    when it is its turn, so that one that cannot be imported is one line.
    """
    for name, (module, function) in _CHECKS.items():
        yield name, partial(_look, module, function, *([output_dir] if name == "disk" else []))


_CHECKS = {
    "python": ("cli.doctor", "check_python"),
    "packages": ("core.package_checks", "check_packages"),
    "torch": ("runtime.machine_checks", "check_torch"),
    "devices": ("runtime.machine_checks", "check_devices"),
    "torch.compile": ("runtime.machine_checks", "check_compiling"),
    "kernel": ("nn.kernels.kernel_checks", "check_kernels"),
    "triton": ("nn.kernels.kernel_checks", "check_triton"),
    "workers": ("data.workers", "check_workers"),
    "memory": ("runtime.machine_checks", "check_memory"),
    "/dev/shm": ("runtime.machine_checks", "check_shared_memory"),
    "disk": ("runtime.machine_checks", "check_disk"),
    "cache": ("core.caching", "check_cache"),
    "weights": ("metrics.weights", "check_weights"),
    "hub": ("core.hub.hub_checks", "check_hub"),
    "SLURM": ("runtime.machine_checks", "check_slurm"),
}


def _look(module: str, function: str, *given: object) -> Iterable[Check]:
    import importlib

    found: Iterable[Check] = getattr(importlib.import_module(f"ddpm_lib.{module}"), function)(
        *given
    )
    return found


def check_python() -> Iterator[Check]:
    """Say which Python and which version of the library run, and where they lie."""
    from ddpm_lib import __file__, __version__

    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("ddpm-lib", "ok", f"{__version__} in {Path(str(__file__)).parent}")
    yield Check("python", "ok", f"{version}, {sys.executable}")


def lines_of(check: Check, width: int | None) -> list[str]:
    """Return the line of a check, and its remedy below it, wrapped where a width is given."""
    lines = []
    for mark, name, text in (
        (MARKS[check.state], check.name, check.says),
        ("", "", f"→ {check.remedy}" if check.remedy else ""),
    ):
        if text:
            head = f"{mark:6}  {name:<18} "
            wide = max(30, (width or 10**6) - len(head))
            first, *rest = textwrap.wrap(printable(text), wide, break_on_hyphens=False) or [""]
            lines += [f"{head}{first}", *(f"{'':{len(head)}}{line}" for line in rest)]
    return lines


def summary(found: Sequence[Check]) -> str:
    """Say in a sentence how it stands."""
    broken = [check.name for check in found if check.state == "broken"]
    notes = sum(check.state == "note" for check in found)
    if broken:
        return f"Broken: {', '.join(broken)}. The arrows say what to do."
    also = f"; {so_many(notes, 'note')} on what could be more" if notes else ""
    return f"Everything that training and sampling need works{also}."
