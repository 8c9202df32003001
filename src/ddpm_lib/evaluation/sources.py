"""Where images to evaluate come from: a run's samples, folders and arrays of pictures, datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.evaluation.engine import ImageSet
from ddpm_lib.evaluation.task import conditions_of
from ddpm_lib.images import to_uint8
from ddpm_lib.spacing import default_num_steps
from ddpm_lib.training.config import ConfigError
from ddpm_lib.training.sampling import default_condition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.options import EvaluationOptions

PICTURES = frozenset((".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def digest_of(*parts: Any) -> str:
    """Return a short digest of JSON-able values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def safe_word(text: str) -> str:
    """Turn a name into one word for names of scores."""
    return "".join(c for c in text.lower() if c.isalnum()) or "data"


def evenly(n: int, of: int) -> np.ndarray:
    """Return n rows spread over `of`, int64."""
    return np.arange(n, dtype=np.int64) * of // n


def dataset_images(dataset: ImageDataset, name: str, num: int | None = None) -> ImageSet:
    """Read a dataset, all of it or `num` images spread over it; nothing is augmented."""
    chosen = dataset if num is None else dataset.subset(evenly(num, len(dataset)))

    def read(rows: range) -> Tensor:
        image: Tensor = chosen.batch(np.arange(rows.start, rows.stop))["image"]
        return to_uint8(image)

    return ImageSet(safe_word(name), len(chosen), read, chosen.fingerprint, cached=True)


class PictureFiles:
    """Picture files of one size in one folder, read as torch-fidelity and pytorch-fid read them.

    That is: sorted by name, not in sub-folders, converted to RGB by PIL (grey is repeated, alpha is dropped), neither turned
    by EXIF nor resized.

    Args:
        folder: The folder.

    Raises:
        ConfigError: If there are none, or they differ in size.
    """

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self.files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
        if not self.files:
            raise ConfigError(
                f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}). Name the folder they lie in."
            )
        sizes: dict[tuple[int, int], Path] = {}
        for path in self.files:
            with Image.open(path, formats=_FORMATS) as picture:
                sizes.setdefault(picture.size, path)
        if len(sizes) > 1:
            (a, first), (b, second) = list(sizes.items())[:2]
            raise ConfigError(
                f"The pictures in {folder} differ in size: {first.name} is {a[0]}×{a[1]}, {second.name} {b[0]}×{b[1]}. "
                "Say at which size to evaluate with image_size= (--image-size 64), which crops and resizes them."
            )
        info = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.files]
        self.fingerprint = digest_of("files", info)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return uint8 (n, 3, h, w)."""
        from PIL import Image

        found = []
        for row in rows:
            with Image.open(self.files[row], formats=_FORMATS) as picture:
                found.append(np.array(picture.convert("RGB")))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def open_pictures(data: Any, name: str | None, options: EvaluationOptions, num: int | None = None) -> ImageSet:
    """Open pictures that are not a run's own: a folder, .npz or .npy of uint8 (n, h, w, c), a dataset, a tensor.

    Args:
        data: A path, an `ImageDataset`, or a uint8 tensor (n, c, h, w).
        name: Its word in names of scores; default: from the path.
        options: Gives image_size and split.
        num: Number of images, spread evenly; default: all.

    Raises:
        ConfigError: If pictures differ in size and none is asked for, or there are fewer than `num`.
    """
    from ddpm_lib.data import ImageDataset, open_dataset, tensor_dataset

    word = name if name is not None else safe_word(Path(data).stem if isinstance(data, (str, Path)) else "given")
    if isinstance(data, (np.ndarray, Tensor)):
        data = tensor_dataset(data)
    if not isinstance(data, ImageDataset):
        path = Path(data)
        if path.is_dir() and options.image_size is None and any(p.suffix.lower() in PICTURES for p in path.iterdir()):
            files = PictureFiles(path)
            rows = evenly(_at_most(num, len(files.files), path), len(files.files))
            fingerprint = files.fingerprint if num is None else digest_of(files.fingerprint, num)
            return ImageSet(
                word, len(rows), lambda r: files.read(rows[r.start : r.stop].tolist()), fingerprint, cached=True
            )
        size = options.image_size if options.image_size is not None else _stored_size(path)
        data = open_dataset(str(data), image_size=size, labels="none", split=options.split)
    _at_most(num, len(data), word)
    return dataset_images(data, word, num)


def _at_most(num: int | None, there: int, where: Any) -> int:
    if num is not None and num > there:
        raise ConfigError(f"num must be at most {there:,}, the number of images in {where}; got {num:,}.")
    return num or there


def _stored_size(path: Path) -> tuple[int, int]:
    """Return the size at which an array of images is stored."""
    from ddpm_lib.data.arrays import IMAGE_NAMES

    shape: tuple[int, ...] = ()
    if path.suffix == ".npy" and path.is_file():
        shape = np.load(path, allow_pickle=False, mmap_mode="r").shape
    elif path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as archive:
            shape = next((archive[name].shape for name in IMAGE_NAMES if name in archive.files), ())
    if len(shape) == 4 and shape[3] not in (1, 3, 4):
        shape = (shape[0], *shape[2:])
    if len(shape) not in (3, 4):
        raise ConfigError(
            f"At which size should the images of {path} be compared? Say it: image_size= (--image-size 64)."
        )
    return shape[1], shape[2]


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
    steps = options.sample_steps
    if steps is None:
        steps = default_num_steps(options.sampler == "ddpm", diffusion.timesteps, options.spacing)

    def read(rows: range) -> Tensor:
        here = {k: v[rows.start : rows.stop] for k, v in cond.items()} if cond else None
        if given is not None:
            here = conditions_of(diffusion, given.batch(np.arange(rows.start, rows.stop) % len(given)))
        images = diffusion.sample(
            len(rows), sampler=options.sampler, num_steps=steps, spacing=options.spacing, eta=options.eta, seed=options.seed,
            first_index=rows.start, cond=here, guidance_scale=options.guidance_scale, device=device, model=network,
            progress=False,
        )  # fmt: skip
        return to_uint8(images)

    about = [about, given.fingerprint if given is not None else None]
    drawn = [options.sampler, steps, options.spacing, options.eta, options.seed, options.guidance_scale]
    return ImageSet("samples", n, read, digest_of("samples", about, drawn))
