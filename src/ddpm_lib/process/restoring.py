"""Images from measurements of them: deblurring, enlarging, filling in, denoising, colouring.

`GaussianDiffusion` binds `restore` as its method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.spelling import option
from ddpm_lib.guidance import LogProb
from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.process.interface import Process
from ddpm_lib.process.linear_maps import Operator, Shape
from ddpm_lib.process.measuring import Measured, Method, Problem, make_method
from ddpm_lib.process.operators import check_noise, make_operator
from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.process.sampling import draw
from ddpm_lib.samplers import Sampler

ROUNDING = 1 / (255 * 12**0.5)
"""Standard deviation of the rounding of 8-bit pixels, in units of [0, 1]."""


@answers_wrong_keywords
def restore(
    self: Process,
    measurement: Tensor,
    operator: str | Operator,
    *,
    noise_std: float | None = None,
    method: str | Method = "pigdm",
    method_options: Mapping[str, Any] | None = None,
    strength: float = 1.0,
    sampler: str | Sampler = "ddim",
    sampler_options: Mapping[str, Any] | None = None,
    num_steps: int | None = None,
    spacing: str | Sequence[float] = "trailing",
    spacing_options: Mapping[str, Any] | None = None,
    eta: float | None = None,
    seed: int | None = 0,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: float | Mapping[str, float] = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    classifier: LogProb | None = None,
    classifier_scale: float = 1.0,
    guide_by: Any = None,
    guide_scale: float | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    model: nn.Module | None = None,
) -> Tensor:
    """Draw images that fit a measurement y = A·x + noise and look like the data: a draw from p(x |
    y), as far as the method is right.

    The process need not have been trained for it. Each step differentiates the network once (not
    for ddnm), and costs about three steps of `sample`. Repeat a measurement for several draws. The
    noise of image i depends on (seed, first_index + i) alone.

    Args:
        measurement: One measurement per image, (n, *out_shape of the operator): uint8, or float in
            the units in which images lie in [0, 1]; noise may take it outside. What a mask hides
            has no influence.
        operator: A: a name and its number, "blur:2" (standard deviation in pixels),
            "downsampling:4" (factor), "noise:0.1" (identity), "grey" (restoring it is colouring);
            several in order, "blur:1+downsampling:4+noise:0.05"; or an object: `Mask(mask)`,
            `Linear(forward, backward)` for any other, of `ddpm_lib.process.operators`.
        noise_std: Standard deviation of the measurement's noise in the same units. Default: what
            the operator says, else that of rounding to 8 bits, 0.0011. The more, the freer.
        method: How p(y | x_t) is approximated: pigdm (Song et al. 2023), mmps (Rozet et al. 2024:
            asks the network how sure it is, slower), ddnm (Wang et al. 2023: fast, follows the
            measurement closely), dps (Chung et al. 2023); or an object.
        method_options: Options of that method, such as {"data_std": 0.5} for pigdm.
        strength: Factor of the measurement's pull; 1 is Bayes' rule, 0 plain sampling.
        sampler: As for `sample`, like all that is not described here.
        sampler_options: As for `sample`.
        num_steps: As for `sample`.
        spacing: As for `sample`.
        spacing_options: As for `sample`.
        eta: As for `sample`.
        seed: Names the stream of random numbers; None: a fresh one.
        seeds: One seed per image instead.
        first_index: Number of the first image in its stream.
        cond: Conditions by name, as for `sample`.
        guidance_scale: As for `sample`.
        guidance_interval: As for `sample`; the measurement guides at every level.
        guidance_rescale: As for `sample`.
        classifier: As for `sample`.
        classifier_scale: As for `sample`.
        guide_by: As for `sample`.
        guide_scale: As for `sample`.
        batch_size: How many images to draw at a time. Default: all.
        progress: As for `sample`.
        model: A network to use instead of `self.model`.

    Returns:
        Images (n, c, *spatial), float32 in [0, 1].

    Raises:
        ConfigError: If the network was tuned for consistency.
        ValueError: If the measurement has another shape than the operator's, values out of range,
            or an option is.
    """
    partner, partner_scale = partner_of(self, guide_by, guide_scale)
    plan = SamplingPlan.make(
        self.schedule,
        sampler=sampler,
        sampler_options=sampler_options,
        num_steps=num_steps,
        spacing=spacing,
        spacing_options=spacing_options,
        eta=eta,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        classifier=classifier,
        classifier_scale=classifier_scale,
        partner=partner,
        partner_scale=partner_scale,
    )
    if not 0.0 <= strength < float("inf"):
        raise ValueError(
            f"{option('strength')} must be at least 0, got {strength}. 1 is Bayes' rule."
        )
    denoiser = self.denoiser.using(model)
    denoiser.check_means("restoring")
    problem = make_problem(measurement, operator, noise_std, self.image_shape, denoiser.device)
    chosen = make_method(method, method_options)
    measured = Measured(problem, chosen, float(strength))
    return draw(
        self,
        replace(plan, guidance=replace(plan.guidance, measured=measured)),
        len(problem.y),
        seed=seed,
        seeds=seeds,
        first_index=first_index,
        cond=cond,
        batch_size=batch_size,
        progress=progress,
        model=model,
        purpose="restore",
    )


def make_problem(
    measurement: Tensor,
    operator: str | Operator,
    noise_std: float | None,
    shape: Shape,
    device: torch.device,
) -> Problem:
    """Check what was measured and bring it to the units of the model.

    x in [0, 1] is (1 + x_m)/2 with x_m in [-1, 1], so that A x_m = 2y − A·1, and noise doubles.

    Args:
        measurement: As for `restore`, like the next two.
        operator: As for `restore`.
        noise_std: As for `restore`.
        shape: Of one image.
        device: Where to compute.

    Raises:
        TypeError: If the measurement is no tensor of numbers.
        ValueError: If it does not fit the operator.
    """
    a = make_operator(operator)
    if not isinstance(measurement, Tensor) or not (
        measurement.dtype == torch.uint8 or measurement.is_floating_point()
    ):
        got = measurement.dtype if isinstance(measurement, Tensor) else type(measurement).__name__
        raise TypeError(f"measurement is a tensor, uint8 or float in units of [0, 1]; got {got}.")
    n = len(measurement) if measurement.ndim else 0
    a = a.prepared(max(n, 1), shape, device)
    out = a.out_shape(shape)
    if n < 1 or tuple(measurement.shape[1:]) != out:
        raise ValueError(
            f"Of images of shape {shape} this operator makes measurements (n,"
            f" {', '.join(map(str, out))}) with n ≥ 1; got {tuple(measurement.shape)}."
        )
    r = resolve_noise(a, noise_std)
    known = a.known()
    y = measurement.float() / 255.0 if measurement.dtype == torch.uint8 else measurement.float()
    y = y if known is None else torch.where(known.to(y.device), y, 0.0)
    check_values(y, a, r)
    y = y.to(device)
    ones = a.apply(torch.ones(1, *shape, device=device).expand(n, *shape))
    return Problem(a, 2.0 * y - ones, 2.0 * r, shape)


def resolve_noise(operator: Operator, noise_std: float | None) -> float:
    """Return the standard deviation of a measurement's noise, in units of [0, 1].

    Raises:
        ValueError: If it is said twice, or out of range.
    """
    if noise_std is None:
        return operator.noise_std or ROUNDING
    check_noise(noise_std, option("noise_std"), option("noise_std", 0.05))
    if operator.noise_std:
        raise ValueError(
            f"The operator says its noise, {operator.noise_std:g}, and so does"
            f" {option('noise_std', noise_std)}. Say it once."
        )
    return float(noise_std)


def check_values(y: Tensor, operator: Operator, noise_std: float) -> None:
    """Refuse measurements of images in other units.

    Raises:
        ValueError: If values are not finite, or no image in [0, 1] could have them.
    """
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError("The measurement holds NaN or infinite values.")
    room = 0.3 + 6.0 * noise_std
    if operator.averages and not -room <= low <= high <= 1.0 + room:
        raise ValueError(
            f"The measurement must be in units in which images lie in [0, 1], and noise of"
            f" {noise_std:.2g} does not take it to [{low:.3g}, {high:.3g}]. For [-1, 1] pass (y +"
            " 1) / 2; for 0 … 255 pass uint8."
        )
