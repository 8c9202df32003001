"""Offset noise, perturbed inputs, immiscible noise, learned uncertainty, self-conditioning, told
augmentation.
"""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.nn import SelfCondition
from ddpm_lib.process.noising import Noising, assignment
from ddpm_lib.process.uncertainty import Uncertainty
from ddpm_lib.training import ConfigError, load_run
from ddpm_lib.training.augmentation import AUGMENT_DIM, AUGMENT_DRAWS, augment, transformations
from process_tools import TinyNet
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_trainer


class Recorder(TinyNet):
    """Keeps what it was shown."""

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        self.seen = x.detach().clone()
        return super().forward(x, t, cond)


def test_offset_noise_is_constant_over_a_channel_and_is_the_target_too() -> None:
    torch.manual_seed(0)
    x0, eps = torch.zeros(4000, 2, 3, 3), torch.zeros(4000, 2, 3, 3)
    target, added = Noising(offset=0.3)(x0, eps)
    assert torch.equal(target, added)
    assert torch.equal(target, target[:, :, :1, :1].expand_as(target))
    assert float(target.std()) == pytest.approx(0.3, rel=0.03)
    assert float((target[:, 0, 0, 0] * target[:, 1, 0, 0]).mean()) == pytest.approx(0, abs=0.006)


def test_perturbed_inputs_keep_the_target() -> None:
    torch.manual_seed(0)
    x0, eps = torch.zeros(2000, 1, 4, 4), torch.randn(2000, 1, 4, 4)
    target, added = Noising(perturbation=0.1)(x0, eps)
    assert target is eps
    assert float((added - eps).std()) == pytest.approx(0.1, rel=0.02)
    assert float(((added - eps) * eps).mean()) == pytest.approx(0, abs=0.002)


def test_immiscible_noise_is_the_best_permutation_and_is_the_target_too() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 2, 2, 2, generator=generator) for _ in range(2))
    cost = (x0[:, None] - eps).flatten(2).square().sum(2)
    best = min(itertools.permutations(range(5)), key=lambda p: float(cost[range(5), p].sum()))
    assert assignment(x0, eps).tolist() == list(best)
    target, added = Noising(immiscible=True)(x0, eps)
    assert torch.equal(target, eps[list(best)])
    assert torch.equal(target, added)


@pytest.mark.parametrize(
    "variant",
    [{"offset_noise": 0.2}, {"input_perturbation": 0.2}, {"immiscible": True}, {"noise_draws": 3}],
)
def test_variants_change_training_only(variant: dict) -> None:
    """The same images, levels and noise: another loss while training, the plain one in evaluation
    mode.
    """
    torch.manual_seed(0)
    images, noise, t = torch.rand(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.arange(5, 35, 5)
    plain, varied = (
        GaussianDiffusion(Recorder(), image_size=4, timesteps=40, **v) for v in ({}, variant)
    )
    losses = [d(images, t=t, noise=noise) for d in (plain, varied)]
    assert losses[0] != losses[1]
    assert not torch.equal(plain.model.seen, varied.model.seen)
    losses = [d.eval()(images, t=t, noise=noise) for d in (plain, varied)]
    assert torch.equal(*losses)
    assert GaussianDiffusion(Recorder(), **varied.config).config == varied.config


def test_immiscible_loss_is_that_of_the_permuted_noise() -> None:
    """The permuted noise must be in x_t and in the target: a peer forgets the target."""
    torch.manual_seed(0)
    images, noise, t = torch.rand(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.arange(5, 35, 5)
    d = GaussianDiffusion(TinyNet(), image_size=4, timesteps=40, immiscible=True)
    order = assignment(images * 2 - 1, noise)
    assert order.tolist() != list(range(6))
    expected = d.eval()(images, t=t, noise=noise[order])
    torch.testing.assert_close(d.train()(images, t=t, noise=noise), expected)


def test_strengths_are_checked() -> None:
    for name in ("offset_noise", "input_perturbation"):
        for wrong in (-0.1, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be a finite number ≥ 0"):
                GaussianDiffusion(TinyNet(), image_size=4, **{name: wrong})


def test_uncertainty_starts_at_nothing() -> None:
    torch.manual_seed(0)
    images, noise, t = torch.rand(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([1, 20, 40])
    plain, learned = (
        GaussianDiffusion(TinyNet(), image_size=4, timesteps=40, learn_uncertainty=v)
        for v in (False, True)
    )
    torch.testing.assert_close(plain(images, t=t, noise=noise), learned(images, t=t, noise=noise))
    before = torch.get_rng_state()
    Uncertainty()
    assert torch.equal(before, torch.get_rng_state())


def test_uncertainty_learns_the_logarithm_of_the_loss() -> None:
    """Losses that are a known function of the log-SNR, three orders of magnitude apart."""
    torch.manual_seed(0)
    module = Uncertainty()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)

    def truth(log_snr: Tensor) -> Tensor:
        return 0.02 + torch.sigmoid(log_snr)

    for _ in range(600):
        log_snr = 20.0 * torch.rand(256) - 10.0
        losses = truth(log_snr) * 0.5 * torch.randn(256, 2).square().sum(1)
        u = module(log_snr)
        optimizer.zero_grad()
        (losses * torch.exp(-u) + u).mean().backward()
        optimizer.step()
    grid = torch.linspace(-9, 9, 50)
    with torch.no_grad():
        error = module(grid) - truth(grid).log()
    assert float(error.abs().mean()) < 0.15
    assert torch.isfinite(module(torch.tensor([math.inf, -math.inf]))).all()


def test_uncertainty_is_saved_resumed_and_loaded(tmp_path: Path) -> None:
    def process() -> GaussianDiffusion:
        torch.manual_seed(0)
        return GaussianDiffusion(
            Unet(dim=8, dim_mults=(1,), blocks_per_level=1),
            image_size=8,
            timesteps=20,
            learn_uncertainty=True,
        )

    tiny_trainer(tmp_path / "whole", process()).train()
    tiny_trainer(tmp_path / "cut", process(), callbacks=[StopAt(3)]).train()
    tiny_trainer(tmp_path / "cut", process()).train()
    whole = final_tensors(tmp_path / "whole")
    assert float(whole["uncertainty:weight"].abs().max()) > 0
    assert_same_tensors(whole, final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    loaded = load_run(tmp_path / "cut").diffusion
    assert torch.equal(loaded.uncertainty.weight, whole["uncertainty:weight"])
    assert loaded.sample(1, num_steps=2).shape == (1, 3, 8, 8)


def test_the_bound_refuses_uncertainty() -> None:
    with pytest.raises(ValueError, match="learn_uncertainty balances the noise levels"):
        GaussianDiffusion(TinyNet(), image_size=4, loss="vlb", learn_uncertainty=True)


class SelfNet(nn.Module):
    """Predicts x_0 as half of what it is shown of itself plus a tenth of x_t; keeps what it was
    shown.
    """

    channels = 1

    def __init__(self, drop_prob: float = 0.5) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict({"self_cond": SelfCondition(1, drop_prob)})
        self.shown: list[Tensor | None] = []
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        own = (cond or {}).get("self_cond")
        self.shown.append(own)
        self.inputs.append(x)
        return 0.1 * x + (0.0 if own is None else 0.5 * own)


def self_diffusion(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(
        SelfNet(),
        image_size=4,
        timesteps=40,
        parametrization="x0",
        weighting="flat",
        **{"clip": "none", **options},
    )


def test_training_shows_the_estimate_to_half_of_the_images() -> None:
    d = self_diffusion()
    images, noise, t = (
        torch.rand(4, 1, 4, 4),
        torch.randn(4, 1, 4, 4),
        torch.tensor([5, 10, 20, 40]),
    )
    hide = torch.tensor([True, False, True, False])
    loss = d(images, t=t, noise=noise, drop={"self_cond": hide}, reduction="none")
    x_t = d.q_sample(images, t, noise)
    first, second = d.model.shown
    assert first is None
    torch.testing.assert_close(second, torch.where(hide.view(-1, 1, 1, 1), 0.0, 0.1 * x_t))
    expected = (0.1 * x_t + 0.5 * second - (2 * images - 1)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)
    # Drawn by itself, half of the images see one; in evaluation mode all do.
    torch.manual_seed(0)
    d(images.repeat(64, 1, 1, 1), t=t.repeat(64))
    share = float((d.model.shown[-1].flatten(1).abs().sum(1) > 0).float().mean())
    assert 0.4 < share < 0.6
    d.eval()(images, t=t, noise=noise)
    torch.testing.assert_close(d.model.shown[-1], 0.1 * x_t)


def test_nobody_is_asked_first_if_everybody_is_hidden() -> None:
    d = self_diffusion()
    d(torch.rand(2, 1, 4, 4), drop={"self_cond": torch.tensor([True, True])})
    assert len(d.model.shown) == 1
    assert not d.model.shown[0].any()


def test_sampling_shows_the_estimate_before() -> None:
    d = self_diffusion()
    d.sample(2, sampler="ddim", num_steps=3, x_T=torch.randn(2, 1, 4, 4), batch_size=1)
    first, second, third = d.model.shown[:3]
    assert first is not None
    assert not first.any()  # the null, filled in
    # The network says 0.1·x + 0.5·(what it is shown), and that is what it is shown next.
    x_T = d.model.inputs[0]
    torch.testing.assert_close(second, 0.1 * x_T)
    torch.testing.assert_close(third, 0.1 * d.model.inputs[1] + 0.5 * second)
    assert not d.model.shown[3].any()  # the second batch begins with the null again


def test_self_conditioning_and_guidance() -> None:
    """Both halves of guidance see the estimate, and the label of a hidden row does not leak through
    it.
    """
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, num_classes=3, self_condition=True)
    nn.init.normal_(model.conv_out.weight, std=0.1)
    d = GaussianDiffusion(model, image_size=8, timesteps=20)
    calls: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(dict(args[2] or {})))
    images = torch.rand(4, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 0])
    hide = torch.tensor([True, True, False, False])
    d(images, {"class_label": labels}, drop={"class_label": hide, "self_cond": ~hide})
    asked_first, then = calls
    assert asked_first["class_label"].tolist() == [-1, -1]  # rows 0 and 1, whose labels are hidden
    assert then["class_label"].tolist() == [-1, -1, 2, 0]
    calls.clear()
    d.sample(2, cond={"class_label": 1}, guidance_scale=3.0, num_steps=3)
    assert [c["class_label"].tolist() for c in calls] == [[1, 1, -1, -1]] * 3
    for c in calls[1:]:
        with_label, without = c["self_cond"].chunk(2)
        assert with_label.abs().sum() > 0
        assert torch.equal(with_label, without)


def test_self_conditioned_samples_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, self_condition=True)
    nn.init.normal_(model.conv_out.weight, std=0.1)
    d = GaussianDiffusion(model, image_size=8, timesteps=20)
    whole = d.sample(3, num_steps=4, sampler="heun")
    torch.testing.assert_close(
        whole, d.sample(3, num_steps=4, sampler="heun", batch_size=2), rtol=0, atol=1e-5
    )


def test_self_conditioning_resumes_exactly(tmp_path: Path) -> None:
    def process() -> GaussianDiffusion:
        torch.manual_seed(0)
        model = Unet(
            dim=8,
            dim_mults=(1,),
            blocks_per_level=1,
            dropout=0.1,
            self_condition=True,
            num_classes=6,
        )
        return GaussianDiffusion(
            model, image_size=8, timesteps=20, immiscible=True, offset_noise=0.1
        )

    options = {"accumulation_steps": 3, "val_every": 3, "val_fraction": 0.2}
    tiny_trainer(tmp_path / "whole", process(), **options).train()
    tiny_trainer(tmp_path / "cut", process(), callbacks=[StopAt(4)], **options).train()
    tiny_trainer(tmp_path / "cut", process(), **options).train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


def done(**changes: float) -> Tensor:
    """Uniform numbers for which nothing is done but what the changes say."""
    u = torch.ones(1, AUGMENT_DRAWS, dtype=torch.float64) - 1e-6
    for k, value in changes.items():
        u[0, int(k.removeprefix("u"))] = value
    return u


IMAGE = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def test_nothing_done_is_exact() -> None:
    images = torch.randint(0, 256, (1, 3, 6, 8), dtype=torch.uint8)
    unit, labels = augment(images, done(), 0.5)
    assert torch.equal(unit, images / 255.0)
    assert not labels.any()


def test_flips_are_exact_and_said() -> None:
    for k, axis in ((0, -1), (1, -2)):
        made, labels = augment(IMAGE, done(**{f"u{k}": 0.2}), 0.5)
        assert torch.equal(made, IMAGE.flip(axis))
        assert labels[0].nonzero().flatten().tolist() == [k]
        # A flip comes with half the probability.
        assert not augment(IMAGE, done(**{f"u{k}": 0.3}), 0.5)[1].any()


def test_a_quarter_turn() -> None:
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made, labels = augment(image, done(u4=0.1, u5=0.75), 0.5)
    assert labels[0, 3:5].tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)
    # y points down: a positive angle turns clockwise.
    torch.testing.assert_close(made, image.rot90(-1, (-2, -1)), rtol=0, atol=1e-4)


def test_a_shift_of_whole_pixels() -> None:
    image = torch.zeros(1, 1, 8, 16)
    image[..., 3, 5] = 1.0
    one = float(torch.special.ndtr(torch.tensor(1.0, dtype=torch.float64)))
    made, labels = augment(image, done(u9=0.1, u10=one, u11=one), 0.5)
    assert labels[0, 7:].tolist() == pytest.approx([0.125, 0.125], rel=1e-5)
    assert [int(v) for v in made[0, 0].argmax().unsqueeze(0).div(16, rounding_mode="floor")] == [4]
    assert int(made[0, 0].argmax()) % 16 == 7
    assert float(made.max()) == pytest.approx(1.0, abs=1e-4)


def test_scale_and_stretch_change_distances_as_said() -> None:
    """Two bright spots: their distance after the transformation is the matrix's."""
    image = torch.zeros(1, 1, 65, 65)
    image[..., 32, 22], image[..., 32, 42] = 1.0, 1.0
    image[..., 22, 32], image[..., 42, 32] = 1.0, 1.0
    image = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    five = float(torch.special.ndtr(torch.tensor(2.0, dtype=torch.float64)))

    def spread(made: Tensor) -> tuple[float, float]:
        mass = made[0, 0].double()
        place = torch.arange(65).double() - 32
        total = mass.sum()
        across, down = (mass.sum(d) @ place.square() / total for d in (0, 1))
        return float(across.sqrt()), float(down.sqrt())

    before = spread(image)
    made, labels = augment(image, done(u2=0.1, u3=five), 0.5)
    assert float(labels[0, 2]) == pytest.approx(0.4, rel=1e-5)
    assert spread(made) == pytest.approx([2**0.4 * v for v in before], rel=0.03)
    made, labels = augment(image, done(u6=0.1, u7=five, u8=0.5), 0.5)
    assert labels[0, 5:7].tolist() == pytest.approx([0.4, 0.0], abs=1e-5)
    across, down = spread(made)
    assert across == pytest.approx(2**0.4 * before[0], rel=0.03)
    assert down == pytest.approx(2**-0.4 * before[1], rel=0.05)


def test_rates_of_transformations() -> None:
    u = torch.rand(
        20_000, AUGMENT_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    labels = transformations(u, 0.3)
    assert labels.shape == (20_000, AUGMENT_DIM)
    rates = (labels != 0).float().mean(0).tolist()
    assert rates == pytest.approx([0.15, 0.15, *[0.3] * 7], abs=0.012)
    assert not transformations(u, 0.0).any()
    clean = float((labels == 0).all(1).float().mean())
    assert clean == pytest.approx(0.85**2 * 0.7**4, abs=0.012)  # what sampling asks for is seen


def test_augmented_training(tmp_path: Path) -> None:
    def process() -> GaussianDiffusion:
        torch.manual_seed(0)
        model = Unet(
            dim=8, dim_mults=(1,), blocks_per_level=1, augment_dim=AUGMENT_DIM, num_classes=6
        )
        return GaussianDiffusion(model, image_size=8, timesteps=20)

    options = {
        "augment": 0.4,
        "accumulation_steps": 2,
        "val_every": 3,
        "val_fraction": 0.2,
        "sample_every": 6,
        "sample_steps": 2,
    }
    tiny_trainer(tmp_path / "whole", process(), **options).train()
    tiny_trainer(tmp_path / "cut", process(), callbacks=[StopAt(4)], **options).train()
    tiny_trainer(tmp_path / "cut", process(), **options).train()
    whole = final_tensors(tmp_path / "whole")
    assert_same_tensors(whole, final_tensors(tmp_path / "cut"))
    assert (
        float(whole["optimizer:model.conditioners.augment.linear.weight|exp_avg"].abs().sum()) > 0
    )
    assert load_run(tmp_path / "cut").diffusion.sample(
        2, num_steps=2, cond={"class_label": 1}
    ).shape == (2, 3, 8, 8)


def test_augmentation_and_network_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"augment_dim={AUGMENT_DIM}; horizontal_flip works"):
        tiny_trainer(tmp_path, augment=0.1)
    plain = {"dim": 8, "dim_mults": (1,), "blocks_per_level": 1}
    told = GaussianDiffusion(Unet(**plain, augment_dim=AUGMENT_DIM), image_size=8)
    with pytest.raises(ConfigError, match="nothing is augmented"):
        tiny_trainer(tmp_path, told)
    with pytest.raises(ConfigError, match="got augment_dim=4"):
        tiny_trainer(
            tmp_path, GaussianDiffusion(Unet(**plain, augment_dim=4), image_size=8), augment=0.1
        )
    flat = GaussianDiffusion(Unet(**plain, augment_dim=AUGMENT_DIM, dims=1), image_size=(8,))
    with pytest.raises(ConfigError, match="1 spatial dimensions"):
        tiny_trainer(tmp_path, flat, augment=0.1)
    with pytest.raises(ConfigError, match=r"augment must lie in \[0, 1\]"):
        tiny_trainer(tmp_path, told, augment=1.5)


def test_nearest_draws_have_the_law_of_the_nearest() -> None:
    """One pixel at x_0 = m: of k draws the nearest has the density k·φ(ε)·(1 − P(|z − m| < |ε −
    m|))^(k−1), whose moments a quadrature gives.
    """
    m, k = 0.8, 4
    normal = torch.distributions.Normal(0.0, 1.0)
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    radius = (grid - m).abs()
    inside = normal.cdf(m + radius) - normal.cdf(m - radius)
    density = k * normal.log_prob(grid).exp() * (1 - inside) ** (k - 1)
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-6)
    mean = float(torch.trapezoid(density * grid, grid))
    square = float(torch.trapezoid(density * grid**2, grid))
    torch.manual_seed(0)
    x0 = torch.full((200_000, 1, 1), m)
    target, added = Noising(draws=k)(x0, torch.randn_like(x0))
    assert target is added
    assert float(target.mean()) == pytest.approx(mean, abs=0.005)
    assert float(target.square().mean()) == pytest.approx(square, abs=0.01)
    assert mean > 0.5  # it is no standard normal any more, and tells of the image
    # What it tells is ln k at most: the mean of the logarithm of the density over that of draws.
    told = density * (k * (1 - inside) ** (k - 1)).clamp(min=1e-300).log()
    assert 0 < float(torch.trapezoid(told, grid)) < math.log(k)


@pytest.mark.parametrize(("k", "largest"), [(2, 0.5642), (4, 1.0294), (8, 1.4236)])
def test_nearest_draws_in_many_dimensions(k: int, largest: float) -> None:
    """The shifts that the docstring derives, towards the image and of the norm."""
    torch.manual_seed(0)
    d = 3 * 16 * 16
    x0 = 0.5 * torch.randn(4000, 3, 16, 16)
    eps = Noising(draws=k)(x0, torch.randn_like(x0))[0].flatten(1)
    flat = x0.flatten(1)
    norm = flat.norm(dim=1)
    spread = (2 * d + 4 * norm**2).sqrt()
    towards = (eps * flat).sum(1) / norm - 2 * largest * norm / spread
    shorter = eps.square().sum(1) - d + 2 * largest * d / spread
    for away in (towards, shorter):
        assert abs(float(away.mean())) < 4 * float(away.std()) / len(away) ** 0.5
    assert float(((eps * flat).sum(1) / norm).mean()) > 0.2


def test_an_assignment_keeps_the_noise_and_nearest_draws_do_not() -> None:
    torch.manual_seed(0)
    x0, eps = torch.full((64, 1, 2, 2), 0.7), torch.randn(64, 1, 2, 2)
    assigned, _ = Noising(immiscible=True)(x0, eps)
    rows = [sorted(map(tuple, noise.flatten(1).tolist())) for noise in (assigned, eps)]
    assert rows[0] == rows[1]
    nearest, _ = Noising(draws=8)(x0, eps)
    assert float(nearest.mean()) > float(eps.mean()) + 0.2
    both, _ = Noising(draws=8, immiscible=True)(x0, eps)
    assert both.shape == eps.shape


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "4"])
def test_numbers_of_draws_are_checked(wrong: object) -> None:
    with pytest.raises(ValueError, match="noise_draws must be a whole number"):
        GaussianDiffusion(TinyNet(), image_size=4, noise_draws=wrong)
