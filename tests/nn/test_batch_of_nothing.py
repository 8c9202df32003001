"""A batch of no images, which torch's own layers take: every network gives none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import Unet
from ddpm_lib.nn import _HOME, register_text_encoder
from ddpm_lib.nn.edm_unet import EdmUnet
from ddpm_lib.nn.lucidrains_unet import LucidrainsUnet
from ddpm_lib.nn.mlp import MLP
from ddpm_lib.nn.noise_level_unet import NoiseLevelUnet
from ddpm_lib.nn.noisy_classifier import NoisyClassifier
from ddpm_lib.nn.time_blind import TimeBlindUnet

SMALL: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2)}
UNET: dict[str, Any] = {**SMALL, "attention_levels": (0, 1)}
EVERY: dict[str, Callable[[], nn.Module]] = {
    "Unet": lambda: Unet(**UNET, num_classes=3, augment_dim=9),
    "Unet, low_res": lambda: Unet(**UNET, low_res_factor=2),
    "Unet, checkpointing": lambda: Unet(**UNET, gradient_checkpointing=True, self_condition=True),
    "EdmUnet": lambda: EdmUnet(UNET),
    "NoiseLevelUnet": lambda: NoiseLevelUnet(**UNET, center_input=True),
    "LucidrainsUnet": lambda: LucidrainsUnet(**UNET, num_classes=3),
    "LucidrainsUnet, linear": lambda: LucidrainsUnet(**SMALL, self_condition=True),
    "LucidrainsUnet, group": lambda: LucidrainsUnet(**SMALL, norm="group", memory_tokens=0),
    "LucidrainsUnet, learned": lambda: LucidrainsUnet(**SMALL, time_features="learned"),
    "TimeBlindUnet": lambda: TimeBlindUnet(widths=(4, 8)),
    "NoisyClassifier": lambda: NoisyClassifier(3, 8, **UNET),
    "NoisyClassifier, adaptive": lambda: NoisyClassifier(3, 8, **UNET, pool="adaptive"),
    "NoisyClassifier, spatial": lambda: NoisyClassifier(3, 8, **UNET, pool="spatial"),
}


def check(network: nn.Module, x: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
    """Run it forth and back, in training and not, in float32 and with autocast."""
    extra = () if cond is None else (cond,)
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            out: Tensor = network.train()(x, torch.zeros(0), *extra)
        out.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in network.parameters())
        with torch.no_grad():
            assert network.eval()(x, torch.zeros(0), *extra).shape == out.shape
    return out


def test_every_network_is_here() -> None:
    assert {name.partition(",")[0] for name in EVERY} | {"MLP"} >= set(_HOME)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", EVERY)
def test_a_network_of_images_gives_none(name: str, layout: torch.memory_format) -> None:
    network = EVERY[name]()
    network.to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.zeros(0, 3, 8, 8).to(memory_format=layout)
    expected = (0, 3) if isinstance(network, NoisyClassifier) else (0, 3, 8, 8)
    assert check(network, x).shape == expected


@pytest.mark.parametrize("dims", [1, 3])
def test_so_do_sequences_volumes_and_points(dims: int) -> None:
    x = torch.zeros(0, 3, *[8] * dims)
    assert check(Unet(**UNET, dims=dims), x).shape == x.shape
    assert check(MLP(2, 16, num_classes=3), torch.zeros(0, 2, 1)).shape == (0, 2, 1)


@pytest.mark.parametrize("network", [Unet, LucidrainsUnet])
def test_classes_of_nothing(network: Any) -> None:
    cond = {"class_label": torch.zeros(0, dtype=torch.long)}
    x = torch.zeros(0, 3, 8, 8)
    assert check(network(**SMALL, num_classes=3), x, cond).shape == x.shape


def test_conditions_of_nothing() -> None:
    register_text_encoder("letters-of-nothing", lambda texts: np.zeros((len(texts), 6)))
    table: dict[str, dict[str, Any]] = {
        "size": {"kind": "number"},
        "turn": {"kind": "angle", "period": 360.0},
        "spot": {"kind": "vector", "size": 3},
        "colour": {"kind": "label", "names": ["red", "blue"]},
        "marks": {"kind": "tags", "names": ["a", "b"]},
        "mask": {"kind": "mask", "classes": 2},
        "sketch": {"kind": "image", "channels": 1},
        "caption": {"kind": "text", "encoder": "letters-of-nothing", "size": 6},
    }
    network = Unet(**SMALL, conditions=table)
    x = torch.zeros(0, 3, 8, 8)
    conditioners: Any = network.conditioners
    cond = {name: conditioners[name].null_for(x) for name in table}
    assert check(network, x, cond).shape == x.shape
    assert check(network, x).shape == x.shape
