"""What a feature extractor is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Extractor(ABC):
    """Features of several layers at once.

    The call takes uint8 RGB images (n, 3, h, w) on the extractor's device; no image's features
    depend on the others.
    """

    @abstractmethod
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer, for uint8 RGB images (n, 3, h, w) on the extractor's
        device.
        """
