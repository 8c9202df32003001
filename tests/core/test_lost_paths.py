"""Paths that lead nowhere: what is said of them, in every place that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import TINY, ddpm, error_of, train
from ddpm_lib import GaussianDiffusion, Trainer, Unet, load_run, open_dataset
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import lost, meant
from ddpm_lib.data.missing_paths import look_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, a run and a file of settings, as a user's working directory."""
    root = tmp_path_factory.mktemp("place")
    for name in ("cats", "dogs"):
        (root / "pics" / name).mkdir(parents=True)
        for i in range(6):
            grey = np.full((8, 8, 3), 20 * i, np.uint8)
            Image.fromarray(grey).save(root / "pics" / name / f"{i}.png")
    assert train(root / "runs" / "mine") == 0
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("SET", "pics")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("pics/cat", "'pics/cat' does not exist. Did you mean 'pics/cats'?"),
        ("pics/zzzzzz", "'pics/zzzzzz' does not exist. 'pics' holds cats, dogs."),
        ("pics\\cats", "Did you mean 'pics/cats'?"),
        ("'pics'", "Did you mean 'pics'?"),
        (" pics ", "Did you mean 'pics'?"),
        ("$SET/cats", "Did you mean 'pics/cats'?"),
        ("$UNSET/cats", "Variables in it are left to the shell"),
        ("C:\\Users\\me\\pics", "It is a path of Windows"),
        ("nothing/of/it", "There is no 'nothing' in '"),
        ("pics/cats/a/b", "The path exists only up to 'pics/cats'."),
        ("", "The path is empty. Is a variable of the shell unset?"),
    ],
)
def test_what_is_said(written: str, said: str) -> None:
    assert said in lost(written)


def test_an_address_of_a_file_here(place: Path) -> None:
    assert meant(f"file://{place}/pics") == f"{place}/pics"
    assert meant("https://example.org/pics") is None


def _trained(**options: Any) -> None:
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), num_classes=None), image_size=8)
    Trainer(
        diffusion, **{"data": "pics", "max_steps": 1, "output_dir": "runs/x", **options}
    ).train()


PYTHON: dict[str, Callable[[str], Any]] = {
    "open_dataset": lambda path: open_dataset(path, image_size=8),
    "Trainer(data)": lambda path: _trained(data=path),
    "Trainer(val_data)": lambda path: _trained(val_data=path),
    "from_pretrained": GaussianDiffusion.from_pretrained,
}
COMMANDS = {
    "train": "train {} --image-size 8 --max-steps 1",
    "train --val-data": "train pics --val-data {} --image-size 8 --max-steps 1",
    "evaluate --data": "evaluate runs/mine --data {}",
    "evaluate --reference": "evaluate pics/cats --reference {}",
    "ablate": "ablate {} --vary model.dim=8,16",
    "edit": "edit runs/mine {}",
    "inpaint": "inpaint runs/mine pics/cats --mask {}",
    "convert": "convert {} runs/x",
    "prepare sysu": "prepare sysu {} out",
}


@pytest.mark.parametrize("path", ["pics/cat", "pics/zzzzzz"])
@pytest.mark.parametrize("entry", PYTHON)
def test_a_mistyped_path_in_python(entry: str, path: str) -> None:
    with pytest.raises((OSError, ValueError, RuntimeError)) as caught:
        PYTHON[entry](path)
    assert str(caught.value).startswith(lost(path))


@pytest.mark.parametrize("path", ["pics/cat", "pics/zzzzzz"])
@pytest.mark.parametrize("entry", COMMANDS)
def test_a_mistyped_path_at_the_command_line(
    entry: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [path if word == "{}" else word for word in COMMANDS[entry].split()]
    assert ddpm(*words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f": {lost(path)}" in said
    assert len(said) < 400


def test_an_estimate_says_what_lies_there() -> None:
    assert "'pics' holds cats, dogs" in str(look_for("pics/zzzzzz"))


EMPTY: dict[str, Callable[[], Any]] = {
    "open_dataset": lambda: open_dataset("", image_size=8),
    "Trainer": lambda: _trained(data=""),
    "output_dir": lambda: _trained(output_dir=""),
    "init_from": lambda: _trained(init_from=" "),
    "look_for": lambda: look_for(""),
}


@pytest.mark.parametrize("entry", EMPTY)
def test_an_empty_path_is_not_the_working_directory(entry: str) -> None:
    """`ddpm train "$DATA"` with a variable that is not set."""
    with pytest.raises((OSError, ConfigError), match=r"is empty\. Is a variable"):
        EMPTY[entry]()


@pytest.mark.parametrize(
    "words",
    [
        ("",),
        ("", "--dry-run"),
        ("pics", "--output-dir", ""),
        (
            "pics",
            "--init-from=",
        ),
    ],
)
def test_an_empty_word(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "is empty" in error_of(capsys, "train", *words, "--image-size", 8, "--max-steps", 1)


def test_home_in_every_place(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shells leave the tilde alone behind --flag= and in quotes; nobody replaces it in files."""
    settings = place / "home.yaml"
    settings.write_text("data: ~/pics\noutput_dir: ~/runs/of-file\n")
    short = [*TINY, "--sample-every", "0", "--val-every", "0", "--max-steps", "1"]
    assert ddpm("train", "--config", "~/home.yaml", *short) == 0
    assert ddpm("train", "~/pics", *short, "--output-dir=~/runs/of-flag") == 0
    assert (place / "runs/of-file/config.yaml").is_file()
    assert (place / "runs/of-flag/config.yaml").is_file()
    assert ddpm("sample", "~/runs/mine", "--num", 1, "--num-steps", 1, "--output-dir=~/drawn") == 0
    assert (place / "drawn").is_dir()
    load_run("~/runs/mine").diffusion.save_pretrained("~/model")
    assert GaussianDiffusion.from_pretrained("~/model").image_size == (8, 8)
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,)), image_size=8)
    trainer = Trainer(diffusion, "~/pics", output_dir="~/runs/of-python", max_steps=1)
    assert trainer.output_dir == place / "runs/of-python"
    assert not (place / "~").exists()
