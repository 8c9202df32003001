"""What measured values of a set are like, channel by channel, in their units."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_OF_ENDS = 0.2
"""A share of values at one end of the range above which it is said."""


@dataclass(frozen=True)
class ChannelFacts:
    """Values of a channel, in units of the data.

    Attributes:
        low: The lowest.
        high: The highest.
        mean: Their mean.
        std: Their standard deviation.
        at_low: The share that has the lowest value: a background, a fill value, a clipped sensor.
        at_high: The share that has the highest.
    """

    low: float
    high: float
    mean: float
    std: float
    at_low: float
    at_high: float

    @property
    def said(self) -> str:
        """Word them."""
        ends = [
            f"{share:.0%} are the {word}"
            for share, word in ((self.at_low, "lowest"), (self.at_high, "highest"))
            if share > _OF_ENDS and self.low < self.high
        ]
        told = f"{self.low:,.5g} … {self.high:,.5g}, mean {self.mean:,.5g} ± {self.std:,.5g}"
        return ", ".join([told, *ends])


@dataclass(frozen=True)
class ValueColumns:
    """Values of a set.

    Attributes:
        stored: Their type.
        unit: What they are measured in, where the data say so.
        channels: Those of each channel.
        normalize: The normalization that suits them.
    """

    stored: str
    unit: str | None
    channels: tuple[ChannelFacts, ...]
    normalize: str

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON."""
        return asdict(self)

    def properties(self) -> list[tuple[str, str]]:
        """Return names and values for a table; of many channels those of the first twelve."""
        unit = f" {self.unit}" if self.unit else ""
        several = len(self.channels) > 1
        rows = [
            (f"channel {k}" if several else "values", f"{one.said}{unit}")
            for k, one in enumerate(self.channels[:12])
        ]
        if len(self.channels) > 12:
            rows.append(("…", f"{len(self.channels):,} channels"))
        return [("type", self.stored), *rows, ("normalize", self.normalize)]
