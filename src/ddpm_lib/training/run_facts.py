"""What about.json says of a run that begins: machine, versions, network and data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.spread import evenly
from ddpm_lib.images import to_model_range
from ddpm_lib.runs.about import read_about, this_start, with_start, write_about
from ddpm_lib.runs.versions import describe_versions
from ddpm_lib.runtime import devices
from ddpm_lib.training.sources import reads_labels

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

MEASURED, MEASURED_STREAMED = 1000, 64
"""Images that the statistics of a set are taken from at most: of one in RAM, and of one that is
read from files.
"""
VALUES = 4096
"""Values of an image, spread over it, that stand for all in `trivial_loss`."""


def record_start(
    run: Path, step: int, facts: dict[str, Any], describe: Callable[[], dict[str, Any]]
) -> None:
    """Add a start of training to a run's about.json.

    Args:
        run: The run directory.
        step: The step that training goes on from.
        facts: What is known of this start.
        describe: Says what the run learns from, "data" and more, see `learned_facts`; called where
            the file does not say it yet.

    Raises:
        OSError: If the disk refuses.
    """
    about = read_about(run)
    described = {} if step and about.get("data") else describe()
    write_about(run, with_start(about, this_start(step, facts), described))


def machine_facts(device: torch.device, processes: int, precision: str) -> dict[str, Any]:
    """Return versions, device and precision of a start.

    Args:
        device: Of this process.
        processes: How many train together, each on such a device.
        precision: "no", "bf16" or "fp16".
    """
    known, hardware = describe_versions(), devices.describe_hardware(device, processes, precision)
    named = {"ddpm_lib": "ddpm-lib", "torch": "torch", "python": "python"}
    named["accelerate"] = "accelerate"
    return {
        "versions": {name: known[key] for name, key in named.items()},
        "device": {
            "kind": hardware["device"],
            "name": hardware["name"],
            "count": processes,
            "threads": known["threads"],
        },
        "precision": hardware["precision"],
    }


def network_facts(network: nn.Module) -> dict[str, Any]:
    """Return the number of parameters of a network, its class and the module that it is from."""
    cls = type(network)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "network": {"class": cls.__name__, "module": cls.__module__},
    }


def learned_facts(
    name: str,
    dataset: ImageDataset,
    held_out: ImageDataset | None,
    diffusion: GaussianDiffusion,
    named: bool,
) -> dict[str, Any]:
    """Return what is known of the data, and the loss that any network should get below.

    Args:
        name: What the images were opened from.
        dataset: The training images.
        held_out: The held-out ones.
        diffusion: The process that is to learn them.
        named: Whether `ddpm train` can open the same data by that name.
    """
    images = _measurable(dataset)
    data = data_facts(name, dataset, held_out, reads_labels(diffusion))
    return {
        "data": {
            **data,
            "named": named,
            **({"measured": 0} if images is None else pixel_facts(images)),
        },
        "trivial_loss": None if images is None else trivial_loss(diffusion, images),
    }


def trivial_loss(diffusion: GaussianDiffusion, images: Tensor) -> float | None:
    """Return the loss of the best denoiser that knows no more of images than mean and variance of
    each of their values.

    It takes every value by itself, and as normal: x̂_0 = μ + α v (x_t − α μ) / (α² v + σ²), whose
    error is v σ² / (α² v + σ²) (Wiener's filter). Whatever is below it has learned how the values
    of an image belong together.

    Args:
        diffusion: Gives levels and weights; the mean is over the levels as validation spreads them.
        images: uint8, or float in [0, 1], (n, c, *spatial).

    Returns:
        The loss; None for one image, and where the loss of training is another one than the
        weighted squared error.
    """
    if len(images) < 2 or diffusion.loss != "simple" or diffusion.uncertainty is not None:
        return None
    values = to_model_range(images).flatten(1)
    values = values[:, torch.from_numpy(evenly(min(VALUES, values.shape[1]), values.shape[1]))]
    variance = values.double().var(0)
    spoilt = [
        float((variance * sigma**2 / (alpha**2 * variance + sigma**2)).mean())
        for alpha, sigma in zip(
            *(v[1:].tolist() for v in (diffusion.schedule.alpha, diffusion.schedule.sigma))
        )
    ]
    return float((diffusion.effective_weights() * torch.tensor(spoilt, dtype=torch.float64)).mean())


def data_facts(
    name: str, dataset: ImageDataset, held_out: ImageDataset | None, classes_used: bool
) -> dict[str, Any]:
    """Return what is known of the training images.

    Args:
        name: What they were opened from.
        dataset: The training images.
        held_out: The held-out ones.
        classes_used: Whether the network learns their classes.

    Returns:
        name, images, held_out, size, channels, class_names and class_counts (None without labels),
        classes_used, sizes_note and crop_loss (None where unknown).
    """
    labels, stored = dataset.labels, dataset.stored
    count = dataset.num_classes or 0
    numbered = [str(k) for k in range(count)]
    names = [str(one) for one in dataset.class_names] if dataset.class_names else numbered
    counts = None if labels is None else torch.bincount(labels, minlength=count).tolist()
    size = tuple(dataset.image_size)
    same = stored is not None and stored.least == stored.most == size[::-1]
    return {
        "name": name,
        "images": len(dataset),
        "held_out": 0 if held_out is None else len(held_out),
        "size": list(size),
        "channels": dataset.channels,
        "class_names": None if labels is None else names,
        "class_counts": counts,
        "classes_used": classes_used,
        "sizes_note": None if stored is None or same else str(stored),
        "crop_loss": None if stored is None else round(stored.crop_loss, 4),
    }


def _measurable(dataset: ImageDataset) -> Tensor | None:
    """Return images spread over a set; None where they cannot be read."""
    from ddpm_lib.data.source import BadImagesError

    n = min(len(dataset), MEASURED if dataset.in_memory else MEASURED_STREAMED)
    try:
        return dataset.batch(evenly(n, len(dataset)))["image"]
    except (BadImagesError, OSError):
        # Training meets the image too and says which it is; until then the rest is worth knowing.
        return None


def pixel_facts(images: Tensor) -> dict[str, Any]:
    """Return what the values of images are like.

    Args:
        images: uint8, or float in [0, 1], (n, c, *spatial).

    Returns:
        measured (n); and, in units of [0, 1] by channel, mean and std of the pixels and
        mean_spread, the standard deviation over the images of their mean (0 for one image);
        levels, how many different values there are (None for float); black and white, the shares
        of values at the ends of the range.
    """
    whole = not images.is_floating_point()
    values = images.reshape(*images.shape[:2], -1)
    flat = (values.float() / 255 if whole else values.float()).clamp(0, 1)
    means = flat.mean(2, dtype=torch.float64)
    spread = means.std(0) if len(means) > 1 else torch.zeros_like(means[0])
    return {
        "measured": len(images),
        "mean": _rounded(means.mean(0)),
        "std": _rounded(flat.transpose(0, 1).flatten(1).double().std(1, unbiased=False)),
        "mean_spread": _rounded(spread),
        "levels": len(values.unique()) if whole else None,
        "black": round(float((flat == 0).double().mean()), 6),
        "white": round(float((flat == 1).double().mean()), 6),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
