"""Triton's normalisation against its formula in float64, by Triton's interpreter on the CPU; that
it compiles for a GPU; and when torch's operations are taken instead.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.nn.kernels import group_norm, norm_act, norm_act_beside, norm_on_gpu

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton (on Linux)"
)
LAST = torch.channels_last
CPU = torch.device("cpu")


@pytest.fixture
def kernels() -> Iterator[ModuleType]:
    """Return a copy of the kernels whose programs are done by NumPy, on tensors of the CPU."""
    import triton
    from triton.language import standard
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from ddpm_lib.nn.kernels import triton_norm

    assert isinstance(triton_norm._apply, JITFunction), "the real ones are imported first"
    place = importlib.util.find_spec("ddpm_lib.nn.kernels.triton_norm")
    assert place is not None
    assert place.origin is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        # Triton's own functions, such as sums, are what they were when Triton was imported.
        for owner in (triton.language, standard):
            for name, function in list(vars(owner).items()):
                if isinstance(function, JITFunction):
                    patch.setattr(owner, name, InterpretedFunction(function.fn))
        spec = importlib.util.spec_from_file_location("interpreted_norm", place.origin)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert isinstance(module._apply, InterpretedFunction)
        yield module


@pytest.fixture
def used(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Take the CPU for a GPU; return the shapes that the kernels were asked for."""
    shapes: list[tuple[int, ...]] = []
    real = kernels.forward

    def forward(x: Tensor, *args: Any) -> Any:
        shapes.append(tuple(x.shape))
        return real(x, *args)

    monkeypatch.setattr(kernels, "forward", forward)
    monkeypatch.setattr(group_norm, "GPUS", ("cpu",))
    monkeypatch.setattr(norm_on_gpu, "triton_kernels", lambda device: kernels)
    return shapes


def formula(
    x: Tensor,
    norm: nn.GroupNorm,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    h = norm(x if add is None else x + add[..., None, None])
    if scale is not None and shift is not None:
        h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    return F.silu(h) if act else h


MODES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "add": ("add",),
    "scale_shift": ("scale", "shift"),
    "linear": (),
}


def found(function: Any, case: tuple[Any, ...], mode: str, dtype: torch.dtype) -> list[Tensor]:
    """Return output and gradients in float64."""
    x, norm, vectors, grad = case
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    own = nn.GroupNorm(norm.num_groups, norm.num_channels, dtype=wide)
    own.load_state_dict(norm.state_dict())
    leaf = x.to(dtype).contiguous(memory_format=LAST).requires_grad_()
    given = {name: vectors[name].to(wide).requires_grad_() for name in MODES[mode]}
    y = function(leaf, own, **given, **({"act": False} if mode == "linear" else {}))
    y.backward(grad.to(dtype))
    grads = [v.grad for v in (leaf, *given.values(), *own.parameters())]
    return [v.detach().double() for v in (y, *grads)]


def made(shape: tuple[int, ...], groups: int, offset: float = 0.0) -> tuple[Any, ...]:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, shape[1]).double()
    nn.init.normal_(norm.weight, 1, 0.3)
    nn.init.normal_(norm.bias)
    x, grad = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    # What bf16 holds exactly, so that only the computation differs.
    x, grad = ((2 * v + k).bfloat16().double() for v, k in ((x, offset), (grad, 0.0)))
    names = ("add", "scale", "shift")
    vectors = {k: torch.randn(shape[:2], dtype=torch.float64) for k in names}
    return x, norm, vectors, grad


def check(
    shape: tuple[int, ...], groups: int, mode: str, dtype: torch.dtype, most: float, offset: float
) -> None:
    case = made(shape, groups, offset)
    pairs = zip(
        found(norm_act, case, mode, dtype), found(formula, case, mode, torch.float64), strict=True
    )
    for got, want in pairs:
        assert got.shape == want.shape
        # What moves a group of one channel has no gradient: the norm takes it away again.
        assert float((got - want).norm()) < most * max(1.0, float(want.norm()))


@pytest.mark.every(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)]
)
def test_outputs_and_gradients_are_those_of_the_formula(
    mode: str, dtype: torch.dtype, most: float, used: list[Any]
) -> None:
    check((2, 24, 5, 14), 8, mode, dtype, most, 0.0)  # two tiles of rows, the second not full
    assert used == [(2, 24, 5, 14)]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 70, 1, 1), 14),  # more channels than a tile, which groups straddle
        ((3, 66, 3, 1), 22),  # groups of three
        ((1, 5, 7, 9), 1),  # one group
        ((2, 7, 2, 2), 7),  # groups of one
        ((1, 129, 4, 4), 1),
        ((1, 4, 33, 31), 2),  # seventeen tiles
    ],
    ids=str,
)
def test_small_and_odd_shapes(shape: tuple[int, ...], groups: int, used: list[Any]) -> None:
    check(shape, groups, "scale_shift", torch.float32, 5e-6, 0.0)
    check(shape, groups, "add", torch.float32, 5e-6, 0.0)
    assert used == [shape] * 2


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_large_mean_costs_no_digits(used: list[Any]) -> None:
    """As sums of squares would: of 300² + 1 float32 keeps two digits of the 1."""
    check((1, 8, 9, 9), 2, "plain", torch.float32, 3e-5, 300.0)
    assert used


def test_what_goes_past_a_branch_meets_its_gradient(used: list[Any]) -> None:
    x, norm, _, grad = made((2, 8, 3, 3), 4)
    results = []
    for wide, function in ((torch.float32, norm_act_beside), (torch.float64, None)):
        own = nn.GroupNorm(4, 8, dtype=wide)
        own.load_state_dict(norm.state_dict())
        leaf = x.to(wide).contiguous(memory_format=LAST).requires_grad_()
        h, past = function(leaf, own) if function else (formula(leaf, own), leaf)
        ((h + 3 * past) * grad.to(wide)).sum().backward()
        assert leaf.grad is not None
        results.append(leaf.grad.double())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    leaf = x.float().contiguous(memory_format=LAST).requires_grad_()
    norm_act_beside(leaf, norm.float())[1].sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_it_can_be_differentiated_twice(used: list[Any]) -> None:
    x, norm, vectors, grad = made((2, 8, 3, 3), 4)
    results = []
    for wide, function in ((torch.float32, norm_act), (torch.float64, formula)):
        own = nn.GroupNorm(4, 8, dtype=wide)
        own.load_state_dict(norm.state_dict())
        leaf = x.to(wide).contiguous(memory_format=LAST).requires_grad_()
        e = vectors["add"].to(wide).requires_grad_()
        y = function(leaf, own, add=e)
        (first,) = torch.autograd.grad(y, leaf, grad.to(wide), create_graph=True)
        first.square().sum().backward()
        results.append([v.grad.double() for v in (leaf, e, own.weight) if v.grad is not None])
    assert used
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "why", ["contiguous", "sliced", "float64", "no weights", "half weights", "volume", "empty"]
)
def test_torch_computes_what_the_kernels_do_not(why: str, used: list[Any]) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=LAST)
    if why == "contiguous":
        x = x.contiguous()
    if why == "sliced":
        x = torch.randn(2, 16, 6, 6).contiguous(memory_format=LAST)[:, ::2]
    if why == "float64":
        x, norm = x.double(), norm.double()
    if why == "no weights":
        norm = nn.GroupNorm(4, 8, affine=False)
    if why == "half weights":
        x, norm = x.bfloat16(), norm.bfloat16()
    if why == "volume":
        x = torch.randn(2, 8, 3, 3, 3)
    if why == "empty":
        x = x[:0]
    torch.testing.assert_close(norm_act(x, norm), F.silu(norm(x)), rtol=1e-2, atol=1e-2)
    assert not used
    norm_act(torch.randn(2, 8, 6, 6).contiguous(memory_format=LAST), nn.GroupNorm(4, 8))
    assert used


@pytest.mark.parametrize("gpus", [("cpu",), ()], ids=["Triton", "C++"])
def test_channels_that_do_not_fit_get_torchs_error(
    gpus: tuple[str, ...], used: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel would read what lies behind the weights."""
    monkeypatch.setattr(group_norm, "GPUS", gpus)
    with pytest.raises(RuntimeError, match="weight to be a vector of size"):
        norm_act(torch.randn(2, 12, 3, 3).contiguous(memory_format=LAST), nn.GroupNorm(4, 8))
    assert not used


@pytest.mark.slow
def test_a_network_has_the_same_loss_and_gradients(
    used: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in ("cuda", "cpu"):  # of what kind the CPU counts as
        monkeypatch.setattr(group_norm, "GPUS", ("cpu",) if name == "cuda" else ())
        torch.manual_seed(0)
        network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, attention_levels=(0,))
        diffusion = GaussianDiffusion(network, image_size=4, timesteps=10)
        for p in network.parameters():
            p.data += 0.1 * torch.randn_like(p)
        network.to(memory_format=LAST)
        noise = torch.randn(2, 3, 4, 4)
        loss = diffusion(torch.rand(2, 3, 4, 4), noise=noise, t=torch.tensor([3, 9]))
        loss.backward()
        grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        results.append([loss.detach(), torch.cat(grads)])
    assert len(used) == sum(isinstance(m, nn.GroupNorm) for m in network.modules())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_kernels_are_tried_before_they_are_trusted(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ddpm_lib.nn.kernels import triton_norm

    state = torch.get_rng_state()
    assert norm_on_gpu.kernel_off(kernels, CPU) < 1e-5
    assert torch.equal(torch.get_rng_state(), state)
    ask = norm_on_gpu.triton_kernels.__wrapped__
    with caplog.at_level(logging.WARNING):
        assert ask(CPU) is None  # compiled ones do not run on a CPU
    assert "not used on cpu (" in caplog.text
    monkeypatch.setattr(triton_norm, "forward", kernels.forward)
    monkeypatch.setattr(triton_norm, "backward", kernels.backward)
    assert ask(CPU) is triton_norm
    monkeypatch.setattr(
        triton_norm, "backward", lambda *a: tuple(1.1 * v for v in kernels.backward(*a))
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert ask(CPU) is None
    assert "it is off by 0.1" in caplog.text
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    caplog.clear()
    assert ask(CPU) is None
    assert not caplog.text


COMPILING = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ddpm_lib.nn.kernels import triton_norm

MAPS = ("x_at", "y_at", "grad_at", "past_at", "dx_at")
given = {"HAS_ADD": True, "HAS_PAST": True, "ACT": True}
given |= {"R": triton_norm.ROWS, "C": triton_norm.CHANNELS, **triton_norm._blocks(4, 16)}
kernels = [v for v in vars(triton_norm).values() if isinstance(v, triton.JITFunction)]
for low in ("*bf16", "*fp16", "*fp32"):
    for kernel in kernels:
        if kernel.__name__ == "_normalised_and_slope":
            continue  # which the others call
        constants = {k: v for k, v in given.items() if k in kernel.arg_names}
        kinds = {name: "*fp32" if name.endswith("_at") else "i32" for name in kernel.arg_names}
        kinds |= {name: low for name in MAPS if name in kinds}
        kinds |= {name: "fp32" for name in ("eps",) if name in kinds}
        kinds |= {name: "constexpr" for name in constants}
        source = ASTSource(kernel, kinds, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(kernel.__name__, len(made.asm["cubin"]) > 1000)
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_without_one(tmp_path: Path) -> None:
    """Down to machine code of an H100, by the assembler that Triton brings."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILING], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 6
    assert all(line.endswith("True") for line in lines)
