import inspect
import json
import math

import numpy as np
import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddpm_lib.core import spelling
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.guidance import Guidance
from ddpm_lib.nn import Conditioner
from ddpm_lib.parametrization import PARAMETRIZATIONS, X0
from ddpm_lib.process.cascade import Cascade, Stage
from ddpm_lib.process.clipping import dynamic_threshold
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import TIME_SAMPLERS, Stratified, Uniform
from ddpm_lib.training.sampling import sample_shared
from ddpm_lib.variance import FixedLarge
from ddpm_lib.weighting import P2, WEIGHTINGS, MinSNR, Weighting
from process_tools import TinyNet


def tiny(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), **{"image_size": 4, "timesteps": 20, **options})


class Label(Conditioner):
    """The least that a conditioner has to say."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__("class_label", drop_prob)

    def null_like(self, value: Tensor) -> Tensor:
        return torch.full_like(value, -1)

    def null_for(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), -1)

    def validate(self, value: Tensor, batch: int) -> None:
        if value.shape != (batch,):
            raise ValueError("class_label must have one entry per sample")


class LabelNet(nn.Module):
    """Says the label, so that the test sees what reached the network."""

    channels = 3

    def __init__(self, drop_prob: float = 0.5) -> None:
        super().__init__()
        self.conditioners = {"class_label": Label(drop_prob)}
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.calls.append(cond["class_label"])
        return cond["class_label"].view(-1, 1, 1, 1).to(x) * torch.linspace(
            0.1, 0.3, x[0].numel()
        ).view(x[0].shape).to(x)


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(list(PARAMETRIZATIONS)), log_snr=st.floats(-15, 15))
def test_the_target_gives_back_the_image(name: str, log_snr: float) -> None:
    p = PARAMETRIZATIONS[name]()
    alpha = torch.tensor(1 / (1 + math.exp(-log_snr)), dtype=torch.float64).sqrt()
    sigma = torch.tensor(1 / (1 + math.exp(log_snr)), dtype=torch.float64).sqrt()
    x0, eps = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = alpha * x0 + sigma * eps
    back = p.c_skip(alpha, sigma) * x_t + p.c_out(alpha, sigma) * p.target(x0, eps, alpha, sigma)
    # eps divides by α, which is 5e-4 at the noisiest.
    torch.testing.assert_close(back, x0, rtol=1e-11, atol=1e-11)
    assert p.c_skip(float(alpha), float(sigma)) == pytest.approx(float(p.c_skip(alpha, sigma)))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_weighting_identities(schedule: str) -> None:
    """The same w is L_simple for eps, uniform for v and so on (DESIGN: one weighting for every
    parametrization).
    """

    def weights(parametrization: str, weighting: str, **options: float) -> Tensor:
        d = tiny(
            schedule=schedule,
            parametrization=parametrization,
            weighting=weighting,
            weighting_options=options,
        )
        assert float(d.loss_weights[0]) == 0
        return d.loss_weights[1:]

    snr = Schedule.make(schedule, 20).snr[1:]
    one = torch.ones_like(snr)
    expected = {
        ("eps", "simple"): one,
        ("x0", "simple"): snr,
        ("v", "simple"): snr / (snr + 1),
        ("eps", "flat"): 1 / snr,
        ("x0", "flat"): one,
        ("v", "snr_plus_one"): one,
        ("eps", "min_snr"): snr.clamp(max=5) / snr,
        ("v", "min_snr"): snr.clamp(max=5) / (snr + 1),
        ("eps", "p2"): 1 / (1 + snr),
    }
    for (parametrization, weighting), value in expected.items():
        torch.testing.assert_close(weights(parametrization, weighting), value, rtol=1e-11, atol=0)
    torch.testing.assert_close(weights("eps", "p2", gamma=0.0), one, rtol=1e-11, atol=0)
    assert float(weights("x0", "min_snr", gamma=2.0).max()) == 2


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_is_the_same_in_every_parametrization(weighting: str) -> None:
    """A network that knows x̂_0 has the same loss whichever way it says it."""
    torch.manual_seed(0)
    images, guess, noise = (
        torch.rand(6, 3, 4, 4).double(),
        torch.randn(6, 3, 4, 4).double(),
        torch.randn(6, 3, 4, 4).double(),
    )
    losses = []
    for name, cls in PARAMETRIZATIONS.items():
        p, schedule = cls(), Schedule.make("cosine", 20)

        class Net(nn.Module):
            channels = 3

            def forward(self, x: Tensor, t: Tensor, cond: None, p=p, schedule=schedule) -> Tensor:
                alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t.long() + 1))
                x = x / p.scale_input(torch.ones(1, dtype=torch.float64), alpha, sigma)
                return p.target(guess, (x - alpha * guess) / sigma, alpha, sigma)

        d = GaussianDiffusion(
            Net(), image_size=4, schedule=schedule, parametrization=name, weighting=weighting
        )
        losses.append(
            d(images, t=torch.tensor([1, 2, 5, 10, 19, 20]), noise=noise, reduction="none")
        )
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-9, atol=0)


def test_loss_of_the_default_against_its_formula() -> None:
    d = tiny()
    images, noise = torch.rand(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    t = torch.tensor([1, 7, 13, 20])
    with torch.no_grad():
        losses = d(images, t=t, noise=noise, reduction="none")
    assert losses.dtype == torch.float32
    for i, level in enumerate(d.schedule.level(int(k)) for k in t):
        x0 = images[i : i + 1] * 2 - 1
        x_t = level.alpha * x0 + level.sigma * noise[i : i + 1]
        v = level.alpha * noise[i : i + 1] - level.sigma * x0
        error = (d.model(x_t, torch.tensor([level.t - 1.0])) - v).square().mean()
        assert float(losses[i]) == pytest.approx(
            error.item() * min(level.snr, 5) / (level.snr + 1), rel=1e-5
        )
    with torch.no_grad():
        assert float(d(images, t=t, noise=noise)) == pytest.approx(float(losses.mean()))
    assert torch.equal(
        d.q_sample(images, t, noise)[0],
        (d.schedule.alpha[1].float() * (images[0] * 2 - 1))
        + d.schedule.sigma[1].float() * noise[0],
    )


def test_uint8_and_unit_floats_are_the_same_images() -> None:
    d, t = tiny(), torch.tensor([3, 9])
    images, noise = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8), torch.randn(2, 3, 4, 4)
    a, b = (d({"image": x}, t=t, noise=noise) for x in (images, images / 255))
    torch.testing.assert_close(a, b)


def test_draws_and_gradients() -> None:
    d, images = tiny(), torch.rand(8, 3, 4, 4)
    u, noise = torch.rand(8, dtype=torch.float64), torch.randn(8, 3, 4, 4)
    t = (u * 20).long() + 1
    assert torch.equal(d(images, uniform=u, noise=noise), d(images, t=t, noise=noise))
    assert torch.equal(d(images, uniform=u.numpy(), noise=noise), d(images, t=t, noise=noise))
    torch.manual_seed(3)
    a = d(images)
    torch.manual_seed(3)
    assert torch.equal(a, d(images))
    a.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in d.parameters())


def test_autocast_keeps_noise_and_loss_in_float32() -> None:
    seen = {}

    class Net(nn.Module):
        channels = 3

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
            seen["x"], seen["t"] = x.dtype, t.dtype
            out = self.conv(x)
            seen["out"] = out.dtype
            return out

    d = GaussianDiffusion(Net(), image_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = d(torch.rand(2, 3, 4, 4))
    assert seen == {"x": torch.float32, "t": torch.float32, "out": torch.bfloat16}
    assert loss.dtype == torch.float32


def test_importance_weights_multiply_the_loss() -> None:
    class Twice(Uniform):
        def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
            t, _ = super().__call__(u, timesteps)
            return t, torch.full((len(u),), 2.0, dtype=torch.float64)

    TIME_SAMPLERS.add("twice_for_a_test", Twice)
    try:
        images, u, noise = torch.rand(3, 3, 4, 4), torch.rand(3).double(), torch.randn(3, 3, 4, 4)
        once, twice = (
            tiny()(images, uniform=u, noise=noise),
            tiny(time_sampler=Twice())(images, uniform=u, noise=noise),
        )
        torch.testing.assert_close(twice, 2 * once)
    finally:
        del TIME_SAMPLERS._entries["twice_for_a_test"]


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(list(TIME_SAMPLERS)), timesteps=st.integers(2, 4000), b=st.integers(1, 64)
)
def test_levels_are_in_range(name: str, timesteps: int, b: int) -> None:
    sampler = TIME_SAMPLERS[name]()
    sampler.bind(Schedule.make("cosine", timesteps))
    for edge in (0.0, 1 - 2**-53):
        t, weights = sampler(torch.full((b,), edge, dtype=torch.float64), timesteps)
        assert t.shape == (b,)
        assert t.dtype == (torch.float64 if sampler.continuous else torch.int64)
        assert 1 <= float(t.min()) <= float(t.max()) <= timesteps
        assert weights is None or torch.allclose(weights, torch.ones(b).double())


def test_stratified_covers_all_levels_and_is_uniform_everywhere() -> None:
    shifts = (torch.arange(1000) + 0.5).double() / 1000
    draws = torch.stack([Stratified()(u.expand(10), 10)[0] for u in shifts])
    assert torch.equal(draws.sort(1).values, torch.arange(1, 11).expand(1000, 10))
    for position in range(10):
        assert torch.equal(
            torch.bincount(draws[:, position], minlength=11)[1:], torch.full((10,), 100)
        )
    assert Uniform().state_dict() == {}
    Uniform().load_state_dict({})
    with pytest.raises(ValueError, match="has no state"):
        Uniform().load_state_dict({"history": 1})


def test_config_rebuilds_the_process() -> None:
    d = tiny(
        schedule=Schedule.from_betas([0.1, 0.2, 0.9]),
        timesteps=3,
        weighting=P2(gamma=0.5),
        variance=FixedLarge(),
        parametrization=X0(),
        time_sampler="stratified",
        clip="dynamic",
    )
    config = json.loads(json.dumps(d.config))
    again = GaussianDiffusion(TinyNet(), **config)
    assert again.config == d.config
    assert again.schedule == d.schedule
    assert torch.equal(again.loss_weights, d.loss_weights)
    assert set(config) == set(inspect.signature(GaussianDiffusion).parameters) - {"model"}
    assert all(k.startswith("model.") for k in d.state_dict())
    assert "GaussianDiffusion" in repr(d)


def test_every_argument_is_documented() -> None:
    text = inspect.getdoc(GaussianDiffusion) or ""
    for name, parameter in inspect.signature(GaussianDiffusion).parameters.items():
        assert f"\n    {name}: " in text
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"parametrization": "pred_v"}, "Unknown parametrization"),
        (
            {"parametrization": "eps", "schedule_options": {"zero_terminal_snr": True}},
            "parametrization='v' or 'x0'",
        ),
        ({"weighting": "minsnr"}, "Did you mean 'min_snr'"),
        ({"weighting_options": {"gama": 1}}, "Did you mean 'gamma'"),
        ({"weighting_options": {"gamma": 0}}, "gamma > 0"),
        ({"weighting": "flat", "weighting_options": {"gamma": 1}}, "takes no options"),
        ({"weighting": MinSNR(), "weighting_options": {"gamma": 1}}, "build them into the object"),
        ({"weighting": "p2", "weighting_options": {"gamma": -1}}, "gamma ≥ 0"),
        ({"variance": "fixed_smal"}, "Did you mean 'fixed_small'"),
        ({"time_sampler": "unifrom"}, "Did you mean 'uniform'"),
        ({"clip": "statik"}, "Did you mean 'static'"),
        ({"dynamic_threshold_ratio": 0.0}, "dynamic_threshold_ratio"),
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": (4, 4, 4, 4)}, "image_size must be"),
        ({"channels": 0}, "channels must be"),
        (
            {"timesteps": 50, "schedule": Schedule.make("cosine", 10)},
            "contradicts a Schedule of 10",
        ),
        (
            {"schedule": Schedule.make("cosine", 20), "schedule_options": {"s": 1}},
            "build them into the Schedule",
        ),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_more_refusals() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        GaussianDiffusion(lambda x, t, cond: x, image_size=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no \.channels"):
        GaussianDiffusion(nn.Identity(), image_size=4)

    class Mine(Weighting):
        def __call__(self, snr: Tensor) -> Tensor:
            return snr

    with pytest.raises(ValueError, match=r'\.add\("my_name", Mine\)'):
        tiny(weighting=Mine())
    with pytest.raises(TypeError):
        tiny(objective="pred_v")
    net = TinyNet()
    net.out_channels = 6
    with pytest.raises(ValueError, match="returns 6 channels"):
        GaussianDiffusion(net, image_size=4)


def test_a_level_that_is_never_trained_is_reported() -> None:
    with pytest.warns(UserWarning, match="snr_plus_one"):
        tiny(schedule_options={"zero_terminal_snr": True})


def test_wrong_batches() -> None:
    d = tiny()
    images = torch.rand(2, 3, 4, 4)
    for bad, message in [
        (torch.rand(2, 1, 4, 4), "must have shape"),
        (torch.rand(0, 3, 4, 4), "must have shape"),
        (images * 2 - 1, r"\[0, 1\]"),
        (images * 255, r"\[0, 1\]"),
        ({"picture": images}, "needs the field 'image'"),
    ]:
        with pytest.raises(ValueError, match=message):
            d(bad)
    with pytest.raises(ValueError, match="levels in 1 … 20"):
        d(images, t=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="not both"):
        d(images, t=torch.tensor([1, 1]), uniform=torch.rand(2))
    with pytest.raises(ValueError, match="reduction"):
        d(images, reduction="sum")
    with pytest.raises(ValueError, match="noise must have the shape"):
        d(images, noise=torch.randn(3, 4, 4))
    with pytest.raises(ValueError, match="uniform must hold 2 numbers"):
        d(images, uniform=torch.rand(3))
    d.model = nn.Conv2d(3, 1, 1)
    d.model.forward = lambda x, t, cond: x[:, :1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="returned shape"):
        d(images)


def test_conditions_reach_the_network() -> None:
    d = GaussianDiffusion(LabelNet(), image_size=4, timesteps=20).eval()
    images, labels = torch.rand(4, 3, 4, 4), torch.arange(4)
    d({"image": images, "class_label": labels, "path_index": labels})
    d(images, {"class_label": labels})
    assert all(torch.equal(seen, labels) for seen in d.model.calls)
    with pytest.raises(ValueError, match="which this batch lacks"):
        d(images)
    with pytest.raises(ValueError, match="Did you mean 'class_label'"):
        d(images, {"class_labels": labels})


def test_dropping() -> None:
    d = GaussianDiffusion(LabelNet(0.5), image_size=4, timesteps=20)
    images, labels = torch.rand(4, 3, 4, 4), torch.arange(4)
    d(images, {"class_label": labels}, drop=torch.tensor([0.1, 0.9, 0.4, 0.6]))
    d(
        images,
        {"class_label": labels},
        drop={"class_label": torch.tensor([True, False, False, False])},
    )
    d(images, {"class_label": labels}, drop={})
    d(images, {"class_label": labels}, drop=np.array([0.9, 0.1, 0.9, 0.9]))
    assert [seen.tolist() for seen in d.model.calls] == [
        [-1, 1, -1, 3],
        [-1, 1, 2, 3],
        [0, 1, 2, 3],
        [0, -1, 2, 3],
    ]
    with pytest.raises(ValueError, match="drop must have shape"):
        d(images, {"class_label": labels}, drop=torch.rand(3))
    d.model.calls.clear()
    torch.manual_seed(0)
    for _ in range(100):
        d(images, {"class_label": labels})
    dropped = (torch.stack(d.model.calls) == -1).float().mean()
    assert 0.4 < float(dropped) < 0.6  # 400 draws: five standard deviations are 0.125
    d.model.calls.clear()
    d.eval()(images, {"class_label": labels})
    assert torch.equal(d.model.calls[0], labels)


def test_guidance() -> None:
    d = GaussianDiffusion(LabelNet(0.1), image_size=4, timesteps=20, clip="none")
    x, labels, level = (
        torch.randn(2, 3, 4, 4),
        {"class_label": torch.tensor([1, 2])},
        d.schedule.level(10),
    )
    plain = d.denoise(x, level, labels)
    assert len(d.model.calls[0]) == 2
    for guidance in (
        Guidance(1.0),
        Guidance(3.0, interval=(0.5, 1.0)),
        Guidance(3.0, interval=(0.0, 0.4)),
    ):
        assert torch.equal(d.denoise(x, level, labels, guidance=guidance).x0, plain.x0)
    assert all(len(seen) == 2 for seen in d.model.calls)
    null = d.denoise(x, level, {"class_label": torch.tensor([-1, -1])})
    guided = d.denoise(x, level, labels, guidance=Guidance(3.0))
    assert d.model.calls[-1].tolist() == [1, 2, -1, -1]
    # Linear in the output, hence in x̂_0 and ε̂.
    torch.testing.assert_close(guided.x0, null.x0 + 3 * (plain.x0 - null.x0))
    torch.testing.assert_close(guided.eps, null.eps + 3 * (plain.eps - null.eps))
    out = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    full = Guidance(5.0, rescale=1.0).combine(*out)
    torch.testing.assert_close(full.std((1, 2, 3)), out[0].std((1, 2, 3)))
    for wrong in ({"interval": (0.5, 0.2)}, {"rescale": 1.5}):
        with pytest.raises(ValueError, match="guidance_"):
            Guidance(2.0, **wrong)


def test_sampling_with_conditions() -> None:
    d = GaussianDiffusion(LabelNet(0.1), image_size=4, timesteps=20)
    for cond, expected in [
        ({"class_label": 3}, [3, 3]),
        ({"class_label": torch.tensor([1, 2])}, [1, 2]),
        ({"class_label": [1, 2]}, [1, 2]),
        (None, [-1, -1]),
    ]:
        d.sample(2, num_steps=1, cond=cond)
        assert d.model.calls[-1].tolist() == expected
    d.sample(2, num_steps=1, cond={"class_label": 3}, guidance_scale=2.0, batch_size=1)
    assert d.model.calls[-1].tolist() == [3, -1]
    with pytest.raises(ValueError, match="3 entries for 2 samples"):
        d.sample(2, cond={"class_label": [1, 2, 3]})
    with pytest.raises(ValueError, match="Did you mean 'class_label'"):
        d.sample(2, cond={"classlabel": 1})
    d.model.conditioners["class_label"].drop_prob = 0.0
    with pytest.raises(ValueError, match="drop_prob > 0 to sample without"):
        d.sample(2, num_steps=1)
    with pytest.raises(ValueError, match="guidance_scale at 1"):
        d.sample(2, num_steps=1, cond={"class_label": 3}, guidance_scale=2.0)
    with pytest.raises(ValueError, match="guidance_scale at 1"):
        tiny().sample(2, num_steps=1, guidance_scale=2.0)


GUIDED = {
    "sample": lambda d, cond: d.sample(2, num_steps=1, cond=cond, guidance_scale=3.0),
    "no guidance at all": lambda d, cond: d.sample(num_steps=1, cond=cond, guidance_scale=0.0),
    "between levels": lambda d, cond: d.sample(
        num_steps=1, cond=cond, guidance_scale=3.0, guidance_interval=(0.1, 0.2)
    ),
    "edit": lambda d, cond: d.edit(torch.zeros(1, 3, 4, 4), cond=cond, guidance_scale=3.0),
    "inpaint": lambda d, cond: d.inpaint(
        torch.zeros(1, 3, 4, 4),
        torch.ones(4, 4),
        num_steps=2,
        jump_length=1,
        cond=cond,
        guidance_scale=3.0,
    ),
    "cascade": lambda d, cond: Cascade([Stage(d, num_steps=1, guidance_scale=3.0)]).sample(
        cond=cond
    ),
    "trainer's": lambda d, cond: sample_shared(
        d, 1, PartialState(cpu=True), cond=cond, num_steps=1, guidance_scale=3.0
    ),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_by_nothing_is_refused_where_it_would_be_silent(name: str) -> None:
    d = GaussianDiffusion(LabelNet(0.1), image_size=4, timesteps=20)
    with pytest.raises(ValueError, match=r"none is\. Give cond=\{'class_label': …\}, or leave"):
        GUIDED[name](d, None)
    assert d.model.calls == []
    GUIDED[name](d, {"class_label": 1})
    with spelling.flags(), pytest.raises(ValueError, match=r"^--guidance-scale.*--class-label, or"):
        GUIDED[name](d, {})


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 6),
    size=st.integers(1, 7),
    first=st.integers(0, 5),
    sampler=st.sampled_from(["ddpm", "ddim"]),
)
def test_an_image_depends_on_its_number_alone(n: int, size: int, first: int, sampler: str) -> None:
    d = tiny()
    options = {"sampler": sampler, "num_steps": 4, "seed": 5}
    together = d.sample(n + first, **options)
    apart = d.sample(n, first_index=first, batch_size=size, **options)
    assert torch.equal(together[first:], apart)


def test_seeds() -> None:
    d = tiny()
    images = d.sample(seeds=[4, 9], num_steps=3)
    assert torch.equal(images, torch.cat([d.sample(1, seed=s, num_steps=3) for s in (4, 9)]))
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(("size", "channels"), [((7,), 1), ((4, 6), 3), ((2, 3, 4), 2), (5, 4)])
def test_any_number_of_dimensions_and_channels(size: tuple[int, ...] | int, channels: int) -> None:
    d = GaussianDiffusion(TinyNet(channels), image_size=size, timesteps=10)
    shape = (channels, *((5, 5) if size == 5 else size))
    d(torch.rand(2, *shape)).backward()
    images = d.sample(2, num_steps=3)
    assert images.shape == (2, *shape)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert d.interpolate(images[:1], images[1:], num_steps=3).shape == (1, 5, *shape)
    assert d.encode(images, 3).shape == images.shape


def test_trajectories() -> None:
    d = tiny()
    images, states = d.sample(2, num_steps=10, return_trajectory=True, batch_size=1)
    assert states.shape == (2, 11, 3, 4, 4)
    assert torch.equal(states[:, -1], images)
    images, few = d.sample(2, num_steps=10, return_trajectory=3)
    assert torch.equal(few, states[:, [0, 5, 10]])
    with pytest.raises(ValueError, match="return_trajectory"):
        d.sample(1, num_steps=2, return_trajectory=-1)


def test_given_start() -> None:
    d = tiny()
    x_t = torch.randn(3, 3, 4, 4)
    assert torch.equal(d.sample(x_T=x_t, sampler="ddim", num_steps=5), d.decode(x_t, num_steps=5))
    assert d.sample(x_T=x_t.double(), num_steps=2).dtype == torch.float64
    # Noise of the steps does not depend on where the start came from.
    a = d.sample(2, num_steps=5, seed=1)
    start = torch.stack([torch.randn(3, 4, 4, generator=g) for g in _streams(2, 1)])
    assert torch.equal(a, d.sample(x_T=start, num_steps=5, seed=1))
    for wrong, message in [
        ({"n": 2, "x_T": x_t}, "not clear"),
        ({"x_T": x_t[:, :1]}, "x_T must be"),
        ({"n": 0}, "at least 1"),
        ({"n": 2, "batch_size": 0}, "batch_size must be at least 1"),
        ({"n": 2, "seeds": [1]}, "not clear"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.sample(**wrong)


def _streams(n: int, seed: int) -> list[torch.Generator]:
    from ddpm_lib.core import keys

    return [keys.generator("cpu", i, seed, "sample") for i in range(n)]


def test_sampling_leaves_the_network_as_it_was() -> None:
    d = tiny()
    d.model.frozen = nn.Dropout().eval()
    d.train()
    d.model.frozen.eval()
    seen = []
    d.model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    d.sample(1, num_steps=2)
    assert seen == [False, False]
    assert (d.training, d.model.training, d.model.frozen.training) == (True, True, False)
    d.model.forward = _fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        d.sample(1, num_steps=2)
    assert d.model.training


def _fail(*args: object) -> Tensor:
    raise RuntimeError("broken")


def test_another_network_can_be_used() -> None:
    d, zero = tiny(), nn.Module()
    zero.forward = lambda x, t, cond: torch.zeros_like(x)  # type: ignore[method-assign]
    assert not torch.equal(d.sample(1, num_steps=3), d.sample(1, num_steps=3, model=zero))
    images, t, noise = torch.rand(1, 3, 4, 4), torch.tensor([5]), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        assert float(d(images, t=t, noise=noise, model=zero)) != float(d(images, t=t, noise=noise))


def test_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().sample(1, num_steps=3, progress=True)
    tiny().sample(1, num_steps=3)
    assert capsys.readouterr().err == ""  # no terminal: no bar, and nothing to say of what is short
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    tiny().sample(1, num_steps=3)
    assert capsys.readouterr().err == ""
    tiny().sample(1, num_steps=3, progress=True)
    assert "sampling" in capsys.readouterr().err
    tiny().sample(1, num_steps=3)
    assert capsys.readouterr().err == ""


def test_interpolation_ends() -> None:
    a, b = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    d = GaussianDiffusion(TinyNet(1), image_size=4, timesteps=400, clip="none")
    ends = d.interpolate(a, b, (0.0, 1.0), method="ddim")
    for row, images in ((0, a), (1, b)):
        # Encoding and decoding in 400 Euler steps.
        torch.testing.assert_close(ends[:, row], images, rtol=0, atol=0.05)
    low = d.interpolate(a, b, (0.0, 0.5, 1.0), fraction=0.005)
    # Two levels of 400: next to no noise.
    torch.testing.assert_close(low[:, 1], (a + b) / 2, rtol=0, atol=0.1)
    assert torch.equal(low, d.interpolate(a, b, (0.0, 0.5, 1.0), fraction=0.005))
    for wrong, message in [
        ({"method": "slerp"}, "Unknown interpolation method"),
        ({"fraction": 0.0}, "fraction must be"),
        ({"b": b[:1]}, "pairs of one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.interpolate(**{"a": a, "b": b, **wrong})


def test_clipping() -> None:
    d = tiny(parametrization="x0", clip="static")
    x, level = 4 * torch.randn(2, 3, 4, 4), d.schedule.level(8)
    d.model.forward = lambda x, t, cond: 3 * x  # type: ignore[method-assign]
    p = d.denoise(x, level)
    assert torch.equal(p.x0, (3 * x).clamp(-1, 1))
    # ε̂ belongs to the clipped image: x_t is where they say it is.
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)
    assert torch.equal(d.denoise(x, level, clip="none").x0, 3 * x)
    clean = d.denoise(x, d.schedule.level(0))
    assert torch.equal(clean.x0, x)
    assert float(clean.eps.abs().max()) == 0


@settings(max_examples=30, deadline=None)
@given(ratio=st.floats(0.01, 1.0), scale=st.floats(0.1, 5), n=st.integers(1, 40))
def test_dynamic_threshold_is_the_quantile(ratio: float, scale: float, n: int) -> None:
    x = scale * torch.randn(
        3, 1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)
    )
    s = torch.quantile(x.abs().flatten(1), ratio, dim=1).clamp(min=1).view(-1, 1, 1)
    torch.testing.assert_close(
        dynamic_threshold(x, ratio), x.clamp(-s, s) / s, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(dynamic_threshold(x, ratio, maximum=1.0), x.clamp(-1, 1))
