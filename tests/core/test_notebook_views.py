"""What notebooks show of our objects: short, escaped, without scripts, legible on any ground."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddpm_lib import GaussianDiffusion, Shapes, Unet, load_run
from ddpm_lib.core.markup import card, escape, facts, never_fails, picture, table
from ddpm_lib.data import Toy, open_dataset, tensor_dataset
from ddpm_lib.data.dataset_html import STREAMED, example_rows
from ddpm_lib.evaluation.evaluation_result import Evaluation
from ddpm_lib.evaluation.scores import Score
from ddpm_lib.nn import MLP, NETWORKS, register_network
from training_helpers import tiny_diffusion, tiny_trainer

VOID = {"img", "br", "circle", "line", "polyline"}


class Checked(HTMLParser):
    """Collects tags, and the texts between them; insists that what opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def look(html: str, limit: int = 40_000) -> str:
    """Check a piece of HTML, and return its text."""
    page = Checked()
    page.feed(html)
    page.close()
    assert page.open == []
    assert not page.tags & {"script", "style", "iframe", "link", "object", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href"):
            assert (value or "").startswith("data:image/png;base64,"), "nothing is fetched"
        if name == "style":  # text and ground keep the colours of the page
            painted = r"(?<![-\w])(color|background(-color)?)\s*:\s*(?!none)"
            assert not re.search(painted, value or "")
    assert len(html) < limit
    return " ".join(page.texts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("views") / "<b>run & co"
    diffusion = tiny_diffusion(num_classes=6)
    options = {"sample_every": 2, "sample_count": 2, "sample_steps": 2, "val_every": 2}
    tiny_trainer(run, diffusion, max_steps=2, val_max_images=2, **options).train()
    return run


def test_a_process_is_told_by_what_makes_it(trained: Path) -> None:
    diffusion = tiny_diffusion(num_classes=6)
    diffusion.class_names = ("<script>alert(1)</script>", "b")
    text = look(diffusion._repr_html_(), 3000)
    for word in ("Unet", "3×8×8", "cosine schedule, 50 levels", "min_snr", "class_label", "cpu"):
        assert word in text
    assert "<script>alert(1)</script>" in text
    assert "learned_range" not in text
    learned = GaussianDiffusion(Unet(dim=8, out_channels=6), image_size=8, variance="learned_range")
    assert "learned_range" in look(learned._repr_html_())


def test_every_registered_network_can_be_looked_at() -> None:
    from ddpm_lib.nn.unet import Unet as Registered

    ours = {n: cls for n, cls in NETWORKS.items() if cls.__module__.startswith("ddpm_lib.")}
    assert len(ours) >= 4
    assert [n for n, cls in ours.items() if not hasattr(cls, "_repr_html_")] == []
    text = look(Registered(dim=8, dim_mults=(1, 2), num_classes=3)._repr_html_(), 3000)
    assert "dim_mults" in text
    assert "1×2" in text
    assert "dropout" not in text, "defaults have no news"
    assert "parameters" in look(MLP()._repr_html_())


def test_a_network_of_ones_own_is_shown_too_or_shows_itself() -> None:
    @register_network("tests/html-network")
    class Own(nn.Module):
        def __init__(self, channels: int = 3, name: str = "x") -> None:
            super().__init__()
            self.channels = channels

    assert "&lt;i&gt;" in Own(3, "<i>")._repr_html_()  # type: ignore[operator]

    @register_network("tests/html-own")
    class Shown(Own):
        def __init__(self, channels: int = 3) -> None:
            super().__init__(channels)

        def _repr_html_(self) -> str:
            return "mine"

    assert Shown()._repr_html_() == "mine"


def test_a_trainer_and_its_result(trained: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "new")
    text = look(trainer._repr_html_(), 4000)
    assert "0 of 6" in text
    assert "train() trains" in text
    assert not (tmp_path / "new").exists(), "looking opens nothing"
    result = tiny_trainer(trained, tiny_diffusion(num_classes=6), max_steps=2).train()
    text = look(result._repr_html_())
    assert "Training finished" in text
    assert "samples at step 2" not in text, "the live view above it has them"
    assert "held-out loss" in text
    assert "report.html" in text
    (trained / "report.html").unlink()
    assert "report.html" not in look(result._repr_html_())
    assert "<b>run & co" in text, "escaped, so it is read as a text"
    assert "PosixPath" not in repr(result)
    assert repr(result).startswith("TrainingResult(finished at step 2: reached max_steps 2, ")


def test_a_loaded_run_is_short_in_both_forms(trained: Path) -> None:
    run = load_run(trained)
    assert len(repr(run)) < 300
    assert "Conv2d" not in repr(run)
    text = look(run._repr_html_())
    for word in ("step-000000002", "ema 0.5", "circle, square", "samples at step 2"):
        assert word in text


def test_a_grid_that_is_damaged_is_said(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    next((copy / "samples").glob("*.png")).write_bytes(b"no picture")
    assert "cannot be read" in look(load_run(copy)._repr_html_())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Shapes(8, n=60), ("60, in RAM", "3×8×8", "circle", "star")),
        (lambda: Shapes(16, n=7, channels=1), ("7, in RAM", "1×16×16")),
        (lambda: Shapes(300, n=3, channels=4), ("4×300×300",)),
        (lambda: Toy("ring", n=20), ("20, in RAM", "points of ring")),
        (lambda: tensor_dataset(torch.rand(5, 2, 30)), ("5, in RAM", "2×30", "no labels")),
        (lambda: Shapes(8, n=60).subset([]), ("0, in RAM",)),
    ],
    ids=["shapes", "grey", "large", "points", "signals", "empty"],
)
def test_sets_of_every_kind(data: Any, words: tuple[str, ...]) -> None:
    html = data()._repr_html_()
    text = look(html)
    for word in words:
        assert word in text
    assert "cannot be shown" not in text


def folder_of_pictures(folder: Path, n: int = 40) -> Path:
    for i in range(n):
        place = folder / f"<b>{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 5 * i, np.uint8)).save(place / f"{i}.png")
    return folder


def test_a_streamed_set_decodes_a_few_pictures_and_draws_nothing_random(tmp_path: Path) -> None:
    data = open_dataset(folder_of_pictures(tmp_path / "p"), image_size=8, cache="none")
    real, asked = data._store.get, list[int]()

    def get(rows: Any, draws: Any = None) -> Any:
        asked.extend(rows.tolist())
        return real(rows, draws)

    data._store.get = get  # type: ignore[method-assign]
    before = data._reading
    text = look(data._repr_html_())
    assert len(asked) == STREAMED
    assert data._reading == before
    assert "read when needed" in text
    assert "<b>0 20, <b>1 20" in text


def test_pictures_that_are_gone_are_said_and_nothing_is_raised(tmp_path: Path) -> None:
    folder = folder_of_pictures(tmp_path / "p")
    data = open_dataset(folder, image_size=8, cache="none")
    for path in folder.rglob("*.png"):
        path.unlink()
    assert "Not every example can be read" in look(data._repr_html_())


def test_examples_show_every_class() -> None:
    data = Shapes(8, n=500)
    rows = example_rows(data, 12)
    labels = data.labels
    assert labels is not None
    assert len(set(rows.tolist())) == 12
    assert set(labels[torch.from_numpy(rows)].tolist()) == set(range(6))


def test_an_evaluation_is_a_table_with_errors_and_remarks() -> None:
    scores = (
        Score("gap", 0.0021, 0.001, "loss", interval=(0.0001, 0.004)),
        Score("copies/a<b", 0.0, None, "share", remark="rests on 3 images"),
    )
    about = {"target": "<samples>", "skipped": {"fid": "no weights"}, "notes": ["careful"]}
    text = look(Evaluation(scores, about, Path("x"))._repr_html_(), 4000)
    for word in ("0.00210 ± 0.00100", "0.00010 to 0.00400", "a<b", "rests on 3", "<samples>"):
        assert word in text
    assert "skipped fid: no weights" in text
    assert "careful" in text


# --- the pieces ---

HOSTILE = ["<script>alert(1)</script>", '" onerror="x', "a\x1b[2Jb", "&amp;", "\udc80"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts_in_every_piece(text: str) -> None:
    png = b"\x89PNG"
    for html in (
        card(text, escape(text)),
        facts([(text, text)]),
        table([text], [[text]]),
        picture(png, text),
    ):
        look(html)
        assert "\x1b" not in html
        html.encode("utf-8")


def test_what_fails_is_shown_instead_of_raised() -> None:
    class Broken:
        @never_fails
        def _repr_html_(self) -> str:
            raise RuntimeError("<no> disk")

    assert "It cannot be shown (RuntimeError: <no> disk)." in look(Broken()._repr_html_())
