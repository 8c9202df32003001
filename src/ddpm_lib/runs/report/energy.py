"""How much energy a training took, estimated from what the device may draw and the hours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddpm_lib.runs.run_status import number

_GPU_WATTS = {
    "gb200": 1200, "b200": 1000, "h200": 700, "h100 pcie": 350, "h100": 700, "a100-pcie": 250,
    "a100-sxm": 400, "a100": 400, "v100": 300, "p100": 250, "l40": 300, "a40": 300, "l4": 72,
    "a30": 165, "a10": 150, "t4": 70, "rtx a6000": 300, "rtx 6000 ada": 300, "rtx 5090": 575,
    "rtx 4090": 450, "rtx 4080": 320, "rtx 4070": 200, "rtx 3090": 350, "rtx 3080": 320,
    "rtx 3070": 220, "rtx 3060": 170, "rtx 2080": 250, "mi300": 750, "mi250": 560,
}  # fmt: skip
"""Board power in W that makers state, by a part of the name of a GPU; the first match counts."""
_OTHER_GPU = 250
_HOST = 100
_PER_THREAD = 10
_IDLE = 20
_APPLE = 30


@dataclass(frozen=True)
class Energy:
    """An estimate.

    Attributes:
        watts: Power assumed.
        hours: Time that training took.
        assumed: Where the power comes from, in words.
    """

    watts: float
    hours: float
    assumed: str

    @property
    def kilowatt_hours(self) -> float:
        """Power times time."""
        return self.watts * self.hours / 1000.0

    def __str__(self) -> str:
        amount = self.kilowatt_hours
        size = f"{amount:.3g} kWh" if amount >= 0.1 else f"{amount * 1000:.2g} Wh"
        return f"about {size}: {self.hours:.3g} h × {self.watts:,.0f} W ({self.assumed})"


def estimate_energy(device: dict[str, Any], processes: int, seconds: float) -> Energy:
    """Estimate what a training took: an upper bound for a busy device, without cooling.

    Nothing is measured: a GPU counts with the board power that its maker states (250 W where the
    name says nothing) and 100 W for the machine around it, a CPU with 20 W and 10 W per thread.

    Args:
        device: kind, name, count and threads, as in about.json; all may be missing.
        processes: Processes of the run, where `device` has no count.
        seconds: Time that training took.
    """
    kind, name = str(device.get("kind") or "cpu"), str(device.get("name") or "").lower()
    count = max(1, int(number(device.get("count")) or processes or 1))
    if kind == "cpu":
        threads = count * max(1, int(number(device.get("threads")) or 1))
        many = f"each of {threads} CPU threads" if threads > 1 else "one CPU thread"
        words = f"{_IDLE} W, and {_PER_THREAD} W for {many}"
        return Energy(_IDLE + _PER_THREAD * threads, seconds / 3600, words)
    if kind == "mps":
        return Energy(_APPLE, seconds / 3600, f"{_APPLE} W for the whole machine")
    known = next((watts for part, watts in _GPU_WATTS.items() if part in name), None)
    watts = _OTHER_GPU if known is None else known
    whose = "board power stated by its maker" if known else "assumed, its name is not known"
    words = f"{count} × {watts} W, {whose}, and {_HOST} W for the machine"
    return Energy(count * watts + _HOST, seconds / 3600, words)
