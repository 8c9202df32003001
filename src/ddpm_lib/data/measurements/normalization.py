"""Measured values ↔ [0, 1], channel by channel: fitted once, kept with the run, inverted on
output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import short

Kind = Literal["affine", "quantile"]
KINDS: tuple[str, ...] = get_args(Kind)

LEVELS = 257
"""Quantiles that a map of kind "quantile" goes through, at most."""
LINEAR = 1 / 16
"""Share of the straight line in such a map: it keeps apart what is rare, so that float32 holds all
65,536 values of 16 bits.
"""
_SAMPLED = 1_000_000
"""Values per channel of which quantiles are taken."""
NARROW = 0.1
"""A standard deviation in [-1, 1] below which a straight map leaves values in a small part of
it.
"""


@dataclass(frozen=True)
class Curve:
    """A rising map of one channel, straight between knots: values to levels in [0, 1].

    Attributes:
        values: In units of the data, ascending, float64 (k,); one for a channel that is constant.
        levels: Ascending, float64 (k,).
    """

    values: np.ndarray
    levels: np.ndarray

    def to_levels(self, x: np.ndarray) -> np.ndarray:
        """Map values to levels, those outside to the nearer end; float64."""
        if len(self.values) == 2:
            low, high = self.values / 2  # the span of halves is no infinity
            return np.clip((x / 2 - low) / (high - low), 0.0, 1.0)
        return np.interp(x, self.values, self.levels)

    def to_values(self, u: np.ndarray) -> np.ndarray:
        """Map levels to values; float64."""
        if len(self.values) == 2:
            low, high = self.values / 2
            return 2 * (np.clip(u, 0.0, 1.0) * (high - low) + low)
        return np.interp(u, self.levels, self.values)


SAME_VALUES = 0.02
"""By how much of [0, 1] maps may differ that were fitted to parts of the same data."""


@dataclass(frozen=True)
class Normalization:
    """How measured values become what a network learns, and back.

    Attributes:
        kind: "affine": lowest and highest value of each channel become 0 and 1; "quantile": a
            rising map after which values lie nearly evenly in [0, 1].
        dtype: Of the data, as numpy names it; values come back in it.
        curves: A map per channel.
        unit: What the values are measured in, where the data says so ("HU").
        geometry: Where the values lie, where the data says so: see docs/measured_data.md.
    """

    kind: str
    dtype: str
    curves: tuple[Curve, ...]
    unit: str | None = None
    geometry: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.curves)

    @property
    def low(self) -> tuple[float, ...]:
        """The lowest value of each channel, in units of the data."""
        return tuple(float(curve.values[0]) for curve in self.curves)

    @property
    def high(self) -> tuple[float, ...]:
        """The highest value of each channel, in units of the data."""
        return tuple(float(curve.values[-1]) for curve in self.curves)

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Map values to what is trained on.

        Args:
            values: (n, c, *spatial), in units of the data; those outside the range that was fitted
                become its nearer end.

        Returns:
            float32 in [0, 1], of the same shape.

        Raises:
            ValueError: If the number of channels differs.
        """
        self._check(values.shape)
        out = np.empty(values.shape, dtype=np.float32)
        for k, curve in enumerate(self.curves):
            out[:, k] = curve.to_levels(values[:, k].astype(np.float64))
        return out

    def inverse(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Map samples back to values.

        Args:
            images: float in [0, 1], (n, c, *spatial), as `diffusion.sample` gives them.

        Returns:
            Values of the data's dtype and units, within the range that was fitted.

        Raises:
            ValueError: If the number of channels differs.
        """
        array = images.detach().cpu().double().numpy() if isinstance(images, Tensor) else images
        self._check(array.shape)
        dtype = np.dtype(self.dtype)
        out = np.empty(array.shape, dtype=dtype)
        for k, curve in enumerate(self.curves):
            values = curve.to_values(array[:, k].astype(np.float64))
            out[:, k] = _whole(values, dtype) if dtype.kind in "iu" else values
        return out

    def __call__(self, values: np.ndarray) -> Tensor:
        """Map values as `forward` does, to a tensor."""
        return torch.from_numpy(self.forward(values))

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) < 3 or shape[1] != self.channels:
            raise ValueError(
                f"The normalization is of {self.channels} channels; got an array of shape"
                f" {tuple(shape)}, which is to be (n, {self.channels}, *spatial)."
            )

    def same_map(self, other: Normalization, within: float = 0.0) -> bool:
        """Whether another one maps every value to the same.

        Args:
            other: The other one.
            within: By how much of [0, 1] they may differ; `SAME_VALUES` for maps that were fitted
                to parts of the same data.
        """
        if self.channels != other.channels:
            return False
        pairs = [
            (one.to_levels(values), theirs.to_levels(values))
            for one, theirs in zip(self.curves, other.curves)
            for values in (one.values, theirs.values)
        ]
        return all(bool(abs(a - b).max() <= within) for a, b in pairs)

    def line(self) -> str:
        """Say in a line what is mapped to what."""
        unit = f" {self.unit}" if self.unit else ""
        spans = [f"{a:,.6g} … {b:,.6g}" for a, b in zip(self.low, self.high)]
        shown = "; ".join(spans[:4]) + ("; …" if len(spans) > 4 else "")
        count = f"{self.channels} channel{'s' * (self.channels > 1)}"
        return f"normalized ({self.kind}): {count} of {self.dtype}, {shown}{unit} become 0 … 1"

    def to_json(self) -> dict[str, Any]:
        """Return what checkpoints keep."""
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "values": [curve.values.tolist() for curve in self.curves],
            "levels": [curve.levels.tolist() for curve in self.curves],
            "unit": self.unit,
            "geometry": self.geometry,
        }

    @classmethod
    def from_json(cls, saved: Any, where: str) -> Normalization:
        """Read what `to_json` returned.

        Raises:
            ValueError: If it is damaged, naming `where`.
        """
        try:
            values = [np.asarray(one, dtype=np.float64) for one in saved["values"]]
            levels = [np.asarray(one, dtype=np.float64) for one in saved["levels"]]
            good = saved["kind"] in KINDS and np.dtype(saved["dtype"]).kind in "iuf"
            good = good and len(values) == len(levels) > 0
            for one, other in zip(values, levels):
                good = good and one.ndim == 1 and one.shape == other.shape and len(one) > 0
                good = good and bool(np.isfinite(one).all() and np.isfinite(other).all())
                good = good and bool((np.diff(one) > 0).all() and (np.diff(other) > 0).all())
            geometry = saved.get("geometry") or {}
            if not good or not isinstance(geometry, dict):
                raise ValueError("its numbers are no rising maps")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{where}: the normalization is damaged ({type(error).__name__}:"
                f" {str(error)[:100]}), so that samples would lose their units. Restore the file;"
                f" got {short(saved, 80)}."
            ) from None
        curves = tuple(Curve(*pair) for pair in zip(values, levels))
        unit = saved.get("unit")
        return cls(
            saved["kind"], saved["dtype"], curves, None if unit is None else str(unit), geometry
        )


def _whole(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Round to whole numbers that a type can hold: the highest of 64 bits is none of float64."""
    highest = float(np.iinfo(dtype).max)
    if int(highest) > np.iinfo(dtype).max:
        highest = float(np.nextafter(highest, 0.0))
    return np.minimum(np.rint(values), highest)


@dataclass(frozen=True)
class Unfitted:
    """A kind of normalization that is fitted later, on the images that are trained on."""

    kind: str


def check_kind(kind: object) -> Kind:
    """Return a kind of normalization.

    Raises:
        ValueError: If there is none of that name.
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("normalize", kind, KINDS))
    return cast("Kind", kind)


def fit(
    kind: str,
    dtype: str,
    read: Callable[[np.ndarray], np.ndarray],
    blocks: Iterable[np.ndarray],
    total: int,
) -> tuple[Normalization, list[str]]:
    """Fit a normalization; the same images give the same one.

    Args:
        kind: "affine" or "quantile".
        dtype: Of the data.
        read: Gives the values (n, c, *spatial) of some rows.
        blocks: The rows, some at a time.
        total: How many values a channel has in all of them, about.

    Returns:
        The normalization, and notes on it.
    """
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    shift: np.ndarray | None = None
    sums = np.zeros((3, 1))
    sampled: list[np.ndarray] = []
    for rows in blocks:
        values = read(rows)
        flat = values.reshape(*values.shape[:2], -1)
        lows, highs = flat.min((0, 2)), flat.max((0, 2))
        low = lows if low is None else np.minimum(low, lows)
        high = highs if high is None else np.maximum(high, highs)
        wide = flat.astype(np.float64)
        shift = wide.mean((0, 2)).reshape(1, -1, 1) if shift is None else shift
        apart = wide - shift  # whose squares keep a spread that is small beside an offset
        sums = sums + np.stack(
            [np.full(wide.shape[1], wide[:, 0].size), apart.sum((0, 2)), (apart**2).sum((0, 2))]
        )
        if kind == "quantile":
            step = max(1, total // _SAMPLED) | 1  # odd, so that it is no part of a usual width
            offset = int(rows[0]) % min(step, flat[:, 0].size)
            sampled.append(wide.transpose(1, 0, 2).reshape(wide.shape[1], -1)[:, offset::step])
    assert low is not None
    assert high is not None
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    ends = [(float(a), float(b)) for a, b in zip(low, high)]
    if kind == "affine":
        curves = [_straight(a, b) for a, b in ends]
    else:
        every = np.concatenate(sampled, axis=1)
        curves = [_risen(np.sort(one), *pair) for one, pair in zip(every, ends)]
    made = Normalization(kind, dtype, tuple(curves))
    return made, [*_constant(ends), *(_narrow(ends, std) if kind == "affine" else [])]


def _straight(low: float, high: float) -> Curve:
    if low == high:
        return Curve(np.array([low]), np.array([0.5]))
    return Curve(np.array([low, high]), np.array([0.0, 1.0]))


def _risen(ordered: np.ndarray, low: float, high: float) -> Curve:
    """Return a map of which levels are nearly the share of smaller values."""
    if low == high:
        return _straight(low, high)
    shares = np.linspace(0, 1, LEVELS)
    values = np.quantile(ordered, shares)
    values[0], values[-1] = low, high
    kept = np.unique(values)
    # A value that many share lies in the middle of its shares; those at the ends, at the ends.
    first, last = np.searchsorted(values, kept, "left"), np.searchsorted(values, kept, "right") - 1
    levels = (shares[first] + shares[last]) / 2
    levels[0], levels[-1] = 0.0, 1.0
    straight = (kept - low) / (high - low)
    mixed = (1 - LINEAR) * levels + LINEAR * straight
    rising = np.concatenate([[True], np.diff(mixed) > 1e-12])
    rising[-1] = True
    kept, mixed = kept[rising], mixed[rising]
    if len(mixed) > 2 and mixed[-1] - mixed[-2] <= 1e-12:
        kept, mixed = np.delete(kept, -2), np.delete(mixed, -2)
    return Curve(kept, mixed)


def _constant(ends: Sequence[tuple[float, float]]) -> list[str]:
    same = [k for k, (low, high) in enumerate(ends) if low == high]
    if not same:
        return []
    shown = ", ".join(f"{k} ({ends[k][0]:,.6g})" for k in same[:5])
    return [f"channels of one value, which a network need not learn: {shown}"]


def _narrow(ends: Sequence[tuple[float, float]], std: np.ndarray) -> list[str]:
    spreads = [2 * float(s) / (high - low) for (low, high), s in zip(ends, std) if high > low]
    if not spreads or min(spreads) >= NARROW:
        return []
    return [
        "most values lie in a small part of their range (a standard deviation of"
        f" {min(spreads):.2g}"
        ' in [-1, 1]; pictures have 0.5): normalize="quantile" (--normalize quantile) spreads them'
    ]


def saved_normalization(saved: Mapping[str, Any] | None, where: str) -> Normalization | None:
    """Read a normalization that may be there; see `Normalization.from_json`."""
    return None if saved is None else Normalization.from_json(saved, where)
