"""Linear maps that multiply each direction of an image by a matrix, the channels being one.

They are Kronecker products, and so are their products; a A Aᵀ + b is then inverted exactly, by the
eigenvalues of each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ddpm_lib.process.linear_maps import Operator, Shape

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
        return along(x, self.factors(tuple(x.shape[1:])))

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return Aᵀ y."""
        return along(y, [None if m is None else m.T for m in self.factors(shape)])

    def gram_inverse(self, v: Tensor, shape: Shape, gain: float, ridge: float) -> Tensor:
        """Return (gain·A Aᵀ + ridge)⁻¹ v."""
        return gram_inverse((self,), v, shape, gain, ridge)


def along(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply the directions of x (b, c, *spatial) by matrices."""
    for axis, matrix in enumerate(matrices, start=1):
        if matrix is not None:
            x = (x.movedim(axis, -1) @ matrix.to(x)).movedim(-1, axis)
    return x.contiguous()


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
    vectors, values = _eigen(parts, shape)
    scale = gain * values + ridge
    # What rounding leaves of a zero is no direction.
    inverse = torch.where(scale > 1e-10 * gain, 1.0 / scale.clamp(min=1e-300), 0.0)
    turned = along(v, vectors) * inverse.to(v)
    return along(turned, [None if q is None else q.T for q in vectors])


@lru_cache(maxsize=16)
def _eigen(parts: tuple[Separable, ...], shape: Shape) -> tuple[Factors, Tensor]:
    """Return the eigenvectors of A Aᵀ in each direction, and its eigenvalues (*out_shape), float64
    on the CPU.
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
        values = values * found.clamp(min=0.0).view(
            [-1 if k == axis else 1 for k in range(len(shape))]
        )
    return vectors, values
