"""Which packages are here: those that the library needs, and those that only some of it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from ddpm_lib.core.health import Check

NAME = "ddpm-lib"

FOR_WHAT = {
    "notebook": "bars in notebooks",
    "export": "`ddpm export --to onnx`",
    "demo": "`ddpm demo`",
    "xlsx": "`ddpm report --xlsx`",
    "arrays": "HDF5, Zarr and multi-band TIFF",
    "volumes": "NIfTI and DICOM",
    "text": "texts as conditions, by sentence-transformers",
}
"""What extras serve, those that a user of the library may want."""


def check_packages() -> Iterator[Check]:
    """Compare what is installed with what the library asks for."""
    try:
        wanted = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . in its folder"
        yield Check("packages", "note", "not installed: run from its source", remedy)
        return
    by_extra: dict[str, list[str]] = {}
    for requirement in wanted:
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        by_extra.setdefault(named[1] if named else "", []).append(requirement)
    core = by_extra.pop("", [])
    wrong = [text for text in map(missing, core) if text]
    if wrong:
        remedy = f"pip install --upgrade {NAME}"
        yield Check("packages", "broken", "; ".join(wrong), remedy)
    else:
        yield Check("packages", "ok", f"all {len(core)} that the library needs are here")
    for extra, use in FOR_WHAT.items():
        wrong = [text for text in map(missing, by_extra.get(extra, [])) if text]
        if extra in by_extra and wrong:
            remedy = f"where you want it: pip install '{NAME}[{extra}]'"
            yield Check(f"extra {extra}", "note", f"for {use}: {'; '.join(wrong)}", remedy)
        elif extra in by_extra:
            yield Check(f"extra {extra}", "ok", f"for {use}: here")


def missing(requirement: str) -> str:
    """Return what is wrong with a requirement such as "pyyaml>=6.0"; "" for nothing."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name} {version} is here, {wanted.specifier} is needed"
