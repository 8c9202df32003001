"""The one place where image ranges and layouts are converted.

Three ranges exist: uint8 in {0 … 255} (files, datasets), float in [0, 1] (every public boundary)
and float32 in [-1, 1] (what diffuses). Shapes are `b c *spatial` for batches and `c h w` for one
image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.files import write_aside

if TYPE_CHECKING:
    from PIL import Image


def to_model_range(images: Tensor) -> Tensor:
    """Map uint8, or float in [0, 1], to float32 (float64 stays float64) in [-1, 1].

    Raises:
        TypeError: If the dtype is neither uint8 nor floating point.
    """
    if images.dtype == torch.uint8:
        return images.float().div_(127.5).sub_(1.0)
    if not images.is_floating_point():
        raise TypeError(
            f"Images must be uint8, or float in [0, 1]; got {images.dtype}. Convert with"
            " .to(torch.uint8)."
        )
    return (images if images.dtype == torch.float64 else images.float()) * 2.0 - 1.0


def check_unit_range(images: Tensor) -> None:
    """Refuse float images outside [0, 1] (reads the values: on a GPU this waits for the device).

    Raises:
        ValueError: If a value is not finite or lies outside [0, 1] by more than 1e-4.
    """
    if images.is_floating_point() and images.numel():
        low, high = (float(v) for v in torch.aminmax(images.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("Images hold NaN or infinite values. Check the dataset.")
        if low < -1e-4 or high > 1 + 1e-4:
            raise ValueError(
                f"Float images must lie in [0, 1]; got [{low:.3g}, {high:.3g}]. "
                "For [-1, 1] pass (images + 1) / 2; for 0 … 255 pass uint8."
            )


def to_unit_range(x: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1], clamped."""
    return ((x + 1.0) * 0.5).clamp_(0.0, 1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Round float images in [0, 1] to uint8, clamped; uint8 passes through."""
    if images.dtype == torch.uint8:
        return images
    return images.float().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """Turn one image (c, h, w) with 1, 3 or 4 channels, uint8 or float in [0, 1], into a PIL image
    (L, RGB, RGBA).
    """
    from PIL import Image

    array = to_uint8(image).detach().cpu().permute(1, 2, 0).contiguous().numpy()
    channels = array.shape[-1]
    if channels == 1:
        return Image.fromarray(array[..., 0], mode="L")
    if channels not in (3, 4):
        raise ValueError(
            f"A picture has 1, 3 or 4 channels; got {channels}. Save other data as .npz."
        )
    return Image.fromarray(array, mode="RGB" if channels == 3 else "RGBA")


def preview(images: Tensor) -> Tensor:
    """Return pictures that show images of any number of channels, or volumes.

    Of two channels the first is shown, in grey; of more than four the first three, as red, green
    and blue. A volume becomes one picture of at most 16 slices along its first axis, spread over
    it, in rows.

    Args:
        images: uint8 or float in [0, 1], (n, c, h, w) or (n, c, d, h, w).

    Returns:
        (n, 1, 3 or 4, H, W), of the same type.
    """
    channels = images.shape[1]
    if channels not in (1, 3, 4):
        images = images[:, : 3 if channels > 4 else 1]
    if images.ndim == 4:
        return images
    depth = images.shape[2]
    count = min(depth, 16)
    chosen = images[:, :, [k * (depth - 1) // max(1, count - 1) for k in range(count)]]
    columns = grid_columns(count)
    rows = math.ceil(count / columns)
    blank = columns * rows - count
    if blank:
        chosen = torch.cat([chosen, torch.zeros_like(chosen[:, :, :blank])], 2)
    n, c, _, height, width = chosen.shape
    tiles = chosen.reshape(n, c, rows, columns, height, width)
    return tiles.transpose(3, 4).reshape(n, c, rows * height, columns * width)


def grid_columns(n: int) -> int:
    """Return the number of columns that makes `n` tiles nearly square."""
    return max(1, math.ceil(math.sqrt(n)))


def make_grid(
    images: Tensor | Sequence[Tensor], columns: int | None = None, padding: int = 2, fill: int = 255
) -> Tensor:
    """Tile images (b, c, h, w), uint8 or float in [0, 1], row by row into one uint8 picture (c, H,
    W).

    Args:
        images: The tiles, all of one shape.
        columns: Tiles per row; default: nearly square.
        padding: Pixels between tiles and around them.
        fill: Grey value of the padding, 0 … 255.
    """
    batch = (
        to_uint8(images if isinstance(images, Tensor) else torch.stack(list(images))).detach().cpu()
    )
    if batch.ndim != 4 or not len(batch):
        raise ValueError(
            f"A grid needs images of shape (b, c, h, w) with b ≥ 1; got {tuple(batch.shape)}."
        )
    n, channels, height, width = batch.shape
    columns = min(columns or grid_columns(n), n)
    rows = math.ceil(n / columns)
    cell_h, cell_w = height + padding, width + padding
    grid = torch.full(
        (channels, rows * cell_h + padding, columns * cell_w + padding), fill, dtype=torch.uint8
    )
    for i, image in enumerate(batch):
        top, left = padding + i // columns * cell_h, padding + i % columns * cell_w
        grid[:, top : top + height, left : left + width] = image
    return grid


def comparison_tiles(
    small: Tensor, samples: Tensor, truth: Tensor | None = None, columns: int | None = None
) -> tuple[Tensor, int]:
    """Put each sample behind its small image, enlarged without smoothing, and before the image that
    was made of.

    Args:
        small: Images (n, c, *small_spatial).
        samples: Images (n, c, *spatial), every side a multiple of the small one's.
        truth: Images (n, c, *spatial) that the small ones were made of, where they are known.
        columns: Groups of two or three tiles in a row; default: nearly square.

    Returns:
        Tiles (2n or 3n, c, *spatial), uint8 on the CPU, and how many stand in a row.
    """
    enlarged = to_uint8(small)
    for axis in range(2, enlarged.ndim):
        enlarged = enlarged.repeat_interleave(samples.shape[axis] // small.shape[axis], axis)
    group = [to_uint8(images).cpu() for images in (enlarged, samples, truth) if images is not None]
    tiles = torch.stack(group, 1).flatten(0, 1)
    return tiles, len(group) * (columns or max(1, round(math.sqrt(len(tiles)) / len(group))))


def save_image(image: Tensor, path: str | Path, scale: int = 1) -> Path:
    """Write one image (c, h, w) as PNG or another format named by the suffix; `scale` enlarges by
    whole pixels.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = to_pil(image)
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    _save_aside(picture, path)
    return path


def _save_aside(picture: Image.Image, path: Path, **options: Any) -> None:
    # A full disk must not leave an empty picture, nor a link lead out of the folder.
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{path.name!r} names no kind of picture. Write a name such as {path.stem}.png."
        )
    write_aside(path, lambda aside: picture.save(aside, format=kind, **options), durable=False)


def save_grid(images: Tensor, path: str | Path, columns: int | None = None, scale: int = 1) -> Path:
    """Tile images (see `make_grid`) and write the picture to `path`."""
    return save_image(make_grid(images, columns), path, scale)


def png_bytes(image: Tensor) -> bytes:
    """Return one image (c, h, w), see `to_pil`, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def thumbnail(image: Tensor, side: int) -> Tensor:
    """Return an image (c, h, w) made smaller where it is larger than `side` pixels, uint8."""
    from PIL import Image

    small = to_pil(image)
    small.thumbnail((side, side), Image.Resampling.BOX)
    array = torch.from_numpy(np.array(small))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def grid_scale(size: Sequence[int]) -> int:
    """Return by how much grids of samples enlarge the pixels of images (height, width)."""
    return max(1, 128 // max(size))


def small_png(path: str | Path, widest: int, scale: int = 1) -> tuple[bytes, int]:
    """Return a picture file as PNG of few bytes for a page, and how wide to show it, in pixels.

    Args:
        path: The file.
        widest: Pixels that it may have on the page.
        scale: By how much its pixels were enlarged, which is taken back.

    Raises:
        OSError: If it cannot be read.
    """
    from PIL import Image

    with Image.open(path) as opened:
        drawn = opened.convert("RGB")
    width = min(drawn.width, widest)
    factor = max(scale, -(-drawn.width // widest))
    drawn = drawn.reduce(factor) if factor > 1 else drawn
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), width


def save_gif(
    frames: Sequence[Tensor], path: str | Path, seconds: float = 4.0, scale: int = 1
) -> Path:
    """Write pictures (c, h, w) as an endlessly repeating GIF that lasts `seconds` and rests on the
    last frame.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [to_pil(frame) for frame in frames]
    if scale > 1:
        pictures = [
            p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)
            for p in pictures
        ]
    each = max(20, int(1000 * seconds / len(pictures)))
    durations = [each] * (len(pictures) - 1) + [1500]
    _save_aside(
        pictures[0], path, save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return path


def shrink(x: Tensor, factor: int) -> Tensor:
    """Return x (b, c, *spatial) at 1/factor of its size in every direction, by antialiased bicubic
    interpolation.

    Each output value is the mean of its 4·factor nearest inputs along a direction, weighted by
    Keys' cubic (1981, a = −1/2) stretched by the factor, and normalised where it hangs over the
    border. That is what Pillow's BICUBIC does, with which this library fits pictures to a size. It
    may overshoot the range of x next to edges.

    Args:
        x: Floating point, every spatial size divisible by the factor.
        factor: How many times smaller, at least 1.

    Raises:
        ValueError: If a size is not divisible by the factor, naming the nearest ones that are.

    >>> shrink(torch.arange(8.0).view(1, 1, 8), 2).shape
    torch.Size([1, 1, 4])
    """
    check_divisible(x.shape[2:], factor)
    if factor == 1:
        return x
    # Mixed precision would round the pixels to three digits.
    with torch.autocast(x.device.type, enabled=False):
        for axis in range(2, x.ndim):
            weights = _shrink_weights_like(x.shape[axis], factor, x.dtype, x.device)
            x = (x.movedim(axis, -1) @ weights).movedim(-1, axis)
    return x.contiguous()


def nearest_multiples(size: Sequence[int], factor: int) -> str:
    """Word the nearest sizes that are divisible by the factor in every direction.

    >>> nearest_multiples((30, 33), 8), nearest_multiples((16,), 8)
    ('24×32 or 32×40', '16')
    """
    down = "×".join(str(max(s // factor, 1) * factor) for s in size)
    up = "×".join(str(max(math.ceil(s / factor), 1) * factor) for s in size)
    return f"{down} or {up}" if up != down else down


def check_divisible(size: Sequence[int], factor: int) -> None:
    """Raise ValueError where a spatial size is not divisible by the factor."""
    if any(s < 1 or s % factor for s in size):
        raise ValueError(
            f"The image size {'×'.join(map(str, size))} must be divisible by {factor}, the factor"
            " between it and its smaller copy. The nearest sizes that fit:"
            f" {nearest_multiples(size, factor)}."
        )


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _shrink_weights_like(
    size: int, factor: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Keep the matrix on the device: copying it there makes the host wait."""
    return shrink_weights(size, factor).to(device, dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def shrink_weights(size: int, factor: int) -> Tensor:
    """Return the matrix (size, size // factor) with which `shrink` multiplies one direction,
    float64.
    """
    centres = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    d = ((pixels[:, None] - centres) / factor).abs()
    near = 1.5 * d**3 - 2.5 * d**2 + 1.0
    far = -0.5 * d**3 + 2.5 * d**2 - 4.0 * d + 2.0
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    return weights / weights.sum(0)
