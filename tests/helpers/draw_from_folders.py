"""Load every pretrained folder in a directory and write what its process says of fixed noise:
`python draw_from_folders.py DIRECTORY OUT.safetensors`, or `said(diffusion)` here.
"""

import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ddpm_lib import GaussianDiffusion


def conditions(diffusion: GaussianDiffusion, n: int) -> dict[str, Tensor]:
    """Two conditions of each kind that the network knows."""
    found = diffusion.conditioners or {}
    cond: dict[str, Tensor] = {}
    if "class_label" in found:
        cond["class_label"] = torch.arange(n) % 2
    if "low_res" in found:
        side = diffusion.image_size[0] // found["low_res"].factor
        cond["low_res"] = torch.linspace(0, 1, n * 3 * side * side).reshape(n, 3, side, side)
    return cond


@torch.no_grad()
def said(diffusion: GaussianDiffusion) -> Tensor:
    """Two images, drawn in two steps, and the learned uncertainty, as one vector."""
    torch.manual_seed(0)
    diffusion = copy.deepcopy(
        diffusion
    ).float()  # weights of other types cannot all be sampled from
    images = diffusion.sample(
        2, num_steps=2, sampler="ddpm", seed=3, cond=conditions(diffusion, 2) or None
    )
    parts = [images.flatten()]
    if diffusion.uncertainty is not None:
        parts.append(diffusion.uncertainty(torch.linspace(-5, 5, 7)).flatten())
    return torch.cat([part.float() for part in parts])


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    drawn = {path.name: said(GaussianDiffusion.from_pretrained(path)) for path in folders}
    save_file(drawn, sys.argv[2])
