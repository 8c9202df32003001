"""The gradient of convolutions' weights in bf16 by Winograd's way: its rounding alone, whatever the
shapes and the threads.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib import Unet
from ddpm_lib.nn.kernels import build, conv3x3, small_conv
from ddpm_lib.nn.kernels.build import gradient_library
from ddpm_lib.nn.kernels.low_gradient import low_gradient_error, low_gradient_fits, low_gradients

LAST = torch.channels_last
there = pytest.mark.skipif(
    gradient_library() is None or small_conv._has_amx(), reason="no AVX-512 BF16, or AMX beside it"
)
SHAPES = [(2, 32, 32, 16, 16), (1, 64, 32, 17, 13), (5, 32, 96, 7, 9), (3, 160, 64, 12, 10)]
"""Images, channels in and out, height, width: even and odd, rows that end in the middle of a pair
of tiles, and several blocks.
"""


def case(b: int, i: int, o: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(b, c, h, w, generator=generator).bfloat16() for c in (i, o))
    return x.contiguous(memory_format=LAST), grad.contiguous(memory_format=LAST)


def rounded(x: Tensor) -> Tensor:
    return x.float().bfloat16().double()


def by_definition(x: Tensor, grad: Tensor) -> Tensor:
    """dg = G'(Σ over tiles of V'(A dY A'))G, what is multiplied rounded to bf16, all else exact."""
    double = {"dtype": torch.float64}
    b = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], **double)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], **double)
    a = torch.tensor([[1, 0], [1, 1], [1, -1], [0, -1]], **double)
    odd = [side % 2 for side in x.shape[2:]]
    pixels = F.pad(x.double(), (1, 1 + odd[1], 1, 1 + odd[0])).unfold(2, 4, 2).unfold(3, 4, 2)
    tiles = F.pad(grad.double(), (0, odd[1], 0, odd[0])).unfold(2, 2, 2).unfold(3, 2, 2)
    v = rounded(torch.einsum("ij,nchwjk,lk->nchwil", b, pixels, b))
    m = rounded(torch.einsum("ij,nohwjk,lk->nohwil", a, tiles, a))
    u = torch.einsum("nchwil,nohwil->ocil", v, m)
    return torch.einsum("ij,ocik,kl->ocjl", g, u, g)


@there
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, LAST])
def test_it_is_the_definition(shape: tuple[int, ...], memory: torch.memory_format) -> None:
    x, grad = case(*shape)
    weight = torch.zeros(shape[2], shape[1], 3, 3).contiguous(memory_format=memory)
    found, bias = low_gradients(x, grad, weight)
    assert found.stride() == weight.stride()
    want = by_definition(x, grad)
    assert float((found - want).norm() / want.norm()) < 2e-6
    total = grad.double().sum((0, 2, 3))
    assert float((bias - total).norm() / total.norm()) < 2e-6
    exact = weight.double().requires_grad_()
    F.conv2d(x.double(), exact, padding=1).backward(grad.double())
    assert exact.grad is not None
    assert float((found - exact.grad).norm() / exact.grad.norm()) < 5e-3


@there
def test_nothing_depends_on_the_threads() -> None:
    x, grad = case(6, 64, 160, 16, 16)
    weight = torch.zeros(160, 64, 3, 3, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(low_gradients(x, grad, weight))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@there
def test_only_what_it_can_do_takes_it() -> None:
    x, _ = case(4, 32, 32, 16, 16)

    def taken(x: Tensor, conv: nn.Module) -> bool:
        return type(conv3x3(x, conv).grad_fn).__name__ == "_LowConvBackward"

    conv = nn.Conv2d(32, 32, 3, padding=1).bfloat16()
    assert taken(x, conv)
    assert taken(x, conv.float())
    for changes in ({"padding": 0}, {"stride": 2}, {"groups": 2}, {"bias": False}):
        assert not taken(x, nn.Conv2d(32, 32, 3, **{"padding": 1} | changes).bfloat16())
    assert not taken(x, nn.Conv2d(32, 8, 3, padding=1).bfloat16())
    assert not taken(x.contiguous(), conv.bfloat16())
    assert not taken(x.float(), conv.float())
    few = x[:1].contiguous(memory_format=LAST)
    assert not low_gradient_fits(few, conv)
    conv.weight.requires_grad_(False)
    assert not taken(x.requires_grad_(), conv.bfloat16())


@there
def test_nan_stays_nan() -> None:
    x, grad = case(4, 32, 32, 16, 16)
    x[1, 3, 5, 7] = torch.nan
    found, bias = low_gradients(x, grad, torch.zeros(32, 32, 3, 3))
    assert found[:, 3].isnan().any(-1).all()
    assert not found[:, :3].isnan().any()
    assert not bias.isnan().any()


@there
def test_a_gradient_with_its_channels_first_is_taken() -> None:
    x, grad = case(4, 32, 32, 16, 16)
    weight = torch.zeros(32, 32, 3, 3)
    found = low_gradients(x, grad.contiguous(), weight)
    assert all(torch.equal(a, b) for a, b in zip(found, low_gradients(x, grad, weight)))


@there
def test_gradients_of_gradients() -> None:
    x, _ = case(4, 32, 32, 16, 16)
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3, padding=1).bfloat16()
    found = []
    for function in (conv3x3, lambda x, conv: conv(x)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (first,) = torch.autograd.grad(function(leaf, conv).square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=1.0)


@there
def test_a_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Unet(32, (1, 2)).to(memory_format=LAST)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    x, t = torch.randn(8, 3, 16, 16), torch.tensor([3, 900, 1, 50] * 2)
    results, used = [], []
    real = low_gradients
    monkeypatch.setattr(
        small_conv, "low_gradients", lambda *given: (used.append(1), real(*given))[1]
    )
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr(small_conv, "low_gradient_fits", lambda *_: False)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(x, t).float().square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(used) >= 8
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 1e-2
    assert not torch.equal(*results)


@there
def test_the_check_of_the_doctor() -> None:
    assert 1e-3 < low_gradient_error() < 2**-7


@pytest.mark.parametrize(("machine", "flags"), [("aarch64", "bf16"), ("x86_64", "avx2 avx512f")])
def test_it_needs_the_instruction(
    machine: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "_processor", lambda: f"flags\t: {flags}\nmodel name: X")
    monkeypatch.setattr(build, "_loaded", lambda name: pytest.fail("compiled"))
    assert build.gradient_library.__wrapped__() is None
