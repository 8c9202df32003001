"""The formats that a trained process can be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.registry import Registry
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.export_diffusers import export_diffusers
from ddpm_lib.interop.export_onnx import check_packages, export_onnx
from ddpm_lib.interop.export_torch import export_torch
from ddpm_lib.interop.export_weights import export_npz, export_safetensors


def _nothing_needed() -> None:
    """Say that no package is missing."""


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        writes: What it writes, in a few words.
        export: Called as export(diffusion, folder, about) with `about` what is known of the
            weights, JSON-able; makes the folder whole or not at all, and returns it.
        opens: A line of Python that opens the folder, with {folder} in the place of its name.
        check: Raises ImportError, with the command that helps, where a package is missing.
        keeps_sampling: Whether it holds the way of sampling that was chosen for the weights.
    """

    writes: str
    export: Callable[[GaussianDiffusion, str | Path, Mapping[str, Any] | None], Path]
    opens: str
    check: Callable[[], None] = _nothing_needed
    keeps_sampling: bool = False


EXPORTERS: Registry[Exporter] = Registry(
    "format",
    {
        "diffusers": Exporter(
            "a folder of diffusers: UNet2DModel and DDPMScheduler",
            export_diffusers,
            'diffusers.DDPMPipeline.from_pretrained("{folder}")',
        ),
        "onnx": Exporter(
            "the network for onnxruntime, and all that sampling needs to know as JSON",
            export_onnx,
            'onnxruntime.InferenceSession("{folder}/model.onnx")',
            check_packages,
        ),
        "torch-export": Exporter(
            "the network for torch alone, and all that sampling needs to know as JSON",
            export_torch,
            'torch.export.load("{folder}/model.pt2").module()',
        ),
        "safetensors": Exporter(
            "a pretrained folder: weights and config.json",
            export_safetensors,
            'GaussianDiffusion.from_pretrained("{folder}")',
            keeps_sampling=True,
        ),
        "npz-weights": Exporter(
            "the weights as NumPy arrays by name, and the config as JSON",
            export_npz,
            'numpy.load("{folder}/model.npz")',
        ),
    },
)
"""By the name that `ddpm export --to` takes."""
