"""Sampling: images per second at equal network and steps, and how few steps give the same quality.

    python benchmarks/sample.py --width 64 --output sample.json
    python benchmarks/sample.py --run runs/mine --output sample.json

The first table draws with DDIM by our `GaussianDiffusion.sample`, diffusers' DDIMPipeline and
denoising-diffusion-pytorch's `ddim_sample`. The second draws from one trained model (of --run, or a
small one trained here on the built-in shapes) with DDIM at 100 steps and DPM-Solver++(2M) at 20,
each with two seeds, and gives the Fréchet distance to the training images.

The proxy metric: the Fréchet distance in 64 fixed random projections of the images averaged to 8×8.
It sees composition and colours and no texture; the difference between the two seeds is its noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import common
import peers

FEATURES = 64


def our_sampler(
    diffusion: nn.Module, asked: argparse.Namespace, device: torch.device, wanted: str
) -> Callable[[], object]:
    """Draw as `ddpm sample` does: in the library's precision, memory layout and dtype of the
    weights.
    """
    from ddpm_lib.nn.lowering import lower_weights
    from ddpm_lib.runtime.compiling import compile_regions

    precision, channels_last = peers.our_precision(wanted, device)
    peers.placed(diffusion, device, channels_last).eval()
    if precision != "no":
        lower_weights(diffusion.model, common.DTYPES[precision])
    if asked.compile:
        compile_regions(diffusion.model, True, print)

    def run() -> Tensor:
        with peers.autocast(device, precision):
            return diffusion.sample(asked.batch, sampler="ddim", num_steps=asked.steps, eta=0.0)

    return run


def diffusers_sampler(asked: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(
        peers.diffusers_unet(asked.width, asked.size), DDIMScheduler(num_train_timesteps=1000)
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        with peers.autocast(device, asked.peer_precision):
            return pipeline(
                batch_size=asked.batch, num_inference_steps=asked.steps, eta=0.0, output_type="pt"
            )

    return run


def lucidrains_sampler(
    model: nn.Module, asked: argparse.Namespace, device: torch.device
) -> Callable[[], object]:
    from denoising_diffusion_pytorch import GaussianDiffusion

    diffusion = (
        GaussianDiffusion(
            model, image_size=asked.size, timesteps=1000, sampling_timesteps=asked.steps
        )
        .to(device)
        .eval()
    )

    def run() -> Tensor:
        with torch.inference_mode(), peers.autocast(device, asked.peer_precision):
            return diffusion.sample(batch_size=asked.batch)

    return run


def speed(
    asked: argparse.Namespace, device: torch.device, rates: dict[str, float]
) -> dict[str, Any]:
    """Compare the libraries at equal steps."""
    from ddpm_lib import GaussianDiffusion

    runs: dict[str, Callable[[], object]] = {}
    facts: dict[str, tuple[int, int, str]] = {}
    default, _ = peers.our_precision("auto", device)
    for wanted in dict.fromkeys(("no", default)):
        model = peers.our_unet(asked.width)
        name = f"ours, {'fp32' if wanted == 'no' else wanted}"
        facts[name] = (*peers.count(model, asked.size), wanted)
        runs[name] = our_sampler(
            GaussianDiffusion(model, image_size=asked.size), asked, device, wanted
        )
    fastest, macs = name, facts[name][1]
    if not asked.no_peers:
        facts["diffusers"] = (*facts[fastest][:2], asked.peer_precision)
        runs["diffusers"] = diffusers_sampler(asked, device)
        other = peers.lucidrains_unet(macs, asked.size, tuple(asked.mults))
        facts["lucidrains"] = (*peers.count(other, asked.size), asked.peer_precision)
        runs["lucidrains"] = lucidrains_sampler(other, asked, device)
    times = common.interleave(runs, asked.rounds, device)
    found, rows = {}, []
    for name, middle in common.medians(times).items():
        parameters, macs, precision = facts[name]
        share = 2 * macs * asked.steps * asked.batch / middle / 1e9 / common.limit(rates, precision)
        slower = common.ratio(times, name, fastest)
        found[name] = {
            "parameters": parameters,
            "macs": macs,
            "precision": precision,
            "images_per_second": asked.batch / middle,
            "share_of_limit": share,
            f"times as long as {fastest}": slower,
            "seconds": times[name],
        }
        shown = (
            f"{parameters / 1e6:.2f}",
            f"{macs / 1e9:.3f}",
            f"{asked.batch / middle:.3f}",
            f"{share:.0%}",
        )
        rows.append((name, *shown, common.show_ratio(slower)))
    head = (
        f"DDIM, {asked.steps} steps, batch {asked.batch}",
        "M parameters",
        "GMAC",
        "images/s",
        "of limit",
        f"as long as {fastest}",
    )
    common.print_table(head, rows)
    return found


def trained(asked: argparse.Namespace, device: torch.device) -> tuple[Any, Tensor]:
    """Return a trained process and images of its training set, uint8."""
    from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, load_run, open_dataset

    if asked.run is not None:
        loaded = load_run(asked.run)
        size = loaded.diffusion.image_size
        data = open_dataset(
            asked.data, image_size=size, channels=loaded.diffusion.channels, labels="none"
        )
        return loaded.diffusion.to(device), data.batch(range(min(len(data), 8192)))["image"]
    torch.manual_seed(0)
    data = Shapes(size=16, n=2048)
    diffusion = GaussianDiffusion(
        Unet(dim=32, dim_mults=(1, 2), blocks_per_level=1, heads=2), image_size=16
    )
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            diffusion,
            data,
            output_dir=str(Path(folder) / "run"),
            max_steps=asked.train_steps,
            batch_size=64,
            learning_rate=1e-3,
            lr_schedule="constant",
            warmup_steps=min(50, asked.train_steps),
            val_every=0,
            sample_every=0,
            progress=False,
            device=device.type,
        )
        common.trained(trainer.train())
        diffusion.model.load_state_dict(trainer.averaged_network().state_dict())
    return diffusion, data.batch(range(len(data)))["image"]


class Calls(nn.Module):
    """A network that counts how often it is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        self.calls += 1
        return self.model(*arguments, **named)


def quality(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Compare DDIM at many steps with DPM-Solver++(2M) at few, on the same model and from the same
    noise.
    """
    from ddpm_lib.metrics import frechet_distance, make_extractor, statistics_of

    diffusion, images = trained(asked, device)
    features = make_extractor("random", [str(FEATURES)], torch.device("cpu"))
    reference = statistics_of(features(images)[str(FEATURES)])
    conditions = getattr(diffusion.model, "conditioners", {})
    classes = conditions["class_label"].num_classes if "class_label" in conditions else None
    found: dict[str, Any] = {
        "metric": f"Fréchet distance in {FEATURES} fixed random projections of 8×8 averages"
    }
    rows = []
    for name, sampler, steps in (
        ("DDIM", "ddim", asked.many),
        ("DPM-Solver++(2M)", "dpmpp_2m", asked.few),
    ):
        values, times, calls = [], [], 0
        for seed in asked.seeds:
            network, drawn = Calls(diffusion.model), []
            cond = {"class_label": torch.arange(asked.samples) % classes} if classes else None

            def run(
                sampler: str = sampler,
                steps: int = steps,
                seed: int = seed,
                net: nn.Module = network,
                into: list = drawn,
                cond: Any = cond,
            ) -> None:
                options = {"num_steps": steps, "seed": seed, "batch_size": 256, "cond": cond}
                into.append(diffusion.sample(asked.samples, sampler=sampler, model=net, **options))

            times.append(common.seconds(run, device))
            uint8 = (drawn[0].cpu() * 255).round().to(torch.uint8)
            values.append(
                frechet_distance(statistics_of(features(uint8)[str(FEATURES)]), reference)
            )
            calls = network.calls // -(-asked.samples // 256)
        found[name] = {
            "steps": steps,
            "network_calls": calls,
            "distances": values,
            "seconds": times,
        }
        shown = " / ".join(f"{v:.4f}" for v in values)
        rows.append(
            (
                name,
                str(steps),
                str(calls),
                f"{asked.samples / min(times):.2f}",
                shown,
                f"{sum(values) / len(values):.4f}",
            )
        )
    seeds = "seeds " + " / ".join(map(str, asked.seeds))
    common.print_table(
        (
            "quality at fewer steps",
            "steps",
            "network calls",
            "images/s",
            f"distance, {seeds}",
            "mean",
        ),
        rows,
    )
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=10, help="DDIM steps of the comparison of speed"
    )
    peers.add_arguments(parser)
    parser.add_argument(
        "--run", type=Path, help="run directory of a trained model; default: train a small one"
    )
    parser.add_argument(
        "--data", default="shapes", help="images that the model of --run was trained on"
    )
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--many", type=int, default=100, help="steps of DDIM in the comparison of quality"
    )
    parser.add_argument("--few", type=int, default=20, help="steps of DPM-Solver++(2M) there")
    parser.add_argument("--part", choices=["speed", "quality", "both"], default="both")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.width, asked.size, asked.batch, asked.steps, asked.rounds = 32, 8, 1, 2, 1
        asked.train_steps, asked.samples, asked.many, asked.few = 2, 16, 4, 2
    if not asked.no_peers and asked.part != "quality":
        peers.require_peers()
    device = common.pick_device(asked.device)
    rates = common.ceilings(device, small=asked.quick)
    common.show_ceilings(rates)
    results: dict[str, Any] = {"ceilings": rates}
    if asked.part != "quality":
        results["speed"] = speed(asked, device, rates)
    if asked.part != "speed":
        results["quality"] = quality(asked, device)
    return common.finish(asked, device, **results)


if __name__ == "__main__":
    main()
