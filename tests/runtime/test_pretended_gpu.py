"""What the library does on a pretended GPU: nothing mixes devices, nothing waits, and the numbers
are the CPU's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Unet
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.evaluation import evaluate
from ddpm_lib.images import shrink
from ddpm_lib.nn.memory_format import use_channels_last
from ddpm_lib.process.likelihood import _Flow
from ddpm_lib.process.loss import Losses
from ddpm_lib.process.noising import assignment
from ddpm_lib.process.self_conditioning import training_estimate
from ddpm_lib.process.streams import ImageStreams
from ddpm_lib.runtime.devices import precision_advice
from ddpm_lib.samplers import OF_DENOISERS
from ddpm_lib.training import Callback, DivergedError, TrainingConfig
from ddpm_lib.training.estimate import Rehearsal, random_images
from ddpm_lib.training.randomness import StepRandomness
from pretend_cuda import CUDA, CudaTensor, PretendedGpu, pretended_gpu
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "classes": ({"num_classes": 5, "class_drop_prob": 0.5}, {}),
    "learned variance": ({"out_channels": 6}, {"variance": "learned_range"}),
    "self-conditioning": ({"self_condition": True}, {}),
    "super-resolution": ({"low_res_factor": 2, "low_res_max_noise": 0.3}, {}),
    "uncertainty": ({}, {"learn_uncertainty": True}),
    "noise": ({}, {"offset_noise": 0.1, "input_perturbation": 0.1}),
    "continuous": ({}, {"time_sampler": "log_normal_sigma"}),
    "consistency": ({"dropout": 0.2}, {"loss": "consistency", "time_sampler": "log_normal_sigma"}),
}
SOURCE = torch.Generator().manual_seed(0)
DATA = {
    "image": torch.rand(4, 3, 16, 16, generator=SOURCE),
    "class_label": torch.arange(4),
    "low_res": torch.rand(4, 3, 8, 8, generator=SOURCE),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    with pretended_gpu(monkeypatch) as gpu:
        yield gpu


def make(name: str = "plain") -> GaussianDiffusion:
    model, process = VARIANTS[name]
    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, **model)
    return GaussianDiffusion(network, image_size=16, timesteps=20, **process)


def conditions(name: str) -> dict[str, torch.Tensor] | None:
    wanted = {"classes": ["class_label"], "super-resolution": ["low_res"]}.get(name, [])
    return {k: DATA[k] for k in wanted} or None


def on_cpu(x: torch.Tensor) -> torch.Tensor:
    return x.detach().cpu()


def test_self_conditioning_asks_for_few_numbers_of_rows(gpu: PretendedGpu) -> None:
    """Each number is compiled anew and tried out by cuDNN."""
    asked: list[int] = []

    def guess(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return rows.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) + 1

    for images in (1, 7, 32, 50):
        asked.clear()
        x = torch.zeros(images, 1, 2, 2, device=CUDA)
        for count in range(images + 1):
            shown = torch.zeros(images, dtype=torch.bool)
            shown[torch.randperm(images)[:count]] = True
            found = on_cpu(training_estimate(x, shown, guess))[:, 0, 0, 0]
            want = torch.where(shown, torch.arange(1.0, images + 1), torch.zeros(()))
            assert torch.equal(found, want)
        assert len(set(asked)) <= 8
    assert {place.split()[0] for place in gpu.waits} == {"elsewhere"}  # this test alone looks


def test_small_images_of_a_batch_are_made_without_waiting(gpu: PretendedGpu) -> None:
    images = DATA["image"].to(CUDA)
    first = on_cpu(shrink(images, 2))  # the table goes to the device once
    gpu.waits.clear()
    again = shrink(images, 2)
    assert not gpu.waits
    assert torch.equal(on_cpu(again), first)
    assert torch.equal(first, shrink(DATA["image"], 2))


def test_noise_of_many_steps_is_drawn_at_once(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch per image and step would take longer than the numbers; they stay an image's own."""
    launches: list[tuple[int, ...]] = []
    real = torch.randn

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        launches.append(args[0])
        return real(*args, **options)

    monkeypatch.setattr(torch, "randn", counted)
    streams = ImageStreams.make("sample", 0, None, 0)
    drawn = {}
    for device, images in ((CUDA, range(4)), (torch.device("cpu"), range(4)), (CUDA, [2])):
        launches.clear()
        noise = streams.noise(images, (3, 16, 16), torch.float32, device)
        drawn[device.type, len(images)] = torch.stack([on_cpu(noise()) for _ in range(33)], 1)
        assert len(launches) == len(images) * (33 if device.type == "cpu" else 3)
    assert torch.equal(drawn["cuda", 4], drawn["cpu", 4])
    assert torch.equal(drawn["cuda", 4][2:3], drawn["cuda", 1])
    large = streams.noise([0], (3, 256, 256), torch.float32, CUDA)
    launches.clear()
    large(), large(), large()
    assert launches == [(1, 3, 256, 256)] * 3


def test_dropout_is_seeded_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("all kinds of devices"))
    randomness = StepRandomness(0, 8, 1)
    randomness.seed_dropout(3, range(8), torch.device("cuda", 0))
    on_gpu = torch.initial_seed()
    randomness.seed_dropout(3, range(8))
    assert seeded == [on_gpu] == [torch.initial_seed()]


@pytest.mark.parametrize(("capability", "last"), [((7, 0), False), ((7, 5), False), ((8, 0), True)])
def test_layout_and_advice_follow_the_kind_of_gpu(
    capability: tuple[int, int], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "Tesla T4")
    assert use_channels_last("auto", "cuda", "no") is last
    assert use_channels_last("auto", "cuda", "fp16")
    assert use_channels_last("yes", "cuda", "no")
    told = precision_advice("auto", CUDA, "no")
    assert told is not None
    assert "Tesla T4 has no bf16" in told
    assert "mixed_precision" in told
    for wanted, device, precision in (
        ("no", CUDA, "no"),
        ("auto", CUDA, "bf16"),
        ("auto", torch.device("cpu"), "no"),
    ):
        assert precision_advice(wanted, device, precision) is None


@pytest.mark.parametrize(
    ("device", "alone"), [("cuda", True), ("xpu", True), ("mps", False), ("cpu", False)]
)
def test_copies_to_mps_wait_for_their_source(
    device: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, non_blocking: seen.append(non_blocking))
    to_device(torch.ones(2), torch.device(device))
    assert seen == [alone]


def test_it_refuses_what_a_gpu_refuses_and_counts_what_waits(gpu: PretendedGpu) -> None:
    x, y = torch.ones(3, device=CUDA), torch.ones(3)
    assert (x + 1).device == CUDA
    assert not gpu.waits
    with pytest.raises(RuntimeError, match="several devices"):
        x + y
    with pytest.raises(RuntimeError, match="indices on cuda"):
        y[x.long()]
    reads = [
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: x.cpu(),
        lambda: x[x > 0],
        lambda: y.to(CUDA),
        lambda: y.to(CUDA, non_blocking=True),
        lambda: x[torch.tensor([0])],
        lambda: y.copy_(x),
        lambda: x.tolist(),
        lambda: torch.tensor([1.0], device="cuda"),
    ]
    for count, read in enumerate(reads, 1):
        read()
        assert gpu.waits.total() == count, count
    y.pin_memory().to(CUDA, non_blocking=True)
    assert gpu.waits.total() == len(reads)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(
        diffusion: GaussianDiffusion, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cond, noise = conditions(name), torch.ones(4, 3, 16, 16)
        if device.type == "cuda":
            cond = (
                {k: v.pin_memory().to(device, non_blocking=True) for k, v in cond.items()}
                if cond
                else None
            )
        images = DATA["image"].pin_memory() if device.type == "cuda" else DATA["image"]
        torch.manual_seed(1)
        uniform, drop = (
            np.array([0.1, 0.4, 0.6, 0.9]),
            {"class_label": np.array([0.1, 0.9, 0.1, 0.9])},
        )
        loss = diffusion(
            images.to(device, non_blocking=True),
            cond,
            uniform=uniform,
            drop=drop if name == "classes" else None,
            noise=(noise.pin_memory() if device.type == "cuda" else noise).to(
                device, non_blocking=True
            ),
        )
        loss.backward()
        return loss, next(p.grad for p in diffusion.parameters() if p.grad is not None)

    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    on_the_cpu = step(make(name), torch.device("cpu"))
    with pretended_gpu(monkeypatch) as gpu:
        diffusion = make(name).to(CUDA)
        step(diffusion, CUDA)  # looks at the range of the first images
        diffusion.zero_grad()
        gpu.waits.clear()
        found = step(diffusion, CUDA)
        assert not gpu.waits
        assert isinstance(found[0], CudaTensor)
        for a, b in zip(found, on_the_cpu, strict=True):
            torch.testing.assert_close(on_cpu(a), b)


def test_immiscible_noise_waits_once_because_scipy_solves_it(gpu: PretendedGpu) -> None:
    diffusion = GaussianDiffusion(
        Unet(dim=8, dim_mults=(1,)), image_size=16, timesteps=20, immiscible=True
    ).to(CUDA)
    images = (255 * DATA["image"]).byte().pin_memory().to(CUDA, non_blocking=True)
    gpu.waits.clear()
    diffusion(images, uniform=np.array([0.1, 0.4, 0.6, 0.9])).backward()
    assert [place.split(":")[0] for place in gpu.waits.elements()] == ["process/noising.py"]


@pytest.mark.parametrize("sampler", OF_DENOISERS)
def test_the_sampling_loop_waits_for_nothing(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sampling("plain", monkeypatch, sampler=sampler)


@pytest.mark.parametrize("name", list(VARIANTS)[1:])
def test_sampling_of_every_kind_of_network_waits_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_sampling(name, monkeypatch, sampler="consistency" if name == "consistency" else "ddpm")


def test_guided_sampling_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sampling("classes", monkeypatch, sampler="ddim", guidance_scale=2.0, guidance_rescale=0.5)


def check_sampling(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    options |= {"num_steps": 3, "seed": 3, "cond": conditions(name)}
    expected = make(name).sample(4, **options)
    with pretended_gpu(monkeypatch) as gpu:
        diffusion = make(name).to(CUDA)
        gpu.waits.clear()
        found = diffusion.sample(4, **options)
        assert not gpu.waits
        assert isinstance(found, CudaTensor)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "most"),
    [
        (lambda d, x: d.bits_per_dim(x, num_steps=4), 2),
        (lambda d, x: d.edit(x, num_steps=4), 1),
        (
            lambda d, x: d.inpaint(
                x, torch.ones(16, 16), num_steps=4, num_resamples=2, jump_length=2
            ),
            3,
        ),
        (lambda d, x: d.restore(x, "blur:1", num_steps=4), 4),
        (lambda d, x: d.restore(x, "blur:2", num_steps=4, method="mmps"), 4),
        (lambda d, x: d.encode(x, num_steps=4), 1),
        (lambda d, x: d.interpolate(x[:1], x[1:2], num_steps=4), 5),
        pytest.param(
            lambda d, x: d.flow_bits_per_dim(x, tolerance=0.9), None, marks=pytest.mark.slow
        ),
    ],
    ids=[
        "bits_per_dim",
        "edit",
        "inpaint",
        "restore",
        "mmps",
        "encode",
        "interpolate",
        "flow_bits_per_dim",
    ],
)
def test_what_takes_images_waits_to_take_them_and_to_give_results(
    call: Any, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    images = (255 * DATA["image"]).byte()
    expected = call(make(), images)
    with pretended_gpu(monkeypatch) as gpu:
        diffusion = make().to(CUDA)
        gpu.waits.clear()
        found = call(diffusion, images)
        assert most is None or gpu.waits.total() <= most  # scipy integrates the flow, on the CPU
        a, b = (x if isinstance(x, torch.Tensor) else x.total for x in (found, expected))
        torch.testing.assert_close(on_cpu(a), b, atol=1e-4, rtol=1e-4)


def flow_once(diffusion: GaussianDiffusion) -> None:
    probe = torch.ones(2, 3, 16, 16).pin_memory().to(CUDA, non_blocking=True)
    flow = _Flow(diffusion.denoiser.clipping("none"), None, probe)
    found = flow(-1.0, np.zeros(2 * 3 * 16 * 16 + 2))
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    "call",
    [
        lambda d, x: flow_once(d),
        lambda d, x: d.bits_per_dim(x, num_steps=4, num_levels=2),
        lambda d, x: d.restore(x, "blur:1", num_steps=2),
        lambda d, x: assignment(x.to(CUDA).float(), x.to(CUDA).float()),
        lambda d, x: d(x.to(CUDA)).backward(),
    ],
    ids=["flow", "bits_per_dim", "restore", "immiscible", "training"],
)
def test_a_gpu_without_float64_is_not_asked_for_it(call: Any, gpu: PretendedGpu) -> None:
    gpu.has_float64 = False
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device=CUDA).double()
    call(make().to(CUDA), (255 * DATA["image"]).byte())


def run(folder: Path, device: str, **options: Any) -> Any:
    settings = {
        "max_steps": 8,
        "val_every": 4,
        "sample_every": 4,
        "sample_count": 2,
        "sample_steps": 2,
        "val_fraction": 0.25,
        "save_every": 4,
        "log_every": 4,
        "channels_last": "no",
        "compile": False,
    }
    callbacks = options.pop("callbacks", ())
    model = {"dim_mults": options.pop("dim_mults", (1, 2)), "dropout": options.pop("dropout", 0.0)}
    diffusion = tiny_diffusion(**model, augment_dim=9 if "augment" in options else None)
    return tiny_trainer(
        folder,
        diffusion,
        Shapes(size=8, n=24),
        device=device,
        callbacks=callbacks,
        **settings | options,
    )


def test_a_run_is_the_cpu_s_run_and_waits_to_log_validate_draw_and_save_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    options = {"augment": 0.5, "dim_mults": (1,)}
    run(tmp_path / "cpu", "cpu", **options).train()
    with pretended_gpu(monkeypatch) as gpu:
        trainer = run(tmp_path / "gpu", "cuda", **options)
        trainer.prepare()
        gpu.waits.clear()
        trainer.train()
        often = {
            place: times
            for place, times in gpu.waits.items()
            if times >= 8 and "core/tensor_files.py" not in place
        }
    assert trainer.device == CUDA
    assert not often  # eight steps: nothing was read in each
    expected, found = final_tensors(tmp_path / "cpu"), final_tensors(tmp_path / "gpu")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-3, msg=name)
    names = [
        sorted(p.name for p in (tmp_path / where / "samples").iterdir()) for where in ("cpu", "gpu")
    ]
    assert names[0] == names[1]


FAST = {"max_steps": 4, "val_every": 0, "sample_every": 0, "dim_mults": (1,), "log_every": 1}


@pytest.mark.slow
def test_a_run_in_fp16_resumes_exactly_with_its_loss_scale(
    tmp_path: Path, gpu: PretendedGpu
) -> None:
    options = FAST | {"mixed_precision": "fp16", "max_steps": 3}
    run(tmp_path / "whole", "cuda", **options).train()
    run(tmp_path / "cut", "cuda", callbacks=[StopAt(2)], **options).train()
    resumed = run(tmp_path / "cut", "cuda", **options)
    resumed.prepare()
    assert resumed.step == 2
    assert resumed.accelerator.scaler.get_scale() > 1
    assert resumed.accelerator.scaler.state_dict()["_growth_tracker"] == 2
    resumed.train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 3},
        {"save_async": True},
        {"posthoc_ema": (0.1,), "posthoc_every": 4},
        {"cache": "none"},
        {"on_nonfinite": "rollback"},
        {"dropout": 0.1},
        {"mixed_precision": "fp16", "sample_every": 0},
    ],
    ids=str,
)
def test_a_run_on_a_gpu_resumes_exactly(
    options: dict[str, Any], tmp_path: Path, gpu: PretendedGpu
) -> None:
    run(tmp_path / "whole", "cuda", **options).train()
    run(tmp_path / "cut", "cuda", callbacks=[StopAt(5)], **options).train()
    run(tmp_path / "cut", "cuda", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


class Weights(Callback):
    """Keeps all weights before the first and after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any) -> None:
        self.on_step_end(trainer)

    def on_step_end(self, trainer: Any) -> None:
        self.seen.append(
            torch.cat([p.detach().cpu().flatten() for p in trainer.diffusion.parameters()])
        )


def scaled(losses: Losses, factor: float) -> Losses:
    return dataclasses.replace(losses, per_image=losses.per_image * factor)


def test_an_overflow_in_fp16_is_left_out_and_lowers_the_scale(
    tmp_path: Path, gpu: PretendedGpu
) -> None:
    weights = Weights()
    trainer = run(tmp_path, "cuda", callbacks=[weights], **FAST | {"mixed_precision": "fp16"})
    trainer.prepare()
    scale = trainer.accelerator.scaler.get_scale()
    real = trainer.diffusion.forward
    trainer.diffusion.forward = lambda *a, **k: scaled(
        real(*a, **k), 1e36 if trainer.step == 1 else 1.0
    )
    assert trainer.train().status == "finished"
    changed = [not torch.equal(a, b) for a, b in zip(weights.seen, weights.seen[1:], strict=False)]
    assert changed == [True, False, True, True]
    assert trainer.accelerator.scaler.get_scale() == scale / 2


def test_a_loss_that_is_not_finite_is_named_and_kept_out(tmp_path: Path, gpu: PretendedGpu) -> None:
    weights = Weights()
    trainer = run(tmp_path, "cuda", callbacks=[weights], **FAST | {"log_every": 4})
    real = trainer.diffusion.forward
    trainer.diffusion.forward = lambda *a, **k: scaled(
        real(*a, **k), float("nan") if trainer.step == 1 else 1.0
    )
    with pytest.raises(DivergedError, match="not finite at step 2"):
        trainer.train()
    assert not torch.equal(weights.seen[0], weights.seen[1])
    assert all(torch.equal(weights.seen[1], later) for later in weights.seen[2:])


def test_the_memory_that_is_measured_is_the_steps_own(
    tmp_path: Path, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for the largest batch has had its peaks before."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *a: asked.append("forgotten"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: asked.append("synchronized"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *a: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *a: asked.append("read") or 7)
    config = TrainingConfig(batch_size=2, max_steps=4, compile=False, device="cuda")
    trainer = Rehearsal(make(), random_images(make(), 8), config, tmp_path)
    trainer.prepare()
    assert trainer.probe(1)[1] == 7
    assert asked == ["forgotten", "read"]


@pytest.mark.slow
def test_the_largest_batch_is_found_and_kept(tmp_path: Path, gpu: PretendedGpu) -> None:
    trainer = run(tmp_path, "cuda", **FAST | {"batch_size": "auto", "val_fraction": 0.0})
    trainer.train()
    assert trainer.config.batch_size == 24  # all there are


@pytest.mark.slow
def test_every_metric_is_the_cpu_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    np.save(
        tmp_path / "images.npy",
        Shapes(size=8, n=24).batch(range(24))["image"].permute(0, 2, 3, 1).numpy(),
    )
    diffusion = tiny_diffusion(dropout=0.0)
    tiny_trainer(
        tmp_path / "run", diffusion, str(tmp_path / "images.npy"), val_fraction=0.4, val_every=6
    ).train()
    options = {
        "metrics": "fid,kid,pr,dc,memorisation,gap,nll",
        "features": "random64",
        "num": 8,
        "sample_steps": 2,
        "num_levels": 3,
        "batch_size": 4,
        "progress": False,
    }
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "a"))
    expected = evaluate(tmp_path / "run", device="cpu", **options)
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "b"))
    with pretended_gpu(monkeypatch):
        found = evaluate(tmp_path / "run", device="cuda", **options)
    assert found.about["device"].startswith("cuda")
    assert [s.name for s in found.scores] == [s.name for s in expected.scores]
    for a, b in zip(found.scores, expected.scores, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-5), a.name
