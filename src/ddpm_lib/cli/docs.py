"""`ddpm docs`: the guides, where there is no network and no clone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import ddpm_lib
from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import printable, sayable
from ddpm_lib.runs.verdict.symptoms import slug

DESCRIPTION = (
    "Print a guide: the pages that help and messages name, such as docs/symptoms.md. They came with"
    " the library and need no network. Without a page, list them."
)


@dataclass(frozen=True, kw_only=True)
class DocsCommand:
    """Options of `ddpm docs`."""

    page: tyro.conf.Positional[str] = ""
    """The page, as symptoms or docs/symptoms.md; docs/symptoms.md#1-only-noise for a section."""
    path: bool = False
    """Print where the file lies instead: for an editor, and for its pictures, which lie beside."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: DocsCommand = options.parse(DocsCommand, args, DocsCommand(), "ddpm docs", DESCRIPTION)
    if not command.page:
        told = printable(folder()) if command.path else "\n".join(listed())
    else:
        file, anchor = find(command.page)
        text = file.read_text(encoding="utf-8")
        text = section(text, anchor, file.stem) if anchor else text
        told = printable(file) if command.path else text.rstrip("\n")
    print(sayable(told, getattr(sys.stdout, "encoding", None)))
    return 0


def folder() -> Path:
    """Return where the guides lie: in the installed package, or in the clone that is used."""
    package = Path(ddpm_lib.__file__).parent
    for place in (package / "guides", package.parents[1] / "docs"):
        if (place / "index.md").is_file():
            return place
    raise ConfigError(
        f"The guides are not beside {printable(package)}, as they are where the library was"
        " installed by pip. Install it again: pip install --force-reinstall --no-deps ddpm-lib"
    )


def pages() -> dict[str, str]:
    """Return the title of each page by its name."""
    found = {}
    for file in sorted(folder().glob("*.md")):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        found[file.stem] = first.removeprefix("# ").strip()
    return found


def listed() -> list[str]:
    """Return a line for each page, and how to read one."""
    titles = pages()
    longest = max(map(len, titles))
    told = [f"  {name:{longest}}  {title}" for name, title in titles.items()]
    return [
        "pages:",
        *told,
        "",
        "`ddpm docs first_minutes` prints one; README is the place to begin.",
    ]


def find(written: str) -> tuple[Path, str]:
    """Return the file of a page, and the section that was asked for, empty for all.

    Args:
        written: As messages write it (`docs/training.md#resuming`), or the name alone.

    Raises:
        ConfigError: If there is no such page.
    """
    page, _, anchor = written.partition("#")
    name = page.removeprefix("docs/").removesuffix(".md")
    titles = pages()
    if name not in titles:
        raise ConfigError(unknown_name("page", name, titles))
    return folder() / f"{name}.md", anchor


def section(text: str, anchor: str, page: str) -> str:
    """Return a heading and what stands below it, up to the next of its rank.

    Args:
        text: Of the page, in Markdown.
        anchor: The heading as links have it: `1-only-noise`.
        page: Its name, for the message.

    Raises:
        ConfigError: If no heading is called so.
    """
    lines = text.splitlines()
    heads = headings(lines)
    for at, (number, rank, title) in enumerate(heads):
        if slug(title) == anchor:
            after = (line for line, other, _ in heads[at + 1 :] if other <= rank)
            return "\n".join(lines[number : next(after, None)])
    raise ConfigError(
        unknown_name(f"section of {page}", anchor, [slug(title) for _, _, title in heads])
    )


def headings(lines: list[str]) -> list[tuple[int, int, str]]:
    """Return line number, rank and words of the headings; comments of code are none."""
    found, code = [], False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            code = not code
        marks, space, title = line.partition(" ")
        if not code and space and marks and set(marks) == {"#"}:
            found.append((number, len(marks), title.strip()))
    return found
