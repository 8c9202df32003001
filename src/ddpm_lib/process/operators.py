"""The operators that have names: what `restore` inverts.

A name and a number stand for one, "blur:2", several in order for their product,
"blur:1+downsampling:4+noise:0.05".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import ClassVar

import torch
from torch import Tensor

from ddpm_lib.core.options import option_names
from ddpm_lib.core.registry import Registry
from ddpm_lib.core.text import short
from ddpm_lib.images import check_divisible, shrink_weights
from ddpm_lib.process.inpainting import to_mask
from ddpm_lib.process.linear_maps import Linear, Operator, Shape
from ddpm_lib.process.separable import Factors, Separable, gram_inverse

__all__ = [
    "OPERATORS",
    "Blur",
    "Downsampling",
    "Grey",
    "Linear",
    "Mask",
    "Noise",
    "Operator",
    "Product",
    "make_operator",
    "split_parts",
]


@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur in every spatial direction.

    The kernel ends at four standard deviations, and images go on as their mirror image, as for
    scipy.ndimage.gaussian_filter: a constant image stays what it is.

    Args:
        std: Standard deviation in pixels, above 0.

    Raises:
        ValueError: If it is not.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0.0 < self.std < math.inf:
            raise ValueError(
                f"blur takes a standard deviation in pixels above 0, as in blur:2; got {self.std}."
            )

    def factors(self, shape: Shape) -> Factors:
        """Return the symmetric matrices of spatial directions."""
        return [None, *(_blur_matrix(size, float(self.std)) for size in shape[1:])]


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _blur_matrix(size: int, std: float) -> Tensor:
    reach = int(4.0 * std + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    kernel = kernel / kernel.sum()
    # The mirror image … c b a | a b c | c b a …, as often as the kernel is wider than the image.
    place = (torch.arange(size)[:, None] + offsets) % (2 * size)
    place = torch.where(place < size, place, 2 * size - 1 - place)
    rows = torch.zeros(size, size, dtype=torch.float64)
    return rows.scatter_add_(1, place, kernel.expand(size, -1)).T.contiguous()


@dataclass(frozen=True)
class Downsampling(Separable):
    """Images at 1/factor of their size by antialiased bicubic interpolation, as `images.shrink` and
    Pillow's BICUBIC make them.

    Args:
        factor: How many times smaller, a whole number of at least 2.

    Raises:
        ValueError: If it is not.
    """

    factor: int

    def __post_init__(self) -> None:
        if not float(self.factor).is_integer() or self.factor < 2:
            raise ValueError(
                "downsampling takes a whole number of at least 2, as in downsampling:4; got"
                f" {self.factor}."
            )
        object.__setattr__(self, "factor", int(self.factor))

    def factors(self, shape: Shape) -> Factors:
        """Return the weights of spatial directions."""
        check_divisible(shape[1:], self.factor)
        return [None, *(shrink_weights(size, self.factor) for size in shape[1:])]


@dataclass(frozen=True)
class Noise(Separable):
    """Leaves images as they are and adds Gaussian noise.

    Args:
        std: Its standard deviation, at least 0, in units of [0, 1].

    Raises:
        ValueError: If it is negative.
    """

    identity: ClassVar[bool] = True

    std: float

    def __post_init__(self) -> None:
        check_noise(self.std, "noise", "noise:0.05")

    @property
    def noise_std(self) -> float:  # type: ignore[override]
        """The standard deviation."""
        return float(self.std)

    def factors(self, shape: Shape) -> Factors:
        """Return nothing but identities."""
        return [None] * len(shape)


@dataclass(frozen=True)
class Grey(Separable):
    """The grey value 0.299·R + 0.587·G + 0.114·B of colour images, as Pillow makes it: restoring it
    is colouring.
    """

    def factors(self, shape: Shape) -> Factors:
        """Return the weights of the channels."""
        if shape[0] != 3:
            raise ValueError(
                f"grey takes images with 3 channels, red, green and blue; these have {shape[0]}."
            )
        weights = torch.tensor([[0.299], [0.587], [0.114]], dtype=torch.float64)  # Pillow's
        return [weights, *[None] * (len(shape) - 1)]


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """Hides pixels: a measurement says nothing where the mask is True.

    Args:
        mask: True or 1 where nothing is known, False or 0 where pixels are: (*spatial), (c or 1,
            *spatial) or (n or 1, c or 1, *spatial), as for `inpaint`.
    """

    mask: Tensor

    def prepared(self, n: int, shape: Shape, device: torch.device) -> Mask:
        """Return it with a mask (n or 1, c or 1, *spatial) on the device.

        Raises:
            ValueError: If the mask does not fit, or hides all of an image.
        """
        mask = to_mask(self.mask, n, shape, device)
        if bool(mask.flatten(1).all(1).any()):
            raise ValueError(
                "The mask hides everything of an image. Pass False or 0 where pixels are known."
            )
        return replace(self, mask=mask)

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of the image."""
        return shape

    def apply(self, x: Tensor) -> Tensor:
        """Return x with zeros where it is hidden."""
        return torch.where(self.mask.to(x.device) != 0, torch.zeros_like(x), x)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return y with zeros where it is hidden."""
        return self.apply(y)

    def gram_inverse(self, v: Tensor, shape: Shape, gain: float, ridge: float) -> Tensor:
        """Return (gain·A Aᵀ + ridge)⁻¹ v; what is hidden has 0 there."""
        return self.apply(v) / (gain + ridge)

    def rows(self, start: int, stop: int) -> Mask:
        """Return the masks of the images start … stop − 1 of those it was prepared for."""
        return replace(self, mask=self.mask[start:stop]) if len(self.mask) > 1 else self

    def known(self) -> Tensor:
        """Return where pixels are known."""
        return self.mask == 0


@dataclass(frozen=True, eq=False)
class Product(Operator):
    """Operators one after the other, A_k … A_2 A_1.

    Args:
        parts: Applied in this order; noise comes last.

    Raises:
        ValueError: If there is none, or noise before the last.
    """

    parts: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("An operator has at least one part, such as blur:2.")
        if any(part.noise_std for part in self.parts[:-1]):
            raise ValueError(
                "Noise is added to what is measured: write it last, as in blur:2+noise:0.05."
            )

    @property
    def averages(self) -> bool:  # type: ignore[override]
        """Whether all parts do."""
        return all(part.averages for part in self.parts)

    @property
    def noise_std(self) -> float:  # type: ignore[override]
        """That of the last part."""
        return self.parts[-1].noise_std

    def prepared(self, n: int, shape: Shape, device: torch.device) -> Product:
        """Return the product of prepared parts."""
        ready, shapes = [], [shape]
        for part in self.parts:
            ready.append(part.prepared(n, shapes[-1], device))
            shapes.append(ready[-1].out_shape(shapes[-1]))
        return replace(self, parts=tuple(ready))

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of the last measurement."""
        return reduce(lambda found, part: part.out_shape(found), self.parts, shape)

    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""
        return reduce(lambda found, part: part.apply(found), self.parts, x)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """Return Aᵀ y."""
        shapes = [shape]
        for part in self.parts[:-1]:
            shapes.append(part.out_shape(shapes[-1]))
        for part, before in zip(self.parts[::-1], shapes[::-1]):
            y = part.adjoint(y, before)
        return y

    def gram_inverse(self, v: Tensor, shape: Shape, gain: float, ridge: float) -> Tensor | None:
        """Return (gain·A Aᵀ + ridge)⁻¹ v where all parts are matrices along directions."""
        parts = tuple(part for part in self.parts if isinstance(part, Separable))
        whole = len(parts) == len(self.parts)
        return gram_inverse(parts, v, shape, gain, ridge) if whole else None

    def rows(self, start: int, stop: int) -> Product:
        """Return the product of the parts' rows."""
        return replace(self, parts=tuple(part.rows(start, stop) for part in self.parts))

    def known(self) -> Tensor | None:
        """Return what the last part that is no noise says."""
        linear = [part for part in self.parts if not part.identity]
        return linear[-1].known() if linear else None


OPERATORS: Registry[type[Operator]] = Registry(
    "operator",
    {
        "blur": Blur,
        "downsampling": Downsampling,
        "mask": Mask,
        "noise": Noise,
        "grey": Grey,
    },
)


def make_operator(
    operator: str | Operator, read_mask: Callable[[str], Tensor] | None = None
) -> Operator:
    """Return an operator from its name and number, or the operator itself.

    Args:
        operator: "blur:2", several in order joined by "+", or a finished operator.
        read_mask: Returns the mask that a word after "mask:" names.

    Raises:
        ValueError: If a name is unknown or a value out of range.
        TypeError: If it is neither a word nor an operator.

    >>> make_operator("blur:1+downsampling:4").out_shape((3, 32, 32))
    (3, 8, 8)
    """
    if isinstance(operator, Operator):
        return operator
    if not isinstance(operator, str):
        raise TypeError(
            f"operator is a word such as 'blur:2', or an object of process.operators, such as"
            f" Linear(forward, backward); got {short(operator)}."
        )
    parts = tuple(_part(word, read_mask) for word in split_parts(operator))
    return parts[0] if len(parts) == 1 else Product(parts)


def split_parts(text: str) -> list[str]:
    """Return the words of a product; a "+" before what names no operator belongs to a file's name.

    >>> split_parts("mask:a+b.png+noise:0.1")
    ['mask:a+b.png', 'noise:0.1']
    """
    return re.split(r"\+(?=[A-Za-z_]+(?:[:+]|$))", text.strip())


def _part(word: str, read_mask: Callable[[str], Tensor] | None) -> Operator:
    name, colon, value = (piece.strip() for piece in word.partition(":"))
    cls = OPERATORS[name]
    names = option_names(cls)
    if not names:
        if colon:
            raise ValueError(f"The operator {name!r} takes no value; got {short(value)}.")
        return cls()
    if cls is Mask:
        if read_mask is None:
            raise ValueError(
                "A mask is no word: pass Mask(mask) of ddpm_lib.process.operators, True where"
                " nothing is known."
            )
        if not value:
            raise ValueError("mask takes a black and white picture, as in mask:hole.png.")
        return Mask(read_mask(value))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        got = short(value) if value else "nothing"
        raise ValueError(
            f"The operator {name!r} takes a number, its {names[0]}, as in {name}:2; got {got}."
            " Several operators are joined by +, as in blur:2+noise:0.05."
        )
    return cls(number)  # type: ignore[call-arg]


def check_noise(std: float, name: str, example: str) -> None:
    """Refuse a standard deviation of noise that is none.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0.0 <= std < math.inf:
        raise ValueError(
            f"{name} takes a standard deviation of at least 0 in units of [0, 1], as in {example};"
            f" got {std}."
        )
