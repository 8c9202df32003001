"""Small networks that read conditions back from images, and the errors of what they read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core import keys

STEPS, BATCH, WIDTH = 600, 32, 24
"""Of the training of a reader, which takes seconds on a CPU."""
UNKNOWN = 255


@dataclass(frozen=True)
class Target:
    """A condition that is read back.

    Attributes:
        name: Of the condition.
        kind: "number", "angle", "vector", "text", "label", "tags", "mask" or "image".
        outputs: Numbers that the reader says of an image, or of a pixel.
        period: Of an angle.
    """

    name: str
    kind: str
    outputs: int
    period: float = 360.0

    @property
    def of_pixels(self) -> bool:
        """Whether it is read per pixel."""
        return self.kind in ("mask", "image")

    @property
    def unit(self) -> str:
        """Of the error."""
        return {
            "number": "mean error, in its own unit",
            "angle": "mean error, in degrees" if self.period == 360 else "mean error",
            "vector": "RMS error, in standard deviations",
            "text": "RMS error, in standard deviations",
            "label": "share read as another",
            "tags": "share of tags read wrongly",
            "mask": "1 − mean IoU",
            "image": "RMS error, of values in [0, 1]",
        }[self.kind]


class _Pooled(nn.Module):
    """Convolutions at halved resolutions, then means and maxima over the image."""

    def __init__(self, channels: int, outputs: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels + 2  # with the place of each pixel
        for _ in range(max(1, min(3, int(math.log2(max(size, 8))) - 2))):
            layers += [nn.Conv2d(width, WIDTH, 3, 2, 1), nn.GroupNorm(4, WIDTH), nn.SiLU()]
            width = WIDTH
        self.body = nn.Sequential(*layers, nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1), nn.SiLU())
        self.head = nn.Sequential(
            nn.Linear(4 * WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs)."""
        h = self.body(_placed(x))
        found: Tensor = self.head(torch.cat((h.mean((2, 3)), h.amax((2, 3))), 1))
        return found


class _PerPixel(nn.Module):
    """Convolutions of growing reach on patches of 2×2 pixels, which know the whole image too."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4 * (channels + 2), WIDTH, 3, padding=1)
        self.rest = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=reach, dilation=reach) for reach in (1, 2, 4)
        )
        self.whole = nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.Conv2d(WIDTH, 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h, w)."""
        height, width = x.shape[2:]
        even = F.pad(_placed(x), (0, width % 2, 0, height % 2), mode="replicate")
        h = F.silu(self.first(F.pixel_unshuffle(even, 2)))
        for layer in self.rest:
            h = h + F.silu(layer(h))
        known = self.whole(torch.cat((h.mean((2, 3)), h.amax((2, 3))), 1))
        found: Tensor = F.pixel_shuffle(self.last(F.silu(h + known[:, :, None, None])), 2)
        return found[:, :, :height, :width]


def _placed(x: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, x.shape[2], device=x.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, x.shape[3], device=x.device).view(1, 1, 1, -1)
    shape = (len(x), 1, *x.shape[2:])
    return torch.cat((x, rows.expand(shape), columns.expand(shape)), 1)


class Reader:
    """A network that reads one condition, trained on images whose values are known.

    Args:
        target: What it reads.
        images: uint8 (n, c, h, w).
        values: Their values, (n, …); NaN, −1 or 255 where not known.
        device: Where to train.
        seed: Names the initial weights and the order of the images.
        steps: Of training.
    """

    def __init__(
        self,
        target: Target,
        images: Tensor,
        values: Tensor,
        device: torch.device,
        seed: int = 0,
        steps: int = STEPS,
    ) -> None:
        self.target, self.device = target, device
        known = _known(target, values)
        images, values = images[known], values[known]
        self.mean, self.std = 0.0, 1.0
        if target.kind == "number":
            spread = float(values.std()) if len(values) > 1 else 0.0
            self.mean, self.std = float(values.mean()), spread or 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.key(seed, "condition reader", target.name))
            size = min(images.shape[2:])
            self.network: nn.Module = (
                _PerPixel(images.shape[1], target.outputs)
                if target.of_pixels
                else _Pooled(images.shape[1], target.outputs, size)
            ).to(device)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        order = torch.Generator().manual_seed(keys.key(seed, "reader order", target.name))
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(images), (BATCH,), generator=order)
                output = self.network(_scaled(images[rows].to(device)))
                loss = self._loss(output, values[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.network.eval().requires_grad_(False)

    def _loss(self, output: Tensor, values: Tensor) -> Tensor:
        kind = self.target.kind
        if kind == "number":
            return F.smooth_l1_loss(output[:, 0], (values.float() - self.mean) / self.std)
        if kind == "angle":
            return F.mse_loss(output, _circle(values, self.target.period))
        if kind == "label":
            return F.cross_entropy(output, values.long())
        if kind == "tags":
            return F.binary_cross_entropy_with_logits(output, values.float())
        if kind == "mask":
            return F.cross_entropy(output, values.long(), ignore_index=UNKNOWN)
        wanted = values.float() / 255.0 if kind == "image" else values.float()
        return F.mse_loss(output, wanted)

    def errors(self, images: Tensor, values: Tensor) -> Tensor:
        """Return the error of each image, float64 (n,) on the CPU; NaN where its value is not
        known.

        Args:
            images: uint8 (n, c, h, w).
            values: What was asked for, (n, …).
        """
        with torch.inference_mode():
            output = self.network(_scaled(images.to(self.device))).cpu()
        found = _ERRORS[self.target.kind](self, output, values.cpu()).double()
        found[~_known(self.target, values.cpu())] = math.nan
        return found


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def _circle(values: Tensor, period: float) -> Tensor:
    turns = values.float() * (2 * math.pi / period)
    return torch.stack((turns.cos(), turns.sin()), 1)


def _known(target: Target, values: Tensor) -> Tensor:
    if values.is_floating_point():
        return ~values.isnan().flatten(1).any(1) if values.ndim > 1 else ~values.isnan()
    if target.kind == "mask":
        return (values != UNKNOWN).flatten(1).any(1)
    return values >= 0 if values.ndim == 1 else torch.ones(len(values), dtype=torch.bool)


def _number(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return (output[:, 0] * reader.std + reader.mean - values).abs()


def _angle(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    period = reader.target.period
    read = torch.atan2(output[:, 1], output[:, 0]) * (period / (2 * math.pi))
    apart = (read - values).remainder(period)
    return torch.minimum(apart, period - apart)


def _label(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return (output.argmax(1) != values).double()


def _tags(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return ((output > 0) != (values > 0.5)).double().mean(1)


def _vector(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return (output - values).square().mean(1).sqrt()


def _image(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return (output - values.float() / 255.0).square().flatten(1).mean(1).sqrt()


def _mask(reader: Reader, output: Tensor, values: Tensor) -> Tensor:
    return 1.0 - mean_iou(output.argmax(1), values, reader.target.outputs)


_ERRORS: Mapping[str, Callable[[Reader, Tensor, Tensor], Tensor]] = {
    "number": _number,
    "angle": _angle,
    "label": _label,
    "tags": _tags,
    "vector": _vector,
    "text": _vector,
    "mask": _mask,
    "image": _image,
}


def mean_iou(read: Tensor, values: Tensor, classes: int) -> Tensor:
    """Return the intersection over union of each mask, averaged over the classes that are in either
    one, float64 (n,).

    Args:
        read: Classes (n, h, w).
        values: What they should be; pixels of 255 do not count.
        classes: How many there are.
    """
    read, values = read.flatten(1), values.flatten(1)
    counted = values != UNKNOWN
    total = torch.zeros(len(read), dtype=torch.float64)
    seen = torch.zeros(len(read), dtype=torch.float64)
    for k in range(classes):
        a, b = (read == k) & counted, values == k
        union = (a | b).sum(1).double()
        total += torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), 0.0)
        seen += (union > 0).double()
    return total / seen.clamp(min=1)


def target_of(name: str, spec: Mapping[str, Any]) -> Target:
    """Return what is read of a condition, by its entry in the table of a network."""
    kind = spec["kind"]
    outputs = {
        "number": 1,
        "angle": 2,
        "vector": spec.get("size"),
        "text": spec.get("size"),
        "label": len(spec.get("names") or ()),
        "tags": len(spec.get("names") or ()),
        "mask": spec.get("classes"),
        "image": spec.get("channels"),
    }[kind]
    assert isinstance(outputs, int)
    return Target(name, kind, outputs, spec.get("period", 360.0))
