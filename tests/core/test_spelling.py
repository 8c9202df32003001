"""Messages write an option as the reader writes it: `--max-steps` at a command line, `max_steps`
in Python.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ddpm_lib
from ddpm_lib import TrainingConfig
from ddpm_lib.cli.evaluate import EvaluateCommand
from ddpm_lib.cli.train import TrainCommand
from ddpm_lib.core import spelling
from ddpm_lib.training import ConfigError

SOURCE = Path(ddpm_lib.__file__).parent
NAMES = {f.name for cls in (TrainCommand, EvaluateCommand) for f in dataclasses.fields(cls)} - {
    "low_res_noise"
}
BARE = re.compile(rf"(?<![\w.`'\"/-])({'|'.join(n for n in NAMES if '_' in n)})(?![\w(])")
PYTHON = {
    "GaussianDiffusion(": "a line of Python that helps",
    "same output_dir, and call trainer.sample()": "what Python alone can do",
    "Open it with": "an object of Python",
    "num_workers=0 reads in this process": "a Dataset of Python",
    "image_column.": "a Dataset of Python",
    "reader=": "the readers of Python",
    "becomes a number when the Trainer": "the command's number is known by then",
    "Remove lazy layers": "a network of one's own",
    "held_out must be": "an argument of a function",
}
"""What marks messages that only Python's users meet, and why."""


def raised(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The messages in `raise`, with {} in the place of what is put in."""
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None):
        for part in ast.walk(node):
            if isinstance(part, ast.JoinedStr):
                words = [v.value if isinstance(v, ast.Constant) else "{}" for v in part.values]
                yield part.lineno, "".join(map(str, words))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


@pytest.mark.parametrize("room", ["training", "data", "evaluation"])
def test_no_raised_message_names_an_option_in_one_spelling_alone(room: str) -> None:
    found = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        for line, text in raised(ast.parse(path.read_text(encoding="utf-8"))):
            known = any(mark in text for mark in PYTHON)
            for match in BARE.finditer(text):
                flag = "--" + match[1].replace("_", "-")
                if " " in text and not known and flag not in text:
                    found.append(f"{path.relative_to(SOURCE)}:{line} {match[1]}: {text[:90]}")
    assert found == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_workers": -1}, ["num_workers"]),
        ({"val_fraction": 1.5}, ["val_fraction"]),
        ({"final_learning_rate_ratio": 2.0}, ["final_learning_rate_ratio"]),
        ({"posthoc_ema": (0.5,)}, ["posthoc_ema"]),
        ({"ema_decay": (0.9, 0.9)}, ["ema_decay"]),
        ({"batch_size": 7, "accumulation_steps": 2}, ["batch_size", "accumulation_steps"]),
        ({"batch_size": 6, "shards": 4}, ["batch_size"]),
        ({"save_every": 10, "keep_every": 15}, ["save_every", "keep_every"]),
        ({"init_weights": "model"}, ["init_weights", "init_from"]),
        ({"val_data": "held", "val_every": 0}, ["val_data", "val_every"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_named_as_the_reader_writes_them(
    options: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(ConfigError) as python:
        TrainingConfig(**options)
    with spelling.flags(), pytest.raises(ConfigError) as shell:
        TrainingConfig(**options)
    for name in names:
        flag = "--" + name.replace("_", "-")
        assert name in str(python.value)
        assert "--" not in str(python.value)
        assert flag in str(shell.value)
        assert not re.search(rf"\b{name}\b", str(shell.value))
