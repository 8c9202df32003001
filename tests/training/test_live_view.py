"""The live view of notebooks: one output, updated in place; plain rows elsewhere."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib import Shapes
from ddpm_lib.core import progress
from ddpm_lib.core.curve_svg import curves_svg, thinned
from ddpm_lib.training.callbacks import default_callbacks, live
from ddpm_lib.training.callbacks.live import LiveView
from ddpm_lib.training.callbacks.live_page import LiveFacts, live_html, live_text
from ddpm_lib.training.callbacks.rows import ProgressBar
from ddpm_lib.training.config import TrainingConfig
from training_helpers import (
    At,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

GRIDS: dict[str, Any] = {
    "val_every": 2,
    "val_max_images": 2,
    "sample_every": 2,
    "sample_count": 2,
    "sample_steps": 2,
    "progress": True,
}


class Notebook:
    """What IPython is asked to show: the outputs of cells by their names, each with all states."""

    def __init__(self) -> None:
        self.execution_count, self.kernel = 1, object()
        self.outputs: dict[str, list[dict[str, str]]] = {}

    def display(self, page: dict[str, str], *, display_id: str, raw: bool) -> None:
        assert raw
        assert display_id not in self.outputs
        self.outputs[display_id] = [page]

    def update_display(self, page: dict[str, str], *, display_id: str, raw: bool) -> None:
        assert raw
        self.outputs[display_id].append(page)

    def pages(self) -> list[str]:
        """The states of the only output."""
        (states,) = self.outputs.values()
        return [page["text/html"] for page in states]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    shell: Any = types.SimpleNamespace(get_ipython=lambda: made)
    shown: Any = types.SimpleNamespace(display=made.display, update_display=made.update_display)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr(live, "SECONDS", 0.0)
    return made


def test_one_output_shows_the_run_and_ends_with_its_last_state(
    notebook: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_trainer(tmp_path, max_steps=4, **GRIDS).train()
    pages = notebook.pages()
    assert 4 <= len(pages) <= 8
    assert "step 0 of 4" in pages[0]
    last = pages[-1]
    for word in ("step 4 of 4", "finished", "held-out", "<svg", "samples at step 4", "grid saved"):
        assert word in last, word
    assert "4,000" not in last
    assert last.count("data:image/png;base64,") == 1
    said = capsys.readouterr()
    assert said.err == "", "nothing in red"
    assert "val ± error" not in said.out, "rows stand in the view, not below it as well"
    assert said.out.count("\n") == 4, "the classes, what was chosen, what is trained, how it ended"
    log = (tmp_path / "train.log").read_text()
    assert "val ± error" in log
    assert "Saved step-000000004" in log


def test_a_second_cell_has_an_output_of_its_own_with_the_whole_curve(
    notebook: Notebook, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=4, **GRIDS)
    trainer.train(steps=2)
    notebook.execution_count = 2
    trainer.train()
    first, second = notebook.outputs.values()
    assert "stopped" in first[-1]["text/html"]
    assert "this call: to 2" in first[0]["text/html"]
    assert "samples at step 2" in second[0]["text/html"], "what is known is there at once"
    assert second[-1]["text/html"].count("<circle") > first[-1]["text/html"].count("<circle")
    assert "step 4 of 4" in second[-1]["text/plain"]


def test_pieces_in_one_cell_share_their_output(notebook: Notebook, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=4, **GRIDS)
    while trainer.train(steps=1).status != "finished":
        pass
    assert "step 4 of 4" in notebook.pages()[-1]


def test_a_new_process_begins_with_the_curve_so_far(notebook: Notebook, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, max_steps=6, **GRIDS).train(steps=4)
    before = next(iter(notebook.outputs.values()))[-1]["text/html"].count("<circle")
    notebook.outputs.clear()
    tiny_trainer(tmp_path, max_steps=6, **GRIDS).train(steps=1)
    assert notebook.pages()[0].count("<circle") == before > 3


def test_an_error_leaves_the_last_state_and_the_console(
    notebook: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("of the user")

    trainer = tiny_trainer(tmp_path, callbacks=[At(3, fail)], **GRIDS)
    with pytest.raises(RuntimeError, match="of the user"):
        trainer.train()
    assert "step 3 of 6" in notebook.pages()[-1]
    assert "stopped" in notebook.pages()[-1]
    capsys.readouterr()
    progress.write("a line")
    assert capsys.readouterr().out == "a line\n"


def test_rolling_back_stays_in_the_same_output(
    notebook: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusion = tiny_diffusion()

    def spoil(trainer: Any) -> None:
        if not trainer.guard.rollbacks:
            next(diffusion.parameters()).data.fill_(float("nan"))

    options = GRIDS | {"on_nonfinite": "rollback", "save_every": 2, "log_every": 1}
    tiny_trainer(tmp_path, diffusion, callbacks=[At(3, spoil)], **options).train()
    assert "step 6 of 6" in notebook.pages()[-1]
    assert "Rolled back to step-000000002" in capsys.readouterr().out


def test_looking_changes_nothing(notebook: Notebook, tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "seen", **GRIDS).train()
    tiny_trainer(tmp_path / "unseen", **GRIDS | {"progress": False}).train()
    assert_same_tensors(final_tensors(tmp_path / "seen"), final_tensors(tmp_path / "unseen"))
    assert curve(tmp_path / "seen") == curve(tmp_path / "unseen")


@pytest.mark.parametrize("why", ["progress=False", "no notebook", "another rank"])
def test_elsewhere_there_are_plain_rows(
    notebook: Notebook,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    if why == "no notebook":
        outside = types.SimpleNamespace(get_ipython=lambda: None)
        monkeypatch.setitem(sys.modules, "IPython", outside)  # type: ignore[arg-type]
    if why == "another rank":
        view = LiveView()
        view.on_train_start(types.SimpleNamespace(is_main=False))  # type: ignore[arg-type]
        view.on_step_end(types.SimpleNamespace())  # type: ignore[arg-type]
        view.close()
        assert notebook.outputs == {}
        return
    tiny_trainer(tmp_path, **GRIDS | {"progress": why != "progress=False"}).train()
    assert notebook.outputs == {}
    said = capsys.readouterr()
    assert "val ± error" in (said.err if why == "no notebook" else said.out)
    assert "\r" not in said.out + said.err


def test_it_takes_the_place_of_the_bar(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds() -> set[type]:
        return {type(c) for c in default_callbacks(TrainingConfig())} & {LiveView, ProgressBar}

    assert kinds() == {LiveView}
    monkeypatch.setattr(notebook, "kernel", None)
    del notebook.kernel
    assert kinds() == {ProgressBar}


@pytest.mark.slow
def test_it_is_drawn_seldom(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS", 3600.0)
    tiny_trainer(tmp_path, max_steps=30, log_every=1, progress=True).train()
    assert len(notebook.pages()) == 3, "at the start, at the end, and that it has ended"


def test_a_grid_that_cannot_be_read_is_a_warning(
    notebook: Notebook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(trainer: Any) -> None:
        trainer.last_grid.write_bytes(b"no picture")

    class First(At):
        """Runs before the view, which comes before the user's callbacks."""

    trainer = tiny_trainer(tmp_path, max_steps=2, **GRIDS)
    trainer.callbacks.insert(3, First(2, spoil))
    assert trainer.train().status == "finished"
    assert "of which the notebook shows a copy" in caplog.text
    assert "data:image/png" not in notebook.pages()[-1]


# --- the page ---


def test_texts_are_escaped() -> None:
    facts = LiveFacts(step=1, until=2, max_steps=2, rows=["<script>"], heading="a<b")
    page = live_html(facts)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&lt;b" in page


def test_the_text_for_places_without_html_has_the_numbers() -> None:
    values = {"loss": 0.05, "val_loss": 0.06, "val_loss_error": 0.001, "val_gap": -0.01}
    facts = LiveFacts(
        step=500, until=600, max_steps=1000, epoch=2.5, rate=31.2, left=61.0, values=values
    )
    assert live_text(facts) == (
        "step 500 of 1,000 (this call: to 600), epoch 2.5, loss 0.0500, held-out 0.0600 ± 0.0010,"
        " gap -0.0100 ± ?, 31 images/s, 1m01s left"
    )


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 0.0), (1, 0.0)],
        [(0, -1.0), (5, 2.0)],
        [(k, 10.0 ** (-k)) for k in range(12)],
        [(k, 1e-9) for k in range(3)],
        [(k, 1.0 + k * 1e-9) for k in range(3)],
        [(1, float("nan")), (2, float("inf")), (3, 4.0)],
        [(k, 1 / (k + 1)) for k in range(100_000)],
    ],
    ids=["one", "zero", "negative", "wide", "tiny", "flat", "not finite", "long"],
)
def test_curves_of_every_shape_are_drawn_inside_their_frame(points: Any) -> None:
    import re

    svg = curves_svg({"loss": points}, width=400, height=200)
    numbers = [
        tuple(map(float, pair.split(",")))
        for line in re.findall(r'points="([^"]*)"', svg)
        for pair in line.split()
    ]
    assert 1 <= len(numbers) <= 400
    assert all(0 <= x <= 400 and 0 <= y <= 200 for x, y in numbers)
    assert "nan" not in svg
    assert "inf" not in svg
    assert len(svg) < 20_000


def test_no_numbers_no_curve() -> None:
    assert curves_svg({}) == curves_svg({"loss": [(1, float("nan"))]}) == ""


def test_thinning_keeps_the_mean() -> None:
    points = [(float(k), float(k % 7)) for k in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(sum(y for _, y in points) / 1000)


def test_shapes_are_drawn_in_the_view_at_their_own_pixels(
    notebook: Notebook, tmp_path: Path
) -> None:
    import base64
    import io
    import re

    from PIL import Image

    tiny_trainer(tmp_path, data=Shapes(8, n=40), max_steps=2, **GRIDS).train()
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", notebook.pages()[-1])
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2 * 8 + 3 * 2, 8 + 2 * 2)
