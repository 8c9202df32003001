"""The page of `ddpm demo` has a control per condition, and draws by what they say."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import ddpm, error_of
from ddpm_lib import Unet
from ddpm_lib.cli.demo_controls import Control, make_controls, words_of
from ddpm_lib.cli.demo_page import command_of, make_page
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.runs.drawing import Artist, Wish
from ddpm_lib.runs.loading import find_checkpoints
from every_condition import ENCODER, KINDS, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("controls") / "run")


@pytest.fixture(scope="module")
def artist(run: Path) -> Artist:
    return Artist(find_checkpoints(run)[-1], CPU, "no")


class Part(SimpleNamespace):
    """A component that only remembers what it was made with."""


class Pretended:
    """Gradio as far as controls use it."""

    def __getattr__(self, kind: str) -> Any:
        return lambda *given, **how: Part(kind=kind, given=given, **how)


def controls(artist: Artist, said: dict[str, str], texts: Any = None) -> dict[str, Control]:
    made = make_controls(Pretended(), artist.conditions, said, texts or {})
    return {one.name: one for one in made}


def test_every_kind_has_its_control(artist: Artist) -> None:
    made = controls(artist, {})
    assert {name: [part.kind for part in one.parts] for name, one in made.items()} == {
        "size": ["Checkbox", "Slider"],
        "turn": ["Checkbox", "Slider"],
        "spot": ["Textbox", "File"],
        "colour": ["Dropdown"],
        "marks": ["Checkbox", "CheckboxGroup"],
        "mask": ["Image"],
        "sketch": ["Image"],
        "caption": ["Textbox"],
    }
    spec = artist.conditions["size"].spec
    slider = made["size"].parts[1]
    assert slider.given == pytest.approx((spec["low"], spec["high"]), rel=1e-3)
    assert 50 < (spec["high"] - spec["low"]) / slider.step < 2000
    assert made["turn"].parts[1].given == (0.0, 360.0)
    assert not any(one.needed for one in made.values())
    nothing = [getattr(part, "value", None) for one in made.values() for part in one.parts]
    assert words_of(list(made.values()), nothing) == {}
    chosen = controls(artist, {}, {"caption": ["a red ring", "a blue ring"]})["caption"].parts[0]
    assert chosen.kind == "Dropdown"
    assert chosen.allow_custom_value


@pytest.mark.parametrize("ends", [(2459000.0, 2459010.0), (2e-12, 3e-12), (1990.0, 2020.0)])
def test_a_slider_reaches_the_numbers_of_its_range(ends: tuple[float, float]) -> None:
    low, high = ends
    spec = {"kind": "number", "mean": low, "std": high - low, "low": low, "high": high}
    model = Unet(dim=8, dim_mults=(1,), conditions={"a": spec})
    (made,) = make_controls(Pretended(), data_conditions(model.conditioners), {}, {})
    slider = made.parts[1]
    assert slider.given == pytest.approx(ends, rel=1e-9)
    assert 50 < (high - low) / slider.step < 2000
    chosen = low + 0.3 * (high - low)
    assert abs(float(made.word(True, chosen) or "nan") - chosen) < 1e-3 * (high - low)


@pytest.mark.parametrize("kind", KINDS)
def test_controls_begin_with_what_was_said_and_say_it_again(
    kind: str, artist: Artist, tmp_path: Path
) -> None:
    word = KINDS[kind][0].format(files=tmp_path)
    made = controls(artist, {kind: word})
    values = [part.value for one in made.values() for part in one.parts]
    assert words_of(list(made.values()), values) == {kind: word}


def test_no_tag_is_not_the_same_as_nothing_said(artist: Artist, tmp_path: Path) -> None:
    control = controls(artist, {})["marks"]
    assert control.word(False, ["a"]) is None
    assert control.word(True, []) == ""
    none = Wish(weights="model", num=2, steps=2, cond={"marks": ""})
    pictures = artist.draw(none)
    assert not np.array_equal(pictures, artist.draw(Wish(weights="model", num=2, steps=2)))
    words = shlex.split(command_of(str(artist.found.run), "latest", none))
    out = ["--format", "npz", "--output-dir", tmp_path / "out", "--mixed-precision", "no"]
    assert ddpm(*words[1:], *out, "--device", "cpu", "--no-progress") == 0
    drawn = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert np.array_equal(pictures[:, ::16, ::16], drawn)
    assert controls(artist, {"marks": ""})["marks"].parts[0].value is True


def test_what_the_page_cannot_draw_by_is_refused(
    run: Path, artist: Artist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / "masks" / f"{name}.png")
    word = str(tmp_path / "masks")
    with pytest.raises(ConfigError, match="has a value for each of 2 images, and the page draws"):
        artist.draw(Wish(weights="model", num=1, steps=2, cond={"mask": word}))
    pytest.importorskip("gradio", reason="pip install 'ddpm-lib[demo]'")
    said = error_of(capsys, "demo", run, "--cond", f"mask={word}", "--device", "cpu")
    assert "has a value for each of 2 images" in said
    said = error_of(capsys, "demo", run, "--cond", "sise=1", "--device", "cpu")
    assert "Did you mean 'size'" in said


def test_known_texts_are_offered_where_their_table_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = train(tmp_path / "run", names=("caption",))
    checkpoint = find_checkpoints(found)[-1]
    made = Artist(checkpoint, CPU, "no")
    assert made.texts == {}
    table = tmp_path / "meta.csv"
    table.write_text("file_name,text\na.png,a red ring\nb.png,unheard of\nc.png,a blue ring\n")
    words = f"caption={table}:text,encoder={ENCODER}"
    made._loaded.state["training"]["condition"] = [words]
    assert made.texts == {"caption": ["a blue ring", "a red ring"]}


def test_the_page_calls_with_the_values_of_its_parts(
    run: Path, artist: Artist, tmp_path: Path
) -> None:
    """The function behind the button, with Gradio's own components."""
    pytest.importorskip("gradio", reason="pip install 'ddpm-lib[demo]'")
    page = make_page(artist, str(run), cond={"colour": "red"})
    (draw,) = (fn for fn in page.fns.values() if fn.api_name == "draw")
    values = [part.value for part in draw.inputs]
    values[2], values[4] = 2, 2
    pictures, told = draw.fn(*values)
    assert "--cond colour=red" in told
    wish = Wish(weights=values[0], num=2, steps=2, cond={"colour": "red"})
    assert np.array_equal(np.stack(pictures), artist.draw(wish))


def test_a_page_waits_for_what_is_always_needed(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="pip install 'ddpm-lib[demo]'")
    needy = train(tmp_path / "run", drop=0.0, names=("size", "mask"))
    page = make_page(Artist(find_checkpoints(needy)[-1], CPU, "no"), str(needy))
    (draw,) = (fn for fn in page.fns.values() if fn.api_name == "draw")
    pictures, told = draw.fn(*[part.value for part in draw.inputs])
    assert pictures == []
    assert "Give mask first" in told
