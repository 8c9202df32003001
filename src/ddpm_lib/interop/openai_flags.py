"""The flags of improved-diffusion's and guided-diffusion's scripts, as their READMEs print them for
each published model, in our options.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import suggestion
from ddpm_lib.core.text import short
from ddpm_lib.interop.imported import Imported

_MULTS: dict[int, tuple[int, ...]] = {
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Widths of the levels by the size of the images."""
_CLASSES = 1000
"""Of every class-conditional network of their scripts."""


def _switch(text: str) -> bool:
    words = {"true": True, "t": True, "yes": True, "y": True, "1": True}
    words |= {"false": False, "f": False, "no": False, "n": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def _decays(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_MODEL: dict[str, tuple[Callable[[str], Any], Any]] = {
    "image_size": (int, 64),
    "num_channels": (int, 128),
    "num_res_blocks": (int, 2),
    "num_heads": (int, 4),
    "num_heads_upsample": (int, -1),
    "num_head_channels": (int, -1),
    "attention_resolutions": (_whole_numbers, (16, 8)),
    "channel_mult": (_whole_numbers, ()),
    "dropout": (float, 0.0),
    "class_cond": (_switch, False),
    "use_checkpoint": (_switch, False),
    "use_scale_shift_norm": (_switch, True),
    "resblock_updown": (_switch, False),
    "use_new_attention_order": (_switch, False),
    "large_size": (int, None),
    "small_size": (int, None),
}
_DIFFUSION: dict[str, tuple[Callable[[str], Any], Any]] = {
    "learn_sigma": (_switch, False),
    "sigma_small": (_switch, False),
    "diffusion_steps": (int, 1000),
    "noise_schedule": (str, "linear"),
    "timestep_respacing": (str, ""),
    "use_kl": (_switch, False),
    "predict_xstart": (_switch, False),
    "rescale_timesteps": (_switch, None),
    "rescale_learned_sigmas": (_switch, None),
}
_TRAINING: dict[str, tuple[Callable[[str], Any], Any]] = {
    "schedule_sampler": (str, "uniform"),
    "lr": (float, None),
    "weight_decay": (float, None),
    "lr_anneal_steps": (int, None),
    "batch_size": (int, None),
    "microbatch": (int, None),
    "ema_rate": (_decays, None),
    "log_interval": (int, None),
    "save_interval": (int, None),
    "use_fp16": (_switch, None),
    "use_ddim": (_switch, None),
    "clip_denoised": (_switch, None),
}
_KNOWN = {**_MODEL, **_DIFFUSION, **_TRAINING}
_NO_COUNTERPART = {
    "data_dir": "the data are named to `ddpm train` itself",
    "val_data_dir": "the data are named to `ddpm train` itself",
    "resume_checkpoint": "a run is continued by the command that began it",
    "fp16_scale_growth": "the loss scale grows as torch has it",
    "model_path": "`ddpm convert` takes the file as its first word",
    "num_samples": "`ddpm sample --num` says it",
    "base_samples": "`ddpm sample --low-res` says it",
}
"""Flags that their scripts take and no option of ours stands for, and why."""
PUBLISHED_FLAGS = (*_KNOWN, *_NO_COUNTERPART)
"""Names of the flags that are known here."""
_GUIDED_ONLY = {
    "num_head_channels",
    "channel_mult",
    "resblock_updown",
    "use_new_attention_order",
}


@dataclass(frozen=True)
class TranslatedFlags:
    """Flags in our options.

    Attributes:
        network: Arguments of `Unet`.
        process: Arguments of `GaussianDiffusion`.
        training: Options of `TrainingConfig`.
        sampling: Options of `diffusion.sample`; clipping is one of the process.
        given: What `read_foreign` is given beside a file of the same model.
        notes: What has no counterpart, and what was assumed: a line each.
    """

    network: dict[str, Any]
    process: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def translate_flags(text: str) -> TranslatedFlags:
    """Translate flags of the scripts of improved-diffusion and guided-diffusion.

    Flags that are not given have the defaults of the library that they belong to: guided-diffusion
    where one of its own is among them, else improved-diffusion.

    Args:
        text: As MODEL_FLAGS, DIFFUSION_FLAGS and TRAIN_FLAGS hold them, one after the other.

    Raises:
        ConfigError: For what is no flag of theirs, a value of another type, or a network that Unet
            cannot hold.

    >>> flags = translate_flags("--image_size 32 --num_channels 128 --noise_schedule cosine")
    >>> flags.network["dim_mults"], flags.process["schedule"]
    ((1, 2, 2, 2), 'cosine')
    """
    said, notes = _read(text)
    guided = bool(_GUIDED_ONLY & said.keys()) or said.get("image_size") == 128
    values = {name: said.get(name, default) for name, (_, default) in _KNOWN.items()}
    for name in ("rescale_timesteps", "rescale_learned_sigmas"):
        if values[name] is None:
            values[name] = not guided
    library = "guided-diffusion" if guided else "improved-diffusion"
    notes.append(f"Flags that are not given have the defaults of {library}.")
    network, process = _network(values, notes), _process(values)
    order = "new" if values["use_new_attention_order"] else "legacy"
    names = ("heads", "heads_up", "head_dim", "time_scale", "dropout", "low_res_factor")
    given = {name: network[name] for name in names if network.get(name) is not None}
    given |= {name: process[name] for name in ("timesteps", "schedule", "loss")}
    given |= {"image_size": (process["image_size"],) * 2, "attention_order": order}
    given["variance"] = process["variance"]
    return TranslatedFlags(
        network, process, _training(said, notes), _sampling(said), given, tuple(notes)
    )


def _read(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the known flags, and notes on those without a counterpart."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"The flags cannot be read ({error}): {short(text, 200)}.") from error
    said: dict[str, Any] = {}
    notes: list[str] = []
    place = 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        place += 1
        if not name.startswith("--"):
            raise ConfigError(f"The flags must be `--name value` pairs; got {short(name)}.")
        if not equals:
            value = words[place] if place < len(words) else ""
            place += 1
        name = name[2:].replace("-", "_")
        if name in _NO_COUNTERPART or name.startswith("classifier_"):
            why = _NO_COUNTERPART.get(name, "a classifier is converted on its own")
            notes.append(f"--{name} has no counterpart: {why}.")
        elif name not in _KNOWN:
            hint = suggestion(name, [*_KNOWN, *_NO_COUNTERPART])
            also = f" {hint[0].upper()}{hint[1:]}" if hint else ""
            raise ConfigError(
                f"--{short(name)} is no flag of improved-diffusion or guided-diffusion.{also}"
            )
        else:
            said[name] = _value(name, value)
    return said, notes


def _value(name: str, text: str) -> Any:
    try:
        return _KNOWN[name][0](text)
    except ValueError as error:
        raise ConfigError(f"--{name} cannot have the value {short(text)}.") from error


def _mults(size: int, upsampling: bool) -> tuple[int, ...]:
    """Return the widths of the levels that their scripts have for a size of images."""
    if size == 512 and upsampling:
        return _MULTS[256]
    if size == 512:
        raise ConfigError(
            "The 512×512 network has half of its channels at the first level (channel_mult 0.5),"
            " which Unet does not have."
        )
    if size not in _MULTS:
        raise ConfigError(
            f"Their scripts know image_size 32, 64, 128, 256 and 512; got {size}. Give"
            " --channel_mult."
        )
    return _MULTS[size]


def _network(values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of our network."""
    large = values["large_size"] or (256 if values["small_size"] else None)
    size = large or values["image_size"]
    mults = values["channel_mult"] or _mults(size, upsampling=large is not None)
    levels = {2**level: level for level in range(len(mults))}
    attention = []
    for resolution in values["attention_resolutions"]:
        if resolution > 0 and size // resolution in levels:
            attention.append(levels[size // resolution])
        else:
            notes.append(f"No level has the resolution {resolution}: no attention there.")
    network: dict[str, Any] = {
        "dim": values["num_channels"],
        "dim_mults": mults,
        "blocks_per_level": values["num_res_blocks"],
        "attention_levels": tuple(sorted(set(attention))),
        "dropout": values["dropout"],
        "time_conditioning": "scale_shift" if values["use_scale_shift_norm"] else "add",
        "resample": "resblock" if values["resblock_updown"] else "conv",
        "time_scale": 1000 / values["diffusion_steps"] if values["rescale_timesteps"] else 1.0,
        "out_channels": 6 if values["learn_sigma"] else None,
        "num_classes": _CLASSES if values["class_cond"] else None,
        "class_drop_prob": 0.0,
        "gradient_checkpointing": values["use_checkpoint"],
    }
    if values["num_head_channels"] != -1:
        network["head_dim"] = values["num_head_channels"]
    else:
        network["heads"] = values["num_heads"]
        up = values["num_heads_upsample"]
        network |= {} if up in (-1, values["num_heads"]) else {"heads_up": up}
    if large:
        network |= {"low_res_factor": large // (values["small_size"] or 64)}
        network |= {"low_res_max_noise": 0.0}
    return network


def _process(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of our process."""
    steps, schedule = values["diffusion_steps"], values["noise_schedule"]
    if schedule not in ("linear", "cosine"):
        raise ConfigError(f"--noise_schedule is linear or cosine; got {short(schedule)}.")
    samplers = {"uniform": "uniform", "loss-second-moment": "loss_aware"}
    if values["schedule_sampler"] not in samplers:
        got = short(values["schedule_sampler"])
        raise ConfigError(f"--schedule_sampler is one of {', '.join(samplers)}; got {got}.")
    large = values["large_size"] or (256 if values["small_size"] else None)
    learned = values["learn_sigma"]
    fixed = "fixed_small" if values["sigma_small"] else "fixed_large"
    loss = "vlb" if values["use_kl"] else "hybrid" if learned else "simple"
    process = {
        "image_size": large or values["image_size"],
        "timesteps": steps,
        "schedule": schedule,
        "parametrization": "x0" if values["predict_xstart"] else "eps",
        # The squared error of what is predicted.
        "weighting": "flat" if values["predict_xstart"] else "simple",
        "variance": "learned_range" if learned else fixed,
        "loss": loss,
        "time_sampler": samplers[values["schedule_sampler"]],
    }
    if values["clip_denoised"] is False:
        process["clip"] = "none"
    if loss == "hybrid":
        # Without rescaling they add the bound of one level, 1/T of the sum over all levels.
        process["vlb_weight"] = 0.001 if values["rescale_learned_sigmas"] else 1 / steps
    return process


def _training(said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the options of training that flags give."""
    names = {
        "lr": "learning_rate",
        "weight_decay": "weight_decay",
        "batch_size": "batch_size",
        "ema_rate": "ema_decay",
        "log_interval": "log_every",
        "save_interval": "save_every",
    }
    training = {ours: said[theirs] for theirs, ours in names.items() if theirs in said}
    if "lr" in said or "weight_decay" in said:
        training["optimizer"] = "adamw"
    if "lr" in said:  # their rate has no warm-up, and stays unless it is annealed
        training |= {"lr_schedule": "constant", "warmup_steps": 0}
    if said.get("lr_anneal_steps"):
        training |= {"max_steps": said["lr_anneal_steps"], "lr_schedule": "linear"}
    if said.get("use_fp16"):
        training["mixed_precision"] = "fp16"
    micro, size = said.get("microbatch", -1), said.get("batch_size")
    if micro > 0 and size:
        training["accumulation_steps"] = -(-size // micro)
    if size:
        notes.append(
            "Their batch_size counts the images of one process; ours those of all processes."
        )
    return training


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of sampling that flags give."""
    sampling: dict[str, Any] = {}
    if "use_ddim" in said:
        sampling["sampler"] = "ddim" if said["use_ddim"] else "ddpm"
    if said.get("timestep_respacing"):
        sampling["spacing"] = said["timestep_respacing"]
    return sampling


def with_flags(imported: Imported, flags: TranslatedFlags, given: Mapping[str, Any]) -> Imported:
    """Add to what a file says what the flags of its model say.

    Args:
        imported: What the file says.
        flags: Of the same model.
        given: Options that win over the flags.

    Raises:
        ConfigError: If the file is of another network than the flags say.
    """
    own, wanted = imported.network_config, flags.network
    apart = []
    for name in ("dim", "dim_mults", "blocks_per_level", "attention_levels", "out_channels"):
        apart += [name] if _plain(own.get(name)) != _plain(wanted.get(name)) else []
    apart += ["time_conditioning"] * (own["time_conditioning"] != wanted["time_conditioning"])
    if len(wanted["dim_mults"]) > 1:  # one level changes no resolution
        apart += ["resample"] * (own["resample"] != wanted["resample"])
    for name in ("num_classes", "low_res_factor"):
        apart += [name] if (own.get(name) is None) != (wanted.get(name) is None) else []
    if apart:
        lines = [f"{n}: flags {wanted.get(n)}, weights {own.get(n)}" for n in apart]
        raise ConfigError(
            f"The weights in {imported.source} are not those of the flags: {'; '.join(lines)}."
        )
    checkpointing = {"gradient_checkpointing": wanted["gradient_checkpointing"]}
    process = {k: v for k, v in flags.process.items() if k not in (*given, "image_size")}
    return dataclasses.replace(
        imported,
        network_config={**own, **checkpointing},
        process={**(imported.process or {}), **process},
        training={**flags.training, **imported.training},
        notes=(*imported.notes, *flags.notes),
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
