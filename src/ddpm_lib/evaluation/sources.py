"""Sets of images to evaluate, as uint8 pictures: datasets and a run's samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.evaluation.engine import ImageSet
from ddpm_lib.evaluation.task import conditions_of
from ddpm_lib.images import to_uint8
from ddpm_lib.process.plan import resolve_num_steps
from ddpm_lib.training.sampling import default_condition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.options import EvaluationOptions


def digest_of(*parts: Any) -> str:
    """Return a short digest of JSON-able values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def safe_word(text: str) -> str:
    """Turn a name into one word for names of scores."""
    return "".join(c for c in text.lower() if c.isalnum()) or "data"


def evenly(n: int, of: int) -> np.ndarray:
    """Return n rows spread over `of`, int64."""
    return np.arange(n, dtype=np.int64) * of // n


def clamp(num: int | None, there: int, word: str) -> tuple[int, list[str]]:
    """Return how many images to take, and a note where more were asked for than there are."""
    if num is None or num <= there:
        return (there if num is None else num), []
    return there, [f"{word}: num={num:,} is more than the {there:,} images there are; all were taken."]


def as_pictures(images: Tensor) -> Tensor:
    """Turn images into uint8 pictures without transparency, laid on white as the data reader lays them.

    Args:
        images: (n, c, *spatial), uint8 or float in [0, 1].
    """
    pixels = to_uint8(images)
    if pixels.ndim != 4 or pixels.shape[1] != 4:
        return pixels
    colour, alpha = pixels[:, :3].int(), pixels[:, 3:].int()
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def content_of(dataset: ImageDataset, block: int = 1024) -> str:
    """Return a fingerprint of the pixels where they lie in RAM; else the dataset's own, of names and lengths.

    The same pictures then have the same one, however they were opened, and others never do.
    """
    if not dataset.in_memory:
        return dataset.fingerprint
    n = len(dataset)
    digest = hashlib.blake2b(repr((n, dataset.channels, dataset.image_size)).encode(), digest_size=16)
    for start in range(0, n, block):
        image = dataset.batch(np.arange(start, min(n, start + block)))["image"]
        digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()


_JPEG = frozenset(("jpg", "jpeg", "jpe", "jfif"))
_LOSSLESS = frozenset(("png", "bmp", "tif", "tiff", "ppm", "pgm", "pnm"))
_LOOKED_AT = 1000


def jpeg_share(names: Sequence[str]) -> float | None:
    """Return the share of JPEG among names of JPEG and lossless files, of a thousand spread evenly; None if none is."""
    rows = evenly(min(len(names), _LOOKED_AT), len(names)).tolist() if len(names) else []
    ends = [names[row].rpartition(".")[2].lower().partition("#")[0] for row in rows]
    lossy = sum(end in _JPEG for end in ends)
    known = lossy + sum(end in _LOSSLESS for end in ends)
    return lossy / known if known else None


def dataset_images(dataset: ImageDataset, name: str, num: int | None = None) -> ImageSet:
    """Read a dataset, all of it or `num` images spread over it; nothing is augmented."""
    chosen = dataset if num is None else dataset.subset(evenly(num, len(dataset)))

    def read(rows: range) -> Tensor:
        image: Tensor = chosen.batch(np.arange(rows.start, rows.stop))["image"]
        return as_pictures(image)

    shape = tuple(chosen.image_size)
    return ImageSet(
        safe_word(name), len(chosen), read, content_of(chosen), cached=True, shape=shape, jpeg=jpeg_share(chosen.names)
    )


def sample_images(
    diffusion: GaussianDiffusion,
    options: EvaluationOptions,
    n: int,
    about: Any,
    device: torch.device,
    network: nn.Module | None = None,
    given: ImageDataset | None = None,
) -> ImageSet:
    """Draw samples: image i is a function of the seed and i, so batches and ranks do not matter.

    Args:
        diffusion: The process, on the device.
        options: Sampler, steps, guidance and seed.
        n: Number of samples.
        about: JSON-able: which weights these are.
        device: Where to sample.
        network: A network instead of the process's own.
        given: Images whose small versions a network that enlarges gets, with their labels; from the start again when all are
            used.
    """
    cond = default_condition(diffusion, n)
    asked, timesteps = options.sample_steps, diffusion.timesteps
    steps = resolve_num_steps(options.sampler, asked, timesteps, options.spacing)

    def read(rows: range) -> Tensor:
        here = {k: v[rows.start : rows.stop] for k, v in cond.items()} if cond else None
        if given is not None:
            here = conditions_of(diffusion, given.batch(np.arange(rows.start, rows.stop) % len(given)))
        images = diffusion.sample(
            len(rows), sampler=options.sampler, num_steps=steps, spacing=options.spacing, eta=options.eta, seed=options.seed,
            first_index=rows.start, cond=here, guidance_scale=options.guidance_scale, device=device, model=network,
            progress=False,
        )  # fmt: skip
        return as_pictures(images)

    about = [about, given.fingerprint if given is not None else None]
    drawn = [options.sampler, steps, options.spacing, options.eta, options.seed, options.guidance_scale]
    shape = tuple(diffusion.image_size)
    return ImageSet("samples", n, read, digest_of("samples", about, drawn), shape=shape)
