"""The same network of three libraries: Ho et al. 2020's for 32×32 images, at any width, and what
trains it.

diffusers' network equals ours in every parameter and multiplication; denoising-diffusion-pytorch
has an architecture of its own, of which the width nearest in multiplications is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import DTYPES, macs_of, parameters_of

PEERS = ("diffusers", "denoising_diffusion_pytorch")


def missing_peers() -> list[str]:
    """Return the libraries that are not installed; `pip install -e ".[bench]"` brings them."""
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def require_peers() -> None:
    """Stop with the command that installs the other libraries, where they are missing."""
    if missing_peers():
        raise SystemExit(
            f'Not installed: {", ".join(missing_peers())}. Run: pip install -e ".[bench]"'
        )


def our_unet(width: int, **changes: Any) -> nn.Module:
    """Our network with the conventions of Ho et al.'s (dropout 0, as in diffusers'
    configuration).
    """
    from ddpm_lib import Unet

    return Unet.preset("cifar10", **{"dim": width, "dropout": 0.0} | changes)


def diffusers_unet(width: int, size: int = 32) -> nn.Module:
    """diffusers' UNet2DModel with the published configuration of its CIFAR-10 DDPM, at another
    width.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
        norm_eps=1e-6,
    )


def lucidrains_unet(macs: int, size: int = 32, mults: tuple[int, ...] = (1, 2, 2, 2)) -> nn.Module:
    """denoising-diffusion-pytorch's Unet as its README makes it, of the width (a multiple of 4)
    nearest in multiplications.
    """
    from denoising_diffusion_pytorch import Unet

    def cost(dim: int) -> int:
        with torch.device("meta"):
            return count(Unet(dim=dim, dim_mults=mults, flash_attn=True), size)[1]

    low, high = 1, 1
    while cost(4 * high) < macs:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(4 * middle) < macs else (low, middle)
    best = min((low, high), key=lambda k: abs(cost(4 * k) - macs))
    return Unet(dim=4 * best, dim_mults=mults, flash_attn=True)


def count(model: nn.Module, size: int = 32) -> tuple[int, int]:
    """Return parameters, and multiply-accumulates per image of the forward pass."""
    on_meta = copy.deepcopy(model).to("meta")
    macs = macs_of(
        on_meta, torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, device="meta")
    )
    return parameters_of(model), macs


def our_precision(wanted: str, device: torch.device) -> tuple[str, bool]:
    """Return the precision and whether channels_last is used, as the library itself chooses
    them.
    """
    from ddpm_lib.nn.memory_format import use_channels_last
    from ddpm_lib.runtime.devices import pick_precision

    precision = pick_precision(wanted, device.type)
    return precision, use_channels_last("auto", device.type, precision)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "no")


def add_arguments(parser: argparse.ArgumentParser, peer_precision: str | None = "no") -> None:
    """Add what every comparison with other libraries takes; a peer precision of None is decided by
    the device.
    """
    default = "no on CPU, fp16 on CUDA" if peer_precision is None else peer_precision
    parser.add_argument(
        "--peer-precision",
        default=peer_precision,
        choices=list(DTYPES),
        help=f"theirs (default: {default})",
    )
    parser.add_argument("--compile", action="store_true", help="compile our network")
    parser.add_argument(
        "--mults",
        type=int,
        nargs="+",
        default=[1, 2, 2, 2],
        help="dim_mults of denoising-diffusion-pytorch",
    )
    parser.add_argument("--no-peers", action="store_true")


def placed(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def our_step(
    model: nn.Module, images: Tensor, device: torch.device, wanted: str, compiled: bool = False
) -> Callable[[], object]:
    """One step of the recipe of `Trainer` on uint8 images, without its data, averages and
    records.
    """
    from ddpm_lib import GaussianDiffusion, TrainingConfig
    from ddpm_lib.runtime.compiling import compile_regions
    from ddpm_lib.training.low_weights import LowWeights, keeps_low_weights
    from ddpm_lib.training.one_pass import OnePassAdam
    from ddpm_lib.training.optim import make_optimizer

    precision, channels_last = our_precision(wanted, device)
    placed(model, device, channels_last)
    diffusion = GaussianDiffusion(model, image_size=images.shape[-1]).to(device).train()
    if compiled:
        compile_regions(model, True, print)
    optimizer = make_optimizer(diffusion, TrainingConfig(), device)
    parameters = list(diffusion.parameters())
    keeps = keeps_low_weights(device, precision, 1, pulled=False, compiled=compiled)
    low = LowWeights(diffusion, optimizer) if keeps else None

    def step() -> None:
        network = diffusion if low is None else low.call(diffusion, summed=False)
        with autocast(device, precision):
            loss = network(images)
        loss.backward()
        if isinstance(optimizer, OnePassAdam):
            optimizer.measure(1.0)
        else:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusers_step(
    model: nn.Module, images: Tensor, device: torch.device, precision: str = "no"
) -> Callable[[], object]:
    """One step of diffusers' script for unconditional training, on images in [-1, 1] as its loader
    gives them.
    """
    from diffusers import DDPMScheduler

    model.to(device).train()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    parameters = list(model.parameters())
    clean = images.float() / 127.5 - 1

    def step() -> None:
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=device)
        with autocast(device, precision):
            output = model(scheduler.add_noise(clean, noise, t), t).sample
        nn.functional.mse_loss(output.float(), noise).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lucidrains_step(
    model: nn.Module, images: Tensor, device: torch.device, precision: str = "no"
) -> Callable[[], object]:
    """One step of denoising-diffusion-pytorch's Trainer on images in [0, 1], without its data and
    averages.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion

    diffusion = (
        GaussianDiffusion(model, image_size=images.shape[-1], timesteps=1000).to(device).train()
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    parameters = list(diffusion.parameters())
    unit = images.float() / 255

    def step() -> None:
        with autocast(device, precision):
            loss = diffusion(unit)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
