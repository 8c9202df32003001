"""Conditions: named fields of a batch that reach the network as a vector and/or as extra input
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Stream = Callable[[int], torch.Generator]
"""Returns the random numbers of the sample with that position in the batch."""


class Conditioner(nn.Module):
    """One named condition with a "null" that stands for its absence.

    Subclasses say how a value becomes an embedding (`embed`), extra input channels (`channels_of`
    and the attribute `extra_channels`), or both; what "absent" is (`null_like`, `null_for`); and
    what a valid value is (`validate`).

    Args:
        name: The field of the batch.
        drop_prob: Probability in [0, 1] of replacing a sample's value by the null in training,
            which makes classifier-free guidance possible (Ho & Salimans 2022).
    """

    extra_channels: int = 0
    """Number of channels that `channels_of` adds to the input of the network."""

    guided: bool = True
    """Whether classifier-free guidance contrasts the condition with its null; False keeps it in
    both halves.
    """

    def __init__(self, name: str, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob <= 1.0:
            raise ValueError(
                f"drop_prob of the condition {name!r} must be in [0, 1], got {drop_prob}."
            )
        self.name, self.drop_prob = name, float(drop_prob)

    @property
    def optional(self) -> bool:
        """Whether the network knows the null, so that the condition may be left out."""
        return self.drop_prob > 0

    def derive(self, x0: Tensor) -> Tensor | None:
        """Return the value that training makes of clean images (b, c, *spatial) in [-1, 1], as a
        caller would give it.

        None: the value comes with the batch.
        """
        return None

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Return the conditions of a batch as the network takes them, of what a caller gave; values
        of others stay.

        Args:
            cond: All conditions that were given or derived, by name.
            stream: Returns the random numbers of sample i; None in training, which draws from
                torch's global generators.
        """
        return cond

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit the condition."""

    def embed(self, value: Tensor) -> Tensor | None:
        """Return the embedding of shape (b, emb_dim), or None when this condition has none."""
        return None

    def channels_of(self, value: Tensor, x: Tensor) -> Tensor | None:
        """Return extra input channels (b, extra_channels, *spatial of x), or None when this
        condition has none.
        """
        return None

    def null_like(self, value: Tensor) -> Tensor:
        """Return the null in the shape, dtype and device of a value."""
        raise NotImplementedError(f"{type(self).__name__} must define null_like().")

    def null_for(self, x: Tensor) -> Tensor:
        """Return the null for a batch of network inputs x (b, c, *spatial), for when no value was
        given.
        """
        raise NotImplementedError(f"{type(self).__name__} must define null_for().")

    def validate(self, value: Tensor, batch: int) -> None:
        """Raise ValueError or TypeError when the value does not fit a batch of that many
        samples.
        """
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The condition {self.name!r} must be a tensor, got {type(value).__name__}."
            )
        if value.ndim == 0 or value.shape[0] != batch:
            raise ValueError(
                f"The condition {self.name!r} must have one entry per sample: expected a first"
                f" dimension of {batch}, got shape {tuple(value.shape)}."
            )


class ClassLabel(Conditioner):
    """A class label 0 … num_classes − 1, or −1 for "no class", as a learned vector.

    Args:
        num_classes: Number of classes.
        dim: Length of the vectors.
        drop_prob: Probability of hiding a label in training.
        name: The field of the batch.
    """

    def __init__(
        self, num_classes: int, dim: int, drop_prob: float = 0.0, name: str = "class_label"
    ) -> None:
        super().__init__(name, drop_prob)
        self.num_classes = num_classes
        # The last row is the null class, so that the first num_classes rows are what published
        # weights hold.
        self.embedding = nn.Embedding(num_classes + 1, dim)

    def embed(self, value: Tensor) -> Tensor:
        """Look up the vectors (b, dim) of labels (b,)."""
        return F.embedding(torch.where(value == -1, self.num_classes, value), self.embedding.weight)

    def null_like(self, value: Tensor) -> Tensor:
        """Return −1 for every sample."""
        return torch.full_like(value, -1)

    def null_for(self, x: Tensor) -> Tensor:
        """Return −1 for every sample of x."""
        return torch.full((x.shape[0],), -1, dtype=torch.long, device=x.device)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, and on the CPU the range.

        Elsewhere reading the range would make every step wait for the device; the lookup itself
        fails there.
        """
        super().validate(value, batch)
        check_labels(self.name, value, batch, self.num_classes)


def check_labels(
    name: str, value: Tensor, batch: int, num_classes: int, *, null: bool = True
) -> None:
    """Refuse class labels that do not fit; on the CPU also those out of range.

    Args:
        name: Of the condition.
        value: The labels.
        batch: How many there must be.
        num_classes: They go from 0 to one below.
        null: Whether −1 means no class.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they have another shape or are out of range.
    """
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"The condition {name!r} must hold integer labels (int64 or int32), got"
            f" {value.dtype}. Use labels.long() if they are class indices."
        )
    if value.ndim != 1:
        raise ValueError(
            f"The condition {name!r} must have shape ({batch},), got {tuple(value.shape)}."
            " Use one class index per sample, not a one-hot vector."
        )
    if value.device.type == "cpu" and batch > 0 and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in value.aminmax())
        least = -1 if null else 0
        if low < least or high >= num_classes:
            wrong = low if low < least else high
            absent = ", and -1 means no class" if null else ""
            raise ValueError(
                f"The condition {name!r} has a label {wrong}; labels go from 0 to"
                f" {num_classes - 1}{absent}."
            )


class SelfCondition(Conditioner):
    """The network's own last estimate of the clean image, as further input channels; 0 where there
    is none (Chen et al. 2023).

    The diffusion makes it, in training for half of the images and in sampling from the evaluation
    before.

    Args:
        channels: Channels of the images.
        drop_prob: Probability of showing nothing in training.
    """

    guided = False

    def __init__(self, channels: int, drop_prob: float = 0.5) -> None:
        super().__init__("self_cond", drop_prob)
        self.extra_channels = channels

    def channels_of(self, value: Tensor, x: Tensor) -> Tensor:
        """Return the estimate (b, channels, *spatial)."""
        return value.to(x.dtype)

    def null_like(self, value: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(value)

    def null_for(self, x: Tensor) -> Tensor:
        """Return 0 in the shape of the images."""
        return x.new_zeros(x.shape[0], self.extra_channels, *x.shape[2:])


class Augmentation(Conditioner):
    """What was done to an image, (b, augment_dim) numbers that are 0 for nothing, as a vector
    (Karras et al. 2022, app. F.2).

    Args:
        augment_dim: How many numbers.
        dim: Length of the vectors.
    """

    guided = False

    def __init__(self, augment_dim: int, dim: int) -> None:
        super().__init__("augment")
        self.augment_dim = augment_dim
        self.linear = nn.Linear(augment_dim, dim, bias=False)

    @property
    def optional(self) -> bool:
        """Left out, it says that nothing was done, which most training images say."""
        return True

    def embed(self, value: Tensor) -> Tensor:
        """Return the vectors (b, dim)."""
        return self.linear(value.to(self.linear.weight.dtype))

    def null_like(self, value: Tensor) -> Tensor:
        """Return 0: nothing was done."""
        return torch.zeros_like(value)

    def null_for(self, x: Tensor) -> Tensor:
        """Return 0: nothing was done."""
        return x.new_zeros(x.shape[0], self.augment_dim)
