"""Guidance by a worse version: a closed form, what it composes with, what is refused."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data.measurements.normalization import Curve, Normalization
from ddpm_lib.guidance import Guidance
from ddpm_lib.process.autoguidance import GUIDE_SCALE, partner_of
from ddpm_lib.schedules import Schedule
from process_tools import TinyNet, gaussian_diffusion

COSINE = Schedule.make("cosine", 1000)
DRAW = {"sampler": "ddim", "num_steps": 4}


def pixel(spread: float, parametrization: str = "v") -> GaussianDiffusion:
    mean, std = (torch.full((1, 1, 1), v, dtype=torch.float64) for v in (0.0, spread))
    return gaussian_diffusion(mean, std, COSINE, parametrization)


@pytest.mark.every(3)
@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("parametrization", ["eps", "x0", "v"])
def test_two_gaussians_give_the_closed_form(parametrization: str, scale: float) -> None:
    """Along the probability flow, y = x/α and s = σ/α follow dy/ds = s·y·(w/(S₁² + s²) −
    (w − 1)/(S₂² + s²)), where S₁ and S₂ are what the network and its partner believe the data's
    deviation to be.
    """
    mine, theirs = 0.5, 0.8
    main, partner = pixel(mine, parametrization), pixel(theirs, parametrization)
    start = torch.tensor([[[[1.0]]]], dtype=torch.float64)
    got = main.sample(x_T=start, num_steps=1000, guide_by=partner, guide_scale=scale) * 2 - 1
    level = COSINE.level(1000)
    s = level.sigma / level.alpha

    def shrinks(spread: float) -> float:
        return math.sqrt(spread**2 / (spread**2 + s**2))

    expected = (1 / level.alpha) * shrinks(mine) ** scale * shrinks(theirs) ** (1 - scale)
    assert float(got) == pytest.approx(expected, rel=0.02)


def classy(seed: int, dim: int = 8, **options: object) -> GaussianDiffusion:
    torch.manual_seed(seed)
    network = Unet(
        dim=dim, dim_mults=(1,), channels=1, num_classes=3, class_drop_prob=0.1, **options
    )
    for parameter in network.parameters():  # a fresh network returns 0
        torch.nn.init.normal_(parameter, std=0.2)
    return GaussianDiffusion(network, image_size=8, channels=1, timesteps=20).eval()


def test_scale_1_is_plain_sampling_and_never_calls_the_partner() -> None:
    main, partner = classy(0), classy(1)
    calls: list[int] = []
    partner.model.register_forward_hook(lambda *_: calls.append(1))
    cond = {"class_label": 1}
    plain = main.sample(2, cond=cond, **DRAW)
    assert torch.equal(plain, main.sample(2, cond=cond, guide_by=partner, guide_scale=1, **DRAW))
    assert not calls
    usual = main.sample(2, cond=cond, guide_by=partner, **DRAW)
    asked = main.sample(2, cond=cond, guide_by=partner, guide_scale=GUIDE_SCALE, **DRAW)
    assert torch.equal(usual, asked)
    assert not torch.equal(usual, plain)
    assert calls


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_it_adds_up_with_guidance_by_classes_at_each_level(scale: float, rescale: float) -> None:
    main, partner = classy(0), classy(1)
    x, level = torch.randn(2, 1, 8, 8), main.schedule.level(12)
    cond, null = ({"class_label": torch.full((2,), k)} for k in (1, -1))
    found, _ = partner_of(main, partner, 3.0)
    guidance = Guidance(scale, rescale=rescale, partner=found, partner_scale=3.0)
    raw = main.denoiser.raw
    time = torch.full((2,), 11.0)
    own, without = (raw(x, level.alpha, level.sigma, time, c)[0] for c in (cond, null))
    other = partner.denoiser.raw(x, level.alpha, level.sigma, time, cond)[0]
    expected = own + (scale - 1) * (own - without) + 2.0 * (own - other)
    if rescale:
        spread = [v.std((1, 2, 3), correction=0, keepdim=True) for v in (own, expected)]
        expected = expected * (rescale * spread[0] / spread[1] + 1 - rescale)
    clean = main.denoiser.clean(x, expected, level.alpha, level.sigma)
    got = main.denoise(x, level, cond, guidance=guidance).x0
    torch.testing.assert_close(got, clean, rtol=1e-4, atol=1e-5)


def test_the_interval_holds_for_the_partner() -> None:
    main, partner = classy(0), classy(1)
    times: list[float] = []
    partner.model.register_forward_hook(lambda _, args, __: times.append(float(args[1][0])))
    main.sample(1, num_steps=20, guide_by=partner, guidance_interval=(0.3, 0.6))
    assert times
    assert all(0.3 < (t + 1) / 20 <= 0.6 for t in times)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "partner",
    [
        classy(1),
        classy(1, dim=16),
        SimpleNamespace(diffusion=classy(1)),
        classy(1).model,
        GaussianDiffusion(TinyNet(1), image_size=8, channels=1, timesteps=20),
    ],
    ids=["process", "larger", "loaded run", "network", "without classes"],
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "unipc", "heun"])
def test_samplers_and_partners(sampler: str, partner: object) -> None:
    main = classy(0)
    cond = {"class_label": [0, 2]}
    options = {"sampler": sampler, "num_steps": 4, "guide_by": partner}
    both = main.sample(2, cond=cond, **options)
    assert torch.isfinite(both).all()
    second = main.sample(1, cond={"class_label": 2}, first_index=1, **options)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)
    assert not torch.equal(both, main.sample(2, cond=cond, sampler=sampler, num_steps=4))


def test_self_conditioned_networks_guide_and_are_guided() -> None:
    plain, own = classy(0), classy(1, self_condition=True)
    for main, partner in [(plain, own), (own, plain), (own, classy(2, self_condition=True))]:
        images = main.sample(2, guide_by=partner, num_steps=4)
        assert torch.isfinite(images).all()
        assert not torch.equal(images, main.sample(2, num_steps=4))


def test_a_partner_in_training_mode_is_evaluated_and_stays_in_it() -> None:
    main, partner = classy(0), classy(1, dropout=0.5).train()
    first, second = (main.sample(1, guide_by=partner, **DRAW) for _ in range(2))
    assert torch.equal(first, second)
    assert partner.model.training


def test_edit_and_inpaint_take_a_partner() -> None:
    main, partner = classy(0), classy(1)
    images = torch.rand(2, 1, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:4] = 1

    def results(**options: object) -> list[Tensor]:
        return [
            main.edit(images, 0.5, num_steps=4, **options),
            main.inpaint(images, mask, num_steps=4, num_resamples=1, **options),
        ]

    for plain, guided in zip(results(), results(guide_by=partner, guide_scale=2.5)):
        assert torch.isfinite(guided).all()
        assert not torch.equal(plain, guided)


def other(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(
        TinyNet(1), **{"image_size": 8, "channels": 1, "timesteps": 20, **options}
    )


@pytest.mark.parametrize(
    ("partner", "said"),
    [
        (other(image_size=16), "shape"),
        (other(timesteps=30), "timesteps 30 instead of 20"),
        (other(schedule="linear"), "schedule"),
        (other(parametrization="eps"), "parametrization"),
        (
            GaussianDiffusion(
                Unet(dim=8, dim_mults=(1,), channels=1, num_classes=4, class_drop_prob=0.1),
                image_size=8,
                channels=1,
                timesteps=20,
            ),
            "4 classes instead of 3",
        ),
        (
            GaussianDiffusion(
                Unet(dim=8, dim_mults=(1, 1), channels=1, low_res_factor=2),
                image_size=8,
                channels=1,
                timesteps=20,
            ),
            "needs the condition 'low_res",
        ),
    ],
    ids=["size", "timesteps", "schedule", "parametrization", "classes", "low-res"],
)
def test_a_partner_of_another_process_is_refused(partner: GaussianDiffusion, said: str) -> None:
    with pytest.raises(ConfigError, match=r"another process.*" + said):
        classy(0).sample(1, guide_by=partner)


def test_other_class_names_are_refused() -> None:
    main, partner = classy(0), classy(1)
    main.class_names, partner.class_names = ("a", "b", "c"), ("c", "b", "a")
    with pytest.raises(ConfigError, match="classes c, b, a instead of a, b, c"):
        main.sample(1, guide_by=partner)


def told(name: str = "mood", **spec: object) -> GaussianDiffusion:
    network = Unet(dim=8, dim_mults=(1,), channels=1, conditions={name: spec})
    return GaussianDiffusion(network, image_size=8, channels=1, timesteps=20).eval()


@pytest.mark.parametrize(
    ("spec", "same", "different"),
    [
        ({"kind": "label", "names": ["sad", "gay"]}, {"drop_prob": 0.3}, {"names": ["gay", "sad"]}),
        ({"kind": "tags", "names": ["a", "b"]}, {}, {"names": ["b", "a"]}),
        ({"kind": "angle", "period": 360.0}, {}, {"period": 24.0}),
        ({"kind": "mask", "classes": 2}, {"names": ["a", "b"]}, {"classes": 3}),
        ({"kind": "vector", "size": 2}, {"mean": [1, 1], "std": [2, 2]}, {"size": 3}),
        ({"kind": "number"}, {"mean": 3.0, "std": 2.0, "low": 0.0, "high": 9.0}, {"kind": "angle"}),
    ],
    ids=["label", "tags", "angle", "mask", "vector", "number"],
)
def test_conditions_that_mean_something_else_are_refused(
    spec: dict[str, Any], same: dict[str, Any], different: dict[str, Any]
) -> None:
    """A partner that takes "sad" for "gay" would guide to the wrong pictures without a word."""
    main = told(**spec)
    partner_of(main, told(**{**spec, **same}), None)
    partner_of(main, told("other", **{**spec, **different}), None)  # which is then not told
    with pytest.raises(ConfigError, match=r"another process: the condition 'mood' is"):
        partner_of(main, told(**{**spec, **different}), None)


def test_other_measured_values_are_refused() -> None:
    def measured(high: float) -> GaussianDiffusion:
        process = classy(0)
        curve = Curve(np.array([0.0, high]), np.array([0.0, 1.0]))
        process.normalization = Normalization("affine", "float32", (curve,), "HU")
        return process

    main = measured(1000.0)
    partner_of(main, SimpleNamespace(diffusion=measured(1005.0)), None)  # a part of the same data
    for partner, said in ((measured(2000.0), "2,000 HU"), (classy(1), "pictures instead of")):
        with pytest.raises(ConfigError, match=rf"another process: .*{said}"):
            partner_of(main, SimpleNamespace(diffusion=partner), None)
    with pytest.raises(ConfigError, match="instead of pictures"):
        partner_of(classy(1), main, None)


def test_a_strength_without_a_partner_and_a_path_as_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"guide_scale=2\.0 needs a worse version"):
        classy(0).sample(1, guide_scale=2.0)
    with pytest.raises(TypeError, match=r"must be a GaussianDiffusion.*'runs/x'"):
        classy(0).sample(1, guide_by="runs/x")
