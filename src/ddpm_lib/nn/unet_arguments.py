"""What the arguments of `Unet` may be."""

from __future__ import annotations

from typing import Any, Literal

from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.blocks import DownPadding, Resample, TimeConditioning
from ddpm_lib.nn.embeddings import TimeOrder

MidAttention = Literal["norm", "no_norm", "none"]
"""Attention at the lowest resolution."""


def check_arguments(config: dict[str, Any]) -> None:
    """Refuse arguments of `Unet` that are wrong on their own.

    Args:
        config: All of them by name.

    Raises:
        ValueError: Naming the argument, what it is and what it may be.
    """
    for name in ("dim", "channels", "patch_size", "blocks_per_level", "heads"):
        checks.check_int(name, config[name])
    for name in ("out_channels", "head_dim", "heads_up", "time_dim", "num_classes", "augment_dim"):
        if config[name] is not None:
            checks.check_int(name, config[name])
    if isinstance(config["dim_mults"], int) or not config["dim_mults"]:
        got = config["dim_mults"]
        raise ValueError(
            f"dim_mults must list at least one multiple of dim, such as (1, 2, 2), got {got!r}."
        )
    for mult in config["dim_mults"]:
        checks.check_int("Every entry of dim_mults", mult)
    if config["dim"] % 2 or config["dim"] < 4:
        nearest = max(4, config["dim"] // 2 * 2)
        raise ValueError(
            f"dim must be even and at least 4 (sine and cosine), got {config['dim']}. Use"
            f" dim={nearest}."
        )
    if config["dims"] not in (1, 2, 3):
        raise ValueError(
            f"dims must be 1 (sequences), 2 (images) or 3 (volumes), got {config['dims']!r}."
        )
    if config["freq_shift"] not in (0, 1):
        raise ValueError(f"freq_shift must be 0 or 1, got {config['freq_shift']!r}.")
    if not config["norm_eps"] > 0:
        raise ValueError(f"norm_eps must be positive, got {config['norm_eps']!r}. Use 1e-5.")
    checks.check_probability("dropout", config["dropout"], one_allowed=False)
    checks.check_probability("class_drop_prob", config["class_drop_prob"], one_allowed=True)
    checks.check_choice("mid_attention", config["mid_attention"], MidAttention)
    checks.check_choice("time_conditioning", config["time_conditioning"], TimeConditioning)
    checks.check_choice("resample", config["resample"], Resample)
    checks.check_choice("down_padding", config["down_padding"], DownPadding)
    checks.check_choice("time_order", config["time_order"], TimeOrder)
