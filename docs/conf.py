"""The documentation site: `make -C docs html`, without network.

The guides are the Markdown files of this folder. Two parts are made when it is built, from the
library itself, so that they cannot differ from it: the options of every command, and the signatures
and docstrings of the public names.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))
sys.path.insert(0, str(HERE))

os.environ["COLUMNS"] = "100"  # the width of `--help`
os.environ["NO_COLOR"] = "1"

import ddpm_lib  # noqa: E402
from ddpm_lib.cli import COMMANDS, main  # noqa: E402
from site_names import PUBLIC_ROOMS  # noqa: E402

project = "ddpm_lib"
author = "The ddpm_lib authors"
copyright = "The ddpm_lib authors"
version = release = ddpm_lib.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "ddpm_lib"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "monokai"

myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "colon_fence", "attrs_inline"]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["ref.python"]

copybutton_prompt_text = "$ "


def _help_of(command: str) -> str:
    """Return what `ddpm COMMAND --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()


def write_commands(folder: Path) -> None:
    """Write a page with the options of every command."""
    lines = [
        "# Commands",
        "",
        "What `ddpm COMMAND --help` prints, for every command. What an option does in Python has the same name with underscores.",
        "",
    ]
    for command in COMMANDS:
        lines += [f"## ddpm {command}", "", "```text", _help_of(command), "```", ""]
    (folder / "commands.md").write_text("\n".join(lines), encoding="utf-8")


def write_reference(folder: Path) -> None:
    """Write a page per room with the signatures and docstrings of its public names."""
    for room in PUBLIC_ROOMS:
        lines = [f"# {room.title}", "", room.about, ""]
        for name in room.names:
            module, _, attribute = name.rpartition(".")
            found = getattr(__import__(module, fromlist=[attribute]), attribute)
            kind = "class" if isinstance(found, type) else "function"
            if not isinstance(found, type) and not callable(found):
                kind = "data"
            lines += [f"## {attribute}", "", "```{eval-rst}", f".. auto{kind}:: {name}"]
            lines += ["   :members:", "   :undoc-members:"] * (kind == "class")
            lines += ["```", ""]
        (folder / f"{room.file}.md").write_text("\n".join(lines), encoding="utf-8")


def escape_stars(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Keep `(b, c, *spatial)` of a docstring from being read as emphasis."""
    for number, line in enumerate(lines):
        pieces = re.split(r"(`[^`]*`)", line)
        lines[number] = "".join(
            piece if piece.startswith("`") else re.sub(r"(?<!\\)\*", r"\\*", piece)
            for piece in pieces
        )


def _generate(app: Any) -> None:
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    write_commands(folder)
    write_reference(folder)


def setup(app: Any) -> None:
    """Make the generated pages before Sphinx looks for pages, and mend docstrings."""
    app.connect("autodoc-process-docstring", escape_stars, priority=900)  # after napoleon
    _generate(app)
