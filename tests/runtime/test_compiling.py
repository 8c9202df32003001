"""Which networks are compiled, and that nothing but the speed changes by it (generated kernels:
test_unet, slow).
"""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lib import GaussianDiffusion, Shapes, Unet
from ddpm_lib.cli import main
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runtime import compiling
from ddpm_lib.runtime.compiling import compile_regions, wants_compile
from training_helpers import final_tensors, tiny_diffusion, tiny_trainer


def test_auto_compiles_on_cuda_with_triton_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert [wants_compile("auto", d) for d in ("cuda", "cpu", "mps")] == [True, False, False]
    assert [wants_compile(w, "cpu") for w in (True, False)] == [True, False]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not wants_compile("auto", "cuda")


def test_regions_are_compiled_names_and_outputs_stay(monkeypatch: pytest.MonkeyPatch):
    real, seen = nn.Module.compile, []

    def captured_only(self: nn.Module, **options: object) -> None:
        seen.append(self)
        real(self, **options | {"backend": "eager"})

    monkeypatch.setattr(nn.Module, "compile", captured_only)
    torch.manual_seed(0)
    model = Unet(8, (1, 2), blocks_per_level=1)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    x, t, names = torch.randn(2, 3, 8, 8), torch.tensor([1, 9]), list(model.state_dict())
    want, said = model(x, t), []
    compile_regions(model, True, said.append)
    assert seen == model.regions()
    # Layers down and up, the middle, resamplers, and both ends with the embedding of time.
    assert len(seen) == 2 + 4 + 1 + 2 + 3
    torch.testing.assert_close(model(x, t), want, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names
    assert all(part._compiled_call_impl is None for part in copy.deepcopy(model).modules())
    assert "12 regions" in said[0]


def test_a_python_that_cannot_compile_is_told_or_gone_around(monkeypatch: pytest.MonkeyPatch):
    def refuses(self: nn.Module, **options: object) -> None:
        raise RuntimeError("Dynamo is not supported on this Python")

    monkeypatch.setattr(nn.Module, "compile", refuses)
    model, said = nn.Linear(2, 2), []
    with pytest.raises(ConfigError, match="compile=False"):
        compile_regions(model, True, said.append)
    compile_regions(model, "auto", said.append)
    assert said == ["Not compiled: Dynamo is not supported on this Python"]


@pytest.fixture
def captured_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile capture graphs, but generate no code for them, which takes minutes."""
    real = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **o: real(self, **o | {"backend": "eager"})
    )


@pytest.mark.slow
def test_sampling_takes_a_compiled_network(captured_only: None):
    diffusion = tiny_diffusion(num_classes=3, class_drop_prob=0.1)
    options = {
        "n": 2,
        "num_steps": 3,
        "sampler": "ddim",
        "cond": {"class_label": torch.tensor([0, 2])},
        "guidance_scale": 2.0,
    }
    expected = diffusion.sample(**options)
    compiled = torch.compile(diffusion.model, backend="eager")
    torch.testing.assert_close(diffusion.sample(**options, model=compiled), expected)
    image = torch.rand(2, 3, 8, 8)
    for call in (diffusion.bits_per_dim, diffusion.encode, diffusion.edit):
        named = {"cond": options["cond"], "num_steps": 3}
        one, other = call(image, **named), call(image, **named, model=compiled)
        torch.testing.assert_close(
            getattr(other, "total", other), getattr(one, "total", one), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (lambda m: torch.compile(m, backend="eager"), r"model\.compile"),
        (nn.DataParallel, "Pass the network itself"),
    ],
    ids=["compile", "parallel"],
)
def test_a_wrapped_network_is_refused_because_nothing_else_could_load_its_weights(
    wrap: Any, remedy: str
):
    with pytest.raises(ValueError, match=f"renames its weights.*{remedy}"):
        GaussianDiffusion(wrap(Unet(8, (1,))), image_size=8)


@pytest.mark.slow
def test_a_network_compiled_in_place_is_stored_under_its_own_names(
    tmp_path: Path, captured_only: None
):
    diffusion = tiny_diffusion()
    names = list(diffusion.model.state_dict())
    diffusion.model.compile()
    tiny_trainer(tmp_path, diffusion).train()
    assert {f"model:{name}" for name in names} <= final_tensors(tmp_path).keys()


@pytest.mark.slow
def test_the_command_line_samples_and_evaluates_compiled(
    tmp_path: Path, captured_only: None, capsys: Any
):
    np.save(
        tmp_path / "images.npy",
        Shapes(size=8, n=24).batch(range(24))["image"].permute(0, 2, 3, 1).numpy(),
    )
    tiny_trainer(tmp_path / "run", data=str(tmp_path / "images.npy")).train()
    pictures = {}
    for flag in ("--compile", "--no-compile"):
        words = (
            f"sample {tmp_path / 'run'} -n 4 --num-steps 2 --format npz --output-dir"
            f" {tmp_path / flag[2:]} {flag}"
        )
        assert main([*words.split(), "--mixed-precision", "no", "--device", "cpu"]) == 0
        assert ("Compiling" in capsys.readouterr().err) == (flag == "--compile")
        pictures[flag] = np.load(next((tmp_path / flag[2:]).glob("*.npz")))["arr_0"].astype(int)
    assert np.abs(pictures["--compile"] - pictures["--no-compile"]).max() <= 1
    words = (
        f"evaluate {tmp_path / 'run'} --metrics nll --data train --num 4 --num-levels 3 --device"
        " cpu --no-progress"
    )
    assert main([*words.split(), "--compile"]) == 0
    assert "Compiling" in capsys.readouterr().err


def test_what_is_compiled_is_kept_where_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(compiling, "available_cpus", lambda: 32)
    monkeypatch.setattr(compiling, "local_world_size", lambda: 8)
    (tmp_path / "file").write_text("no folder")
    cases = {tmp_path / "own": tmp_path / "own", tmp_path / "file": Path(tempfile.gettempdir())}
    for cache, expected in cases.items():
        for name in names:
            monkeypatch.setenv(name, "anything")  # so that it is put back afterwards
            monkeypatch.delenv(name)
        monkeypatch.setenv("DDPM_LIB_CACHE", str(cache))
        compiling.share_compilation()
        found = [Path(os.environ[name]) for name in names[:2]]
        assert [path.name for path in found] == ["inductor", "triton"]
        assert all(expected in path.parents for path in found)
        assert os.environ[names[2]] == "4"  # of 32 CPUs for 8 processes
    for name in names:
        monkeypatch.setenv(name, "7")
    compiling.share_compilation()
    assert [os.environ[name] for name in names] == ["7"] * 3, "who has set them is left alone"
