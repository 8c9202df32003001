"""Who may touch the Trainer: nobody but callbacks, and those only what `TrainingView` lists."""

from __future__ import annotations

import ast
import dataclasses
import logging
import sys
from pathlib import Path

import pytest

import ddpm_lib
from ddpm_lib import TrainingConfig
from ddpm_lib.training.callbacks.base import TrainingView
from ddpm_lib.training.trainer_options import TrainerOptions
from training_helpers import tiny_trainer

WHOLE_RUN = {"Trainer", "PreparedRun", "RunContext", "Rehearsal"}
"""Types that hold everything."""

SOURCE = Path(ddpm_lib.__file__).parent
CALLBACKS = [
    *(SOURCE / "training" / "callbacks").glob("*.py"),
    SOURCE / "evaluation" / "training_callback.py",
    SOURCE / "evaluation" / "final_score.py",
    SOURCE / "compat" / "lucidrains" / "milestone_callback.py",
]


def test_callbacks_touch_only_what_the_view_lists() -> None:
    listed = {name for name in vars(TrainingView) if not name.startswith("_")}
    assert {"step", "log", "save", "stop", "sample"} <= listed
    seen = set()
    for path in CALLBACKS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "trainer"
            ):
                seen.add(node.attr)
                assert isinstance(node.ctx, ast.Load), (
                    f"{path.name}:{node.lineno} writes trainer.{node.attr}"
                )
    assert seen <= listed, f"not in TrainingView: {seen - listed}"
    assert len(seen) > 15, "the walk finds nothing any more"


def test_every_entry_of_the_view_says_what_it_is() -> None:
    for name, member in vars(TrainingView).items():
        if not name.startswith("_"):
            assert member.__doc__, name


def test_no_function_takes_the_trainer_but_callbacks() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for arg in args:
                types = (
                    {n.id for n in ast.walk(arg.annotation) if isinstance(n, ast.Name)}
                    if arg.annotation
                    else set()
                )
                whole = types & WHOLE_RUN or (arg.arg == "trainer" and path not in CALLBACKS)
                if whole:
                    found.add(name)
    assert found == set()


def test_callbacks_of_other_rooms_hand_on_values() -> None:
    """Outside the room of callbacks only the hooks themselves see the run."""
    found = [
        f"{path.name}: {node.name}"
        for path in CALLBACKS
        if path.parent.name != "callbacks"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("on_")
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if arg.annotation is not None and "TrainingView" in ast.unparse(arg.annotation)
    ]
    assert not found, "take values instead"


def test_nobody_writes_a_private_attribute_of_another() -> None:
    """In the rooms of training: roll-back and batch_size="auto" rewind and overwrite nothing."""
    for path in (SOURCE / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            private = node.attr.startswith("_") and not node.attr.endswith("__")
            assert own or not private, f"{path.name}:{node.lineno} writes {node.attr}"


def test_what_a_trainer_has_later_is_born_empty_and_says_so(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(
        AttributeError, match=r"The Trainer has no averaged network yet\. Call prepare\(\) first"
    ):
        trainer.averaged_network()
    for name in (
        "accelerator",
        "device",
        "dataset",
        "held_out",
        "plan",
        "optimizer",
        "ema",
        "watchdog",
        "randomness",
    ):
        assert not hasattr(trainer, name), name
        with pytest.raises(AttributeError, match=rf"The Trainer has no {name} yet"):
            getattr(trainer, name)
    born = set(vars(trainer))
    trainer.train()
    assert set(vars(trainer)) == born
    assert repr(trainer) == f"Trainer(Unet, output_dir={str(tmp_path)!r}, step=6 of 6)"


# --- options ---


def test_the_keywords_of_a_trainer_are_the_fields_of_its_config() -> None:
    """But for val_data and add_data, which in Python may be any objects."""
    fields = {f.name: f.type for f in dataclasses.fields(TrainingConfig)}
    keywords = {
        name: getattr(a, "__forward_arg__", a) for name, a in TrainerOptions.__annotations__.items()
    }
    assert keywords == fields | {"val_data": "Any", "add_data": "Any"}
    assert list(keywords) == list(fields)


# --- logging ---


def test_the_console_is_silenced_by_the_level_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_trainer(tmp_path / "a", max_steps=1).train()
    assert "Training finished at step 1" in capsys.readouterr().err
    logging.getLogger("ddpm_lib").setLevel(logging.WARNING)
    try:
        tiny_trainer(tmp_path / "b", max_steps=1).train()
    finally:
        logging.getLogger("ddpm_lib").setLevel(logging.NOTSET)
    assert capsys.readouterr().err == ""
    assert "Training finished at step 1" in (tmp_path / "b" / "train.log").read_text()


def test_lines_of_a_run_are_not_said_twice_by_handlers_of_the_application(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    collector = logging.Handler()
    collector.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ddpm_lib.run").addHandler(collector)
    root = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(root)
    try:
        tiny_trainer(tmp_path, max_steps=1).train()
    finally:
        logging.getLogger().removeHandler(root)
        logging.getLogger("ddpm_lib.run").removeHandler(collector)
    assert capsys.readouterr().err.count("Training finished at step 1") == 1
    assert any(line.startswith("Training finished at step 1") for line in seen)
