"""The example scripts, from their first line on, on a small imitation of the dataset."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

from locations import ROOT
from sysu_clone import clone

CLASSES = ("airplane", "bicycle", "boat", "car", "motorbike")
SMALL = ["--image-size", "32", "--dim", "8", "--dim-mults", "1", "2", "--blocks-per-level", "1"]
SHORT = ["--max-steps", "2", "--batch-size", "4", "--sample-every", "2"]


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> int:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [name, *words])
    return module.main()


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["train_sysu", "train_superres"])
def test_training_starts_in_a_fresh_directory_and_goes_on(name, tmp_path, monkeypatch) -> None:
    data = clone(tmp_path / "dataset", classes=CLASSES, n=4)
    monkeypatch.chdir(tmp_path)
    run = Path("runs/mine")
    words = ["--data", str(data), "--output-dir", str(run), *SMALL, *SHORT]
    words += ["--val-every", "2"] if name == "train_sysu" else ["--sample-steps", "2"]
    assert run_example(monkeypatch, name, *words) == 0
    assert (run / "checkpoints" / "step-000000002").is_dir()
    assert Path("runs/mine-masked-32/train_data").is_dir()
    assert not list(run.glob("*masked*")), "data inside a run directory are refused"
    words[words.index("--max-steps") + 1] = "3"
    assert run_example(monkeypatch, name, *words) == 0
    assert (run / "checkpoints" / "step-000000003").is_dir()


WRONG = {
    "train_cifar10": ["--data", "nowhere/at/all", "--preset", "tiny"],
    "train_sysu": ["--data", "nowhere"],
    "train_superres": ["--data", "nowhere"],
    "toy2d": ["--toy", "ring", "--batch-size", "0"],
    "inpaint": ["--run", "nowhere"],
    "generate_dataset": ["--model", "nowhere", "--prompt", "owl", "--output", "x", "--count", "0"],
    "fine_tune": ["--source", "nowhere/a/b", "--data", "x", "--held-out", "y"],
}


def test_every_script_is_tried() -> None:
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # one is a command already, the other needs no library
    assert set(WRONG) == scripts - {"sample_sysu", "sample_onnx"}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_a_script_in_a_line(name, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"examples/{name}.py", *WRONG[name]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"examples/{name}.py"), run_name="__main__")
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(f"{name}.py: ")
