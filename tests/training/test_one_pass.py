"""Adam and the averages in one pass over memory: against their formulas and torch's own."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from ema_pytorch import EMA
from torch import Tensor, nn

from ddpm_lib.nn.kernels import weight_passes as kernels
from ddpm_lib.nn.kernels.build import weights_library
from ddpm_lib.training.ema import WeightAverages
from ddpm_lib.training.one_pass import KeptAdam, OnePassAdam
from training_helpers import assert_same_tensors, final_tensors, tiny_diffusion, tiny_trainer

needs_kernel = pytest.mark.skipif(weights_library() is None, reason="no C++ compiler here")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 130, 3), nn.Linear(7, 1))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def give_gradients(model: nn.Module, seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.empty_like(p).copy_(size * torch.randn(p.shape, generator=generator))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, most: float) -> nn.Module:
    """The weights after five steps with clipped gradients."""
    for step in range(5):
        give_gradients(model, step, 10.0**-step)
        if isinstance(optimizer, OnePassAdam):
            optimizer.measure(most)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), most)
        optimizer.step()
    return model


def error(a: nn.Module, b: nn.Module) -> float:
    pairs = [(p.detach().double(), q.detach()) for p, q in zip(a.parameters(), b.parameters())]
    return max(float((p - q.double()).norm() / q.double().norm()) for p, q in pairs)


@pytest.mark.parametrize("without", [False, pytest.param(True, id="without the kernel")])
@pytest.mark.parametrize(
    ("decay", "decoupled", "most"), list(product([0.0, 0.1], [True, False], [1.0, 1e9]))
)
def test_it_is_adam(
    decay: float, decoupled: bool, most: float, without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    options["decoupled_weight_decay"] = decoupled
    exact = copy.deepcopy(network()).double()
    want = trained(exact, torch.optim.Adam(exact.parameters(), **options), most)
    if without:
        monkeypatch.setattr(kernels, "weights_library", lambda: None)
    model = network()
    got = trained(model, OnePassAdam(model.parameters(), fused=True, **options), most)
    assert error(got, want) < (1e-5 if without else 1e-6)
    assert error(network(), want) > 1e-3


@needs_kernel
def test_numbers_do_not_depend_on_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            model = network()
            trained(model, OnePassAdam(model.parameters(), fused=True), 1.0)
            averages = WeightAverages(model, (0.9,))
            averages.update()
            found.append([*model.parameters(), *averages.network().parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_norm_is_that_of_all_gradients() -> None:
    model = network()
    optimizer = OnePassAdam(model.parameters(), fused=True)
    give_gradients(model, 0)
    exact = torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm()
    assert float(optimizer.measure(1.0)) == pytest.approx(float(exact), rel=1e-6)
    for bad in (float("nan"), float("inf")):
        model[2].weight.grad[0, 0, 0, 0] = bad
        assert not bool(torch.isfinite(optimizer.measure(1.0)))
    optimizer.zero_grad()
    assert float(optimizer.measure(1.0)) == 0.0


def test_a_step_that_is_shut_changes_nothing() -> None:
    model = network()
    optimizer = OnePassAdam(model.parameters(), fused=True)
    trained(model, optimizer, 1.0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    optimizer.found_inf = torch.tensor(1.0)
    give_gradients(model, 9, float("nan"))
    optimizer.measure(1.0)
    optimizer.step()
    assert_same_tensors(before[0], model.state_dict())
    for entries, kept in zip(optimizer.state_dict()["state"].values(), before[1]["state"].values()):
        assert_same_tensors(kept, entries)


def test_it_goes_on_from_the_state_of_torchs() -> None:
    models = [network(), network()]
    theirs = torch.optim.AdamW(models[0].parameters(), fused=True)
    trained(models[0], theirs, 1.0)
    models[1].load_state_dict(models[0].state_dict())
    ours = OnePassAdam(models[1].parameters(), fused=True, decoupled_weight_decay=True)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))  # torch would share the moments
    for model, optimizer in zip(models, (theirs, ours)):
        trained(model, optimizer, 1.0)
    assert error(models[1], models[0]) < 1e-6


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_looked_up_once_is_torchs(fused: bool) -> None:
    """Through a step in which a weight has no gradient, a state that is loaded, another group."""
    found = []
    for cls in (torch.optim.Adam, KeptAdam):
        model = network()
        optimizer = cls([{"params": [*model[0].parameters()]}], lr=0.1, fused=fused, foreach=False)
        for step in range(9):
            give_gradients(model, step)
            if step == 2:
                model[0].weight.grad = None
            if step == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if step == 6:
                optimizer.add_param_group({"params": [*model[2].parameters()], "lr": 0.01})
            optimizer.step()
        state = optimizer.state_dict()["state"]
        found.append({str(k): v for k, v in enumerate(model.state_dict().values())})
        found[-1] |= {f"{i}.{k}": v for i, each in state.items() for k, v in each.items()}
    assert_same_tensors(*found)


def test_moments_are_looked_up_again_only_where_they_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = network(), []
    real = torch.optim.Adam._init_group
    monkeypatch.setattr(
        torch.optim.Adam, "_init_group", lambda self, *a: (calls.append(1), real(self, *a))[1]
    )
    optimizer = KeptAdam(model.parameters(), fused=True)
    for step in range(4):
        give_gradients(model, step)
        optimizer.step()
    assert len(calls) == 1
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
    assert len(calls) == 2


def test_only_some_weights_have_gradients() -> None:
    model = network()
    optimizer = OnePassAdam(model.parameters(), fused=True)
    before = copy.deepcopy(model.state_dict())
    give_gradients(model, 0)
    model[0].weight.grad = None
    optimizer.measure(1.0)
    optimizer.step()
    changed = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert changed == {name for name, _ in model.named_parameters()} - {"0.weight"}


@pytest.mark.parametrize("without", [False, pytest.param(True, id="without the kernel")])
def test_averages_are_those_of_ema_pytorch(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if without:
        monkeypatch.setattr(kernels, "weights_library", lambda: None)
    model = network()
    decays = (0.5, 0.99)
    averages = WeightAverages(model, decays, power=0.75)
    options = {"update_after_step": 0, "update_every": 1, "power": 0.75, "use_foreach": True}
    theirs = [EMA(model, beta=decay, include_online_model=False, **options) for decay in decays]
    for step in range(6):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor.add_(torch.randn(tensor.shape))
        model[3].weight.data = model[3].weight.data.clone()  # replaced, as some code does
        averages.update()
        for decay, other in zip(decays, theirs):
            other.update()
            own, want = averages.network(decay).state_dict(), other.ema_model.state_dict()
            for name, tensor in want.items():
                torch.testing.assert_close(own[name], tensor, rtol=1e-6, atol=1e-6)
                if step == 0:
                    assert torch.equal(own[name], tensor)
    averages.put_first(0.99)
    averages.update()
    theirs[1].update()
    for name, tensor in theirs[1].ema_model.state_dict().items():
        torch.testing.assert_close(averages.network().state_dict()[name], tensor)


def test_what_does_not_fit_is_said() -> None:
    a, b = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    last = b.to(memory_format=torch.channels_last)
    there = weights_library() is not None
    assert kernels.one_pass_fits([a], [b]) is there
    assert kernels.one_pass_fits([last], [last]) is there
    for other in (last, b.double(), b[:2], b.bfloat16()):
        assert not kernels.one_pass_fits([a], [other])
    assert not kernels.one_pass_fits([a[:, :, ::2]])
    assert not kernels.one_pass_fits([a, a], [b])


@needs_kernel
def test_a_training_with_and_without_the_kernels_is_the_same_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ema_decay": (0.5, 0.9), "max_grad_norm": 0.01, "weight_decay": 0.1}
    tiny_trainer(tmp_path / "with", tiny_diffusion(), **options).train()
    monkeypatch.setattr(kernels, "weights_library", lambda: None)
    tiny_trainer(tmp_path / "without", tiny_diffusion(), **options).train()
    found: list[dict[str, Tensor]] = [final_tensors(tmp_path / k) for k in ("with", "without")]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=1e-5, msg=name)
