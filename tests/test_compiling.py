"""Which networks are compiled, and that nothing but the speed changes by it (generated kernels: test_unet, slow)."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from ddpm_lib import Unet
from ddpm_lib.training.compiling import compile_regions, wants_compile
from ddpm_lib.training.config import ConfigError


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
    assert len(seen) == 2 + 4 + 1 + 2  # layers down and up, the middle, resamplers
    torch.testing.assert_close(model(x, t), want, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names
    assert all(part._compiled_call_impl is None for part in copy.deepcopy(model).modules())
    assert "9 regions" in said[0]


def test_a_python_that_cannot_compile_is_told_or_gone_around(monkeypatch: pytest.MonkeyPatch):
    def refuses(self: nn.Module, **options: object) -> None:
        raise RuntimeError("Dynamo is not supported on this Python")

    monkeypatch.setattr(nn.Module, "compile", refuses)
    model, said = nn.Linear(2, 2), []
    with pytest.raises(ConfigError, match="compile=False"):
        compile_regions(model, True, said.append)
    compile_regions(model, "auto", said.append)
    assert said == ["Not compiled: Dynamo is not supported on this Python"]
