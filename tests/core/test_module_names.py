"""One name for one thing: no two modules or packages of the library are called the same, but for
known reasons.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import ddpm_lib

PACKAGE = Path(ddpm_lib.__file__).parent
COMMAND = "a module of cli is named after its command, and that after what it works on"
CALLBACK = "a callback is named after the room that it serves"
KNOWN = {
    "__main__": "what `python -m` runs: of the package, and of the commands",
    "base": "the base class of a package's own kind of thing: samplers, callbacks",
    "best": COMMAND,
    "ema": COMMAND,
    "estimate": COMMAND,
    "hub": "the hub, and data sets by their names there",
    "low_res": "the flags of the condition, and the condition",
    "lucidrains": "the file format, and the compatible classes",
    "memory": "memory of the machine, and memory that training takes",
    "metrics": CALLBACK,
    "names": "names of images, and names of checkpoints",
    "opening": "of data, and of other libraries' files",
    "options": "options of the commands, and options of registered parts",
    "plan": "how to sample, and the command that plans a training",
    "presets": "networks by name, and whole processes by name",
    "pretrained": "networks in pretrained folders, and whole processes in them",
    "report": COMMAND,
    "sampling": "sampling as mathematics, and the samples of a training",
    "snapshots": CALLBACK,
    "sources": "sources of images, and the source of a training",
    "streams": "streams of the terminal, and streams of random numbers",
    "validation": "validation of options, and the callback of that name",
    "values": "values of flags, and values of pixels",
    "weights": COMMAND,
}
"""Names that two modules have, and why."""


def homes() -> dict[str, list[str]]:
    """Return the dotted names of modules and packages by their last part."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[parts[-1]].append(".".join(parts))
    return found


def test_no_two_modules_have_one_name() -> None:
    found = homes()
    assert len(found) > 100
    several = {name: modules for name, modules in found.items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in KNOWN} == {}
    assert all(len(modules) == 2 for modules in several.values()), several


def test_no_module_of_evaluation_is_called_like_another() -> None:
    found = homes()
    for name in (p.stem for p in (PACKAGE / "evaluation").glob("*.py") if p.stem != "__init__"):
        assert found[name] == [f"evaluation.{name}"]
