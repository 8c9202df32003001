"""The help of a command: examples first, then the options that most people need, then the rest."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ddpm_lib.cli.arguments import Option, members

WIDEST = 100
_INDENT = 26

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "ddpm train": (
        ("ddpm train", "the built-in shapes"),
        ("ddpm train path/to/images --image-size 64", "your own images"),
        ("ddpm train path/to/images --hours 2", "planned, within two hours"),
        ("ddpm train path/to/images --class-conditional", "one sub-folder per class"),
        ("ddpm train path/to/images --dry-run", "only show what it would train"),
    ),
    "ddpm plan": (
        ("ddpm plan path/to/images", "a run.yaml for two hours on this machine"),
        ("ddpm plan path/to/images --hours 8 --image-size 64", "with what is given kept"),
        ("ddpm plan path/to/images --for likelihood", "for few bits per dimension"),
    ),
    "ddpm estimate": (
        ("ddpm estimate", "what `ddpm train` would cost"),
        ("ddpm estimate path/to/images --image-size 64", "what training on your images would cost"),
    ),
    "ddpm sample": (
        ("ddpm sample runs/mine --num 64", "a grid of 64 images"),
        ("ddpm sample runs/mine --num 64 --seed 1", "64 others"),
        ("ddpm sample runs/mine --class-label star --guidance-scale 2", "of one class"),
        ("ddpm sample runs/mine --num 1000 --format png", "a file for each"),
    ),
    "ddpm edit": (("ddpm edit runs/mine photo.png --variants 4", "four redrawings of a picture"),),
    "ddpm inpaint": (
        ("ddpm inpaint runs/mine photo.png --mask mask.png", "paint where the mask is white"),
    ),
    "ddpm restore": (
        ("ddpm restore runs/mine --operator blur:2 photo.png", "deblur a picture"),
        (
            "ddpm restore runs/mine --operator downsampling:4 --simulate photos",
            "shrink pictures, enlarge them again, and compare",
        ),
    ),
    "ddpm report": (
        ("ddpm report runs/mine", "report.html and results.png in the run"),
        ("ddpm report runs/mine runs/base --output both.html", "one page about two runs"),
        ("ddpm report runs/mine --xlsx", "results.xlsx too"),
    ),
    "ddpm distill": (
        ("ddpm distill runs/mine", "a student in runs/mine-distilled, and how it compares"),
        ("ddpm distill runs/mine --steps 1,2,4 --max-steps 5000", "tuned for longer"),
    ),
    "ddpm ablate": (
        (
            "ddpm ablate toy:ring --vary diffusion.schedule=linear,cosine",
            "two schedules on points in the plane",
        ),
        (
            "ddpm ablate path/to/images --vary learning_rate=1e-4,3e-4 --seeds 0,1",
            "two rates, two seeds each",
        ),
    ),
    "ddpm tune": (
        ("ddpm tune runs/mine --calls 10", "as good as can be in 10 network calls"),
        ("ddpm tune runs/mine --undo", "sample as before"),
    ),
    "ddpm ema": (("ddpm ema runs/mine --sigma-rel 0.05,0.1", "two averages"),),
    "ddpm evaluate": (("ddpm evaluate runs/mine", "score a run"),),
    "ddpm convert": (
        (
            "ddpm convert model500000.pt runs/theirs --image-size 64",
            "a run of another library's checkpoint",
        ),
        (
            'ddpm convert --flags "--image_size 64 --learn_sigma True"',
            "the command that trains as OpenAI's scripts would",
        ),
    ),
    "ddpm export": (
        ("ddpm export runs/mine mine-onnx --to onnx", "for onnxruntime, without torch"),
        ("ddpm export runs/mine mine --to safetensors", "a folder for from_pretrained"),
    ),
    "ddpm compare": (("ddpm compare runs/a runs/b", "the newest evaluations of two runs"),),
    "ddpm weights": (("ddpm weights list", "which there are, and which are here"),),
    "ddpm push": (
        ("ddpm push runs/mine me/mine --license mit", "averaged weights and a card"),
        ("ddpm push runs/mine me/mine --dry-run look", "write the folder, upload nothing"),
    ),
    "ddpm status": (
        ("ddpm status", "all runs here and below"),
        ("ddpm status runs/mine", "one of them"),
        ("ddpm status --word runs/mine", "its state in a word, for scripts"),
    ),
    "ddpm watch": (
        ("ddpm watch runs/mine", "loss and held-out loss, until the run ends"),
        ("ddpm watch runs/mine --once", "one picture"),
        ("ddpm watch runs/mine --metric grad_norm,learning_rate", "other curves"),
    ),
    "ddpm best": (
        ("ddpm best runs/mine", "which checkpoint, which average, and why"),
        ("ddpm best runs/mine --json", "the same for scripts"),
    ),
    "ddpm demo": (
        ("ddpm demo runs/mine", "a page at http://127.0.0.1:7860"),
        ("ddpm demo runs/mine --checkpoint best --port 8000", "another checkpoint and port"),
    ),
    "ddpm slurm": (
        ("ddpm slurm run.yaml", "writes run.slurm.sh; nothing is submitted"),
        ("ddpm slurm run.yaml --gpus 4 --nodes 2 --hours 12", "eight GPUs, 12 hours at a time"),
    ),
    "ddpm completion": (
        ("ddpm completion bash --install", "in all new shells"),
        ("ddpm completion zsh", "print it"),
    ),
    "ddpm doctor": (
        ("ddpm doctor", "everything, a line each"),
        ("ddpm doctor --json", "the same for scripts"),
    ),
    "ddpm docs": (
        ("ddpm docs", "the pages, a line each"),
        ("ddpm docs symptoms", "is my run going well?"),
        ("ddpm docs docs/symptoms.md#1-only-noise", "a section, as messages name it"),
    ),
    "ddpm audit": (
        ("ddpm audit path/to/images --image-size 64", "a table, and the page audit.html"),
        ("ddpm audit path/to/images --write-list keep.txt", "for ddpm train … --files keep.txt"),
        ("ddpm audit train_images --val-data test_images", "are test images trained on?"),
    ),
    "ddpm prepare": (
        ("ddpm prepare sysu sysu-shape-dataset sysu-64 --size 64", "object cut-outs of 64×64"),
    ),
}

_TRAIN = (
    "image_size class_conditional preset batch_size max_steps max_hours learning_rate output_dir"
    " horizontal_flip val_data num_workers device mixed_precision seed config dry_run print_config"
)
COMMON: dict[str, str] = {
    "ddpm train": _TRAIN.replace("max_hours", "hours"),
    "ddpm plan": "hours purpose output val_data device seed",
    "ddpm estimate": _TRAIN.replace("dry_run print_config", "probe_steps json"),
    "ddpm sample": (
        "num class_label cond guidance_scale seed first_index checkpoint sampler num_steps format"
        " output_dir batch_size low_res device"
    ),
    "ddpm edit": (
        "fraction variants checkpoint sampler num_steps class_label cond guidance_scale seed"
        " output_dir device"
    ),
    "ddpm inpaint": (
        "mask variants num_resamples jump_length checkpoint sampler num_steps class_label cond"
        " guidance_scale seed output_dir device"
    ),
    "ddpm restore": (
        "operator noise_std simulate method strength variants checkpoint num_steps class_label cond"
        " guidance_scale seed output_dir device"
    ),
    "ddpm distill": (
        "steps max_steps learning_rate batch_size output_dir data checkpoint stages q"
        " teacher_steps num_samples features seed device mixed_precision"
    ),
    "ddpm evaluate": (
        "metrics num data reference checkpoint features sample_steps batch_size seed device"
    ),
}
"""The options that `--help` shows of commands which have many; `--help-all` shows all."""

_WRITTEN = {"cond": "NAME=VALUE", "cond_guidance": "NAME=X"}
"""How the values of options are written that take one at a time."""

_FLAGS = ("-h", "--help", "-H", "--help-all", "--help-verbose")


def wanted(args: Sequence[str]) -> bool:
    """Whether the words ask for help."""
    before = list(args)[: list(args).index("--")] if "--" in args else args
    return any(flag in before for flag in _FLAGS)


def text(
    cls: type,
    options: Sequence[Option],
    prog: str,
    description: str,
    everything: bool,
    shapes: Mapping[tuple[str, ...], Any] | None = None,
) -> str:
    """Write the help of a command.

    Args:
        cls: Its dataclass, whose field docstrings are the help of the options.
        options: Its options.
        prog: The command, as "ddpm train".
        description: What it does.
        everything: Show every option.
        shapes: Defaults that hold for the built-in shapes alone.
    """
    width = max(50, min(shutil.get_terminal_size().columns, WIDEST))
    said = docs_of(cls)
    words = [o for o in options if o.positional]
    flags = [o for o in options if not o.positional]
    lines = [f"usage: {prog} {' '.join(map(_place, words))} [options]".replace("  ", " "), ""]
    lines += _paragraphs(description, width)
    lines += ["", "examples:", *_examples(EXAMPLES.get(prog, ()), width)]
    if words:
        lines += [
            "",
            *(line for o in words for line in _entry(_place(o), _help(o, said, None), width)),
        ]
    common = COMMON.get(prog, "").split()
    shown = flags
    if common and not everything:
        by_name = {".".join(o.path): o for o in flags}
        shown = [by_name[name] for name in common if name in by_name]
    groups: dict[str, list[Option]] = {}
    for option in shown:
        groups.setdefault(".".join(option.path[:-1]), []).append(option)
    for group, members_ in groups.items():
        title = (
            f"options of the {group}"
            if group
            else ("common options" if shown is not flags else "options")
        )
        lines += ["", f"{title}:"]
        for option in members_:
            told = _help(option, said, shapes)
            told = told if shown is flags else _brief(told, 2 * (width - _INDENT))
            lines += _entry(_spelling(option), told, width)
    if shown is not flags:
        lines += ["", f"`{prog} --help-all` shows all {len(flags)} options."]
    return "\n".join(lines)


def _paragraphs(description: str, width: int) -> list[str]:
    """Fill paragraphs to a width; one that is indented is a list, and stays as it is."""
    lines: list[str] = []
    for paragraph in description.split("\n\n"):
        filled = textwrap.wrap(paragraph, width, break_on_hyphens=False)
        lines += ["", *(paragraph.splitlines() if paragraph.startswith(" ") else filled)]
    return lines[1:]


def _examples(examples: Sequence[tuple[str, str]], width: int) -> list[str]:
    room = max((len(command) for command, _ in examples), default=0)
    lines = []
    for command, meaning in examples:
        line = f"  {command:{room}}  {meaning}"
        lines += [line] if len(line) <= width else [f"  {command}", f"      {meaning}"]
    return lines


def _entry(left: str, right: str, width: int) -> list[str]:
    body = textwrap.wrap(right, width - _INDENT, break_on_hyphens=False) or [""]
    left = f"  {left}"
    if len(left) > _INDENT - 2:
        return [left, *(" " * _INDENT + line for line in body)]
    return [f"{left:{_INDENT}}{body[0]}".rstrip(), *(" " * _INDENT + line for line in body[1:])]


def _place(option: Option) -> str:
    name = option.path[-1].upper()
    if any(typing.get_origin(kind) is tuple for kind in members(option.annotation)):
        name = f"{name} [{name} …]"
    return name if option.required else f"[{name}]"


def _spelling(option: Option) -> str:
    names = ", ".join([*option.aliases, option.flag])
    kinds = members(option.annotation)
    if kinds == (bool,):
        return option.negation if option.default is True else names
    return f"{names} {metavar(option)}"


def metavar(option: Option) -> str:
    """Return what stands for the value in the help."""
    if option.path[-1] in _WRITTEN:
        return _WRITTEN[option.path[-1]]
    kinds = [k for k in members(option.annotation) if k is not type(None)]
    return "|".join(dict.fromkeys(_metavar(k, option.path[-1]) for k in kinds))


def _metavar(kind: Any, name: str) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        one = _metavar(arguments[0], name)
        return f"{one},…" if arguments[-1] is Ellipsis else ",".join([one] * len(arguments))
    if origin is dict:
        return "NAME=X,…"
    if kind is bool:
        return "true|false"
    if kind is str:
        for ending in (
            "dir",
            "config",
            "options",
            "column",
            "label",
            "mask",
            "checkpoint",
            "sampler",
            "schedule",
        ):
            if name.endswith(ending):
                return {"config": "FILE", "options": "NAME=X"}.get(ending, ending.upper())
        return "TEXT" if name not in ("preset", "split") else "NAME"
    return {int: "N", float: "X"}.get(kind, "VALUE")


def _help(
    option: Option, said: Mapping[str, str], shapes: Mapping[tuple[str, ...], Any] | None
) -> str:
    words = " ".join(
        (
            option.help or said.get(option.path[-1], "")
            if len(option.path) == 1
            else option.help or ""
        ).split()
    )
    value = option.default
    if value is True and members(option.annotation) == (bool,) and not option.positional:
        words = f"Switches off: {words[:1].lower()}{words[1:]}"
    untold = option.required or option.positional or isinstance(value, bool) or value in (None, ())
    told = "" if untold else f"default {_value(value)}"
    if option.required and not option.positional:
        told = "required"
    if shapes and option.path in shapes and not option.positional:
        told = f"{told}; for the shapes {_value(shapes[option.path])}".lstrip("; ")
    if told.startswith("default ") and f"default: {told[8:]}" in words.lower():
        told = ""
    return f"{words} ({told})" if told else words


def _brief(told: str, room: int) -> str:
    """Leave out the last parts of what is told of an option, but its default, where the room is
    short. What stands in parentheses is not taken apart.

    >>> _brief("Peak learning rate; auto: 2e-4 for 75,000 steps; else more. (default auto)", 60)
    'Peak learning rate. (default auto)'
    >>> _brief("Samples (default: all; with auto 64). More is clamped.", 20)
    'Samples (default: all; with auto 64).'
    """
    words, mark, default = told.rpartition(" (default ")
    if not mark:
        words, default = told, ""
    parts: list[str] = []
    for part in re.split(r"(?<=[.;]) ", words):
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += f" {part}"
        else:
            parts.append(part)
    while len(parts) > 1 and len(" ".join(parts)) + len(mark + default) > room:
        parts.pop()
    brief = " ".join(parts)
    return (brief[:-1] + "." if brief.endswith(";") else brief) + mark + default


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def docs_of(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass and its bases, which Python itself throws
    away.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # built in, or made while the program runs
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, doc in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                found[field.target.id] = str(doc.value.value)
    return found
