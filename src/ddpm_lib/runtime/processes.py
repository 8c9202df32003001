"""The processes of a run: who does which part, and what they tell each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def own_share(n: int, rank: int, processes: int) -> range:
    """Return the images 0 … n-1 that a rank makes: equal blocks, the last ones shorter or empty."""
    size = math.ceil(n / processes)
    return range(min(n, rank * size), min(n, (rank + 1) * size))
