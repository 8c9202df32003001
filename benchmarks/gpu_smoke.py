"""What only a GPU can show of the library: parity with the CPU, waits, resuming, memory, compiling.

`benchmarks/gpu.sh` calls it. Every check prints PASS or FAIL with what it found; the exit status is
the number of failures. On a CPU (`--device cpu`) the checks that need CUDA are skipped, and the
others try the code.

    python benchmarks/gpu_smoke.py
    python benchmarks/gpu_smoke.py --only parity resume
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common import finish, make_parser, pick_device, seconds
from ddpm_lib import Callback, GaussianDiffusion, Shapes, Trainer, Unet

SIDE, IMAGES = 16, 8
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "classes": ({"num_classes": 6, "class_drop_prob": 0.5}, {}),
    "self-conditioning": ({"self_condition": True}, {}),
    "super-resolution": ({"low_res_factor": 2, "low_res_max_noise": 0.3}, {}),
    "learned variance": ({"out_channels": 6}, {"variance": "learned_range"}),
    "uncertainty": ({}, {"learn_uncertainty": True}),
    "attention": ({"dim": 64, "attention_levels": (1,)}, {}),
}
WAITING = ("plain", "self-conditioning", "super-resolution", "learned variance")


class SkippedError(Exception):
    """A check that this device cannot do."""


@dataclass(frozen=True)
class Bench:
    """Where the checks run, and how large they are."""

    device: torch.device
    folder: Path
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def only_on_cuda(self) -> None:
        if not self.cuda:
            raise SkippedError("needs CUDA")

    def run(
        self,
        where: str,
        name: str = "plain",
        callbacks: Sequence[Callback] = (),
        steps: int | None = None,
        **options: Any,
    ) -> Trainer:
        """Train for `steps`, or to the end; what training says is shown where it fails."""
        images = options.pop("images", 64 if self.quick else 512)
        settings: dict[str, Any] = {
            "max_steps": 8,
            "batch_size": 4 if self.quick else 16,
            "val_every": 0,
            "sample_every": 0,
            "save_every": 4,
            "log_every": 4,
            "progress": False,
            "compile": False,
            "device": str(self.device),
            "output_dir": str(self.folder / where),
        }
        data = Shapes(size=SIDE, n=images)
        diffusion = make(name, self.quick, options.pop("dropout", 0.0))
        trainer = Trainer(diffusion, data, callbacks=list(callbacks), **settings | options)
        trainer.train(steps)
        return trainer


def make(name: str, quick: bool = False, dropout: float = 0.0) -> GaussianDiffusion:
    """Make a small process whose weights all matter: new outputs are 0."""
    model, process = VARIANTS[name]
    torch.manual_seed(0)
    network = Unet(**({"dim": 8 if quick else 32, "dim_mults": (1, 2), "dropout": dropout} | model))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return GaussianDiffusion(network, image_size=SIDE, timesteps=100, **process)


def gradients(
    name: str, device: torch.device, dtype: torch.dtype | None, quick: bool, last: bool = True
) -> Tensor:
    """Return all gradients of one fixed batch, in a row, on the CPU."""
    diffusion = make(name, quick).to(device).train()
    if last:
        diffusion.model.to(memory_format=torch.channels_last)
    source = torch.Generator().manual_seed(1)
    noise = torch.randn(IMAGES, 3, SIDE, SIDE, generator=source)
    images = (torch.arange(IMAGES * 3 * SIDE**2) % 251).view(IMAGES, 3, SIDE, SIDE).byte()
    small = torch.rand(IMAGES, 3, SIDE // 2, SIDE // 2, generator=source)
    given = {
        "classes": {"class_label": torch.arange(IMAGES) % 6},
        "super-resolution": {"low_res": small, "low_res_noise": torch.full((IMAGES,), 0.1)},
    }
    drop = {k: np.linspace(0.05, 0.95, IMAGES) for k in diffusion.model.conditioners} or None
    kind = dtype or torch.bfloat16
    with torch.autocast(device.type, kind, enabled=dtype is not None):
        loss = diffusion(
            images.to(device),
            given.get(name),
            uniform=np.linspace(0.02, 0.98, IMAGES),
            noise=noise.to(device),
            drop=drop,
        )
    loss.backward()
    missing = [k for k, p in diffusion.named_parameters() if p.grad is None]
    # Of self-conditioning: autocast keeps its casts, also those made without history.
    assert not missing, f"{len(missing)} weights without gradient, the first {missing[0]}"
    grads = [p.grad for p in diffusion.parameters() if p.grad is not None]
    return torch.cat([grad.float().cpu().flatten() for grad in grads])


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parity(bench: Bench) -> str:
    """Gradients are the CPU's, in float32 without TF32 and in bf16."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    said = []
    try:
        for name in VARIANTS:
            expected = gradients(name, torch.device("cpu"), None, bench.quick, last=False)
            full = apart(gradients(name, bench.device, None, bench.quick), expected)
            low = apart(gradients(name, bench.device, torch.bfloat16, bench.quick), expected)
            said.append(f"{name} {full:.0e}/{low:.0e}")
            assert full < 1e-3, f"{name}: float32 is off by {full:.1e}"
            assert low < 5e-2, f"{name}: bf16 is off by {low:.1e}"
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return "float32/bf16: " + ", ".join(said)


def attention(bench: Bench) -> str:
    """The attention that torch takes has the formula's gradient."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    said = []
    sizes = ((16, 8),) if bench.quick else ((16, 64), (64, 32), (256, 256), (1024, 64))
    for n, d in sizes:
        qkv = torch.randn(4, n, 3, 2, d, device=bench.device, dtype=torch.bfloat16)
        found = []
        for backends in (list(SDPBackend.__members__.values()), [SDPBackend.MATH]):
            leaf = qkv.clone().requires_grad_()
            q, k, v = leaf.permute(2, 0, 3, 1, 4).unbind(0)
            with sdpa_kernel([b for b in backends if b.name not in ("ERROR", "OVERRIDEABLE")]):
                F.scaled_dot_product_attention(q, k, v).float().square().sum().backward()
            assert leaf.grad is not None
            found.append(leaf.grad.float())
        off = apart(*found)
        said.append(f"n={n} d={d} {off:.0e}")
        assert off < 3e-2, said[-1]
    return ", ".join(said)


class After(Callback):
    """Calls something after every step."""

    def __init__(self, call: Callable[[Any], object]) -> None:
        self.call = call

    def on_step_end(self, trainer: Any) -> None:
        self.call(trainer)


def both_ways(function: Any, x: Tensor, norm: torch.nn.Module) -> tuple[Tensor, float]:
    """Return the gradient of x under bf16 autocast, and the seconds of forward and backward."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()

    def once() -> None:
        leaf.grad = None
        with torch.autocast(x.device.type, torch.bfloat16):
            y = function(leaf, norm)
        y.backward(x.to(y.dtype))

    for _ in range(3):
        once()
    took = seconds(lambda: [once() for _ in range(20)], x.device) / 20
    assert leaf.grad is not None
    return leaf.grad.float(), took


def normalisation(bench: Bench) -> str:
    """Triton's normalisation computes what torch does, and faster."""
    from torch import nn

    from ddpm_lib.nn.kernels import norm_act, triton_kernels

    bench.only_on_cuda()
    assert triton_kernels(bench.device) is not None, "it is not used; a warning above says why"
    said = []
    for b, c, side in ((128, 128, 32), (128, 256, 16), (128, 256, 8)):
        x = torch.randn(b, c, side, side, device=bench.device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        norm = nn.GroupNorm(32, c).to(bench.device)
        found = [both_ways(f, x, norm) for f in (norm_act, lambda x, norm: F.silu(norm(x)))]
        off, faster = apart(found[0][0], found[1][0]), found[1][1] / found[0][1]
        moved = 5 * x.numel() * x.element_size() / found[0][1] / 1e9
        said.append(f"{c}×{side}² {faster:.1f}× ({moved:,.0f} GB/s), off {off:.0e}")
        assert off < 2e-2, said[-1]
    return "; ".join(said)


def waits(bench: Bench) -> str:
    """A step makes the host wait for nothing."""
    bench.only_on_cuda()
    found: Counter[str] = Counter()

    def look(trainer: Any) -> None:
        torch.cuda.set_sync_debug_mode("warn" if trainer.step in (5, 6) else "default")

    for name in WAITING:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            bench.run(f"waits-{name}", name, [After(look)], log_every=100, save_every=100)
        places = (w for w in seen if "synchroniz" in str(w.message))
        found.update(f"{name}: {Path(w.filename).name}:{w.lineno}" for w in places)
    assert not found, dict(found)
    return "none"


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    assert trainer.ema is not None
    return {k: v.cpu() for k, v in trainer.ema.tensors().items()}


def resume(bench: Bench) -> str:
    """A run that was cut off is the uninterrupted run, bit for bit."""
    whole = weights_of(bench.run("whole", deterministic=True))
    bench.run("cut", deterministic=True, steps=4)
    cut = weights_of(bench.run("cut", deterministic=True))
    wrong = [k for k in whole if not torch.equal(whole[k], cut[k])]
    assert not wrong, f"{len(wrong)} tensors differ, the first {wrong[0]}"
    return f"{len(whole)} tensors equal"


def fp16(bench: Bench) -> str:
    """The loss scale of fp16 lives."""
    bench.only_on_cuda()
    scaler = bench.run("fp16", mixed_precision="fp16").accelerator.scaler
    assert scaler is not None
    assert scaler.get_scale() > 1
    return f"loss scale {scaler.get_scale():g}"


def memory(bench: Bench) -> str:
    """Too large a batch is done in more forward passes."""
    bench.only_on_cuda()
    torch.cuda.set_per_process_memory_fraction(0.03)
    try:
        run = bench.run("memory", "attention", batch_size=4096, max_steps=2, images=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.plan.accumulation > 1
    return f"{run.plan.accumulation} forward passes"


def auto(bench: Bench) -> str:
    """The largest batch is found."""
    run = bench.run("auto", "attention", batch_size="auto", max_steps=2)
    return f"{run.config.batch_size} images"


def compiled(bench: Bench) -> str:
    """Compiled regions train as eager ones do."""
    if bench.quick:
        raise SkippedError("compiling takes minutes on a CPU")
    eager = weights_of(bench.run("eager"))
    fast = weights_of(bench.run("compiled", compile=True))
    off = max(float((eager[k] - fast[k]).abs().max()) for k in eager)
    assert off < 1e-3
    return f"largest difference {off:.0e}"


def graph(bench: Bench) -> str:
    """Forward and backward pass as a CUDA graph train as eager ones do, dropout included."""
    bench.only_on_cuda()
    said = []
    for name, options in (
        ("plain", {"deterministic": True}),
        ("classes", {"deterministic": True, "accumulation_steps": 2}),
        ("plain", {"compile": True}),
    ):
        places = [f"graph-{len(said)}-{asked}" for asked in (False, True)]
        runs = [
            weights_of(bench.run(place, name, dropout=0.1, cuda_graph=asked, **options))
            for place, asked in zip(places, (False, True))
        ]
        off = max(float((runs[0][k] - runs[1][k]).abs().max()) for k in runs[0])
        said.append(f"{name} {', '.join(options)}: largest difference {off:.0e}")
        assert off < (1e-6 if "deterministic" in options else 1e-3), said[-1]
    bench.run("graph-cut", "plain", dropout=0.1, cuda_graph=True, deterministic=True, steps=4)
    cut = bench.run("graph-cut", "plain", dropout=0.1, cuda_graph=True, deterministic=True)
    whole = bench.run("graph-whole", "plain", dropout=0.1, cuda_graph=True, deterministic=True)
    a, b = weights_of(whole), weights_of(cut)
    assert all(torch.equal(a[k], b[k]) for k in a), "it does not resume exactly"
    return "; ".join(said)


def validate(bench: Bench) -> str:
    """Validation, grids and saving beside training run."""
    every = {"val_every": 4, "sample_every": 4, "sample_count": 4, "sample_steps": 2}
    bench.run("val", "classes", val_fraction=0.25, save_async=True, **every)
    return "drawn, validated, saved"


def seeds(bench: Bench) -> str:
    """Image i is that of its seed, whatever is drawn beside it."""
    diffusion = make("plain", bench.quick).to(bench.device)
    options: dict[str, Any] = {"seed": 5, "num_steps": 2, "sampler": "ddpm", "progress": False}
    many, few = diffusion.sample(4, **options), diffusion.sample(2, **options)
    off = float((many[:2] - few).abs().max())
    assert off < 1e-3
    return f"largest difference {off:.0e}"


def ddp(bench: Bench) -> str:
    """DistributedDataParallel over NCCL (gloo on a CPU), of one process, has the same gradients."""
    import torch.distributed as dist

    diffusion = make("plain", bench.quick).to(bench.device).train()
    images = torch.rand(IMAGES, 3, SIDE, SIDE, device=bench.device)
    given = {"uniform": np.linspace(0.02, 0.98, IMAGES), "noise": torch.zeros_like(images)}
    backend = "nccl" if bench.cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        ids = [torch.cuda.current_device()] if bench.cuda else None
        wrapped = torch.nn.parallel.DistributedDataParallel(
            diffusion, device_ids=ids, gradient_as_bucket_view=True
        )
        found = []
        for network in (diffusion, wrapped):
            diffusion.zero_grad(set_to_none=True)
            network(images, **given).backward()
            grads = [p.grad for p in diffusion.parameters() if p.grad is not None]
            found.append(torch.cat([grad.flatten().clone() for grad in grads]))
    finally:
        dist.destroy_process_group()
    off = apart(found[1], found[0])
    assert off < 1e-4, f"off by {off:.1e}"
    return f"{backend}, off by {off:.0e}"


CHECKS: dict[str, Callable[[Bench], str]] = {
    check.__name__: check
    for check in (
        parity,
        attention,
        normalisation,
        waits,
        resume,
        fp16,
        memory,
        auto,
        compiled,
        graph,
        validate,
        seeds,
        ddp,
    )
}


def done(check: Callable[[Bench], str], bench: Bench) -> dict[str, Any]:
    """Do one check; a failure is a result like any other."""
    began, said = time.perf_counter(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            detail = check(bench)
        word = "PASS"
    except SkippedError as reason:
        word, detail = "SKIP", str(reason)
    except Exception as error:
        print(said.getvalue())
        traceback.print_exc(limit=-4)
        word, detail = "FAIL", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    seconds = time.perf_counter() - began
    print(f"{word} {check.__name__} ({seconds:.0f} s): {detail}", flush=True)
    return {"result": word, "seconds": seconds, "detail": detail}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="these checks alone"
    )
    asked = parser.parse_args(argv)
    device = pick_device(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder), asked.quick)
        found = {name: done(CHECKS[name], bench) for name in asked.only}
    return finish(asked, device, checks=found)


if __name__ == "__main__":
    results = main()["checks"]
    raise SystemExit(sum(found["result"] == "FAIL" for found in results.values()))
