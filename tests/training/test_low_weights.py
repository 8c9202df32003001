"""Weights in bfloat16 beside the float32 ones: the same training bit by bit, without the casts."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib import GaussianDiffusion, Trainer
from ddpm_lib.nn.kernels import weight_passes as kernels
from ddpm_lib.nn.kernels.build import weights_library
from ddpm_lib.nn.lowering import lowered_copy
from ddpm_lib.training import learner
from ddpm_lib.training.low_weights import LowWeights, keeps_low_weights
from ddpm_lib.training.one_pass import OnePassAdam
from training_helpers import (
    At,
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

needs_kernel = pytest.mark.skipif(weights_library() is None, reason="no C++ compiler here")


def train(run: Path, model: dict[str, Any] | None = None, **options: Any) -> Trainer:
    options = {"max_steps": 3, "log_every": 1, "mixed_precision": "bf16"} | options
    trainer = tiny_trainer(run, tiny_diffusion(**model or {}), **options)
    trainer.train()
    return trainer


def trained_with_casts(
    monkeypatch: pytest.MonkeyPatch, run: Path, model: dict[str, Any] | None = None, **options: Any
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(learner, "keeps_low_weights", lambda *_, **__: False)
        assert train(run, model, **options).learner.low is None


def assert_same_runs(a: Path, b: Path) -> None:
    assert_same_tensors(final_tensors(a), final_tensors(b))
    assert curve(a) == curve(b)


@needs_kernel
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({}, {"optimizer": "adamw"}),
        ({}, {"optimizer": "adam", "weight_decay": 0.1, "max_grad_norm": 0.01}),
        ({}, {"optimizer": "adamw", "accumulation_steps": 3, "max_grad_norm": None}),
        ({"dim": 16}, {"optimizer": "muon"}),
        ({"gradient_checkpointing": True}, {"optimizer": "adamw"}),
        ({"self_condition": True}, {"optimizer": "adamw"}),
        ({"patch_size": 2, "num_classes": 8}, {"optimizer": "adamw"}),
        ({}, {"optimizer": "adamw", "freeze": "down.0"}),
        ({}, {"optimizer": "adamw", "ema_decay": ()}),
    ],
    ids=lambda given: ",".join(f"{k}={v}" for k, v in given.items()) or "plain",
)
def test_training_is_the_same_bit_by_bit(
    model: dict[str, Any],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = train(tmp_path / "low", model, **options)
    assert trainer.learner.low is not None
    trained_with_casts(monkeypatch, tmp_path / "cast", model, **options)
    assert_same_runs(tmp_path / "low", tmp_path / "cast")


@needs_kernel
def test_a_run_goes_on_from_either_way_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", optimizer="adamw")
    train(tmp_path / "parts", optimizer="adamw", callbacks=[StopAt(1)])
    trained_with_casts(monkeypatch, tmp_path / "parts", optimizer="adamw", callbacks=[StopAt(2)])
    train(tmp_path / "parts", optimizer="adamw")
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


class Casts(TorchDispatchMode):
    """Count casts to bfloat16 of tensors that lie where a weight lies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {p.data_ptr() for p in model.parameters()}
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.seen[str(named.get("dtype"))] += 1
        return function(*args, **named)


@needs_kernel
@pytest.mark.parametrize("summed", [False, True])
def test_no_weight_is_cast_and_gradients_stay_as_the_layers_leave_them(summed: bool) -> None:
    process = tiny_diffusion()
    optimizer = OnePassAdam(process.parameters(), fused=True)
    low, images = LowWeights(process, optimizer), torch.rand(2, 3, 8, 8)

    def gradient(network: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            network(images).backward()
        found = {k: p.grad for k, p in process.named_parameters()}
        process.zero_grad(set_to_none=True)
        return found

    with Casts(process) as plain:
        want = gradient(process)
    with Casts(process) as counted:
        found = gradient(low.call(process, summed=summed))
    assert plain.seen["torch.bfloat16"] >= len(low.pairs)
    assert counted.seen["torch.bfloat16"] == 0
    for name, grad in want.items():
        assert torch.equal(found[name].float(), grad), name
    kinds = {found[name].dtype for name in low.pairs}
    assert kinds == {torch.float32 if summed else torch.bfloat16}


@needs_kernel
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.add_(1.0),
        lambda p: p.detach().mul_(2.0),
        lambda p: setattr(p, "data", p.data + 1.0),
        lambda p: nn.init.normal_(p),
    ],
)
def test_a_weight_that_somebody_changes_is_copied_anew(change: Any) -> None:
    process = tiny_diffusion()
    low = LowWeights(process, OnePassAdam(process.parameters(), fused=True))
    low.call(process, summed=False)
    name, pair = next(iter(low.pairs.items()))
    with torch.no_grad():
        change(process.get_parameter(name))
    low.call(process, summed=False)
    assert torch.equal(pair.low, process.get_parameter(name).bfloat16())


@needs_kernel
@pytest.mark.parametrize("traced", [True, pytest.param(False, id="by .data")])
def test_a_callback_that_changes_the_weights_is_seen(
    traced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halve(trainer: Trainer) -> None:
        with torch.no_grad():
            for p in trainer.diffusion.parameters():
                (p if traced else p.data).mul_(0.5)

    train(tmp_path / "low", optimizer="adamw", callbacks=[At(1, halve)])
    trained_with_casts(monkeypatch, tmp_path / "cast", optimizer="adamw", callbacks=[At(1, halve)])
    assert_same_runs(tmp_path / "low", tmp_path / "cast")


class Standardised(nn.Conv2d):
    """A convolution with a weight that it computes."""

    def forward(self, x: Tensor) -> Tensor:
        off = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, off / off.norm(), self.bias, padding=1)


class Own(nn.Module):
    """A network with a layer of which a cast at every call is not all that happens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        conv = nn.Conv2d(16, 16, 3, padding=1)
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.middle = {
            "standardised": lambda: Standardised(16, 16, 3, padding=1),
            "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv),
            "weight norm by a hook": lambda: nn.utils.weight_norm(conv),
            "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(conv),
            "spectral norm by a hook": lambda: nn.utils.spectral_norm(conv),
        }.get(kind, lambda: conv)()
        self.time, self.table = nn.Linear(1, 16), nn.Embedding(4, 16)
        if kind == "shared":
            self.score = nn.Linear(16, 4)
            self.score.weight = self.table.weight

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        e = (t[:, None] / 1000).float()
        if self.kind == "float32 on the way":
            with torch.autocast(x.device.type, enabled=False):
                e = self.time(e)
        else:
            e = self.time(e)
        if self.kind == "read":
            e = e * self.time.weight.norm()
        if self.kind == "shared":
            e = e + self.table(t.long() % 4) + self.score(e).sum()
        return self.last(self.middle(self.first(x) + e[:, :, None, None]))


KINDS = [
    "standardised",
    "weight norm",
    "weight norm by a hook",
    "spectral norm",
    "spectral norm by a hook",
    "float32 on the way",
    "read",
    "shared",
]


@needs_kernel
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_ones_own_compute_what_autocast_does(
    kind: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`known`: as if the library had written the network, which then leaves autocast nowhere, and
    reads weights in no other way.
    """
    if known:
        if kind in ("float32 on the way", "read"):
            return
        monkeypatch.setattr("ddpm_lib.nn.lowering._KNOWN", ("",))
    torch.manual_seed(0)
    process = GaussianDiffusion(Own(kind), image_size=8, channels=3)
    low = LowWeights(process, OnePassAdam(process.parameters(), fused=True))
    assert ("model.first.weight" in low.pairs) is known
    images, t, state = torch.rand(4, 3, 8, 8), torch.arange(4), deepcopy(process.state_dict())

    def results(network: Any) -> list[Tensor]:
        process.load_state_dict(state)  # with what spectral norm keeps between calls
        process.zero_grad()
        given = {"uniform": torch.linspace(0, 0.9, 4).double().numpy()}
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(images, None, noise=torch.ones_like(images), **given).mean()
        loss.backward()
        return [loss, *(p.grad.clone() for p in process.parameters() if p.grad is not None)]

    wanted = results(process)
    found = results(low.call(process, summed=True))
    low.close()
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    process.load_state_dict(state)
    network = process.model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = network(images, t)  # what hooks have made can be copied now
        assert torch.equal(lowered_copy(network, torch.bfloat16)(images, t), wanted)


@needs_kernel
def test_whoever_trains_on_has_float32_gradients(tmp_path: Path) -> None:
    process = train(tmp_path, optimizer="adamw").diffusion
    own = torch.optim.AdamW(process.parameters())
    process(torch.rand(2, 3, 8, 8)).backward()
    assert {p.grad.dtype for p in process.parameters() if p.grad is not None} == {torch.float32}
    own.step()


@needs_kernel
def test_the_kernel_rounds_as_torch_does() -> None:
    hard = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, float("nan")]
    weight = torch.cat([torch.tensor(hard), torch.randn(20_000)])
    low, zeros = torch.empty_like(weight, dtype=torch.bfloat16), torch.zeros_like(weight)
    options = {"lr": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    grad, parts = torch.zeros_like(weight), [zeros.clone(), zeros.clone()]
    kernels.adam_step(
        [weight], [grad], *([p] for p in parts), [1], scale=1.0, decoupled=True, **options,
        narrowed=[low],
    )  # fmt: skip
    torch.testing.assert_close(low, weight.bfloat16(), rtol=0.0, atol=0.0, equal_nan=True)


@needs_kernel
def test_gradients_in_bfloat16_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    low = [torch.randn(n).bfloat16() for n in (3, 1_000, 40_000)]
    wide = [grad.float() for grad in low]
    assert kernels.gradient_norm(low) == kernels.gradient_norm(wide)
    found = []
    for grads in (low, wide):
        lists = [[torch.ones_like(g) for g in wide] for _ in range(3)]
        options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
        weights, means, squares = lists
        kernels.adam_step(
            weights, grads, means, squares, [1, 2, 3], scale=0.3, decoupled=True, **options
        )
        found.append([*weights, *means, *squares])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_torchs_own_optimizer_takes_such_gradients_where_the_kernel_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for kind in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(torch.ones(5))
        weight.grad_dtype = kind
        weight.grad = torch.arange(5.0).to(kind)
        optimizer = OnePassAdam([weight], fused=True)
        monkeypatch.setattr(kernels, "weights_library", lambda: None)
        optimizer.measure(1.0)
        optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0], torch.ones(5))


@pytest.mark.parametrize(
    ("device", "precision", "processes", "pulled", "compiled"),
    [
        ("cuda", "bf16", 1, False, False),
        ("cpu", "no", 1, False, False),
        ("cpu", "fp16", 1, False, False),
        ("cpu", "bf16", 2, False, False),
        ("cpu", "bf16", 1, True, False),
        ("cpu", "bf16", 1, False, True),
    ],
)
def test_where_they_are_not_kept(
    device: str, precision: str, processes: int, pulled: bool, compiled: bool
) -> None:
    given = torch.device(device), precision, processes
    assert not keeps_low_weights(*given, pulled=pulled, compiled=compiled)
    here = keeps_low_weights(torch.device("cpu"), "bf16", 1, pulled=False, compiled=False)
    assert here is (weights_library() is not None)
