"""Convolutions of few positions: the same map, and the gradients of torch's to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import Unet
from ddpm_lib.nn.kernels import conv3x3, small_conv

LAST = torch.channels_last


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AMX."""
    monkeypatch.setattr(small_conv, "_has_amx", lambda: True)


def case(b: int, i: int, o: int, h: int, w: int) -> tuple[Tensor, nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(b, i, h, w).to(torch.bfloat16).to(memory_format=LAST)
    conv = nn.Conv2d(i, o, 3, padding=1).to(memory_format=LAST)
    return x, conv, torch.randn(b, o, h, w)


@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 4, 4), (3, 8, 3, 8, 8), (1, 16, 16, 1, 1), (2, 4, 6, 2, 5)]
)
def test_gradients_are_those_of_the_convolution(shape: tuple[int, ...]) -> None:
    x, conv, grad = case(*shape)
    exact = x.double().requires_grad_()
    weight = conv.weight.detach().double().requires_grad_()
    nn.functional.conv2d(exact, weight, padding=1).backward(grad.double())
    found = small_conv.weight_gradient(x.double(), grad.double())
    torch.testing.assert_close(found, weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 32, 48, 4, 4), (8, 16, 32, 8, 8)])
def test_it_is_as_exact_as_torchs_in_bf16(shape: tuple[int, ...], everywhere: None) -> None:
    x, conv, grad = case(*shape)
    exact = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1).double()
    exact.load_state_dict(conv.state_dict())
    errors = []
    for function in (conv3x3, lambda x, conv: conv(x)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = function(leaf, conv)
        assert (type(y.grad_fn).__name__ == "_LowConvBackward") == (function is conv3x3)
        y.backward(grad.to(y.dtype))
        want = x.double().requires_grad_()
        exact.zero_grad()
        true = exact(want)
        true.backward(grad.double())
        pairs = [(y.detach(), true.detach()), (leaf.grad, want.grad)]
        pairs += [(conv.weight.grad, exact.weight.grad), (conv.bias.grad, exact.bias.grad)]
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in pairs])
        assert conv.weight.grad.stride() == conv.weight.stride()
    for ours, theirs in zip(*errors):
        assert ours < max(1.3 * theirs, 5e-3)


def test_only_what_is_small_and_plain_takes_it(everywhere: None) -> None:
    def taken(b: int = 2, side: int = 4, **changes: object) -> bool:
        x = torch.randn(b, 8, side, side).to(torch.bfloat16).to(memory_format=LAST)
        conv = nn.Conv2d(8, 8, 3, **{"padding": 1} | changes)
        return small_conv._is_plain(x, conv) and small_conv._own_gradients(x, conv) is not None

    assert taken()
    assert taken(64, 4)
    assert taken(32, 8)
    for other in (
        {"side": 16},
        {"b": 33, "side": 8},
        {"padding": 0},
        {"stride": 2},
        {"bias": False},
        {"groups": 2},
        {"padding_mode": "circular"},
    ):
        assert not taken(**other)
    x, conv, _ = case(2, 8, 8, 4, 4)
    assert small_conv._own_gradients(x.float(), conv) is None
    assert small_conv._own_gradients(x.contiguous(), conv) is None
    with torch.no_grad():
        assert small_conv._own_gradients(x, conv) is None
    conv.register_forward_hook(lambda *a: None)
    assert not small_conv._is_plain(x, conv)


def test_gradients_of_gradients(everywhere: None) -> None:
    x, conv, _ = case(2, 8, 8, 4, 4)
    found = []
    for function in (conv3x3, lambda x, conv: conv(x)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        conv.to(torch.bfloat16)
        (first,) = torch.autograd.grad(function(leaf, conv).square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=1.0)


def test_a_network_learns_the_same(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Unet(16, (1, 2, 2)).to(memory_format=LAST)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([3, 900, 1, 50])
    results = []
    for small in (True, False):
        if not small:
            monkeypatch.setattr(small_conv, "_is_small", lambda *_: False)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(x, t).float().square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 1e-2
    assert not torch.equal(*results)
