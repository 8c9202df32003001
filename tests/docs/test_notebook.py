"""The example notebooks in a real Jupyter kernel, what is stored of them, and the ■ button while
training.
"""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddpm_lib import Shapes
from ddpm_lib.runs.checkpoint import list_checkpoints, verify
from inception_weights import write_inception
from locations import ROOT
from sysu_clone import clone
from training_helpers import assert_same_tensors, curve, final_tensors

nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
pytest.importorskip("ipykernel", reason="needs ipykernel")

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
QUICKSTART = ROOT / "examples" / "quickstart.ipynb"
SYSU = ROOT / "examples" / "sysu.ipynb"
UNTRAINED = {"comparing_samplers": 0, "schedules_and_weightings": 0}
"""How many cells train in notebooks that have no run of their own."""
SMALL = {
    "own_images": {"OWN_IMAGES_STEPS": 6},
    "comparing_samplers": {"SAMPLERS_POINTS": 60},
    "schedules_and_weightings": {},
    "distilling": {"DISTILLING_STEPS": 8, "DISTILLING_SAMPLES": 64},
    "own_checkpoint": {"CHECKPOINT_STEPS": 4},
    "conditions": {"CONDITIONS_STEPS": 4},
}
"""The notebooks on one thing at a time, and what makes little work of them."""
CLASSES = ("airplane", "bicycle", "boat", "car", "motorbike")

PREPARE = """
import time
from pathlib import Path
from ddpm_lib import Callback, GaussianDiffusion, Shapes, Trainer, Unet

class Slow(Callback):
    seconds = 0.1

    def on_step_end(self, trainer):
        if trainer.step == 3:
            Path("reached").touch()
        time.sleep(self.seconds)

unet = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1)
diffusion = GaussianDiffusion(unet, image_size=8, timesteps=50)
trainer = Trainer(
    diffusion, Shapes(8, n=64), output_dir="run", max_steps=100, batch_size=4,
    val_every=0, sample_every=0, save_every=1000, keep_early="no", lr_schedule="cosine",
    device="cpu",
    callbacks=[Slow()],
)
"""


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": 600, "resources": resources, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, **options).execute()
    return notebook


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(notebook: Any, text: str) -> Any:
    return next(cell for cell in cells(notebook) if text in cell.source)


def red_lines(notebook: Any) -> list[str]:
    outputs = [o for cell in cells(notebook) for o in cell.outputs]
    return [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]


def live_view(cell: Any) -> str:
    """The live view of a training cell: the only thing that it displays."""
    (shown,) = [o for o in cell.outputs if o.output_type == "display_data"]
    return str(shown.data["text/html"])


def newest_grid(html: str) -> np.ndarray:
    """The pixels of the grid in a live view, uint8 (h, w, 3)."""
    data = re.findall(r"data:image/png;base64,([^\"]+)", html)[-1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.mark.slow
def test_quickstart_runs_from_top_to_bottom(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKSTART_STEPS", "9")
    monkeypatch.setenv("QUICKSTART_SAMPLES", "24")
    notebook = executed(QUICKSTART, tmp_path)
    assert red_lines(notebook) == []  # with or without ipywidgets
    first, rest = (
        live_view(cell_with(notebook, text)) for text in ("train(steps=", "trainer.train()")
    )
    assert "step 3 of 9" in first
    assert "step 9 of 9" in rest
    assert "samples at step 9" in rest
    assert "<svg" in rest
    pictures = [
        c for c in cells(notebook) if any("image/png" in o.get("data", {}) for o in c.outputs)
    ]
    assert len(pictures) >= 4, "samples by class, guidance, steps, interpolation"
    scored = cell_with(notebook, "evaluate(RUN").outputs[-1].data["text/html"]
    assert "precision" in scored
    steps = [p.name for p in list_checkpoints(tmp_path / "runs" / "quickstart" / "checkpoints")]
    assert steps[-1] == "step-000000009"
    assert "step-000000003" in steps, "where the first cell ended"


@pytest.mark.slow
@pytest.mark.parametrize("weights", [True, False], ids=["inception", "no weights"])
def test_sysu_runs_from_raw_photos_to_scores(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    """Also on a machine without Inception's weights, where a line says how to get them."""
    data = clone(tmp_path / "clone", classes=CLASSES, n=12)
    found = tmp_path / "inception.pth"
    if weights:
        write_inception(found)
    small = {"DATA": data, "SIZE": 16, "STEPS": 4, "BATCH": 4, "SAMPLES": 12}
    for name, value in small.items():
        monkeypatch.setenv(f"SYSU_{name}", str(value))
    monkeypatch.setenv("DDPM_LIB_INCEPTION_WEIGHTS", str(found))
    notebook = executed(SYSU, tmp_path)
    assert red_lines(notebook) == []
    assert "step 2 of 4" in live_view(cell_with(notebook, "train(steps="))
    resumed = cell_with(notebook, "trainer.train()")
    assert "Resumed runs/sysu/checkpoints/step-000000002" in resumed.outputs[0].text
    assert "step 4 of 4" in live_view(resumed)
    assert "step-000000002" in cell_with(notebook, "halfway").outputs[0].text
    (last,) = cells(notebook)[-1].outputs
    if weights:
        assert "fid_inception2048" in last.data["text/html"]
    else:
        assert last.text.startswith("No FID and IS here:")
        assert "DDPM_LIB_INCEPTION_WEIGHTS" in last.text


def test_every_notebook_is_run() -> None:
    assert {*SMALL, QUICKSTART.stem, SYSU.stem} == {path.stem for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_one_thing_at_a_time_runs_from_top_to_bottom(
    name: str, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At little work every cell shows what the stored one shows: the same kinds of outputs."""
    for variable, value in SMALL[name].items():
        monkeypatch.setenv(variable, str(value))
    path = ROOT / "examples" / f"{name}.ipynb"
    notebook, stored = executed(path, tmp_path), nbformat.read(path, as_version=4)
    assert red_lines(notebook) == []
    for now, before in zip(cells(notebook), cells(stored), strict=True):
        kinds = [
            {kind for o in cell.outputs for kind in o.get("data", ())} - {"image/jpeg"}
            for cell in (now, before)
        ]
        assert kinds[0] == kinds[1], now.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_stored_is_a_whole_run_without_traces_of_the_machine(path: Path) -> None:
    """Short cells with their outputs, small, in order, nothing red, no place and no name."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = cells(notebook)
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert max(len(c.source.splitlines()) for c in code) <= 10
    assert [o for c in code for o in c.outputs if o.output_type == "error"] == []
    assert red_lines(notebook) == []
    assert path.stat().st_size < 1_000_000
    text = path.read_text(encoding="utf-8")
    place = str(Path(__file__).resolve().parents[2])
    for here in {place, tempfile.gettempdir(), str(Path.home())} - {"/"}:
        assert f"{here}/" not in text, here
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    views = [c for c in code if "trainer.train(" in c.source]
    assert len(views) == (2 if path in (QUICKSTART, SYSU) else UNTRAINED.get(path.stem, 1))
    assert all("finished" in live_view(cell) for cell in views[-1:])


def classifier(data: Shapes, steps: int = 500) -> nn.Module:
    """A small network that tells the shapes apart, trained on all but the last thousand."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, outside in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inside, outside, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, len(data.class_names or ())))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    rows = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = data.batch(torch.randint(0, len(data) - 1000, (64,), generator=rows))
        loss = nn.functional.cross_entropy(net(batch["image"] / 255), batch["class_label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.slow
def test_the_shapes_of_the_stored_quickstart_are_recognised() -> None:
    """In its last grid a column is a class; more than nine of ten are what they are to be."""
    data = Shapes(size=32)
    net = classifier(data)
    with torch.no_grad():
        held = data.batch(range(len(data) - 1000, len(data)))
        right = (net(held["image"] / 255).argmax(1) == held["class_label"]).float().mean()
        assert right > 0.95, "a classifier to rely on"
        notebook = nbformat.read(QUICKSTART, as_version=4)
        grid = newest_grid(live_view(cell_with(notebook, "trainer.train()")))
        assert grid.shape == (6 * 34 + 2, 6 * 34 + 2, 3)
        tiles = [
            grid[2 + 34 * (i // 6) :, 2 + 34 * (i % 6) :][:32, :32].transpose(2, 0, 1)
            for i in range(36)
        ]
        found = net(torch.from_numpy(np.stack(tiles)) / 255).argmax(1)
    assert float((found == torch.arange(36) % 6).float().mean()) > 0.9


def test_outside_a_kernel_nothing_is_displayed() -> None:
    import ipykernel  # noqa: F401  (tools import it in ordinary scripts)

    from ddpm_lib.core.progress import in_notebook

    assert not in_notebook()


class Kernel:
    """A kernel in which cells run one after the other."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=180)

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def finish(self, cell: str) -> dict[str, Any]:
        while True:
            reply = self.client.get_shell_msg(timeout=240)
            if reply["parent_header"].get("msg_id") == cell:
                return reply["content"]

    def value(self, expression: str) -> str:
        cell = self.client.execute("", user_expressions={"value": expression})
        return self.finish(cell)["user_expressions"]["value"]["data"]["text/plain"]

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


@pytest.mark.slow
def test_interrupting_the_kernel_saves_and_returns_and_training_continues(
    kernel: Kernel, tmp_path: Path
) -> None:
    assert kernel.finish(kernel.start(PREPARE))["status"] == "ok"
    cell = kernel.start("result = trainer.train()")
    deadline = time.monotonic() + 240
    while not (tmp_path / "reached").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kernel.manager.interrupt_kernel()

    assert (
        kernel.finish(cell)["status"] == "ok"
    )  # no KeyboardInterrupt: the cell ends as if it had finished
    assert (
        kernel.value("(result.status, result.reason, result.exit_code)")
        == "('stopped', 'received SIGINT', 130)"
    )
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.name == f"step-{int(kernel.value('trainer.step')):09d}"
    assert 3 <= verify(saved).state.step < 100

    assert (
        kernel.finish(kernel.start("Slow.seconds = 0\nresult = trainer.train()"))["status"] == "ok"
    )
    assert kernel.value("(result.status, result.step)") == "('finished', 100)"
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        saved.name,
        "step-000000100",
    ]

    cell = kernel.start(
        "Path('sleeping').touch(); time.sleep(60)"
    )  # afterwards the button means what it always means
    while not (tmp_path / "sleeping").exists():
        time.sleep(0.02)
    kernel.manager.interrupt_kernel()
    assert kernel.finish(cell)["ename"] == "KeyboardInterrupt"


LAUNCHED = """
import ddpm_lib
from accelerate import notebook_launcher

def train():
    from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
    import torch
    for run, pieces in (("whole", [None]), ("pieces", [3, 5, None])):
        torch.manual_seed(0)
        unet = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1)
        trainer = Trainer(
            GaussianDiffusion(unet, image_size=8), Shapes(8, n=64), output_dir=run, max_steps=12,
            batch_size=8, log_every=2, val_every=4, val_max_images=8, sample_every=4,
            sample_count=4, sample_steps=3, device="cpu",
        )
        for steps in pieces:
            trainer.train(steps)
    trainer.close()

notebook_launcher(train, num_processes=2)
"""


@pytest.mark.slow
def test_processes_of_a_notebook_train_in_pieces_with_one_view_a_run(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LAUNCHED)])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    views = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert ["step 12 of 12" in view.data["text/html"] for view in views] == [True, True]
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "pieces")
