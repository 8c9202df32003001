"""`ddpm demo`: what is drawn, what is refused, and the page in a real browser."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import TINY, ddpm, error_of, train
from ddpm_lib.cli.demo_page import command_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.drawing import SIDE, Artist, Wish, pixels
from ddpm_lib.runs.loading import find_checkpoints
from ddpm_lib.runs.stored_sampling import write_sampling
from training_helpers import tiny_diffusion, tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "runs" / "a run"
    # An untrained network that predicts x0 draws grey, one that predicts ε draws noise.
    classes = ("--class-conditional", "--ema-decay", "0.9,0.5", "--model.class-drop-prob", "0.2")
    classes += ("--diffusion.parametrization", "eps", "--diffusion.weighting", "simple")
    assert train(folder, *classes, "--max-steps", 2, "--val-every", 0) == 0
    return folder


@pytest.fixture(scope="module")
def artist(run: Path) -> Artist:
    return Artist(find_checkpoints(run)[-1], torch.device("cpu"), "no")


def test_it_draws_what_the_command_draws(
    run: Path, artist: Artist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line below the pictures, run as it stands, draws the same ones to the last value."""
    assert artist.weights == ["ema 0.9", "ema 0.5", "model"]
    assert artist.guidable
    for k, wish in enumerate(
        (
            Wish(weights="ema 0.9", num=3, steps=3),
            Wish(weights="ema 0.5", class_name="star", num=2, seed=7, steps=2, guidance=2.5),
            Wish(weights="model", num=1, steps=4),
        )
    ):
        drawn = artist.draw(wish)
        words = shlex.split(command_of(str(run), "latest", wish))
        where = tmp_path / str(k)
        exact = ["--device", "cpu", "--mixed-precision", "no", "--no-progress"]
        assert ddpm(*words[1:], *exact, "--format", "npz", "--output-dir", where) == 0
        (file,) = where.glob("*.npz")
        wanted = np.load(file)["arr_0"]
        scale = SIDE // wanted.shape[1]
        assert (drawn[:, ::scale, ::scale] == wanted).all()
        assert len(drawn) == wish.num
        assert drawn.std() > 10, "pictures, not one colour"


def test_the_steps_of_a_student_are_those_it_was_tuned_for(tmp_path: Path, artist: Artist) -> None:
    assert artist.usual_steps == artist.timesteps == 20
    student = tiny_diffusion().for_consistency()
    tiny_trainer(tmp_path / "s", student, max_steps=1).train()
    found, cpu = find_checkpoints(tmp_path / "s")[-1], torch.device("cpu")
    assert Artist(found, cpu, "no").usual_steps == 2
    chosen = SamplingDefault(made_by="ddpm distill", sampler="consistency", num_steps=1)
    write_sampling(tmp_path / "s", chosen)
    assert Artist(found, cpu, "no").usual_steps == 1
    wish = Wish(weights="ema sigma_rel=0.1", num=1, steps=2)  # of a checkpoint of its own
    assert "--ema-decay" not in command_of("runs/mine/ema/sigma_rel-0.1", "latest", wish)


def test_small_pictures_are_enlarged_by_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 48 * 60).remainder(256).to(torch.uint8).view(2, 3, 48, 60)
    array = pixels(images)
    assert array.shape == (2, 96, 120, 3)
    assert (array[:, ::2, ::2] == array[:, 1::2, 1::2]).all()
    assert pixels(images[:, :1]).shape == (2, 96, 120)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(weights="model", num=0), "number of pictures must be 1 to 64"),
        (Wish(weights="model", steps=21), "steps must be 1 to 20"),
        (Wish(weights="ema 0.1", steps=2), "There are the weights ema 0.9, ema 0.5, model"),
        (Wish(weights="model", steps=2, class_name="cat"), "no class 'cat'"),
    ],
)
def test_wishes_that_cannot_be_met(artist: Artist, wish: Wish, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        artist.draw(wish)


def test_networks_that_need_more_than_a_class(tmp_path: Path) -> None:
    where = ["--output-dir", tmp_path / "run", "--val-every", "0", "--sample-every", "0"]
    assert (
        ddpm(
            "train",
            "shapes",
            *TINY,
            "--no-class-conditional",
            *where,
            "--model.low-res-factor",
            "2",
            "--max-steps",
            "1",
        )
        == 0
    )
    with pytest.raises(ConfigError, match=r"more than a class \(low_res.*--low-res"):
        Artist(find_checkpoints(tmp_path / "run")[-1], torch.device("cpu"), "no")


def test_without_gradio_it_says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("builtins.__import__", _without_gradio(__import__))
    assert "pip install 'ddpm-lib[demo]'" in error_of(capsys, "demo", run)
    assert "--port must be 1 to 65535" in error_of(capsys, "demo", run, "--port", "0")
    assert "Name one of them" in error_of(capsys, "demo", run, "--checkpoint", "all")


def _without_gradio(real: Any) -> Any:
    def load(name: str, *args: Any) -> Any:
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *args)

    return load


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    """The command as a user starts it, and ends it."""
    pytest.importorskip("gradio", reason="pip install 'ddpm-lib[demo]'")
    command = [sys.executable, "-m", "ddpm_lib", "demo", str(run), "--device", "cpu"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"draws at (http://127\.0\.0\.1:\d+)", line)
    assert found, (line, process.stderr.read() if process.stderr else "")
    yield found[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "The page is closed." in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_page_in_a_browser(run: Path, address: str, tmp_path: Path) -> None:
    """Opened, a class, a seed and a number chosen, drawn, looked at; nothing leaves the machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    browser_program = Path("/usr/bin/chromium")
    if not browser_program.exists():
        pytest.skip("no /usr/bin/chromium")
    asked, errors = [], []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=str(browser_program), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(address)
        told = page.get_by_text("the same from the shell")
        told.wait_for(timeout=120_000)
        assert page.locator("img").count() >= 16, "it draws at once"
        page.get_by_label("class", exact=True).click()
        page.get_by_role("option", name="star").click()
        page.get_by_label("seed", exact=True).fill("5")
        page.get_by_label("number input for pictures").fill("3")
        page.get_by_label("number input for steps").fill("4")
        page.get_by_role("button", name="Draw").click()
        line = page.get_by_text("--seed 5 --num-steps 4")
        line.wait_for(timeout=60_000)
        command = line.inner_text()
        page.wait_for_timeout(500)
        assert page.locator(".grid-container img").count() == 3
        page.screenshot(path=str(tmp_path / "page.png"))
        page.locator(".grid-container").screenshot(path=str(tmp_path / "pictures.png"))
        page.get_by_role("button", name="Others").click()
        page.get_by_text("--seed 6").wait_for(timeout=60_000)
        page.get_by_label("number input for steps").fill("9999")
        browser.close()
    assert f"ddpm sample '{run}' --num 3 --seed 5" in command
    assert "--class-label star" in command
    outside = [u for u in asked if not u.startswith((address, "data:", "blob:"))]
    assert outside == []
    assert errors == []
    assert np.asarray(Image.open(tmp_path / "pictures.png").convert("L")).std() > 10
    print(tmp_path / "page.png")
