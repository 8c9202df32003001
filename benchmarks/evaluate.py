"""Speed and memory of evaluation against the published tools, in one run on the same images and the
same (random) weights.

    python benchmarks/evaluate.py --images 32 --rounds 3 --output evaluate.json

Prints a table and writes the same numbers as JSON. Each round measures all variants one after the
other; medians are given, so that a machine that is busy for a moment does not favour one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.metrics import (
    Statistics,
    frechet_distance,
    frechet_of_features,
    make_extractor,
    statistics_of,
)


def random_inception(path: Path) -> Path:
    """Write random weights in the published format."""
    import torch_fidelity.feature_extractor_inceptionv3 as peer

    cls = peer.FeatureExtractorInceptionV3
    before = cls.load_state_dict, peer.load_state_dict_from_url
    cls.load_state_dict, peer.load_state_dict_from_url = (lambda *_: None), (lambda *_, **__: {})
    try:
        network = cls("inception-v3-compat", ["2048"])
    finally:
        cls.load_state_dict, peer.load_state_dict_from_url = before
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            value.normal_(std=(2.0 / value[0].numel()) ** 0.5)
    torch.save(network.state_dict(), path)
    return path


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def extraction(images: Tensor, weights: Path, batch: int, rounds: int) -> dict[str, float]:
    """Return images per second by tool, and the largest difference of features, relative to the
    largest feature.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    layers = ["2048", "logits"]
    ours = make_extractor("inception", layers, images.device, weights)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    ).to(images.device)

    def run(call: Callable[[Tensor], object]) -> list[Tensor]:
        with torch.no_grad():
            found = [call(part) for part in images.split(batch)]
        if images.is_cuda:
            torch.cuda.synchronize()
        return [(f["2048"] if isinstance(f, dict) else f[0]).float().cpu() for f in found]

    a, b = torch.cat(run(ours)), torch.cat(run(theirs))
    times: dict[str, list[float]] = {"ours": [], "torch-fidelity": []}
    for _ in range(rounds):
        times["ours"].append(seconds(lambda: run(ours)))
        times["torch-fidelity"].append(seconds(lambda: run(theirs)))
    found = {name: len(images) / statistics.median(values) for name, values in times.items()}
    return {**found, "difference": float((a - b).abs().max() / b.abs().max())}


def frechet(dim: int, n: int, rounds: int) -> dict[str, float]:
    """Return seconds of the Fréchet step by way, and how far the values are apart."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(dim, generator=generator) + 0.05
    x, y = (torch.randn(n, dim, generator=generator) * spread + shift for shift in (0.0, 0.1))
    few = x[: max(2, dim // 4)]
    a, b, c = statistics_of(x), statistics_of(y), statistics_of(few)
    values: dict[str, float] = {}

    def numpy(s: Statistics) -> tuple[np.ndarray, np.ndarray]:
        return s.mean.numpy(), s.cov.numpy()

    def fidelity() -> float:
        pair = [dict(zip(("mu", "sigma"), numpy(s))) for s in (a, b)]
        return float(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"])

    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(a, b),
        "ours, with influence of every image": lambda: frechet_of_features(x, b, a)[0],
        f"ours, {len(few)} images": lambda: frechet_of_features(few, b, c)[0],
        "scipy sqrtm (pytorch-fid)": lambda: float(
            calculate_frechet_distance(*numpy(a), *numpy(b))
        ),
        "numpy eigvals (torch-fidelity)": fidelity,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(lambda name=name, way=way: values.__setitem__(name, way())))
    found = {name: statistics.median(t) for name, t in times.items()}
    reference = values["scipy sqrtm (pytorch-fid)"]
    apart = {
        name: abs(value / reference - 1)
        for name, value in values.items()
        if "images" not in name or "every" in name
    }
    return {**found, "largest relative difference": max(apart.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("evaluate.json"))
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (asked.images, 3, asked.size, asked.size), dtype=torch.uint8, generator=generator
    )
    with TemporaryDirectory() as folder:
        speed = extraction(
            images.to(asked.device),
            random_inception(Path(folder) / "w.pth"),
            asked.batch,
            asked.rounds,
        )
    step = frechet(asked.dim, 2 * asked.dim, asked.rounds)
    rows = [
        ("feature extraction", "images/s", ""),
        *((f"  {k}", f"{v:.2f}", "") for k, v in speed.items() if k != "difference"),
    ]
    rows.append(("  ratio to torch-fidelity", f"{speed['ours'] / speed['torch-fidelity']:.2f}", ""))
    rows.append(("  features apart by", f"{speed['difference']:.1e}", ""))
    rows.append((f"Fréchet step, {asked.dim} features", "s", "sqrtm takes × as long"))
    sqrtm = step["scipy sqrtm (pytorch-fid)"]
    for name, value in step.items():
        last = name.startswith("largest")
        rows.append(
            (
                f"  {name}",
                f"{value:.1e}" if last else f"{value:.3f}",
                "" if last else f"{sqrtm / value:.1f}",
            )
        )
    for name, value, more in rows:
        print(f"{name:<42}{value:>10}  {more}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory':<42}{peak:>10.0f}  MiB")
    about = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "arguments": {k: str(v) for k, v in vars(asked).items()},
    }
    result = {"images_per_second": speed, "frechet_seconds": step, "peak_mib": peak, "about": about}
    asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
