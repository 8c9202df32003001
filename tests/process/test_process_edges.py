"""The edges of the process: pure noise, odd dtypes, single values, numbers of images, seeds,
networks of others.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import types
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.core import keys
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.guidance import Guidance
from ddpm_lib.process.cascade import Cascade
from ddpm_lib.process.likelihood import dequantise
from ddpm_lib.process.network_calls import call_network
from ddpm_lib.process.noising import assignment
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import SPACINGS, default_num_steps, sampling_levels
from exact_denoiser import SHAPE, Exact, exact_bits
from exact_denoiser import images as eight_bit_images
from process_tools import TinyNet

OPTIONS: dict[str, dict[str, object]] = {"shifted_cosine": {"size": 64}}


def make(name: str, timesteps: int, **options: object) -> Schedule:
    if name == "betas":
        options["betas"] = [0.5 * (k + 1) / timesteps for k in range(timesteps)]
    return Schedule.make(name, timesteps, {**OPTIONS.get(name, {}), **options})


def tiny(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), image_size=4, timesteps=20, **options)


def test_assigned_noise_has_the_least_total_distance() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x0 = 3.0 * torch.randn(5, 1, 2, 1, generator=generator)
        eps = torch.randn(5, 1, 2, 1, generator=generator)
        distance = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double())
        best = min(
            sum(float(distance[i, p[i]]) for i in range(5))
            for p in itertools.permutations(range(5))
        )
        order = assignment(x0, eps)
        assert sorted(order.tolist()) == list(range(5))
        assert float(distance[torch.arange(5), order].sum()) == pytest.approx(best, rel=1e-5)


def test_distances_and_their_squares_are_not_the_same_question() -> None:
    x0 = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    distance = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()).numpy()
    _, squares = linear_sum_assignment(distance**2)
    _, plain = linear_sum_assignment(distance)
    assert assignment(x0, eps).tolist() == plain.tolist()
    assert squares.tolist() != plain.tolist()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uint8": lambda x: (x * 255).to(torch.uint8),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double(),
    "transposed": lambda x: x.transpose(2, 3),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
}
METHODS: dict[str, Callable[[GaussianDiffusion, Tensor], Tensor]] = {
    "loss": lambda d, x: d(
        x,
        {"class_label": torch.tensor([0, 1])},
        t=torch.tensor([2, 7]),
        noise=torch.ones(2, 3, 8, 8),
    ),
    "edit": lambda d, x: d.edit(x, num_steps=3),
    "inpaint": lambda d, x: d.inpaint(
        x, torch.ones(8, 8), num_steps=3, jump_length=1, num_resamples=2
    ),
    "encode": lambda d, x: d.encode(x, 3),
    "decode": lambda d, x: d.decode(d.encode(x, 3), 3),
    "interpolate by noise": lambda d, x: d.interpolate(x, x.flip(0), num_steps=3),
    "interpolate by ddim": lambda d, x: d.interpolate(x, x.flip(0), num_steps=3, method="ddim"),
    "bits_per_dim": lambda d, x: d.bits_per_dim(x, num_levels=3).total,
    "flow_bits_per_dim": lambda d, x: d.flow_bits_per_dim(x, tolerance=0.3).total,
}


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "weights", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_every_kind_of_images(method: str, weights: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, attention_levels=(), num_classes=3)
    d = GaussianDiffusion(model, image_size=8, timesteps=10).to(weights).eval()
    images = torch.rand(2, 3, 8, 8)
    expected = images.transpose(2, 3)
    for name, layout in LAYOUTS.items():
        torch.manual_seed(1)
        got = METHODS[method](d, layout(images))
        assert torch.isfinite(got).all(), name
        if name == "transposed":
            torch.manual_seed(1)
            same = METHODS[method](d, expected.contiguous())
            low = weights.itemsize == 2  # layers round to 8 or 11 bits, and other layouts otherwise
            torch.testing.assert_close(got, same, rtol=1e-4, atol=0.05 if low else 1e-5)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16], ids=str)
def test_networks_of_16_bits_are_asked_under_autocast(weights: torch.dtype) -> None:
    """As the same weights in float32 are, which were rounded."""
    torch.manual_seed(0)
    low = GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=8, timesteps=10).to(weights)
    rounded = copy.deepcopy(low).float()
    drawn = low.sample(2, num_steps=3, seed=0)
    assert drawn.dtype == torch.float32
    with torch.autocast("cpu", dtype=weights):
        same = rounded.sample(2, num_steps=3, seed=0)
    torch.testing.assert_close(drawn, same, rtol=0, atol=0.02)
    assert low(torch.rand(2, 3, 8, 8)).dtype == torch.float32
    with pytest.raises(ConfigError, match=rf"weights of the network are {str(weights)[6:]}"):
        Trainer(low, torch.rand(4, 3, 8, 8), output_dir="never")


def test_images_of_two_kinds_are_interpolated_in_the_finer_one() -> None:
    d, a = tiny(), torch.rand(2, 3, 4, 4)
    got = d.interpolate(a.double(), (a * 255).to(torch.uint8), num_steps=3)
    assert got.dtype == torch.float64
    assert d.interpolate(a, a.half(), num_steps=3).dtype == torch.float32


def test_a_step_from_pure_noise_is_all_new_noise() -> None:
    pure = Level(2, 0.0, 1.0)
    assert tau(pure, pure) == tau(pure, Level(1, 0.6, 0.8)) == 1.0


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_bound_of_one_step_from_pure_noise_is_the_limit(name: str) -> None:
    """x_T says nothing, so that log p(x_0|x_T) is that of N(x̂_0, 1): the same for every schedule
    that ends in pure noise.
    """

    class Half(nn.Module):
        channels = 3

        def forward(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
            return torch.full_like(x, 0.25)

    x = torch.rand(2, 3, 4, 4)
    pure = GaussianDiffusion(
        Half(),
        image_size=4,
        schedule=make(name, 20, zero_terminal_snr=True),
        parametrization="x0",
        weighting="flat",
    )
    near = Schedule.from_betas([0.01] * 19 + [1 - 1e-12])
    almost = GaussianDiffusion(
        Half(), image_size=4, schedule=near, parametrization="x0", weighting="flat"
    )
    got = pure.bits_per_dim(x, num_steps=1)
    assert got.prior.abs().max() < 1e-12
    torch.testing.assert_close(
        got.total, almost.bits_per_dim(x, num_steps=1).total, rtol=1e-4, atol=1e-4
    )


@pytest.mark.every(3)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["linear", "cosine", "jsd", "karras", "log_linear"])
def test_the_flow_has_the_density_wherever_it_starts_and_ends(name: str, zero: bool) -> None:
    table = make(name, 1000, zero_terminal_snr=zero)
    d = GaussianDiffusion(Exact(table, "v"), image_size=SHAPE[1:], schedule=table, weighting="flat")
    x = eight_bit_images(4)
    uniform, _ = dequantise(x, 0, 0)
    expected = exact_bits((uniform + 1) / 2)
    for sigma_min in (1e-3, 1e-4, 1e-6):
        got = d.flow_bits_per_dim(x, sigma_min=sigma_min, tolerance=1e-4).total
        # Below level 1 the network of level 1 answers; where the last level keeps signal, N(0, 1)
        # is not quite its density.
        torch.testing.assert_close(got, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("sigma_min", [0.0, -1.0, 1.0, 2.0, math.nan])
def test_a_flow_starts_between_data_and_noise(sigma_min: float) -> None:
    with pytest.raises(ValueError, match="sigma_min must lie between 0 and"):
        tiny().flow_bits_per_dim(torch.rand(1, 3, 4, 4), sigma_min=sigma_min)


@pytest.fixture(scope="module")
def enlarger() -> GaussianDiffusion:
    torch.manual_seed(0)
    model = Unet(
        dim=8,
        dim_mults=(1, 2),
        blocks_per_level=1,
        attention_levels=(),
        low_res_factor=2,
        low_res_max_noise=0.5,
    )
    for p in model.parameters():
        nn.init.normal_(p, std=0.05)
    return GaussianDiffusion(model, image_size=8, timesteps=8).eval()


SCORES: dict[str, Callable[..., Tensor]] = {
    "bits_per_dim": lambda d, x, **o: d.bits_per_dim(x, **o).total,
    "flow_bits_per_dim": (
        lambda d, x, **o: d.flow_bits_per_dim(x, tolerance=1e-6, batch_size=1, **o).total
    ),
    "encode": lambda d, x, **o: d.encode(x, 3, **o),
    "edit": lambda d, x, **o: d.edit(x, num_steps=3, **o),
    "interpolate": lambda d, x, **o: d.interpolate(x, x.roll(1, 3), num_steps=3, **o),
    "interpolate by ddim": lambda d, x, **o: d.interpolate(
        x, x.roll(1, 3), num_steps=3, method="ddim", **o
    ),
}


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.slow] * (m == "flow_bits_per_dim")) for m in SCORES],
)
def test_noise_on_conditions_belongs_to_the_image(enlarger: GaussianDiffusion, method: str) -> None:
    score, x = SCORES[method], torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = {"low_res": x[:, :, ::2, ::2], "low_res_noise": 0.5}

    def rows(a: int, b: int, **options: object) -> Tensor:
        return score(enlarger, x[a:b], cond={**small, "low_res": small["low_res"][a:b]}, **options)

    whole = rows(0, 3, seed=5)
    apart = torch.cat([rows(0, 1, seed=5), rows(1, 3, seed=5, first_index=1)])
    torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-4)
    assert (rows(0, 3, seed=6) - whole).abs().max() > 1e-4


def test_pairs_have_seeds_of_their_own() -> None:
    d, x = tiny(), torch.rand(3, 3, 4, 4)
    whole = d.interpolate(x, x.flip(0), num_steps=4, seeds=[7, 8, 9])
    for i, seed in enumerate((7, 8, 9)):
        one = d.interpolate(x[i : i + 1], x.flip(0)[i : i + 1], num_steps=4, seed=seed)
        torch.testing.assert_close(whole[i : i + 1], one)
    with pytest.raises(ValueError, match="2 seeds for 3 pairs"):
        d.interpolate(x, x, seeds=[1, 2])


@pytest.mark.every(3)
@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_spacings_by_noise_have_both_ends_and_every_step(name: str, spacing: str) -> None:
    for timesteps, fractional in itertools.product((3, 20, 100), (False, True)):
        schedule = make(name, timesteps)
        for steps in {1, 2, 3, timesteps // 2, timesteps}:
            levels = sampling_levels(schedule, steps, spacing, {"fractional": fractional})
            assert len(levels) == steps + 1
            assert levels[0] == timesteps
            assert levels[-1] == 0
            assert all(a > b for a, b in itertools.pairwise(levels))
            noisiest_is_finite = float(schedule.alpha[-1]) > 0
            if noisiest_is_finite and steps > 1 and not fractional:
                assert levels[-2] == 1  # no step is spent on an end that is there already


def test_sigma_max_of_the_last_level_costs_no_step() -> None:
    schedule = Schedule.make("scaled_linear", 20)
    noisiest = float(schedule.sigma[-1] / schedule.alpha[-1])
    assert noisiest < 1 / math.e
    for spacing in ("log_snr", "karras"):
        given = sampling_levels(schedule, 5, spacing, {"sigma_max": noisiest})
        assert given == sampling_levels(schedule, 5, spacing)


@pytest.mark.parametrize("timesteps", [2, 20, 1000])
@pytest.mark.parametrize("spacing", [*SPACINGS, "1,1", "ddim2"])
def test_the_usual_number_of_steps(spacing: str, timesteps: int) -> None:
    named = spacing in SPACINGS
    assert default_num_steps(True, timesteps, spacing) == (timesteps if named else None)
    assert default_num_steps(False, timesteps, spacing) == (min(50, timesteps) if named else None)
    assert default_num_steps(False, timesteps, [1.0]) is None


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 4, 4), (2, 3, 1)])
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_survives_outputs_without_spread(shape: tuple[int, ...], rescale: float) -> None:
    guidance = Guidance(3.0, rescale=rescale)
    flat = guidance.combine(torch.full(shape, 0.7), torch.full(shape, 0.1))
    torch.testing.assert_close(flat, torch.full(shape, 1.9))  # as without rescaling: 0.1 + 3·0.6
    cond, null = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    full = Guidance(3.0, rescale=1.0).combine(cond, null)
    torch.testing.assert_close(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "betas"])
def test_schedules_begin_near_data_or_say_that_they_do_not(name: str) -> None:
    schedule = make(name, 1000)
    coarse = float(schedule.sigma[1] / schedule.alpha[1]) > 0.11
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        GaussianDiffusion(TinyNet(), image_size=4, schedule=schedule)
    floors = [str(w.message) for w in said if "cleanest level" in str(w.message)]
    assert bool(floors) == coarse
    if name == "laplace":
        assert "'b': 1.5" in floors[0]
        mended = make(name, 1000, b=1.5)
        assert float(mended.sigma[1] / mended.alpha[1]) == pytest.approx(0.01, rel=0.15)


@pytest.fixture(scope="module")
def classed() -> GaussianDiffusion:
    torch.manual_seed(0)
    model = Unet(
        dim=8,
        dim_mults=(1, 2),
        blocks_per_level=1,
        attention_levels=(),
        num_classes=3,
        low_res_factor=2,
    )
    return GaussianDiffusion(model, image_size=8, timesteps=4).eval()


def test_conditions_say_how_many_images(classed: GaussianDiffusion) -> None:
    one = torch.rand(1, 3, 4, 4)
    assert len(classed.sample(cond={"class_label": [0, 1, 2], "low_res": one})) == 3
    assert len(classed.sample(cond={"class_label": 1, "low_res": one})) == 1
    assert len(classed.sample(2, cond={"class_label": [1], "low_res": one})) == 2
    with pytest.raises(ValueError, match="not clear"):
        classed.sample(cond={"class_label": [0, 1, 2], "low_res": torch.rand(2, 3, 4, 4)})
    with pytest.raises(ValueError, match="has 3 entries for 2 samples"):
        classed.sample(2, cond={"class_label": [0, 1, 2], "low_res": one})


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_size_is_no_number_of_images(classed: GaussianDiffusion, batch_size: int) -> None:
    for draw in (tiny().sample, Cascade([tiny()]).sample):
        with pytest.raises(
            ValueError, match=rf"how many images are drawn at a time.*sample\({batch_size}\)"
        ):
            draw(batch_size=batch_size)
    one = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="drawn at a time"):
        classed.sample(cond={"class_label": 1, "low_res": one}, batch_size=batch_size)
    assert len(tiny().sample(3, batch_size=batch_size)) == 3
    assert len(tiny().sample(seeds=[1], batch_size=batch_size)) == 1


@pytest.mark.parametrize("n", [2.0, "2", torch.rand(2)])
def test_a_number_of_images_is_a_whole_number(n: object) -> None:
    with pytest.raises(TypeError, match="whole number of images"):
        tiny().sample(n)  # type: ignore[arg-type]
    assert len(tiny().sample(np.int64(2))) == 2  # type: ignore[arg-type]


DRAWS: dict[str, Callable[..., Tensor]] = {
    "sample": lambda d, **o: d.sample(1, num_steps=2, **o),
    "edit": lambda d, **o: d.edit(torch.full((1, 3, 4, 4), 0.5), num_steps=4, **o),
    "inpaint": lambda d, **o: d.inpaint(
        torch.full((1, 3, 4, 4), 0.5), torch.ones(4, 4), num_steps=2, jump_length=1, **o
    ),
    "interpolate": lambda d, **o: d.interpolate(
        torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.6), num_steps=4, **o
    ),
    "cascade": lambda d, **o: Cascade([d]).sample(1, **o),
}


@pytest.mark.parametrize("method", DRAWS)
def test_no_seed_means_a_fresh_one(method: str, caplog: pytest.LogCaptureFixture) -> None:
    draw, d = DRAWS[method], tiny()
    with caplog.at_level(logging.INFO, "ddpm_lib"):
        first, second = draw(d, seed=None), draw(d, seed=None)
    assert not torch.equal(first, second)
    seeds = [int(record.args[0]) for record in caplog.records]  # type: ignore[index,call-overload]
    assert len(seeds) == 2
    torch.testing.assert_close(draw(d, seed=seeds[0]), first)  # what was logged repeats it
    torch.testing.assert_close(draw(d, seed=np.int64(3)), draw(d, seed=3))
    assert draw(d, seed=-1).shape == draw(d, seed=10**30).shape
    for wrong in (1.5, "7", [1]):
        with pytest.raises(TypeError, match="seed must be a whole number"):
            draw(d, seed=wrong)


def test_no_images_are_refused_by_the_name_of_what_is_empty() -> None:
    """Not as a batch size, which nobody gave."""
    for given, message in (
        ({"n": 0}, "n must be at least 1"),
        ({"seeds": []}, "seeds is empty"),
        ({"x_T": torch.zeros(0, 3, 4, 4)}, "x_T is empty"),
        ({"cond": {"class_label": []}}, r"cond\['class_label'\] has no entry"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny().sample(**given)


def test_fresh_seeds_differ() -> None:
    assert len({keys.check_seed(None) for _ in range(20)}) == 20


def test_classes_by_name(classed: GaussianDiffusion) -> None:
    low = {"low_res": torch.rand(1, 3, 4, 4)}
    with pytest.raises(ValueError, match=r"numbers 0 … 2 here.*'star'"):
        classed.sample(cond={"class_label": "star", **low})
    classed.class_names = ("ring", "star", "cross")
    try:
        by_name = classed.sample(cond={"class_label": ["star", "ring"], **low})
        torch.testing.assert_close(by_name, classed.sample(cond={"class_label": [1, 0], **low}))
        one = classed.sample(2, cond={"class_label": "cross", **low})
        torch.testing.assert_close(one, classed.sample(2, cond={"class_label": 2, **low}))
        for wanted in ("sta", ["ring", "sta"]):
            with pytest.raises(ValueError, match=r"Unknown class 'sta'\. Did you mean 'star'"):
                classed.sample(2, cond={"class_label": wanted, **low})
    finally:
        classed.class_names = None
    with pytest.raises(TypeError, match="must be a number, a list of numbers"):
        classed.sample(1, cond={"class_label": {"a": 1}, **low})


def test_batches_as_others_make_them(classed: GaussianDiffusion) -> None:
    d, images = tiny(), torch.rand(2, 3, 4, 4)
    t, noise = torch.tensor([3, 9]), torch.randn(2, 3, 4, 4)
    plain = d(images, t=t, noise=noise)
    for batch in (
        images.numpy(),
        {"image": images.numpy()},
        (images, torch.tensor([0, 1])),
        [images, torch.zeros(2)],
    ):
        torch.testing.assert_close(d(batch, t=t, noise=noise), plain)
    named = {"class_label": torch.tensor([0, 2])}
    large, kinds = torch.rand(2, 3, 8, 8), torch.tensor([0, 2])
    torch.manual_seed(0)
    expected = classed(large, named)
    torch.manual_seed(0)
    torch.testing.assert_close(classed((large, kinds)), expected)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([torch.rand(3, 4, 4)] * 3, "list of 3"),
        (torch.rand(2, 3, 4, 4).tolist(), None),
        ("pictures", "str of 8"),
        (None, "NoneType"),
        ({"image": [1, 2]}, "field 'image'.*list of 2"),
        ((types.SimpleNamespace(), torch.zeros(1)), "SimpleNamespace"),
    ],
    ids=lambda value: None,
)
def test_a_wrong_batch_is_described_not_dumped(batch: object, said: str | None) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        tiny()(batch)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


class Plain(nn.Module):
    """A network whose answer is wrapped."""

    channels = 3

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.wrap = TinyNet(), wrap

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> object:
        return self.wrap(self.net(x, t))


@pytest.mark.parametrize(
    "wrap", [lambda y: types.SimpleNamespace(sample=y), lambda y: (y,), lambda y: [y]]
)
def test_answers_of_other_libraries_networks_are_opened(wrap: Callable[[Tensor], object]) -> None:
    d = GaussianDiffusion(Plain(wrap), image_size=4, timesteps=20)
    same = GaussianDiffusion(d.model.net, image_size=4, timesteps=20)
    torch.testing.assert_close(d.sample(2, num_steps=2), same.sample(2, num_steps=2))
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(d.bits_per_dim(x).total, same.bits_per_dim(x).total)
    loss = d(x)
    loss.backward()
    assert any(p.grad is not None for p in d.parameters())


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"out": y}, lambda y: None])
def test_other_answers_show_the_wrapper(wrap: Callable[[Tensor], object]) -> None:
    d = GaussianDiffusion(Plain(wrap), image_size=4, timesteps=20)
    for call in (lambda: d.sample(1), lambda: d(torch.rand(1, 3, 4, 4))):
        with pytest.raises(TypeError, match=r"(?s)Plain returned .*class Wrapped"):
            call()


def test_a_network_that_wants_more_arguments_shows_the_wrapper() -> None:
    class Four(nn.Module):
        channels = 3

        def forward(self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
            return x

    class Broken(nn.Module):
        channels = 3

        def forward(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
            return x + "1"  # type: ignore[operator,no-any-return]

    with pytest.raises(TypeError, match=r"model\(x, t, cond\), which Four.forward does not take"):
        GaussianDiffusion(Four(), image_size=4).sample(1, num_steps=1)
    with pytest.raises(TypeError, match=r"unsupported operand|must be|can only"):
        GaussianDiffusion(Broken(), image_size=4).sample(1, num_steps=1)


def test_a_network_without_weights_is_asked_in_the_precision_of_the_images() -> None:
    seen: list[torch.dtype] = []

    def ask(x: Tensor, t: Tensor, cond: object) -> Tensor:
        seen.append(x.dtype)
        return x

    for dtype in (torch.float32, torch.float64):
        call_network(ask, torch.zeros(1, 3, 4, 4, dtype=dtype), torch.zeros(1), None)
    assert seen == [torch.float32, torch.float64]


def test_the_default_is_fast_and_deterministic() -> None:
    calls = 0

    class Counting(TinyNet):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x, t)

    d = GaussianDiffusion(Counting(), image_size=4, timesteps=200)
    images = d.sample(1)
    assert calls == 20
    torch.testing.assert_close(images, d.sample(1, sampler="unipc", num_steps=20))
    calls = 0
    d.sample(1, sampler="ddpm")
    assert calls == 200
