"""Paint the missing half of pictures, with and without resampling, and look at the difference.

    python examples/inpaint.py
    python examples/inpaint.py --run runs/mine --images path/to/pictures --num-resamples 10

Without --run it trains a small model of the built-in shapes first, which takes some minutes.

Writes inpainting.png: per row the original, the masked picture, one walk down (num_resamples=1),
and the walk with jumps back up, in which the painted part and the known one come to agree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from ddpm_lib import Shapes, load_run, open_dataset
from ddpm_lib.cli import main as ddpm
from ddpm_lib.cli import run_script
from ddpm_lib.images import save_grid, to_uint8


@dataclass(kw_only=True)
class Options:
    run: str | None = None
    """A finished run; default: train one on the built-in shapes in runs/shapes (continued if it is
    there).
    """
    images: str | None = None
    """A folder of pictures; default: shapes that no training saw."""
    num: int = 8
    """How many pictures."""
    mask: Literal["right", "centre", "stripes"] = "right"
    """What to paint."""
    num_steps: int = 50
    """Steps of one walk down."""
    jump_length: int = 5
    """Steps to go back up at a time."""
    num_resamples: int = 8
    """How often to walk down each stretch."""
    guidance_scale: float = 2.0
    """Classifier-free guidance towards the picture's class, where there are classes."""
    output: Path = Path("inpainting.png")
    """The grid to write."""


def make_mask(kind: str, height: int, width: int) -> Tensor:
    """Return (h, w) booleans, True where to paint."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    if kind == "right":
        mask[:, width // 2 :] = True
    elif kind == "centre":
        mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    else:
        mask[:, (torch.arange(width) // max(1, width // 8)) % 2 == 1] = True
    return mask


def main(args: list[str] | None = None) -> int:
    options = tyro.cli(Options, args=args, description=__doc__)
    run = options.run or "runs/shapes"
    if options.run is None and ddpm(["train", "shapes", "--output-dir", run]) != 0:
        return 1
    loaded = load_run(run)
    diffusion = loaded.diffusion
    height, width = diffusion.image_size
    if options.images is None:
        data = Shapes(size=(height, width), n=options.num, channels=diffusion.channels, seed=1)
    else:
        data = open_dataset(options.images, image_size=(height, width), channels=diffusion.channels)
    batch = data.batch(range(min(options.num, len(data))))
    images, mask = batch["image"], make_mask(options.mask, height, width)
    guide = "class_label" in diffusion.conditioners and batch.get("class_label") is not None
    settings = {
        "num_steps": options.num_steps,
        "jump_length": options.jump_length,
        "cond": {"class_label": batch["class_label"]} if guide else None,
        "guidance_scale": options.guidance_scale if guide else 1.0,
        "progress": True,
    }
    columns = [images, torch.where(mask, torch.tensor(128, dtype=torch.uint8), images)]
    for resamples in (1, options.num_resamples):
        painted = to_uint8(diffusion.inpaint(images, mask, num_resamples=resamples, **settings))
        assert torch.equal(
            painted[..., ~mask], images[..., ~mask]
        )  # known pixels come back as they were
        columns.append(painted)
    save_grid(
        torch.stack(columns, 1).flatten(0, 1),
        options.output,
        len(columns),
        max(1, 128 // max(height, width)),
    )
    print(f"original, masked, one walk, {options.num_resamples} resamples: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
