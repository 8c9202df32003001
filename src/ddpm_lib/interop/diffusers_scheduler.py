"""Schedulers of diffusers as processes of ours: noise levels, prediction, variance, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable, short
from ddpm_lib.schedules import Schedule

_HO = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
_LATENT = {**_HO, "beta_start": 0.00085, "beta_end": 0.012}
_CLIPPING = {**_HO, "clip_sample": True}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _CLIPPING,
    "DDPMParallelScheduler": _CLIPPING,
    "DDIMScheduler": _CLIPPING,
    "DDIMParallelScheduler": _CLIPPING,
    "PNDMScheduler": _HO,
    "DPMSolverMultistepScheduler": _HO,
    "DPMSolverSinglestepScheduler": _HO,
    "DEISMultistepScheduler": _HO,
    "UniPCMultistepScheduler": _HO,
    "SASolverScheduler": _HO,
    "EulerDiscreteScheduler": _HO,
    "EulerAncestralDiscreteScheduler": _HO,
    "LMSDiscreteScheduler": _HO,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
}
"""The schedulers of variance-preserving processes, with their defaults of what the oldest configs
leave out. Samplers differ, the process does not.
"""

PARAMETRIZATIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What the network predicts: their words, ours."""
_UNIFORM = {"eps": "simple", "x0": "simple", "v": "snr_plus_one"}
"""The weightings with which diffusers' training scripts minimise the squared error."""
_MOST_LEVELS = 100_000
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}


def process_of(
    config: Mapping[str, Any] | None,
    where: str,
    learned: bool,
    given: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """Return arguments of `GaussianDiffusion`, without image_size and channels.

    Args:
        config: scheduler_config.json; None where there is none, for the defaults of DDPMScheduler.
        where: Its path, for messages.
        learned: Whether the network has output channels for a variance.
        given: What the user says instead, by our names of options.
        notes: Gets a line for each assumption and for what cannot be carried over.

    Raises:
        CheckpointError: For a scheduler or a setting that no process of ours has, by name.
    """
    if config is None:
        notes.append(
            "There is no scheduler_config.json: taken to be DDPMScheduler's defaults (1000 levels,"
            f" linear, epsilon); {option('timesteps')}, {option('schedule')} and"
            f" {option('parametrization')} otherwise."
        )
        config = {"_class_name": "DDPMScheduler"}
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise CheckpointError(
            f"{where} is of a {short(name)}, whose process is none that adds noise by betas."
            " The network alone can be read: give its folder. Schedulers that can be read:"
            f" {', '.join(SCHEDULERS)}."
        )
    said = {**SCHEDULERS[name], **{k: v for k, v in config.items() if v is not None}}
    timesteps = _whole(said.get("num_train_timesteps", 1000), "num_train_timesteps", where)
    schedule, options = _schedule(said, timesteps, where)
    if given.get("schedule", schedule) != schedule:
        # Their linear β is not rescaled to the number of levels, nor is that named in its place.
        linear = given["schedule"] == "linear"
        schedule, options = given["schedule"], {"rescale": False} if linear else {}
    if given.get("timesteps", timesteps) != timesteps:
        if schedule == "betas" and "schedule" not in given:
            raise ConfigError(
                f"{option('timesteps', given['timesteps'])} does not fit: the noise levels in"
                f" {where} are a list of {timesteps}. Give {option('schedule')} too."
            )
        timesteps = given["timesteps"]
    parametrization = given.get("parametrization") or _parametrization(said, where)
    options = {**options, **(given.get("schedule_options") or {})}
    try:
        made = Schedule.make(schedule, timesteps, options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} describes no noise levels: {printable(error)}") from error
    if float(made.alpha[-1]) == 0 and parametrization == "eps":
        raise CheckpointError(
            f"{where} ends in pure noise (rescale_betas_zero_snr), where prediction_type='epsilon'"
            " says nothing of the image. Such a network is none."
        )
    clip, ratio = _clip(said, where, notes)
    return {
        "timesteps": timesteps,
        "schedule": schedule,
        "schedule_options": options,
        "parametrization": parametrization,
        "weighting": _UNIFORM.get(parametrization, "simple"),
        "variance": _variance(said, learned, where, given),
        "loss": given.get("loss"),
        "clip": clip,
        "dynamic_threshold_ratio": ratio,
    }


def _whole(value: Any, entry: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= _MOST_LEVELS:
        raise CheckpointError(
            f"{where} has {entry}={short(value)}; it must be an integer from 2 to {_MOST_LEVELS:,}."
        )
    return value


def _number(said: Mapping[str, Any], entry: str, where: str) -> float:
    value = said.get(entry)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{where} has {entry}={short(value)}; it must be a number.")
    return float(value)


def _schedule(said: Mapping[str, Any], timesteps: int, where: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of our schedule."""
    options: dict[str, Any]
    kind, betas = said["beta_schedule"], said.get("trained_betas")
    if betas is not None:
        if (
            not isinstance(betas, list)
            or len(betas) != timesteps
            or not all(isinstance(beta, float) for beta in betas)
        ):
            raise CheckpointError(
                f"{where} has trained_betas={short(betas)}; they must be a list of"
                f" num_train_timesteps={timesteps} numbers."
            )
        name, options = "betas", {"betas": betas}
    elif kind in ("linear", "scaled_linear"):
        ends = {end: _number(said, end, where) for end in ("beta_start", "beta_end")}
        # Theirs does not rescale its ends to the number of levels.
        name, options = kind, {**ends, "rescale": False} if kind == "linear" else ends
    elif kind == "squaredcos_cap_v2":
        name, options = "cosine", {}
    elif kind == "sigmoid":
        start, end = _number(said, "beta_start", where), _number(said, "beta_end", where)
        name, options = "betas", {"betas": _sigmoid_betas(timesteps, start, end)}
    elif isinstance(kind, str) and kind in _ALPHA_BARS:
        name, options = "betas", {"betas": _betas_of(_ALPHA_BARS[kind], timesteps)}
    else:
        choices = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", *_ALPHA_BARS]
        raise CheckpointError(f"{where}: {unknown_name('beta_schedule', kind, choices)}")
    rescaled = said.get("rescale_betas_zero_snr", False)
    if not isinstance(rescaled, bool):
        raise CheckpointError(
            f"{where} has rescale_betas_zero_snr={short(rescaled)}; it must be true or false."
        )
    if rescaled:
        options["zero_terminal_snr"] = True
    return name, options


def _sigmoid_betas(timesteps: int, start: float, end: float) -> list[float]:
    """β_t = S(u_t)·(end − start) + start with u from −6 to 6, S the sigmoid (GeoDiff; diffusers'
    "sigmoid").
    """
    places = [-6 + 12 * k / (timesteps - 1) for k in range(timesteps)]
    return [(end - start) / (1 + math.exp(-u)) + start for u in places]


def _laplace(u: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-log_snr)))


def _exponential(u: float) -> float:
    return math.exp(-12 * u)


_ALPHA_BARS: dict[str, Callable[[float], float]] = {"laplace": _laplace, "exp": _exponential}
"""What diffusers takes for α̅(t/T) in its schedules "laplace" and "exp"."""


def _betas_of(alpha_bar: Callable[[float], float], timesteps: int) -> list[float]:
    """β_t = 1 − α̅(t/T)/α̅((t − 1)/T), at most 0.999."""
    values = [alpha_bar(k / timesteps) for k in range(timesteps + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(values)]


def _parametrization(said: Mapping[str, Any], where: str) -> str:
    # The first versions said it by a flag.
    default = "epsilon" if said.get("predict_epsilon", True) else "sample"
    kind = said.get("prediction_type", default)
    if not isinstance(kind, str) or kind not in PARAMETRIZATIONS:
        raise CheckpointError(f"{where}: {unknown_name('prediction_type', kind, PARAMETRIZATIONS)}")
    return PARAMETRIZATIONS[kind]


def _clip(said: Mapping[str, Any], where: str, notes: list[str]) -> tuple[str, float]:
    """Return our clip and its ratio."""
    defaults = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
    said = {**defaults, "clip_sample_range": 1.0, **said}
    ratio = _number(said, "dynamic_thresholding_ratio", where)
    if not 0 < ratio <= 1:
        raise CheckpointError(
            f"{where} has dynamic_thresholding_ratio={ratio:g}; it must be in (0, 1]."
        )
    if said.get("thresholding"):
        most = _number(said, "sample_max_value", where)
        if most <= 1:
            return "static", ratio
        if most < 1000:
            notes.append(
                f"sample_max_value={most:g}, the largest dynamic threshold, is not carried over:"
                " here there is none."
            )
        return "dynamic", ratio
    if not said["clip_sample"]:
        return "none", ratio
    edge = _number(said, "clip_sample_range", where)
    if edge != 1:
        notes.append(
            f"clip_sample_range={edge:g} is not carried over: predicted images are clipped to the"
            " range of images, [-1, 1]."
        )
    return "static", ratio


def _variance(said: Mapping[str, Any], learned: bool, where: str, given: Mapping[str, Any]) -> str:
    """Return our variance, checked against the channels of the network."""
    kind = said.get("variance_type", "learned_range" if learned else "fixed_small")
    if not isinstance(kind, str) or kind not in _VARIANCES:
        raise CheckpointError(f"{where}: {unknown_name('variance_type', kind, _VARIANCES)}")
    variance = given.get("variance") or _VARIANCES[kind]
    if (variance == "learned_range") != learned:
        entry = f"--variance {variance}" if given.get("variance") else f"variance_type={kind!r}"
        many = "twice as many output channels as input channels" if learned else "as many"
        raise CheckpointError(
            f"{where}: {entry} does not fit the network, which has {many}"
            f"{'' if learned else ' output channels as input channels'}."
        )
    return str(variance)
