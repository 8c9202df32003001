"""Fixed images of a run, for the samples of networks whose conditions are made of images, such as
super-resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ddpm_lib.core.spread import evenly
from ddpm_lib.images import comparison_tiles, preview, to_model_range
from ddpm_lib.nn import LowRes
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import find_conditioner
from ddpm_lib.training.step import conditions_of

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion


def low_res_of(diffusion: GaussianDiffusion) -> LowRes | None:
    """Return the network's condition "low_res", None if it has none."""
    return find_conditioner(diffusion.conditioners, LowRes)


def example_images(dataset: ImageDataset, n: int) -> dict[str, Tensor]:
    """Return n images, with their labels, spread over a dataset."""
    return dataset.batch(evenly(n, len(dataset)).tolist())


def example_conditions(
    diffusion: GaussianDiffusion, dataset: ImageDataset, n: int
) -> dict[str, Tensor] | None:
    """Return the conditions made of n fixed images, or that come with them; None for a network
    that takes neither.

    Args:
        diffusion: The process.
        dataset: The held-out images, or the training images where nothing is held out.
        n: Number of images; every rank reads the same ones.
    """
    low_res = low_res_of(diffusion)
    if low_res is None and not data_conditions(diffusion.conditioners):
        return None
    batch = example_images(dataset, n)
    image = batch.pop("image")
    rest = conditions_of(diffusion, batch) or {}
    if low_res is None:
        return rest or None
    return {low_res.name: low_res.derive(to_model_range(image)), **rest}


def tiles_beside_examples(
    diffusion: GaussianDiffusion, dataset: ImageDataset, samples: Tensor
) -> tuple[Tensor, int | None]:
    """Put each sample between its small image, enlarged without smoothing, or its mask or image,
    and the image that belongs to it.

    Args:
        diffusion: The process.
        dataset: What `example_conditions` was given.
        samples: Images (n, c, h, w) drawn under `example_conditions(diffusion, dataset, n)`.

    Returns:
        Tiles (3n, c, h, w), uint8, and how many stand in a row, beside masks and images as
        `preview` shows them; for networks that see no picture the samples and None.
    """
    low_res = low_res_of(diffusion)
    pictures = [c for c in data_conditions(diffusion.conditioners).values() if c.axes >= 2]
    if low_res is None and not (pictures and len(diffusion.image_size) == 2):
        return samples, None
    batch = example_images(dataset, len(samples))
    truth = batch["image"]
    if low_res is None:
        seen, truth = preview(samples), preview(truth)
        shown = pictures[0].picture(batch[pictures[0].name], seen.shape[1])
        return comparison_tiles(shown, seen, truth)
    return comparison_tiles(low_res.derive(to_model_range(truth)), samples, truth)
