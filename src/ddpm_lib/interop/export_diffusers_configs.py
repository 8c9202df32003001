"""A `Unet` and its process as configs of diffusers' UNet2DModel and DDPMScheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.diffusers_scheduler import PARAMETRIZATIONS
from ddpm_lib.nn import Unet
from ddpm_lib.nn.attention import Attention
from ddpm_lib.schedules import Schedule

_NO_LIMIT = 1e9
"""sample_max_value that bounds no dynamic threshold."""
_OTHER_WAYS = "--to onnx and --to torch-export hold every network"


def unet_config(model: Unet, image_size: Sequence[int]) -> dict[str, Any]:
    """Return the config of the UNet2DModel that holds a network.

    Args:
        model: The network.
        image_size: Height and width of its images.

    Raises:
        ConfigError: Naming the option that no UNet2DModel has, and what would help.
    """
    config = model.config
    _refuse(config)
    widths = [config["dim"] * mult for mult in config["dim_mults"]]
    attended = [
        any(layer.attn is not None for layer in stage.layers)  # type: ignore[union-attr]
        for stage in model.down
    ]
    blocks = "resnet" if config["resample"] == "resblock" else "conv"
    scale_shift = config["time_conditioning"] == "scale_shift"
    groups = model.norm_out.num_groups
    normed = config["mid_attention"] == "norm" and scale_shift
    classes = config["num_classes"]
    if classes is not None and config["class_drop_prob"] > 0:
        classes += 1  # the null class
    return {
        "_class_name": "UNet2DModel",
        "sample_size": image_size[0] if len(set(image_size)) == 1 else list(image_size),
        "in_channels": model.channels,
        "out_channels": model.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": config["time_dim"],
        "freq_shift": config["freq_shift"],
        "flip_sin_to_cos": config["time_order"] == "cos_sin",
        "down_block_types": [_block("Down", a, blocks) for a in attended],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [_block("Up", a, blocks) for a in reversed(attended)],
        "block_out_channels": widths,
        "layers_per_block": config["blocks_per_level"],
        "mid_block_scale_factor": 1,
        # Averages of 2×2, written as a convolution, need a zero on both sides.
        "downsample_padding": int(
            config["down_padding"] == "symmetric" or config["resample"] == "pool"
        ),
        "downsample_type": blocks,
        "upsample_type": blocks,
        "dropout": config["dropout"],
        "act_fn": "silu",
        "attention_head_dim": _head_dim(model),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if normed else None,
        "norm_eps": config["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "add_attention": config["mid_attention"] != "none",
        "class_embed_type": None,
        "num_class_embeds": classes,
    }


def _block(end: str, attended: bool, kind: str) -> str:
    if attended:
        return f"Attn{end}Block2D"
    sample = {"Down": "Downsample", "Up": "Upsample"}[end]
    return f"Resnet{sample}Block2D" if kind == "resnet" else f"{end}Block2D"


def _refuse(config: dict[str, Any]) -> None:
    """Refuse what no UNet2DModel has."""
    first = config["dim_mults"][0]
    unheld = {
        "dims": (config["dims"] != 2, "is for images"),
        "patch_size": (config["patch_size"] != 1, "works on pixels; train with patch_size=1"),
        "conditions": (bool(config.get("conditions")), "takes classes alone"),
        "self_condition": (config["self_condition"], "sees no estimate of its own"),
        "low_res_factor": (config["low_res_factor"] is not None, "sees no small image"),
        "scale_skips": (config["scale_skips"], "does not scale skip connections"),
        "time_scale": (config["time_scale"] != 1, "embeds the step as it is"),
        "dim_mults": (
            first != 1,
            f"begins at the width of its first level; dim={first * config['dim']} with dim_mults"
            " from 1 on would fit",
        ),
        "mid_attention": (
            config["mid_attention"] == "no_norm" and config["time_conditioning"] == "add",
            "normalises there where time is added; train with mid_attention='norm'",
        ),
    }
    for option, (wrong, why) in unheld.items():
        if wrong:
            value = config[option]
            shown = list(value) if isinstance(value, (list, tuple, dict)) else value
            raise ConfigError(
                f"diffusers' UNet2DModel cannot hold this network: {option}={shown!r}, and it"
                f" {why}. {_OTHER_WAYS}."
            )


def _head_dim(model: Unet) -> int | None:
    """Return the channels per attention head that hold everywhere; None for one head."""
    found = [part for part in model.modules() if isinstance(part, Attention)]
    if not found and model.config["head_dim"] is not None:
        return int(model.config["head_dim"])
    if model.config["head_dim"] is None and all(part.heads == 1 for part in found):
        return None
    sizes = sorted({part.width // part.heads for part in found})
    if len(sizes) > 1:
        name = "heads" if model.config["heads_up"] is None else "heads_up"
        raise ConfigError(
            f"diffusers' UNet2DModel cannot hold this network: {name}={model.config[name]} makes"
            f" heads of {' and '.join(map(str, sizes))} channels, and it has one"
            f" attention_head_dim. Train with head_dim, or with heads=1. {_OTHER_WAYS}."
        )
    return sizes[0]


def scheduler_config(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Return the config of the DDPMScheduler of a process.

    Raises:
        ConfigError: If no scheduler knows what the network predicts.
    """
    if diffusion.denoiser.jumps:
        raise ConfigError(
            "The schedulers of diffusers cannot hold this process: it was tuned for consistency,"
            " and they take what a network answers for the mean of clean images. Export the run"
            f" that it was tuned from. {_OTHER_WAYS}."
        )
    process = diffusion.config
    kind = {ours: theirs for theirs, ours in PARAMETRIZATIONS.items()}.get(
        process["parametrization"]
    )
    if kind is None:
        raise ConfigError(
            "The schedulers of diffusers cannot hold this process: parametrization="
            f"{process['parametrization']!r}, and they know {', '.join(PARAMETRIZATIONS)}. Train"
            f" with 'v' instead. {_OTHER_WAYS}."
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.timesteps,
        **_noise_levels(diffusion.schedule),
        "variance_type": process["variance"],
        "clip_sample": diffusion.clip == "static",
        "clip_sample_range": 1.0,
        "prediction_type": kind,
        "thresholding": diffusion.clip == "dynamic",
        "dynamic_thresholding_ratio": diffusion.dynamic_threshold_ratio,
        "sample_max_value": _NO_LIMIT if diffusion.clip == "dynamic" else 1.0,
        "timestep_spacing": _spacing(diffusion),
        "steps_offset": 0,
    }


def _spacing(diffusion: GaussianDiffusion) -> str:
    """Return which levels fewer steps visit: those that `sample` visits by default, where that is
    safe.

    Their DDPMScheduler adds noise in the last step unless that starts from the cleanest level,
    where "leading" ends; with the variance fixed_small the noise is none.
    """
    pure = float(diffusion.schedule.alpha[-1]) == 0
    return "trailing" if pure or diffusion.config["variance"] == "fixed_small" else "leading"


def _noise_levels(schedule: Schedule) -> dict[str, Any]:
    """Return the entries that say the noise levels: a schedule of theirs, or the betas."""
    options = {k: v for k, v in schedule.options.items() if k != "zero_terminal_snr"}
    plain = Schedule.make(schedule.name, schedule.timesteps, options)
    entries: dict[str, Any] = {
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "trained_betas": None,
        # Theirs keeps a trace of signal at the end without this.
        "rescale_betas_zero_snr": float(schedule.alpha[-1]) == 0,
    }
    if schedule.name == "linear":
        scale = 1000 / schedule.timesteps if options.get("rescale", True) else 1.0
        ends = [options.get("beta_start", 1e-4), options.get("beta_end", 0.02)]
        start, end = (scale * value for value in ends)
        if end < options.get("max_beta", 0.999):
            return {**entries, "beta_start": start, "beta_end": end}
    elif schedule.name in ("quad", "scaled_linear"):
        start, end = (1e-4, 0.02) if schedule.name == "quad" else (0.00085, 0.012)
        return {
            **entries,
            "beta_schedule": "scaled_linear",
            "beta_start": options.get("beta_start", start),
            "beta_end": options.get("beta_end", end),
        }
    elif schedule.name == "cosine" and options in ({}, {"s": 0.008}, {"max_beta": 0.999}):
        return {**entries, "beta_schedule": "squaredcos_cap_v2"}
    given = options.get("betas") if schedule.name == "betas" else None
    return {**entries, "trained_betas": list(given or plain.betas.tolist())}
