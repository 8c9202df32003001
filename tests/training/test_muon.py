"""Muon: orthogonal updates, AdamW for the rest bit for bit, steps that are kept out, resuming, and
runs that change their optimizer; and the schedule that cools down.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_lib import TrainingConfig
from ddpm_lib.nn import MLP, Unet
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.training import ConfigError
from ddpm_lib.training.muon import Muon, orthogonal, takes_muon
from ddpm_lib.training.optim import cooldown_start, learning_rate, make_optimizer
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

CPU = torch.device("cpu")


def wide(**options: object) -> object:
    return tiny_diffusion(dim=16, **options)


@pytest.mark.parametrize("shape", [(3, 20, 60), (2, 60, 20), (1, 16, 16)])
def test_updates_are_orthogonal(shape: tuple[int, ...]) -> None:
    """All singular values come near 1, and the directions stay: of UΣVᵀ it is about UVᵀ."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices *= torch.logspace(-3, 3, shape[0]).view(-1, 1, 1)  # their scale says nothing
    found = orthogonal(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3
    inner = u.mT @ found @ vh.mT
    torch.testing.assert_close(
        inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0
    )


def test_a_step_by_hand() -> None:
    """Momentum with Nesterov's look ahead, the root mean square of AdamW, decoupled decay."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 16, 3, 3))
    start, grads = weight.detach().clone(), [torch.randn_like(weight) for _ in range(2)]
    group = {"params": [weight], "muon": True, "weight_decay": 0.1}
    optimizer = Muon([group], lr=0.01, momentum=0.9)
    momentum, expected = torch.zeros_like(start), start
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * grad
        ahead = 0.1 * grad + 0.9 * momentum
        update = orthogonal(ahead.flatten(1)[None])[0].view_as(start)
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 144**0.5 * update
        torch.testing.assert_close(weight.detach(), expected)
    assert float(update.square().mean().sqrt() * 0.2 * 12) == pytest.approx(0.2, rel=0.2)


def test_the_rest_is_adamw_bit_for_bit() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6}
    mine = Muon([{"params": ours, "weight_decay": 0.1}], **options)
    torchs = torch.optim.AdamW(theirs, weight_decay=0.1, fused=True, **options)
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        torchs.step()
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


def test_a_step_that_is_shut_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3))
    config = TrainingConfig(optimizer="muon", weight_decay=0.1)
    optimizer = make_optimizer(model, config, CPU)
    for shut in (0.0, 1.0, 1.0, 0.0):
        before = [p.detach().clone() for p in model.parameters()]
        momentum = [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan")) if shut else torch.randn_like(p)
        optimizer.found_inf = torch.tensor(shut)
        optimizer.step()
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters())]
        assert all(same) if shut else not any(same)
        if shut:
            for was, now in zip(momentum, optimizer.state.values()):
                assert_same_tensors(was, now)


def test_which_parameters_it_takes() -> None:
    """Hidden matrices and convolutions; no connection with pixels, no table, no vector."""
    unet = Unet(dim=16, dim_mults=(1, 2), blocks_per_level=1, num_classes=20)
    taken = set(takes_muon(unet))
    for name, p in unet.named_parameters():
        assert (name in taken) <= (p.ndim >= 2)
        assert "conv_in" not in name or name not in taken
        assert "conv_out" not in name or name not in taken
        assert "class_label" not in name or p.ndim < 2 or name not in taken
    shares = sum(p.numel() for n, p in unet.named_parameters() if n in taken)
    assert shares > 0.85 * sum(p.numel() for p in unet.parameters())
    assert takes_muon(MLP(width=32))
    with pytest.raises(ConfigError, match="trains none"):
        make_optimizer(nn.Linear(3, 3), TrainingConfig(optimizer="muon"), CPU)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "mixed_precision": "bf16", "lr_schedule": "wsd"},
        {"accumulation_steps": 3, "channels_last": "yes", "max_grad_norm": None},
        {"freeze": ("stem",), "pull_to_start": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_resumed_equals_uninterrupted(tmp_path: Path, options: dict) -> None:
    if "freeze" in options:
        options = {**options, "freeze": ("conv_in", "down")}
    options = {"optimizer": "muon", **options}
    tiny_trainer(tmp_path / "a", wide(), **options).train()
    tiny_trainer(tmp_path / "b", wide(), callbacks=[StopAt(3)], **options).train()
    tiny_trainer(tmp_path / "b", wide(), **options).train()
    whole = final_tensors(tmp_path / "a")
    assert any(k.endswith("|momentum_buffer") for k in whole)
    assert_same_tensors(whole, final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_begins_afresh_and_says_so(tmp_path: Path, first: str, then: str) -> None:
    tiny_trainer(tmp_path, wide(), optimizer=first).train()
    tiny_trainer(tmp_path, wide(), optimizer=then, max_steps=8).train()
    log = (tmp_path / "train.log").read_text()
    assert "trained by another optimizer: the moments of" in log
    kept = final_tensors(tmp_path)
    assert any(k.endswith("|momentum_buffer") for k in kept) == (then == "muon")


def test_a_checkpoint_is_as_large_as_it_was_said_to_be(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, wide(), optimizer="muon")
    trainer.prepare()
    said = trainer.learner.checkpoint_bytes()
    trainer.train()
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    wrote = sum(p.stat().st_size for p in newest.glob("*.safetensors"))
    assert wrote == pytest.approx(said, rel=0.1)


def test_losses_that_are_not_finite_never_reach_the_weights(tmp_path: Path) -> None:
    diffusion = wide()
    real, calls = diffusion.model.forward, []

    def forward(x, t, cond=None):
        calls.append(1)
        return real(x, t, cond) * (float("nan") if len(calls) == 3 else 1.0)

    diffusion.model.forward = forward
    options = {"on_nonfinite": "skip", "max_steps": 4, "log_every": 1, "ema_decay": ()}
    trainer = tiny_trainer(tmp_path, diffusion, optimizer="muon", **options)
    trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.diffusion.parameters())
    assert "its update was left out" in (tmp_path / "train.log").read_text()


# The schedule that cools down.


def test_the_rate_is_stable_and_cools_down() -> None:
    options = {"learning_rate": 1.0, "lr_schedule": "wsd", "warmup_steps": 10, "max_steps": 100}
    c = TrainingConfig(cooldown_fraction=0.25, final_learning_rate_ratio=0.1, **options)
    rates = [learning_rate(step, c) for step in range(101)]
    assert rates[4] == 0.5
    assert rates[9:76] == [1.0] * 67
    assert all(a > b for a, b in itertools.pairwise(rates[75:]))
    assert rates[100] == pytest.approx(0.1)
    assert rates[75 + 6] == pytest.approx(0.1 + 0.9 * (1 - (6 / 25) ** 0.5))
    # Until the cool-down a longer run has the same rates: that is what it can be extended by.
    longer = TrainingConfig(cooldown_fraction=0.25, **{**options, "max_steps": 1000})
    assert [learning_rate(step, longer) for step in range(76)] == rates[:76]
    assert cooldown_start(TrainingConfig(cooldown_fraction=1.0, **options)) == 10


def test_a_run_is_extended_from_its_stable_part(tmp_path: Path) -> None:
    """Back to the checkpoint before the cool-down and on: bit for bit the longer run."""
    options = {"lr_schedule": "wsd", "warmup_steps": 1, "save_every": 100, "keep_last": 2}
    options |= {"learning_rate": 0.01, "cooldown_fraction": 0.5}
    tiny_trainer(tmp_path / "long", max_steps=12, **options).train()
    tiny_trainer(tmp_path / "short", max_steps=8, **options).train()
    kept = [int(p.name[-9:]) for p in list_checkpoints(tmp_path / "short" / "checkpoints")]
    assert kept == [4, 8]
    log = (tmp_path / "short" / "train.log").read_text()
    assert "cooled down from step 4 on" in log
    assert 'resume="4"' in log
    tiny_trainer(tmp_path / "short", max_steps=12, resume="4", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "long"), final_tensors(tmp_path / "short"))


@pytest.mark.slow
def test_extending_from_cooled_weights_says_what_is_better(tmp_path: Path) -> None:
    options = {"lr_schedule": "wsd", "warmup_steps": 1, "cooldown_fraction": 0.5}
    tiny_trainer(tmp_path, max_steps=8, **options).train()
    tiny_trainer(tmp_path, max_steps=24, **options).train()
    log = (tmp_path / "train.log").read_text()
    assert "Step 8 lies in the cool-down that began at step 4" in log
    tiny_trainer(tmp_path / "cut", max_steps=8, callbacks=[StopAt(6)], **options).train()
    tiny_trainer(tmp_path / "cut", max_steps=8, **options).train()
    assert "lies in the cool-down" not in (tmp_path / "cut" / "train.log").read_text()


def test_refusals() -> None:
    for wrong in (0.0, -0.1, 1.5):
        with pytest.raises(ConfigError, match="cooldown_fraction must lie in"):
            TrainingConfig(cooldown_fraction=wrong)
    with pytest.raises(ConfigError, match="Did you mean 'muon'"):
        TrainingConfig(optimizer="moun")  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_memory_of_moments_is_what_the_optimizer_takes(optimizer: str) -> None:
    from ddpm_lib.training.memory import moments_bytes

    model = Unet(dim=16, dim_mults=(1, 2), blocks_per_level=1)
    config = TrainingConfig(max_steps=10, optimizer=optimizer)
    made = make_optimizer(model, config, torch.device("cpu"))
    sum(p.square().sum() for p in model.parameters()).backward()
    made.step()
    kept = [t for state in made.state.values() for t in state.values() if t.ndim > 0]
    found = sum(t.numel() * t.element_size() for t in kept)
    assert moments_bytes(model, optimizer) == found
