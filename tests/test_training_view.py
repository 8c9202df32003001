"""Who may touch the Trainer: nobody but callbacks, and those only what `TrainingView` lists."""

from __future__ import annotations

import ast
from pathlib import Path

import ddpm_lib
from ddpm_lib.training.callbacks.base import TrainingView

SOURCE = Path(ddpm_lib.__file__).parent
CALLBACKS = [*(SOURCE / "training" / "callbacks").glob("*.py"), SOURCE / "evaluation" / "callback.py"]


def test_callbacks_touch_only_what_the_view_lists() -> None:
    listed = {name for name in vars(TrainingView) if not name.startswith("_")}
    assert {"step", "log", "save", "stop", "sample"} <= listed
    seen = set()
    for path in CALLBACKS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer":
                seen.add(node.attr)
                assert isinstance(node.ctx, ast.Load), f"{path.name}:{node.lineno} writes trainer.{node.attr}"
    assert seen <= listed, f"not in TrainingView: {seen - listed}"
    assert len(seen) > 15, "the walk finds nothing any more"


def test_every_entry_of_the_view_says_what_it_is() -> None:
    for name, member in vars(TrainingView).items():
        if not name.startswith("_"):
            assert member.__doc__, name
