"""Linear maps that multiply each direction of an image by a matrix, the channels being one.

They are Kronecker products, and so are their products; a A Aᵀ + b is then inverted exactly, by the
eigenvalues of each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.process.linear_maps import Operator, Shape

_ZERO = 1e-10

Factors = list[Tensor | None]
"""For each of (c, *spatial) the matrix (size, measured size) that multiplies it from the right,
float64; None for the identity.
"""


class Separable(Operator):
    """A matrix for each direction; subclasses are hashable."""

    def factors(self, shape: Shape) -> Factors:
        """Return the matrices for images of a shape (c, *spatial)."""
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of the measurement of one image."""
        return tuple(
            size if matrix is None else matrix.shape[1]
            for size, matrix in zip(shape, self.factors(shape))
        )

    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""
        return along(x, _placed(self, tuple(x.shape[1:]), x.device, x.dtype, False))

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return Aᵀ y."""
        return along(y, _placed(self, shape, y.device, y.dtype, True))

    def gram_inverse(self, v: Tensor, shape: Shape, gain: float, ridge: float) -> Tensor:
        """Return (gain·A Aᵀ + ridge)⁻¹ v."""
        return gram_inverse((self,), v, shape, gain, ridge)


def along(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply the directions of x (b, c, *spatial) by matrices."""
    for axis, matrix in enumerate(matrices, start=1):
        if matrix is not None:
            x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x.contiguous()


@lru_cache(maxsize=64)
def _placed(
    part: Separable, shape: Shape, device: torch.device, dtype: torch.dtype, adjoint: bool
) -> Factors:
    """Return the factors of a part, or their transposes, where they are multiplied: a copy in every
    step would make a GPU wait.
    """
    with torch.inference_mode(False):  # kept, and used where gradients pass, too
        found = part.factors(shape)
        turned = [None if m is None else m.T.contiguous() if adjoint else m for m in found]
        return [None if m is None else to_device(m.to(dtype), device) for m in turned]


def gram_inverse(
    parts: tuple[Separable, ...], v: Tensor, shape: Shape, gain: float, ridge: float
) -> Tensor:
    """Return (gain·A Aᵀ + ridge)⁻¹ v for the product A of parts, the first of which is applied
    first.

    Args:
        parts: At least one.
        v: (b, *out_shape).
        shape: Of one image.
        gain: At least 0.
        ridge: At least 0; directions that are not measured stay out where it is 0.
    """
    vectors, back, values = _eigen(parts, shape, v.device, v.dtype)
    scale = gain * values + ridge
    # What rounding leaves of a zero is no direction.
    inverse = torch.where(scale > _ZERO * gain, 1.0 / scale.clamp(min=1e-30), 0.0)
    return along(along(v, vectors) * inverse, back)


@lru_cache(maxsize=16)
def _eigen(
    parts: tuple[Separable, ...], shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[Factors, Factors, Tensor]:
    """Return the eigenvectors of A Aᵀ in each direction, their transposes, and its eigenvalues
    (*out_shape), where they are multiplied.
    """
    products: Factors = [None] * len(shape)
    for part in parts:
        factors = part.factors(shape)
        products = [
            b if a is None else a if b is None else a @ b for a, b in zip(products, factors)
        ]
        shape = part.out_shape(shape)
    vectors: Factors = []
    values = torch.ones([1] * len(shape), dtype=torch.float64)
    for axis, matrix in enumerate(products):
        if matrix is None:
            vectors.append(None)
            continue
        found, q = torch.linalg.eigh(matrix.T @ matrix)
        vectors.append(q)
        place = [-1 if k == axis else 1 for k in range(len(shape))]
        values = values * found.clamp(min=0.0).view(place)

    def placed(matrices: Sequence[Tensor | None]) -> Factors:
        return [None if m is None else to_device(m.to(dtype), device) for m in matrices]

    back = [None if q is None else q.T.contiguous() for q in vectors]
    return placed(vectors), placed(back), to_device(values.to(dtype), device)
