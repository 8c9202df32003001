"""The kernel of Muon for CPUs: what torch does, whatever the shape, layout and threads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ddpm_lib.nn.kernels import orthogonal_steps
from ddpm_lib.nn.kernels.build import orthogonal_library
from ddpm_lib.nn.kernels.orthogonal_steps import orthogonal_error
from ddpm_lib.training import muon
from ddpm_lib.training.muon import Muon
from training_helpers import assert_same_tensors

pytestmark = pytest.mark.skipif(orthogonal_library() is None, reason="no kernel for Muon")
SHAPES = [(16, 16), (20, 600), (600, 20), (33, 17, 3, 3), (48, 32, 3, 3), (64, 64, 1, 1), (70, 300)]
"""Wide and tall, more and fewer than a vector, more columns than a block of a product's depth."""


def weights(memory: torch.memory_format = torch.contiguous_format) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(t.contiguous(memory_format=memory) if t.ndim == 4 else t) for t in found]


def trained(
    parameters: list[nn.Parameter], steps: int = 3, *, shut: int = -1
) -> tuple[list[torch.Tensor], Muon]:
    """Train for a few steps by gradients of many sizes."""
    optimizer = Muon([{"params": parameters, "muon": True, "weight_decay": 0.1}], lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for k, p in enumerate(parameters):
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (k - 3)
            p.grad = torch.empty_like(p).copy_(grad)
        optimizer.found_inf = torch.tensor(float(step == shut))
        optimizer.step()
    return [p.detach() for p in parameters], optimizer


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> object:
    """Turn the kernel off."""

    def turn_off() -> None:
        monkeypatch.setattr(muon, "orthogonal_fits", lambda *_: False)

    return turn_off


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_it_does_what_torch_does(memory: torch.memory_format, without: object) -> None:
    start = weights(memory)
    found, optimizer = trained(copy.deepcopy(start), shut=1)
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    without()  # type: ignore[operator]
    wanted, eager = trained(copy.deepcopy(start), shut=1)
    for ours, theirs, was in zip(found, wanted, start):
        assert ours.stride() == was.stride()
        moved = float((theirs - was.detach()).norm())
        assert float((ours - theirs).norm()) < 1e-4 * moved
    for ours, state in zip(momenta, eager.state.values()):
        torch.testing.assert_close(ours, state["momentum_buffer"])


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "orthogonal", lambda x: pytest.fail("torch's operations ran"))
    trained(weights())


def test_nothing_depends_on_the_threads() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(trained(weights())[0])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_a_momentum_in_another_layout_goes_on_bit_for_bit() -> None:
    """As a checkpoint may give it back."""
    whole, _ = trained(weights(torch.channels_last), 2)
    parts = weights(torch.channels_last)
    optimizer = Muon([{"params": parts, "muon": True, "weight_decay": 0.1}], lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for k, p in enumerate(parts):
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (k - 3)
            p.grad = torch.empty_like(p).copy_(grad)
        optimizer.step()
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    assert all(torch.equal(a, b.detach()) for a, b in zip(whole, parts))


@pytest.mark.parametrize("change", ["double", "gap", "rows"])
def test_what_it_cannot_do_is_left_to_torch(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "orthogonal_step", lambda *_, **__: pytest.fail("the kernel ran"))
    if change == "double":
        p = nn.Parameter(torch.randn(16, 20, dtype=torch.float64))
    elif change == "gap":
        p = nn.Parameter(torch.randn(16, 40)[:, ::2])
    else:
        p = nn.Parameter(torch.randn(20, 16).t())
    before = p.detach().clone()
    optimizer = Muon([{"params": [p], "muon": True}], lr=0.1)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert not torch.equal(before, p.detach())


def test_a_first_step_that_is_shut_leaves_a_momentum_of_zeros() -> None:
    parameters = weights()
    _, optimizer = trained(parameters, 1, shut=0)
    for p, start in zip(parameters, weights()):
        assert torch.equal(p.detach(), start.detach())
        assert_same_tensors(optimizer.state[p], {"momentum_buffer": torch.zeros_like(p)})


def test_the_check_of_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert orthogonal_error() < 1e-5
    monkeypatch.setattr(orthogonal_steps, "orthogonal_step", lambda w, *_, **__: w[0].fill_(1.0))
    assert orthogonal_error() > 0.1
