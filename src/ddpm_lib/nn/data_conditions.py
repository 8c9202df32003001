"""Conditions that come with the data: numbers, angles, vectors, labels, tags and texts.

A table of plain values says what each is (`condition_table.py`); `Unet(conditions=…)` takes it,
keeps it in its config and builds a conditioner per entry. So a checkpoint and a pretrained folder
hold the normalisation and the names as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import digits_between, short, span
from ddpm_lib.nn.conditioning import Conditioner, Stream, check_labels
from ddpm_lib.nn.text_encoders import encode_texts, split_tags
from ddpm_lib.nn.text_vectors import TextVectors

_FREQUENCIES = 6
_HARMONICS = 4


class DataCondition(Conditioner):
    """A condition of the data: its kind, and the plain values that describe it.

    Args:
        name: The field of the batch.
        spec: An entry of the table, as `check_conditions` returns it.
    """

    kind: ClassVar[str]
    fields: ClassVar[Mapping[str, Any]] = {}
    """What an entry may say besides kind and drop_prob, with its default; `...` where it must."""
    axes: int = 0
    """Axes of one entry: 0 for a number, 1 for a vector."""
    fits: ClassVar[tuple[str, ...]] = ()
    """Which of these are measured on the training images."""

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        super().__init__(name, spec["drop_prob"])
        self.guided = self.drop_prob > 0
        self.spec: dict[str, Any] = dict(spec)

    @property
    def fitted(self) -> bool:
        """Whether everything is known that is measured on the training images."""
        return all(self.spec[field] is not None for field in self.fits)

    def fit(self, values: np.ndarray) -> None:
        """Measure what `fits` names on the values of the training images (n, …); NaN is left
        out.
        """

    def drops(self, together: np.ndarray, alone: np.ndarray) -> np.ndarray:
        """Return for which samples the condition is hidden, booleans (n,).

        Half of the probability is shared with the other conditions, so that the network knows
        images without any; the other half is its own, so that it knows each beside the others, as
        guidance by one of them needs it.

        Args:
            together: Uniform numbers in [0, 1), the same for all conditions, (n,).
            alone: Those of this condition, (n,).
        """
        half = self.drop_prob / 2
        own = half / (1 - half)
        return (together < half) | (alone < own)

    def take(self, measured: Mapping[str, Any]) -> None:
        """Take what was measured before."""
        self.spec.update(measured)

    def read(self, value: Any) -> Any:
        """Return what stands for words, and a single entry as a batch of one; other values stay."""
        if isinstance(value, str | list | tuple | np.ndarray):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise self.refuse(f"takes numbers, alike in shape; got {short(value)}.") from None
        single = isinstance(value, Tensor) and 0 < value.ndim == self.axes
        return value[None] if single else value

    def picture(self, value: Tensor, channels: int) -> Tensor:
        """Return values that are pictures as images to look at, uint8 (n, channels, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} is no picture.")

    @property
    def words(self) -> str:
        """What it takes, in words for people."""
        spec, names = self.spec, self.spec.get("names")
        low, high = spec.get("low"), spec.get("high", 0.0)
        if names:
            more = f"{len(names)}: {', '.join(names[:8])}{', …' * (len(names) > 8)}"
        else:
            known = {
                "number": f"{span(low, high)} in training" if low is not None else "",
                "angle": f"period {spec.get('period'):g}" if "period" in spec else "",
                "vector": f"{spec.get('size')} numbers",
                "text": f"encoder {spec.get('encoder')}",
                "mask": f"{spec.get('classes')} classes",
                "image": f"{spec.get('channels')} channels",
            }
            more = known.get(self.kind, "")
        needed = "" if self.optional else ", always needed"
        return f"{self.kind}{f' ({more})' if more else ''}{needed}"

    @property
    def example(self) -> Any:
        """A value as Python writes it, None where there is no short one."""
        names, low, high = self.spec.get("names"), self.spec.get("low"), self.spec.get("high", 0.0)
        if names and self.kind in ("label", "tags"):
            return names[0]
        if self.kind == "number" and low is not None:
            return float(f"{(low + high) / 2:.{digits_between(low, high, 3)}g}")
        return {"angle": 90.0, "text": "some words"}.get(self.kind)

    def refuse(self, what: str) -> ValueError:
        """Return an error that names the condition and its kind."""
        return ValueError(f"The condition {self.name!r} ({self.kind}) {what}")


class _Embedded(DataCondition):
    """Numbers that reach the network as a vector by way of two layers; NaN says that there are
    none.
    """

    def __init__(self, name: str, spec: Mapping[str, Any], features: int, emb_dim: int) -> None:
        super().__init__(name, spec)
        self.layers = nn.Sequential(
            nn.Linear(features, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim)
        )
        self.null = nn.Parameter(torch.zeros(emb_dim))

    @property
    def length(self) -> int | None:
        """Numbers per image; None for a single one without an axis."""
        return None

    def features(self, value: Tensor) -> Tensor:
        """Return what the layers see, (b, features) float32, of values without NaN."""
        raise NotImplementedError

    def embed(self, value: Tensor) -> Tensor:
        """Return the vectors (b, emb_dim)."""
        value = value.float()
        gone = value.isnan() if value.ndim == 1 else value.isnan().any(1)
        known = torch.where(value.isnan(), torch.zeros_like(value), value)
        found: Tensor = self.layers(self.features(known).to(self.null.dtype))
        return torch.where(gone[:, None], self.null.to(found.dtype), found)

    def null_like(self, value: Tensor) -> Tensor:
        """Return NaN in the shape of a value."""
        return torch.full_like(value, math.nan)

    def null_for(self, x: Tensor) -> Tensor:
        """Return NaN for every sample of x."""
        shape = (x.shape[0],) if self.length is None else (x.shape[0], self.length)
        return torch.full(shape, math.nan, dtype=torch.float32, device=x.device)

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Take whole numbers and booleans for floats."""
        value = cond.get(self.name)
        return cond if value is None else {**cond, self.name: value.float()}

    def validate(self, value: Tensor, batch: int) -> None:
        """Check the shape, and on the CPU that nothing is infinite."""
        super().validate(value, batch)
        wanted = (batch,) if self.length is None else (batch, self.length)
        if tuple(value.shape) != wanted:
            raise self.refuse(
                f"must have shape {wanted}, {'one number' if self.length is None else 'a row'} per"
                f" sample; got {tuple(value.shape)}."
            )
        looked_at = value.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked_at and bool(value.isinf().any()):
            raise self.refuse("must be finite; got an infinite value. NaN means no value.")


class NumberCondition(_Embedded):
    """A number, centred and scaled by what is measured on the training images, with sines and
    cosines of it.

    Args:
        name: The field of the batch.
        spec: `mean` and `std`; `low` and `high`, the range of the training images.
        emb_dim: Length of the vectors.
        dims: Spatial dimensions of the images.
    """

    kind = "number"
    fields: ClassVar[Mapping[str, Any]] = dict.fromkeys(("mean", "std", "low", "high"))
    fits = ("mean", "std", "low", "high")

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec, 1 + 2 * _FREQUENCIES, emb_dim)

    def fit(self, values: np.ndarray) -> None:
        """Measure mean, standard deviation and range."""
        known = values[~np.isnan(values)].astype(np.float64)
        measured = (known.mean(), known.std() or 1.0, known.min(), known.max())
        self.spec.update(zip(self.fits, map(float, measured), strict=True))

    def features(self, value: Tensor) -> Tensor:
        """Return the standardised number with its sines and cosines."""
        mean, std = self.spec["mean"], self.spec["std"]
        z = (value - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
        angles = z[:, None] * torch.tensor(
            [math.pi / 4 * 2.0**k for k in range(_FREQUENCIES)], device=z.device
        )
        return torch.cat((z[:, None], angles.sin(), angles.cos()), 1)


class AngleCondition(_Embedded):
    """A number on a circle: 0 and `period` are the same.

    Args:
        name: The field of the batch.
        spec: `period`, 360 for degrees.
        emb_dim: Length of the vectors.
        dims: Spatial dimensions of the images.
    """

    kind = "angle"
    fields: ClassVar[Mapping[str, Any]] = {"period": 360.0}

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec, 2 * _HARMONICS, emb_dim)

    def features(self, value: Tensor) -> Tensor:
        """Return sines and cosines of the first multiples."""
        turns = (2.0 * math.pi / self.spec["period"]) * value[:, None]
        angles = turns * torch.arange(1, _HARMONICS + 1, device=value.device)
        return torch.cat((angles.sin(), angles.cos()), 1)


class VectorCondition(_Embedded):
    """A vector of numbers, each centred and scaled by what is measured on the training images.

    Args:
        name: The field of the batch.
        spec: `size`, how many numbers; `mean` and `std`, one each.
        emb_dim: Length of the vectors that the network gets.
        dims: Spatial dimensions of the images.
    """

    kind, axes = "vector", 1
    fields: ClassVar[Mapping[str, Any]] = {"size": ..., "mean": None, "std": None}
    fits = ("mean", "std")

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec, spec["size"], emb_dim)
        self._scale: dict[torch.device, Tensor] = {}

    @property
    def length(self) -> int:
        """Numbers per image."""
        size: int = self.spec["size"]
        return size

    def fit(self, values: np.ndarray) -> None:
        """Measure mean and standard deviation of each number."""
        known = values[~np.isnan(values).any(1)].astype(np.float64)
        std = known.std(0)
        mean, scale = known.mean(0).tolist(), np.where(std > 0, std, 1.0).tolist()
        self.take({"mean": mean, "std": scale})

    def take(self, measured: Mapping[str, Any]) -> None:
        """Take what was measured before."""
        super().take(measured)
        self._scale.clear()

    def features(self, value: Tensor) -> Tensor:
        """Return the standardised numbers."""
        if self.spec["mean"] is None:
            return value
        scale = self._scale.get(value.device)
        if scale is None:
            scale = torch.tensor([self.spec["mean"], self.spec["std"]], device=value.device)
            if not torch.compiler.is_compiling():  # what is traced is a constant of the trace
                self._scale[value.device] = scale
        return (value - scale[0]) / scale[1]


class TextCondition(VectorCondition):
    """The vector that a sentence encoder makes of a text.

    Args:
        name: The field of the batch.
        spec: As of a vector; `encoder`, its name, by which words are encoded again when sampling.
        emb_dim: Length of the vectors that the network gets.
        dims: Spatial dimensions of the images.
    """

    kind = "text"
    fields: ClassVar[Mapping[str, Any]] = {**VectorCondition.fields, "encoder": ...}
    known: TextVectors | None = None
    """Vectors of texts that need no encoder, such as those of the training."""

    def read(self, value: Any) -> Any:
        """Return the vectors of texts: of one, or of one per image."""
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list | tuple) and words and all(isinstance(w, str) for w in words):
            return torch.from_numpy(encode_texts(words, self.spec["encoder"], self.known))
        return super().read(value)


class TagsCondition(_Embedded):
    """Several tags per image, as 0 and 1; written as words, "red|round".

    Args:
        name: The field of the batch.
        spec: `names` of all tags.
        emb_dim: Length of the vectors.
        dims: Spatial dimensions of the images.
    """

    kind, axes = "tags", 1
    fields: ClassVar[Mapping[str, Any]] = {"names": ...}

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec, len(spec["names"]), emb_dim)

    @property
    def length(self) -> int:
        """How many tags there are."""
        return len(self.spec["names"])

    def read(self, value: Any) -> Any:
        """Return 0 and 1 for words: a text, or one per image; "" is none of the tags."""
        if isinstance(value, str):
            return self._row(value)[None]
        if isinstance(value, list | tuple) and any(isinstance(word, str) for word in value):
            return torch.stack([self._row(str(word)) for word in value])
        return super().read(value)

    def _row(self, words: str) -> Tensor:
        names, row = self.spec["names"], torch.zeros(self.length)
        for word in split_tags(words):
            if word not in names:
                raise ValueError(unknown_name(f"tag of {self.name!r}", word, names))
            row[names.index(word)] = 1.0
        return row

    def features(self, value: Tensor) -> Tensor:
        """Return −1 and 1."""
        return 2.0 * value - 1.0


class LabelCondition(DataCondition):
    """One of several names, as a learned vector; −1 for none.

    Args:
        name: The field of the batch.
        spec: `names`.
        emb_dim: Length of the vectors.
        dims: Spatial dimensions of the images.
    """

    kind = "label"
    fields: ClassVar[Mapping[str, Any]] = {"names": ...}

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec)
        self.embedding = nn.Embedding(len(spec["names"]) + 1, emb_dim)

    def read(self, value: Any) -> Any:
        """Return numbers for names."""
        words, names = [value] if isinstance(value, str) else value, self.spec["names"]
        if not isinstance(words, list | tuple):
            return value
        for word in words:
            if isinstance(word, str) and word not in names:
                raise ValueError(unknown_name(self.name, word, names))
            if isinstance(word, float | None):
                raise self.refuse(f"takes names, or numbers of them, -1 for none; got {word!r}.")
        return torch.tensor([names.index(w) if isinstance(w, str) else int(w) for w in words])

    def embed(self, value: Tensor) -> Tensor:
        """Look up the vectors (b, emb_dim)."""
        last = len(self.spec["names"])
        return F.embedding(torch.where(value == -1, last, value), self.embedding.weight)

    def null_like(self, value: Tensor) -> Tensor:
        """Return −1 for every sample."""
        return torch.full_like(value, -1)

    def null_for(self, x: Tensor) -> Tensor:
        """Return −1 for every sample of x."""
        return torch.full((x.shape[0],), -1, dtype=torch.long, device=x.device)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, and on the CPU the range."""
        super().validate(value, batch)
        check_labels(self.name, value, batch, len(self.spec["names"]))
