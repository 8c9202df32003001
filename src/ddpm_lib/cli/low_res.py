"""Where `ddpm sample` has the small images of a super-resolution network from: picture files, or
another run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lib.core.lost_paths import lost
from ddpm_lib.data import BadImagesError
from ddpm_lib.data.decode import ImageError, decode
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.source import reason
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.cascade import Stage
from ddpm_lib.training import ConfigError


@dataclass(frozen=True)
class SmallImages:
    """Small images to enlarge: sample i takes number i − first_index of them, and all in turn again
    after the last. In a sweep the samples of a row share one, and rows are counted.

    Attributes:
        images: (n, c, h, w), uint8 or float in [0, 1].
        names: Of their files, where they have some.
        first_index: Number of the sample that takes the first of them; in a sweep, of its row.
        columns: Samples that share one: the columns of a sweep.
    """

    images: Tensor
    names: tuple[str, ...] | None = None
    first_index: int = 0
    columns: int = 1

    def take(self, n: int, first_index: int) -> Tensor:
        """Return the small images of samples first_index … first_index + n − 1."""
        turn = (torch.arange(n) + first_index) // self.columns
        return self.images[(turn - self.first_index) % len(self.images)]

    def name_of(self, index: int) -> str:
        """Return the name of sample number `index` as a part of a file name: that of its small
        image.
        """
        if self.names is None:
            return ""
        return f"-{self.names[index // self.columns % len(self.names)]}"


def check_low_res_options(
    diffusion: GaussianDiffusion, low_res: str | None, base: str | None, noise: float | None
) -> None:
    """Refuse what the network cannot do with small images, or cannot do without.

    Raises:
        ConfigError: If so, naming the option.
    """
    stage = Stage(diffusion)
    if stage.low_res is None:
        given = [
            f"--{k}"
            for k, v in (("low-res", low_res), ("base", base), ("low-res-noise", noise))
            if v is not None
        ]
        if given:
            raise ConfigError(
                f"{given[0]} is for networks that enlarge images, and this one was trained without"
                " --model.low-res-factor."
            )
        return
    if low_res is not None and base is not None:
        raise ConfigError(
            "--low-res names small images and --base a run that draws them. Give one of them."
        )
    if low_res is None and base is None and not stage.low_res.optional:
        size = "×".join(map(str, (stage.small_size or ())[1:]))
        raise ConfigError(
            f"This network enlarges images of {size}. Name them with --low-res FOLDER, or a run"
            " that draws them with --base RUN."
        )
    if noise is not None:
        Stage(diffusion, low_res_noise=noise)


def refuse_enlarging(diffusion: GaussianDiffusion, word: str) -> None:
    """Refuse networks that cannot do without a small image, for commands whose flags name none.

    Args:
        diffusion: The process.
        word: The method that the command calls, as it is called in Python.

    Raises:
        ConfigError: Saying how it is done in Python.
    """
    low_res = Stage(diffusion).low_res
    if low_res is not None and not low_res.optional:
        raise ConfigError(
            "This run enlarges small pictures, and none can be given here. `ddpm sample --low-res`"
            f" enlarges; in Python: diffusion.{word}(images, …, cond={{{low_res.name!r}: small}})."
        )


def read_small_images(path: str, diffusion: GaussianDiffusion) -> SmallImages:
    """Read a picture file, or all of a folder in the order of their names, which must have the
    right size.

    Raises:
        ConfigError: If there is no such file or folder, or the run is on measured values.
        BadImagesError: If pictures cannot be read or have another size, naming them.
    """
    channels, height, width = _small_size(diffusion)
    units = diffusion.normalization
    if units is not None:
        raise ConfigError(
            f"This run learns measured values ({units.channels} × {units.dtype}), and --low-res"
            " reads pictures, which have no units. In Python: small ="
            " torch.from_numpy(diffusion.normalization.forward(values)), then"
            " diffusion.normalization.inverse(diffusion.sample(cond={'low_res': small}))."
        )
    root = Path(path).expanduser()
    if root.is_dir():
        files = list(FolderSource(root, "none").paths())
    elif root.is_file():
        files = [root]
    else:
        raise ConfigError(
            f"{lost(path)} Give a picture of {width}×{height} pixels, or a folder of such."
        )
    spec = make_spec((height, width), channels)
    pixels, bad = [], []
    for file in files:
        try:
            found = decode(str(file), spec)
        except (ImageError, OSError) as error:
            bad.append((str(file), reason(error)))
            continue
        pixels.append(torch.tensor(found.pixels))  # a picture may be read-only
        if (found.width, found.height) != (width, height):
            bad.append((str(file), f"{found.width}×{found.height} pixels, width×height"))
    if bad:
        large = "×".join(map(str, reversed(diffusion.image_size)))
        raise BadImagesError(
            bad,
            len(files),
            f"This network enlarges pictures of {width}×{height} to {large}. Resize or crop them"
            " first; training made its small images by antialiased bicubic interpolation, as"
            " Pillow's BICUBIC does.",
        )
    return SmallImages(torch.stack(pixels), tuple(file.stem for file in files))


def _small_size(diffusion: GaussianDiffusion) -> tuple[int, int, int]:
    size = Stage(diffusion).small_size
    if size is None or len(size) != 3:
        raise ConfigError(
            "--low-res reads pictures, and this network is not for images. Use diffusion.sample in"
            " Python."
        )
    return size[0], size[1], size[2]


def conditions(
    diffusion: GaussianDiffusion, small: Tensor, noise: float | None
) -> dict[str, Tensor]:
    """Return the conditions that small images (n, c, h, w), with noise of some level on them, are
    to the network.
    """
    wanted = Stage(diffusion).low_res
    assert wanted is not None
    return {wanted.name: small} | (
        {} if noise is None else {wanted.noise_name: torch.full((len(small),), noise)}
    )
