"""The guides keep their word: snippets run and print what they say, commands parse, links lead
somewhere.

In `docs/*.md` a ```python block runs if it stands in `extending.md`, where every block is complete,
or below a line `<!-- runs -->`, where the blocks of a page share their names. A ```text block below
a block that runs is what it prints; … stands for anything. A ```yaml block whose first line is `#
run.yaml` is that file for the commands.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from ddpm_lib import parametrization, schedules, spacing, time_sampling, variance, weighting
from ddpm_lib.cli import init_from, options
from ddpm_lib.cli.ablate import AblateCommand
from ddpm_lib.cli.audit import AuditCommand
from ddpm_lib.cli.best import BestCommand
from ddpm_lib.cli.compare import CompareCommand
from ddpm_lib.cli.completion import CompletionCommand
from ddpm_lib.cli.convert import ConvertCommand
from ddpm_lib.cli.demo import DemoCommand
from ddpm_lib.cli.distill import DistillCommand
from ddpm_lib.cli.docs import DocsCommand
from ddpm_lib.cli.doctor import DoctorCommand
from ddpm_lib.cli.edit import EditCommand
from ddpm_lib.cli.ema import EmaCommand
from ddpm_lib.cli.estimate import EstimateCommand
from ddpm_lib.cli.evaluate import EvaluateCommand
from ddpm_lib.cli.export import ExportCommand
from ddpm_lib.cli.inpaint import InpaintCommand
from ddpm_lib.cli.prepare import PrepareCommand
from ddpm_lib.cli.push import PushCommand
from ddpm_lib.cli.report import ReportCommand
from ddpm_lib.cli.restore import RestoreCommand
from ddpm_lib.cli.run_settings import RunConfig, layered
from ddpm_lib.cli.sample import SampleCommand
from ddpm_lib.cli.slurm import SlurmCommand
from ddpm_lib.cli.status import StatusCommand
from ddpm_lib.cli.train import TrainCommand
from ddpm_lib.cli.tune import TuneCommand
from ddpm_lib.cli.values import UsageError
from ddpm_lib.cli.watch import WatchCommand
from ddpm_lib.cli.weights import WeightsCommand
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation import METRICS
from ddpm_lib.interop.openai_flags import PUBLISHED_FLAGS
from ddpm_lib.nn import NETWORKS
from ddpm_lib.process import clipping
from ddpm_lib.process.measuring import METHODS
from ddpm_lib.process.operators import OPERATORS
from ddpm_lib.samplers import SAMPLERS
from ddpm_lib.training.fine_tuning.network_changes import Described
from locations import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
COMMANDS = {
    "train": TrainCommand,
    "estimate": EstimateCommand,
    "sample": SampleCommand,
    "edit": EditCommand,
    "inpaint": InpaintCommand,
    "restore": RestoreCommand,
    "evaluate": EvaluateCommand,
    "convert": ConvertCommand,
    "export": ExportCommand,
    "compare": CompareCommand,
    "weights": WeightsCommand,
    "ema": EmaCommand,
    "distill": DistillCommand,
    "ablate": AblateCommand,
    "tune": TuneCommand,
    "prepare": PrepareCommand,
    "audit": AuditCommand,
    "push": PushCommand,
    "status": StatusCommand,
    "report": ReportCommand,
    "watch": WatchCommand,
    "doctor": DoctorCommand,
    "best": BestCommand,
    "slurm": SlurmCommand,
    "completion": CompletionCommand,
    "docs": DocsCommand,
    "demo": DemoCommand,
}
REGISTRIES = [
    schedules.SCHEDULES,
    parametrization.PARAMETRIZATIONS,
    weighting.WEIGHTINGS,
    variance.VARIANCES,
    time_sampling.TIME_SAMPLERS,
    SAMPLERS,
    spacing.SPACINGS,
    clipping.CLIPS,
    OPERATORS,
    METHODS,
    METRICS,
]
FOREIGN = {
    "--nproc_per_node",
    "--num_processes",
    "--cpu",
    "--multi_gpu",
    "--help",
    "--version",
    "--data",
    *(f"--{name}" for name in PUBLISHED_FLAGS),  # of other libraries' scripts
} | {
    f"--{name}"
    for name in (
        "job-name",
        "time",
        "cpus-per-task",
        "mem",
        "gres",
        "requeue",
        "open-mode",
        "ntasks",
        "nodes",
    )
}
FOREIGN |= {
    "--ntasks-per-node",
    "--gpus-per-node",
    "--kill-on-bad-exit",
    "--signal",
    "--standalone",
    "--max-restarts",
}
FOREIGN |= {"--signals-to-handle", "--help-all", "--index-url", "--no-deps"}
FOREIGN |= {"--rm", "--ipc", "--nv", "--bind", "--no-index", "--find-links"}
FOREIGN |= {
    "--nnodes",
    "--rdzv-backend",
    "--rdzv-id",
    "--rdzv-endpoint",
    "--local-addr",
    "--num_machines",
    "--machine_rank",
}
FOREIGN |= {
    "--main_process_ip",
    "--main_process_port",
    "--mixed_precision",
    "--dynamo_backend",
    "--word",
    "--json",
}
"""Flags of other programs, and those that every command has."""


class Block(NamedTuple):
    """A fenced block: its language, its text, its line, whether it runs, and what it prints."""

    language: str
    text: str
    line: int
    runs: bool
    printed: str | None


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, f"{page.name}: a block is not closed"
    previous = None
    for start, end in zip(fences[::2], fences[1::2]):
        language, text = lines[start][3:].strip(), "\n".join(lines[start + 1 : end])
        marked = start > 0 and lines[start - 1].strip() == "<!-- runs -->"
        runs = language == "python" and (marked or page.name == "extending.md")
        if (
            language == "text"
            and previous is not None
            and found[-1].runs
            and not any(lines[previous + 1 : start])
        ):
            found[-1] = found[-1]._replace(printed=text)
        found.append(Block(language, text, start + 2, runs, None))
        previous = end
    return found


@pytest.fixture
def registries_kept() -> Iterator[None]:
    kept = [*REGISTRIES, NETWORKS]
    before = [dict(registry._entries) for registry in kept]
    yield
    for registry, entries in zip(kept, before):
        registry._entries = entries


def matches(wanted: str, got: str) -> bool:
    pattern = r"\s+".join(re.escape(word).replace("…", ".*?") for word in wanted.split())
    return re.fullmatch(pattern, " ".join(got.split()), re.DOTALL) is not None


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.runs for b in blocks(p))], ids=lambda p: p.stem
)
def test_snippets_run_and_print_what_the_page_says(
    page: Path, registries_kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        if not block.runs:
            continue
        names = {"__name__": "docs"} if page.name == "extending.md" else names
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            exec(code, names)
        if block.printed is not None:
            assert matches(block.printed, printed.getvalue()), (
                f"{page.name}:{block.line} printed:\n{printed.getvalue()}"
            )


def test_pages_train_in_directories_of_their_own() -> None:
    # A reader who follows the guides one after the other, in one folder, must not meet the run of
    # another page.
    places = {}
    for page in PAGES:
        code = "\n".join(block.text for block in blocks(page) if block.runs)
        places[page.name] = set(re.findall(r'output_dir="([^"]+)"', code))
    assert sum(map(len, places.values())) == len(set().union(*places.values())), places


def flags_of(cls: type, prefix: str = "") -> set[str]:
    found = set()
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        for extra in getattr(hints[field.name], "__metadata__", ()):
            found |= set(getattr(extra, "aliases", None) or ())
        name = prefix + field.name.replace("_", "-")
        inner = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found |= flags_of(inner, f"{name}.")
        else:
            found |= {f"--{name}", f"--{prefix}no-{field.name.replace('_', '-')}"}
    return found


def flags_of_examples() -> set[str]:
    """The options of the scripts in examples/, which each keep in a dataclass `Options`."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "examples").glob("*.py")
    ]
    classes = [
        node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Options"
    ]
    fields = [
        field.target.id
        for node in classes
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    return {f"--{name.replace('_', '-')}" for name in fields}


def flags_of_scripts() -> set[str]:
    """The options that the scripts in benchmarks/ and examples/ give to argparse."""
    paths = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return {flag for text in texts for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text)}


KNOWN = (
    set().union(*map(flags_of, COMMANDS.values()))
    | flags_of_examples()
    | flags_of_scripts()
    | FOREIGN
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_flag_exists(page: Path) -> None:
    # References in pairs of backticks and blocks; words after -- in running text are prose.
    text = page.read_text(encoding="utf-8")
    spans = [b.text for b in blocks(page) if b.language != "python"]
    spans += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    flags = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", span)}
    assert flags - KNOWN == set()


def commands(page: Path) -> list[list[str]]:
    """All `ddpm …` lines of the shell blocks, also behind a launcher, without what the shell
    adds.
    """
    found = []
    for block in blocks(page):
        if block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line.split(" #")[0]):
                words = shlex.split(part, comments=True)
                for i, word in enumerate(words[:-1]):
                    if word in ("ddpm", "ddpm_lib.cli") and words[i + 1] in COMMANDS:
                        found.append([w for w in words[i + 1 :] if w not in ("&",)])
                if words[-1:] == ["ddpm"]:
                    raise AssertionError(f"{page.name}: a command without a name in {line!r}")
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_every_command_parses(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = init_from.Start(Described(network="Unet", config={}, process={}), None)
    monkeypatch.setattr(init_from, "find_start", lambda *named: start)  # no weights lie here
    for block in blocks(page):
        if block.language == "yaml" and block.text.startswith("# run.yaml"):
            Path("run.yaml").write_text(block.text, encoding="utf-8")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("max_steps: 10\n")
    for name, *args in commands(page):
        if not {"-h", "--help"} & set(args):
            parse(name, args)


def parse(name: str, args: list[str]) -> None:
    """Read the words of a command, as `ddpm` does.

    Raises:
        ConfigError: If it does not take them.
    """
    cls = COMMANDS[name]
    if issubclass(cls, RunConfig):
        layered(args, cls, f"ddpm {name}", "")
    else:
        missing = {
            f.name: tyro.MISSING
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING
        }
        options.parse(cls, args, cls(**missing), f"ddpm {name}", "")


PLACES = {
    "edit": ["run", "a.png"],
    "inpaint": ["run", "a.png", "--mask", "m.png"],
    "restore": ["run", "a.png", "--operator", "blur"],
    "convert": ["a.pt", "out"],
    "export": ["run", "out", "--to", "onnx"],
    "push": ["run", "me/mine"],
    "weights": ["list"],
    "completion": ["bash"],
    "status": [],
    "doctor": [],
}
"""What stands before the options of a command; of others one word."""


def refusal(name: str, args: list[str]) -> str | None:
    """Return why a command does not take the words; None if it does, or what is wrong is only what
    lies here.
    """
    try:
        parse(name, args)
    except UsageError as error:
        return str(error)
    except ConfigError as error:
        return str(error) if "on which data?" in str(error) else None
    return None


def in_running_text(page: Path) -> list[list[str]]:
    """The words of what running text has in backticks and gives an option a value, without
    placeholders.
    """
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = []
    for span in dict.fromkeys(re.findall(r"(?<!`)`((?:ddpm [a-z]+|--)[^`]*)`(?!`)", text)):
        if re.search(r"…|\b[A-Z]{3,}\b|\|", span):
            continue
        words = shlex.split(span)
        first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        values = [word for word in words[first:] if not word.startswith("--")]
        if values and (words[0] != "ddpm" or words[1] in COMMANDS):
            found.append(words)
    return found


FOREIGN_LINES = FOREIGN | flags_of_scripts()


@pytest.mark.parametrize("page", [p for p in PAGES if in_running_text(p)], ids=lambda p: p.stem)
def test_what_running_text_says_of_options_can_be_typed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = init_from.Start(Described(network="Unet", config={}, process={}), None)
    monkeypatch.setattr(init_from, "find_start", lambda *named: start)
    wrong = []
    for words in in_running_text(page):
        if words[0] == "ddpm":
            refused = refusal(words[1], words[2:])
            told = refused is None or "is missing." in refused  # RUN and the like, left out
        else:
            told = words[0] in FOREIGN_LINES or any(
                refusal(name, [*PLACES.get(name, ["a"]), *words]) is None for name in COMMANDS
            )
        wrong += [] if told else [shlex.join(words)]
    assert wrong == []


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_choice_is_named(registry: Any) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in registry if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    made = {
        "generated/commands.md",
        "generated/switching.md",
    }  # by the site: tests/docs/test_site.py
    links = [link for link in links if link not in made]
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


TOLD = [
    *PAGES,
    *(
        ROOT / name
        for name in ("CONTRIBUTING.md", "tests/faults/README.md", "benchmarks/README.md")
    ),
]


@pytest.mark.parametrize("page", TOLD, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_that_are_named_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    places = [ROOT / "src" / "ddpm_lib", ROOT, ROOT / "tests", ROOT / "docs"]
    named = re.findall(r"`([a-z_]+/[a-z_0-9/]+\.(?:py|cpp|sh))`", text)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
