"""Winograd's convolution: the map and gradients of torch's to float32's rounding, bit for bit alike
whatever the batch and the threads.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lib import Unet
from ddpm_lib.nn.kernels import build, conv3x3, small_conv
from ddpm_lib.nn.kernels.build import convolution_library
from ddpm_lib.nn.kernels.winograd import winograd, winograd_error, winograd_fits

LIBRARY = convolution_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no kernel for convolutions")
LAST = torch.channels_last
WIDTH = 16 if LIBRARY is None else LIBRARY.winograd_panel()
SHAPES = [
    (4, 1, 1, 16, 16),
    (2, 2, 1, 17, 13),
    (1, 1, 3, 16, 15),
    (3, 5, 2, 10, 12),
    (64, 2, 2, 1, 1),
]
"""Images, panels of channels in and out, height, width: even, odd, and of one pixel."""


def case(b: int, i: int, o: int, h: int, w: int, bias: bool = True) -> tuple[Tensor, nn.Conv2d]:
    torch.manual_seed(0)
    x = torch.randn(b, i * WIDTH, h, w).contiguous(memory_format=LAST)
    return x, nn.Conv2d(i * WIDTH, o * WIDTH, 3, padding=1, bias=bias).to(memory_format=LAST)


def results(function: object, x: Tensor, conv: nn.Module) -> list[Tensor]:
    """Return the map and the gradients of the input and of the parameters."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf, conv)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (leaf, *conv.parameters()), grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_map_and_gradients_are_as_exact_as_torchs(shape: tuple[int, ...], bias: bool) -> None:
    x, conv = case(*shape, bias=bias)
    assert winograd_fits(x, conv)
    exact = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=bias).double()
    exact.load_state_dict(conv.state_dict())
    wanted = results(lambda x, conv: conv(x), x.double(), exact)
    found = results(conv3x3, x, conv)
    theirs = results(lambda x, conv: conv(x), x, conv)
    for a, b, c in zip(found, theirs, wanted):
        assert a.shape == b.shape
        assert a.stride() == b.stride()
        assert float((a - c).norm() / c.norm()) < max(2 * float((b - c).norm() / c.norm()), 1e-6)


@pytest.mark.parametrize("memory", [torch.contiguous_format, LAST])
def test_the_gradient_lies_in_memory_like_the_weight(memory: torch.memory_format) -> None:
    x, conv = case(2, 1, 2, 16, 16)
    conv = conv.to(memory_format=memory)
    conv3x3(x, conv).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
    want = torch.autograd.grad(F.conv2d(x, conv.weight, padding=1).sum(), conv.weight)[0]
    torch.testing.assert_close(conv.weight.grad, want, rtol=1e-4, atol=1e-3)


def test_a_gradient_from_anywhere_is_taken() -> None:
    """An expanded gradient, and one with its channels first."""
    x, conv = case(2, 1, 1, 16, 16)
    for grad in (torch.ones(()).expand(2, WIDTH, 16, 16), torch.randn(2, WIDTH, 16, 16)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (found,) = torch.autograd.grad(conv3x3(leaf, conv), leaf, grad)
        (want,) = torch.autograd.grad(conv(leaf), leaf, grad)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 1, 2, 16, 16), (16, 5, 1, 9, 10)])
def test_an_image_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    x, conv = case(*shape)
    whole, *_ = results(conv3x3, x, conv)
    part, *_ = results(conv3x3, x[3:11], conv)
    assert torch.equal(whole[3:11], part)


def test_nothing_depends_on_the_threads() -> None:
    x, conv = case(6, 2, 1, 16, 16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(results(conv3x3, x, conv))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_only_what_it_can_do_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(x: Tensor, conv: nn.Module) -> bool:
        name = "_WinogradBackward"
        return type(conv3x3(x, conv).grad_fn).__name__ == name

    x, conv = case(4, 1, 1, 16, 16)
    assert taken(x, conv)
    assert taken(x.requires_grad_(), conv)
    x = x.detach()
    for changes in (
        {"padding": 0},
        {"stride": 2},
        {"groups": WIDTH},
        {"padding_mode": "circular"},
        {"dilation": 2},
    ):
        other = nn.Conv2d(WIDTH, WIDTH, 3, **{"padding": 1} | changes).to(memory_format=LAST)
        assert not taken(x, other)
    assert not taken(x, nn.Conv2d(WIDTH, 3, 3, padding=1))
    assert not taken(x, nn.Conv2d(WIDTH, WIDTH, 5, padding=2))
    assert not taken(x.contiguous(), conv)
    assert not taken(x.double(), conv.double())
    conv.float()
    assert not taken(x[:1, :, :8, :8].contiguous(memory_format=LAST), conv)  # 16 squares
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(x, conv)
    hook = conv.register_forward_hook(lambda *a: None)
    assert not taken(x, conv)
    hook.remove()
    assert taken(x, conv)
    monkeypatch.setattr("ddpm_lib.nn.kernels.winograd.convolution_library", lambda: None)
    assert not taken(x, conv)


def test_a_wrong_number_of_channels_is_torchs_error() -> None:
    x, conv = case(4, 2, 1, 16, 16)
    with pytest.raises(RuntimeError, match="channels"):
        conv3x3(x[:, :WIDTH].contiguous(memory_format=LAST), conv)


def test_gradients_of_gradients() -> None:
    x, conv = case(4, 1, 1, 8, 8)
    found = []
    for function in (conv3x3, lambda x, conv: conv(x)):
        conv.zero_grad()
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (first,) = torch.autograd.grad(function(leaf, conv).pow(3).sum(), leaf, create_graph=True)
        first.square().sum().backward()
        found.append((leaf.grad, conv.weight.grad, conv.bias.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_frozen_parts_have_no_gradient() -> None:
    x, conv = case(4, 1, 1, 8, 8)
    conv.requires_grad_(False)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    conv3x3(leaf, conv).sum().backward()
    assert leaf.grad is not None
    assert conv.weight.grad is None
    conv.bias.requires_grad_(True)
    conv3x3(x, conv).sum().backward()
    torch.testing.assert_close(conv.bias.grad, torch.full((WIDTH,), 256.0))
    with torch.no_grad():
        assert conv3x3(x, conv).grad_fn is None


def test_traced_and_transformed_networks_take_torchs() -> None:
    x, conv = case(4, 1, 1, 8, 8)
    one = torch.func.vmap(lambda v: conv3x3(v[None], conv)[0])(x)
    torch.testing.assert_close(one, conv(x), rtol=1e-4, atol=1e-4)
    state = dict(conv.named_parameters())

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv

        def forward(self, x: Tensor) -> Tensor:
            return conv3x3(x, self.inner)

    given = {f"inner.{name}": 2 * p.detach() for name, p in state.items()}
    called = torch.func.functional_call(Wrapped(), given, (x,))
    torch.testing.assert_close(called, 2 * conv(x), rtol=1e-4, atol=1e-4)
    program = torch.export.export(Wrapped(), (x,))
    torch.testing.assert_close(program.module()(x), conv(x), rtol=1e-4, atol=1e-4)


def test_who_counts_operations_sees_torchs() -> None:
    x, conv = case(4, 1, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        conv3x3(x, conv).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 4 * 64 * 9 * WIDTH**2  # forward, the weight's


def test_nan_stays_nan() -> None:
    x, conv = case(4, 1, 1, 16, 16)
    x[1, 3, 5, 7] = torch.nan
    y = conv3x3(x, conv)
    assert y[1, :, 4:7, 6:9].isnan().all()
    assert not y[[0, 2, 3]].isnan().any()


def test_a_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Unet(2 * WIDTH, (1, 2)).to(memory_format=LAST)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    x, t = torch.randn(4, 3, 16, 16).to(memory_format=LAST), torch.tensor([3, 900, 1, 50])
    found, used = [], []
    real = winograd
    monkeypatch.setattr(small_conv, "winograd", lambda x, conv: (used.append(1), real(x, conv))[1])
    for there in (True, False):
        if not there:
            monkeypatch.setattr(small_conv, "winograd_fits", lambda *_: False)
        model.zero_grad()
        y = model(x, t)
        y.square().mean().backward()
        found.append(torch.cat([y.flatten(), *(p.grad.flatten() for p in model.parameters())]))
    assert len(used) >= 15
    assert float((found[0] - found[1]).detach().norm() / found[1].detach().norm()) < 1e-5
    assert not torch.equal(*found)


def test_the_check_of_the_doctor() -> None:
    assert winograd_error() < 1e-5


@pytest.mark.parametrize(
    ("machine", "flags", "there"),
    [("aarch64", "", True), ("x86_64", "sse2 avx", False), ("x86_64", "sse2 avx2 fma", True)],
)
def test_it_needs_wide_registers(
    machine: str, flags: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "_processor", lambda: f"flags\t: {flags}\nmodel name: X")
    assert build._has_wide_registers() is there
