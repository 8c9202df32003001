"""The compiled normalisation against its formula in float64, and what happens where it cannot be
compiled.
"""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import Unet
from ddpm_lib.nn.attention import attend
from ddpm_lib.nn.kernels import build, group_norm, library, norm_act, norm_act_beside
from ddpm_lib.nn.kernels import position_masks as masks_of_positions
from ddpm_lib.nn.lowering import lowered_copy

needs_kernel = pytest.mark.skipif(library() is None, reason="no C++ compiler here")
LAST = torch.channels_last
MODES = ("plain", "add", "scale_shift", "linear")


def case(
    dtype: torch.dtype, shape: tuple[int, ...] = (3, 24, 7, 5), offset: float = 0.0
) -> tuple[Tensor, nn.GroupNorm, list]:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, shape[1]).double()
    nn.init.normal_(norm.weight, 1, 0.3)
    nn.init.normal_(norm.bias)
    x = (
        (torch.randn(shape, dtype=torch.float64) * 2 + offset)
        .to(dtype)
        .contiguous(memory_format=LAST)
    )
    return x, norm, [torch.randn(shape[:2], dtype=torch.float64) for _ in range(3)]


def run(
    function, x: Tensor, norm: nn.GroupNorm, vectors: list, mode: str, dtype: torch.dtype
) -> list[Tensor]:
    """Return the output and all gradients, in float64."""
    norm = copy.deepcopy(norm).to(dtype)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    e, scale, shift = (v.to(dtype).requires_grad_() for v in vectors)
    options = {
        "plain": {},
        "add": {"add": e},
        "scale_shift": {"scale": scale, "shift": shift},
        "linear": {"act": False},
    }[mode]
    y = function(x, norm, **options)
    generator = torch.Generator().manual_seed(1)
    y.backward(
        torch.randn(y.shape, generator=generator, dtype=torch.float64)
        .to(torch.bfloat16)
        .to(y.dtype)
    )
    grads = [v.grad for v in (x, e, scale, shift, *norm.parameters()) if v.grad is not None]
    return [v.detach().double() for v in (y, *grads)]


def eager(
    x: Tensor, norm: nn.GroupNorm, add=None, scale=None, shift=None, act: bool = True
) -> Tensor:
    return group_norm._eager(x, norm, add, scale, shift, act)


@needs_kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_outputs_and_gradients_are_those_of_the_formula(mode: str, dtype: torch.dtype, most: float):
    x, norm, vectors = case(dtype)
    assert group_norm._has_kernel(x, norm if dtype == torch.float64 else norm.float())
    norm = norm.double()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = run(norm_act, x, norm, vectors, mode, wide)
    want = run(eager, x.double().contiguous(), norm, vectors, mode, torch.float64)
    assert len(got) == len(want) >= 4
    for a, b in zip(got, want):
        assert float((a - b).norm() / b.norm()) < most


@needs_kernel
@pytest.mark.every(2)
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_any_order_are_right(mode: str):
    x, norm, (e, scale, shift) = case(torch.float64, (2, 8, 3, 2))

    def function(x: Tensor, *vectors: Tensor) -> Tensor:
        options = {
            "add": dict(zip(["add"], vectors)),
            "scale_shift": dict(zip(["scale", "shift"], vectors)),
        }.get(mode, {})
        return norm_act(x, norm, **options, act=mode != "linear")

    inputs = [x, *{"add": [e], "scale_shift": [scale, shift]}.get(mode, [])]
    inputs = [v.requires_grad_() for v in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (2, 32, 1, 9), (1, 32, 33, 3), (5, 40, 2, 2)])
def test_small_and_odd_shapes(shape: tuple[int, ...]):
    x, norm, vectors = case(torch.float32, shape)
    got, want = (
        run(f, v, norm, vectors, "add", d)
        for f, v, d in ((norm_act, x, torch.float32), (eager, x.double(), torch.float64))
    )
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads_or_on_the_batch(dtype: torch.dtype):
    x, norm, vectors = case(dtype, (5, 48, 6, 6))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(norm_act, x, norm, vectors, "add", torch.float32)
        alone = norm_act(x[2:3], norm.float(), add=vectors[0][2:3])
        torch.set_num_threads(3)
        three = run(norm_act, x, norm.double(), vectors, "add", torch.float32)
        parts = norm_act(x[2:3], norm.float(), add=vectors[0][2:3])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three))
    assert torch.equal(alone, parts)
    assert torch.equal(alone[0].double(), one[0][2])


@needs_kernel
def test_a_large_mean_costs_no_digits():
    x, norm, vectors = case(torch.float32, offset=3000.0)
    got, want = (
        run(norm_act, x, norm, vectors, "plain", torch.float32),
        run(eager, x.double(), norm, vectors, "plain", torch.float64),
    )
    assert (
        float((got[0] - want[0]).norm() / want[0].norm()) < 1e-4
    )  # E[x²] - E[x]² would leave about 1e-1


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_group(bad: float, dtype: torch.dtype):
    x, norm, _ = case(dtype)
    x[1, 4, 3, 3] = bad
    y = norm_act(x, norm.float())
    assert not y[1, 3:6].isfinite().any()
    assert y[[0, 2]].isfinite().all()
    assert y[1, 6:].isfinite().all()


@needs_kernel
def test_extreme_values_neither_overflow_nor_vanish():
    norm = nn.GroupNorm(2, 4)
    norm.weight.data.fill_(1e4)
    x = (
        torch.tensor([-1.0, 1.0, 3.0, -3.0])
        .view(1, 4, 1, 1)
        .expand(1, 4, 2, 2)
        .contiguous(memory_format=LAST)
    )
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm_act(x, norm)
    y.sum().backward()
    torch.testing.assert_close(y, eager(x.detach().contiguous(), norm), rtol=1e-5, atol=1e-5)
    assert x.grad.isfinite().all()
    constant = norm_act(torch.full((1, 4, 2, 2), 7.0).contiguous(memory_format=LAST), norm)
    assert torch.equal(constant, torch.zeros(1, 4, 2, 2))


@needs_kernel
@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_the_network_is_the_same_with_and_without(
    conditioning: str, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = Unet(16, (1, 2), time_conditioning=conditioning, num_classes=3)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model = model.to(memory_format=LAST)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    results = []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(group_norm, "_has_kernel", lambda *_: False)
        model.zero_grad()
        model(x, t).square().mean().backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@needs_kernel
def test_bf16_training_gradients_stay_close_to_float64():
    """The loss and the gradients of autocast against a float64 network: what the guide states."""
    torch.manual_seed(0)
    model = Unet(32, (1, 2), channels=3)
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    exact, model = copy.deepcopy(model).double(), model.to(memory_format=LAST)
    x, t, target = (
        torch.randn(8, 3, 16, 16),
        torch.randint(0, 1000, (8,)),
        torch.randn(8, 3, 16, 16),
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t)
    loss = (out.float() - target).square().mean()
    loss.backward()
    truth = (exact(x.double(), t) - target.double()).square().mean()
    truth.backward()
    a = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    b = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    assert abs(float(loss.detach()) / float(truth.detach()) - 1) < 1e-3
    assert float((a - b).norm() / b.norm()) < 2e-2


def test_lowered_weights_give_the_outputs_of_autocast_bit_by_bit():
    torch.manual_seed(0)
    model = Unet(16, (1, 2), num_classes=3).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    low = lowered_copy(model, torch.bfloat16)
    assert model.conv_in.weight.dtype == torch.float32
    assert low.conv_in.weight.dtype == torch.bfloat16
    assert low.norm_out.weight.dtype == torch.float32
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x, t), low(x, t))


@needs_kernel
def test_transformed_tensors_take_the_formula():
    x, norm, _ = case(torch.float64)
    tangent = torch.randn_like(x)
    y, dy = torch.func.jvp(lambda v: norm_act(v, norm), (x,), (tangent,))
    step = (norm_act(x + 1e-6 * tangent, norm) - norm_act(x - 1e-6 * tangent, norm)) / 2e-6
    torch.testing.assert_close(dy, step, rtol=1e-5, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = norm_act(torch.autograd.forward_ad.make_dual(x, tangent), norm)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, dy)
    both = torch.func.vmap(lambda v: norm_act(v[None], norm)[0])(x)
    torch.testing.assert_close(both, y)


@pytest.fixture
def fresh():
    library.cache_clear()
    yield
    library.cache_clear()


def test_they_can_be_turned_off(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    assert library() is None
    x, norm, _ = case(torch.float32)
    torch.testing.assert_close(norm_act(x, norm.float()), eager(x, norm.float()))


def test_without_a_compiler_torch_computes(fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(build, "compilers", list)
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path))
    assert library() is None


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a compiler that fails, and keep what is compiled in a folder of its own."""
    fake = tmp_path / "broken"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho "cannot find the assembler" >&2;'
        " exit 3\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux")
def test_a_compiler_that_fails_is_named(fresh, failing, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(build, "compilers", lambda: [str(failing)])
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        assert library() is None
    assert str(failing) in caplog.text
    assert "cannot find the assembler" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@needs_kernel
def test_where_a_compiler_fails_the_next_is_taken(fresh, failing, caplog):
    assert build.compilers()[0] == str(failing)
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        assert library() is not None
    assert not caplog.text


@needs_kernel
def test_where_a_file_cannot_be_loaded_the_next_compiler_is_taken(
    fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As of clang, which asks for an OpenMP that torch does not bring."""
    theirs = tmp_path / "clang++"
    theirs.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo clang && exit 0\n'
        'for last; do :; done\n: > "$last"\n'  # a file that is no library
    )
    theirs.chmod(0o755)
    monkeypatch.setenv("CXX", str(theirs))
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    assert library() is not None


@pytest.mark.slow
@needs_kernel
def test_processes_that_compile_at_once_share_one_file(tmp_path: Path):
    code = "from ddpm_lib.nn.kernels import library; assert library() is not None"
    env = os.environ | {"DDPM_LIB_CACHE": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    assert [p.wait(120) for p in started] == [0, 0]
    files = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 1
    assert files[0].endswith(".so")


@needs_kernel
def test_code_is_not_loaded_from_where_others_may_write(
    fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path))
    assert library() is not None
    assert not list(folder.iterdir())


@needs_kernel
def test_a_read_only_cache_is_gone_around(fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "file"))  # cannot be a folder
    assert library() is not None


@pytest.mark.parametrize(
    "shape", [(2, 4, 64, 32), (2, 1, 256, 64), (2, 2, 256, 32), (2, 2, 300, 64)]
)
def test_attention_in_bf16_is_as_exact_either_way(shape: tuple[int, ...]):
    """Both ways of `attend` against float64, output and gradients: the error is that of bf16."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(torch.bfloat16) for _ in range(3)]
    grad = torch.randn(shape).to(torch.bfloat16)

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [v.to(dtype, copy=True).requires_grad_() for v in inputs]
        out = function(*leaves)
        out.backward(grad.to(dtype))
        return [v.detach().double() for v in (out, *(leaf.grad for leaf in leaves))]

    fused = nn.functional.scaled_dot_product_attention
    want = run(fused, torch.float64)
    for a, b, c in zip(run(attend, torch.bfloat16), run(fused, torch.bfloat16), want):
        error, usual = (float((v - c).norm() / c.norm()) for v in (a, b))
        assert error < max(1.5 * usual, 8e-3)


@needs_kernel
@pytest.mark.parametrize("mode", ["add", "scale_shift", "linear"])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_dropout_inside_is_the_plain_one_behind(
    mode: str, dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
):
    x, norm, vectors = case(dtype, (3, 40, 7, 5))  # 40 channels: two vectors and a half

    def dropping(x: Tensor, norm: nn.GroupNorm, **options) -> Tensor:
        torch.manual_seed(5)
        return norm_act(x, norm, dropout=0.3, **options)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = run(dropping, x, norm, vectors, mode, wide)
    monkeypatch.setattr(group_norm, "_has_kernel", lambda *_: False)
    want = run(dropping, x.double(), norm, vectors, mode, torch.float64)
    assert torch.equal(got[0] == 0, want[0] == 0)
    for a, b in zip(got, want):
        assert float((a - b).norm() / b.norm()) < most


@needs_kernel
def test_maps_too_large_to_keep_have_the_same_gradient():
    """Above a MiB per sample the gradient is computed in two passes that both look at the inputs;
    a batch cut in rows of one pixel column is not: each sample alone is a smaller one.
    """
    x, norm, vectors = case(torch.float32, (1, 8, 256, 136))
    got = run(norm_act, x, norm, vectors, "plain", torch.float32)
    want = run(eager, x.double(), norm, vectors, "plain", torch.float64)
    for a, b in zip(got, want):
        assert float((a - b).norm() / b.norm()) < 1e-5


@needs_kernel
def test_gradients_of_gradients_have_the_same_mask():
    x, norm, _ = case(torch.float64, (2, 8, 3, 2))

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return norm_act(x, norm, dropout=0.4)

    assert torch.autograd.gradcheck(function, [x.requires_grad_()])
    assert torch.autograd.gradgradcheck(function, [x])


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_masks_are_as_random_as_they_should_be(p: float):
    """Rates by sample, row and channel, neighbours, and masks of neighbouring seeds: each is a sum
    of independent draws, so that its deviation is normal.
    """
    shape = (8, 256, 64)
    masks = [masks_of_positions.kept(seed, shape, p).double() for seed in (7, 8)]
    sigma = (p * (1 - p)) ** 0.5
    a, b = ((mask - (1 - p)) / sigma for mask in masks)

    def deviations(v: Tensor, dims: tuple[int, ...]) -> Tensor:
        count = v.numel() / v.sum(dims).numel()
        return v.sum(dims) / count**0.5

    for dims in [(0, 1, 2), (1, 2), (0, 2), (0, 1)]:
        found = deviations(a, dims)
        assert float(found.abs().max()) < 5
    for product in (
        a[:, 1:] * a[:, :-1],
        a[:, 2:] * a[:, :-2],
        a[..., 1:] * a[..., :-1],
        a[..., 16:] * a[..., :-16],
        a[1:] * a[:-1],
        a * b,
    ):
        assert abs(float(deviations(product, (0, 1, 2)))) < 5
    spread = deviations(a, (0, 2))
    assert 0.7 < float(spread.square().mean()) < 1.3  # 256 rows: neither too even nor too uneven


def test_masks_are_named_by_seed_and_position():
    whole = masks_of_positions.kept(3, (4, 6, 5), 0.5)
    assert torch.equal(whole[:2, :, :3], masks_of_positions.kept(3, (2, 6, 3), 0.5))
    assert masks_of_positions.kept(2**63 - 1, (1, 1, 4), 0.0).all()
    assert masks_of_positions.threshold_of(1 - 1e-16) == 2**32 - 1
    torch.manual_seed(0)
    seeds = [masks_of_positions.draw_seed() for _ in range(2)]
    torch.manual_seed(0)
    assert seeds == [masks_of_positions.draw_seed() for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_dropout_of_everything_and_of_other_shapes_is_torchs():
    x = torch.randn(2, 8, 5)
    norm = nn.GroupNorm(2, 8)
    torch.manual_seed(1)
    y = norm_act(x, norm, dropout=0.5)
    torch.manual_seed(1)
    assert torch.equal(y, nn.functional.dropout(norm_act(x, norm), 0.5))
    pictures = torch.randn(2, 8, 4, 4)
    assert not norm_act(pictures, norm, dropout=1.0).any()
    assert not norm_act(pictures.contiguous(memory_format=LAST), norm, dropout=1.0).any()


@needs_kernel
@pytest.mark.parametrize("used", ["both", "branch", "past"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.bfloat16, 4e-3)])
def test_what_goes_past_a_branch_meets_its_gradient_in_the_kernel(
    used: str, dtype: torch.dtype, most: float
):
    x, norm, (e, *_) = case(dtype)

    def residual(x: Tensor, norm: nn.GroupNorm, **_: Tensor) -> Tensor:
        y, past = norm_act_beside(x, norm)
        return {"both": 2 * y + past * past, "branch": y, "past": 3 * past}[used]

    def plain(x: Tensor, norm: nn.GroupNorm, **_: Tensor) -> Tensor:
        y = eager(x, norm)
        return {"both": 2 * y + x * x, "branch": y, "past": 3 * x}[used]

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = run(residual, x, norm, [e, e, e], "plain", wide)
    want = run(plain, x.double(), norm, [e, e, e], "plain", torch.float64)
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert float((a - b).norm() / b.norm()) < most


@needs_kernel
def test_a_residual_branch_can_be_differentiated_twice():
    x, norm, _ = case(torch.float64, (2, 8, 3, 2))

    def function(x: Tensor) -> Tensor:
        y, past = norm_act_beside(x, norm)
        return y * past

    assert torch.autograd.gradcheck(function, [x.requires_grad_()])
    assert torch.autograd.gradgradcheck(function, [x])
