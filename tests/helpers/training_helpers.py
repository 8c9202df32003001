"""Small runs that the training tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.runs.checkpoint import list_checkpoints, read_tensors
from ddpm_lib.training import Callback


def tiny_diffusion(seed: int = 0, **model: Any) -> GaussianDiffusion:
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "dim": 8,
        "dim_mults": (1, 2),
        "blocks_per_level": 1,
        "dropout": 0.1,
    } | model
    return GaussianDiffusion(Unet(**options), image_size=8, timesteps=50)


def tiny_trainer(
    run: Path, diffusion: GaussianDiffusion | None = None, data: Any = None, **options: Any
) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(run),
        "max_steps": 6,
        "batch_size": 6,
        "warmup_steps": 2,
        "lr_schedule": "cosine",  # the default keeps a checkpoint of its own
        "save_every": 100,
        "log_every": 2,
        "val_every": 0,
        "sample_every": 0,
        "sample_count": 4,
        "sample_steps": 3,
        "progress": False,
        "device": "cpu",
        "mixed_precision": "no",
        "horizontal_flip": True,
        "keep_last": 10,
    }
    data = Shapes(size=8, n=40) if data is None else data
    callbacks = options.pop("callbacks", ())
    return Trainer(diffusion or tiny_diffusion(), data, callbacks=callbacks, **settings | options)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(run / "checkpoints")[-1]
    stems = sorted(path.stem for path in newest.glob("*.safetensors"))
    return {f"{stem}:{k}": v for stem in stems for k, v in read_tensors(newest, stem).items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def curve(run: Path) -> list[dict[str, Any]]:
    """The loss curve without what clocks say."""
    from ddpm_lib.runs.metrics_file import MetricsFile

    rows = MetricsFile(run).rows()
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


class StopAt(Callback):
    """Stop, as a signal would, after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.stop("the test said so")


class At(Callback):
    """Do something after some step; training goes on."""

    def __init__(self, step: int, action: Callable[[Trainer], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            self.action(trainer)
