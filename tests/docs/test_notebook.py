"""The quickstart in a real Jupyter kernel, and the ■ button while training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib.runs.checkpoint import list_checkpoints, verify
from locations import ROOT

nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")
pytest.importorskip("matplotlib", reason="needs matplotlib")

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"

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
    val_every=0, sample_every=0, device="cpu",
    callbacks=[Slow()],
)
"""


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_quickstart_runs_from_top_to_bottom(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat

    monkeypatch.setenv("QUICKSTART_STEPS", "8")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    outputs = {i: cell.outputs for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    said = [
        o.text
        for found in outputs.values()
        for o in found
        if o.output_type == "stream" and o.name == "stderr"
    ]
    assert said == []  # nothing in red, with or without ipywidgets
    training = next(
        i for i, cell in enumerate(notebook.cells) if "trainer = Trainer(" in cell.source
    )
    shown = {
        i: [o for o in found if "image/png" in o.get("data", {})] for i, found in outputs.items()
    }
    assert shown[training]
    assert [i for i in shown if i > training + 2 and shown[i]]  # samples drawn by hand
    steps = [
        path.name for path in list_checkpoints(tmp_path / "runs" / "quickstart" / "checkpoints")
    ]
    assert steps == ["step-000000004", "step-000000008"]


def test_quickstart_is_committed_without_outputs() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []
    assert notebook.metadata["kernelspec"]["name"] == "python3"


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
