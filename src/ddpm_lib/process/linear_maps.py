"""Linear maps from images to measurements: what one is, and any that can be applied.

An operator A takes images (b, c, *spatial) to measurements (b, …) and its adjoint Aᵀ back, so that
⟨A x, y⟩ = ⟨x, Aᵀ y⟩; neither is ever written out as a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Operator(ABC):
    """A linear map of images, with what its measurements have of noise."""

    averages: ClassVar[bool] = True
    """True if measurements of images in [0, 1] lie there too, apart from noise and overshoot."""

    identity: ClassVar[bool] = False
    """True if A leaves images as they are."""

    noise_std: float = 0.0
    """Standard deviation of the noise that it adds to measurements, in units of [0, 1]."""

    def prepared(self, n: int, shape: Shape, device: torch.device) -> Operator:
        """Return the operator for n images of a shape (c, *spatial) on a device, checked; itself if
        nothing depends on them.

        Raises:
            ValueError: If it does not fit such images.
        """
        self.out_shape(shape)
        return self

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of the measurement of one image.

        Args:
            shape: Of one image, (c, *spatial).

        Raises:
            ValueError: If the operator does not fit such images.
        """

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return A x, (b, *out_shape), for images (b, c, *spatial)."""

    @abstractmethod
    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return Aᵀ y, (b, *shape), for measurements (b, *out_shape)."""

    def gram_inverse(self, v: Tensor, shape: Shape, gain: float, ridge: float) -> Tensor | None:
        """Return (gain·A Aᵀ + ridge)⁻¹ v where there is a short way to it, else None.

        Args:
            v: (b, *out_shape).
            shape: Of one image.
            gain: At least 0.
            ridge: At least 0.
        """
        return None

    def rows(self, start: int, stop: int) -> Operator:
        """Return the part that belongs to the images start … stop − 1; itself if it is one for
        all.
        """
        return self

    def known(self) -> Tensor | None:
        """Return where a measurement says something, booleans that broadcast against it; None:
        everywhere.
        """
        return None


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """Any linear map that can be applied, with its adjoint.

    Args:
        forward: A: from images (b, c, *spatial), float32, to measurements (b, …). It must treat
            every image by itself.
        backward: Aᵀ, from measurements to images. Default: found by differentiating `forward`.

    >>> half = Linear(lambda x: x[..., ::2])
    >>> half.out_shape((1, 8)), half.adjoint(torch.ones(1, 1, 4), (1, 8)).tolist()
    ((1, 4), [[[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]])
    """

    averages: ClassVar[bool] = False

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None = None
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"), repr=False)

    def prepared(self, n: int, shape: Shape, device: torch.device) -> Linear:
        """Return it for a device, tested on random images.

        Raises:
            ValueError: If A is not linear, or Aᵀ not its adjoint.
        """
        here = replace(self, _device=device)
        _check_linear(here, shape, device)
        return here

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of what `forward` makes of an image."""
        return tuple(self.apply(torch.zeros(1, *shape, device=self._device)).shape[1:])

    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self.forward(x)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return Aᵀ y."""
        if self.backward is not None:
            return self.backward(y)
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (found,) = torch.autograd.grad(self.forward(x), x, y.clone())
        return found


def _check_linear(operator: Linear, shape: Shape, device: torch.device) -> None:
    """Try an operator of a caller's on random images.

    Raises:
        ValueError: If it is not linear, mixes images, or its adjoint is none.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator).to(device)
    with torch.no_grad():
        y = operator.apply(x)
        if y.ndim < 2 or len(y) != 2:
            raise ValueError(
                "An operator takes images (b, c, *spatial) to measurements (b, …); of"
                f" {tuple(x.shape)} this one makes {tuple(y.shape)}."
            )
        scale = float(y.norm()) + 1e-12
        doubled = 2.0 * operator.apply(x[:1])
        wrong = float((operator.apply(2.0 * x[:1]) - doubled).norm())
        constant = float(operator.apply(torch.zeros_like(x)).norm())
        if wrong + constant > 1e-3 * scale:
            raise ValueError(
                "The operator is not linear: A(2x) differs from 2·A(x)"
                f" by {wrong / scale:.1e} of A(x), and A(0) is {constant / scale:.1e} of it. Leave"
                " offsets, clipping and noise out of it."
            )
        if float((doubled - 2.0 * y[:1]).norm()) > 1e-3 * scale:
            raise ValueError(
                "The operator mixes images: A of one differs from its row in A of two. Let it act"
                " on every image of (b, c, *spatial) by itself."
            )
    z = torch.randn(y.shape, generator=generator).to(device)
    back = operator.adjoint(z, shape)
    if tuple(back.shape) != tuple(x.shape):
        raise ValueError(
            f"The adjoint takes measurements back to images of shape {tuple(x.shape)}; got"
            f" {tuple(back.shape)}."
        )
    there, here = float((y * z).sum()), float((x * back).sum())
    if abs(there - here) > 1e-3 * scale * float(z.norm()):
        raise ValueError(
            f"backward is not the adjoint of forward: <Ax, y> is {there:.6g} and <x, A'y> is"
            f" {here:.6g} on random x and y. Leave backward out, and it is found by differentiating"
            " forward."
        )
