"""Are few tuned network calls as good as more untuned ones? Over seeds, with a paired t-test.

    ddpm tune runs/mine --calls 8
    python benchmarks/tuned_seeds.py runs/mine --data path/to/images --untuned 8 20 50

The sampling default that the run keeps is compared with the library's way: Fréchet distances to the
images in the VGG-16 trunk (`hedvgg256`, `hedvgg512`) and in random64, for the same noise each. p is
one-sided: how likely such a lead of the tuned way is by chance, or such a lag.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from ddpm_lib import Shapes, load_run
from ddpm_lib.data import open_dataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics import frechet_of_features, make_extractor, statistics_of, to_rgb
from ddpm_lib.process.conditions import class_count

COLUMNS = (("hedvgg", "256"), ("hedvgg", "512"), ("random", "64"))


def main() -> None:
    """Draw, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run directory that keeps a sampling default")
    parser.add_argument("--data", required=True, help="images, as for ddpm train")
    parser.add_argument("--untuned", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    process = load_run(options.run).diffusion
    if process.sampling_default is None:
        parser.error(f"{options.run} keeps no sampling default. `ddpm tune` chooses one.")
    size, shapes = process.image_size[0], options.data == "shapes"
    data = Shapes(size=size, n=2000) if shapes else open_dataset(options.data, image_size=size)
    vgg, random = (
        make_extractor("hedvgg", ["256", "512"], "cpu"),
        make_extractor("random", ["64"], "cpu"),
    )

    def features(pictures: Tensor) -> list[Tensor]:
        rgb = to_rgb(pictures).split(100)
        found = [{**vgg(part), **random(part)} for part in rgb]
        return [torch.cat([part[k] for part in found]) for _, k in COLUMNS]

    reference = features(data.batch(list(range(min(len(data), 1500))))["image"])
    gaussians = [statistics_of(values) for values in reference]
    classes = class_count(process.conditioners)
    cond = {"class_label": torch.arange(options.num) % classes} if classes else None

    def measure(**how: Any) -> np.ndarray:
        rows = []
        for seed in range(100, 100 + options.seeds):
            drawn = process.sample(options.num, cond=cond, seed=seed, batch_size=50, **how)
            own = features(to_uint8(drawn))
            pairs = zip(own, gaussians, strict=True)
            rows.append([frechet_of_features(x, target)[0] for x, target in pairs])
        return np.array(rows)

    tuned = measure()
    print(process.sampling_default.words())
    names = [f"{kind}{layer}" for kind, layer in COLUMNS]
    print(f"\n{'':<12}" + "".join(f"{name:>28}" for name in names))
    print(f"{'tuned':<12}" + "".join(f"{value:>24.4f}" for value in tuned.mean(0)))
    for steps in options.untuned:
        found = measure(sampler="unipc", num_steps=steps)
        cells = []
        for k in range(len(COLUMNS)):
            p = ttest_rel(tuned[:, k], found[:, k]).pvalue / 2
            sign = "nearer" if tuned[:, k].mean() < found[:, k].mean() else "farther"
            cells.append(f"{found[:, k].mean():.4f} ({sign}, p {p:.3f})")
        print(f"{f'untuned {steps}':<12}" + "".join(f"{cell:>28}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
