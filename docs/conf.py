"""The documentation site: `make -C docs html`, without network.

The guides are the Markdown files of this folder. Two parts are made when it is built, from the
library itself, so that they cannot differ from it: the options of every command, and the signatures
and docstrings of the public names.
"""

from __future__ import annotations

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

from site_pages import write_all  # noqa: E402

import ddpm_lib  # noqa: E402

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
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["ref.python"]

copybutton_prompt_text = "$ "


def escape_stars(
    app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Keep `(b, c, *spatial)` of a docstring from being read as emphasis."""
    for number, line in enumerate(lines):
        pieces = re.split(r"(`[^`]*`)", line)
        lines[number] = "".join(
            piece if piece.startswith("`") else re.sub(r"(?<!\\)\*", r"\\*", piece)
            for piece in pieces
        )


def outside_links(app: Any, page: str, source: list[str]) -> None:
    """Name files of the repository that are no pages of the site: there is nothing to link to."""
    if page.startswith("generated/"):  # where ../ is the folder of the guides
        return
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)", _named_file, source[0])


def _named_file(link: re.Match[str]) -> str:
    text, file = link[1], link[2]
    if file.endswith(".png"):
        return link[0]
    return f"`{file}`" if text.strip("`") == file else f"{text} (`{file}` in the repository)"


def setup(app: Any) -> None:
    """Make the generated pages before Sphinx looks for pages, and mend docstrings."""
    app.connect("autodoc-process-docstring", escape_stars, priority=900)  # after napoleon
    app.connect("source-read", outside_links)
    write_all(HERE / "generated")
