"""Learned levels: their gradients, what they gain where the denoiser is exact, what is refused."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ddpm_lib.process.learned_levels import (
    LearnedLevels,
    LevelCurve,
    distances,
    fixed_levels,
    learn_levels,
    walk,
)
from ddpm_lib.samplers import DDIM, Heun, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule, scalars
from ddpm_lib.schedules.levels import Level
from sampler_tools import mixture_predict, ring_predict

COSINE = Schedule.make("cosine", 1000)
DETERMINISTIC = ["ddim", "euler", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "heun", "dpmpp_2s"]


def starts(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def flow(predict, x: Tensor) -> Tensor:
    """Follow the probability flow to its end."""
    levels = [COSINE.level(t) for t in fixed_levels(COSINE, 150)["log_snr, between levels"]]
    levels.append(COSINE.level(0))
    return walk(make_sampler("dpmpp_3m"), x, levels, predict, COSINE.level_at)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", ["cosine", "zero terminal SNR"])
def test_the_gradient_is_that_of_finite_differences(name: str, schedule: str) -> None:
    options = {"zero_terminal_snr": True} if schedule != "cosine" else {}
    ladder = Schedule.make("linear" if options else "cosine", 1000, options)
    curve, x = LevelCurve(ladder), starts(4)
    shares = torch.tensor([0.3, 0.2, 0.25, 0.25], dtype=torch.float64).log()

    def ends(logits: Tensor) -> Tensor:
        levels = curve.levels(logits)
        return walk(make_sampler(name), x, levels, mixture_predict, curve.at).square().mean()

    assert torch.autograd.gradcheck(ends, shares.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_tensor_walks_where_a_number_does(name: str) -> None:
    curve, x = LevelCurve(COSINE), starts(8)
    moved = curve.levels(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log())
    plain = [COSINE.level(float(level.t)) for level in moved]
    got = walk(make_sampler(name), x, moved, mixture_predict, curve.at)
    wanted = sample_loop(
        make_sampler(name), x, plain, mixture_predict, None, level_at=COSINE.level_at
    )
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


def test_levels_of_a_curve() -> None:
    curve = LevelCurve(COSINE)
    for t in (1.0, 2.5, 500.0, 997.25, 1000.0):
        level = COSINE.level(t)
        got = curve.level_of(torch.tensor(level.log_snr, dtype=torch.float64))
        for a, b in zip(got, level, strict=True):
            assert float(a) == pytest.approx(b, rel=1e-9)
    assert curve.position(1000) == 0.0
    assert curve.position(1) == 1.0
    given = (1000.0, 700.5, 300.0, 40.0)
    back = [float(level.t) for level in curve.levels(curve.logits(given))]
    assert back == pytest.approx([*given, 0.0], rel=1e-6)
    with pytest.raises(ValueError, match="too few; got timesteps=2"):
        LevelCurve(Schedule.make("linear", 2, {"zero_terminal_snr": True}))


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "steps", "gain"),
    [
        ("ddim", 6, 0.9), ("dpmpp_2m", 6, 0.6), ("unipc", 6, 0.5), ("deis", 6, 0.8),
        ("heun", 4, 1.0),
    ],
)  # fmt: skip
def test_learned_levels_beat_every_fixed_spacing(name: str, steps: int, gain: float) -> None:
    """On eight blobs on a circle with their exact denoiser, and from noise that nothing was learned
    from.
    """
    check_gain(name, steps, gain, iterations=30, n=96)


def check_gain(name: str, steps: int, gain: float, *, iterations: int, n: int) -> None:
    x, fresh = starts(n), starts(400, seed=1)
    sampler = make_sampler(name)
    found = learn_levels(
        sampler, COSINE, lambda rows: ring_predict, x, flow(ring_predict, x), steps,
        iterations=iterations, batch_size=n,
    )  # fmt: skip
    target = flow(ring_predict, fresh)

    def error(levels: tuple[float, ...]) -> float:
        ladder = [COSINE.level(t) for t in (*levels, 0)]
        end = walk(sampler, fresh, ladder, ring_predict, COSINE.level_at)
        return float(distances(end, target).mean())

    best = min(error(levels) for levels in fixed_levels(COSINE, steps).values())
    assert error(found.levels) < gain * best
    assert len(found.levels) == steps
    assert found.levels[0] == 1000
    assert found.error <= min(found.fixed.values())


@pytest.mark.slow
@pytest.mark.parametrize("calls", [4, 6, 8, 12])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_learned_levels_beat_every_fixed_spacing_at_each_number_of_calls(
    name: str, calls: int
) -> None:
    steps = (calls + 1) // 2 if name in ("heun", "dpmpp_2s") else calls
    check_gain(name, steps, 1.0, iterations=60, n=256)


def test_learning_is_a_function_of_its_arguments() -> None:
    x = starts(40)
    target = flow(mixture_predict, x)
    learn = partial(learn_levels, DDIM(), COSINE, lambda rows: mixture_predict, x, target, 4)
    one, two = (learn(iterations=6, batch_size=16, seed=3) for _ in range(2))
    assert one == two
    assert LearnedLevels.from_json(one.to_json()) == one
    assert learn(iterations=6, batch_size=16, seed=4).levels != one.levels
    told: list[int] = []
    none = learn(iterations=0, on_iteration=told.append)
    assert none.levels == fixed_levels(COSINE, 4)[none.began_with]
    assert told == []


def test_what_draws_noise_is_refused() -> None:
    x = starts(4)
    with pytest.raises(ValueError, match="deterministic samplers, and this one draws noise"):
        learn_levels(DDIM(eta=0.5), COSINE, lambda rows: mixture_predict, x, x, 3, iterations=1)
    with pytest.raises(ValueError, match="draws noise"):
        learn_levels(
            Heun(s_churn=10.0), COSINE, lambda rows: mixture_predict, x, x, 3, iterations=1
        )


def test_images_that_arrive_exactly_have_a_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    distances(x, torch.zeros(2, 3)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_scalars_take_numbers_and_tensors() -> None:
    for name in ("exp", "expm1", "log", "sqrt"):
        function = getattr(scalars, name)
        assert isinstance(function(0.5), float)
        value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        assert function(value).requires_grad
        assert math.isclose(float(function(value).detach()), function(0.5), rel_tol=1e-15)
    assert scalars.isinf(torch.tensor(float("inf")))
    assert not scalars.isfinite(float("inf"))
    level = Level.of_log_snr(3.0, torch.tensor(-2.0, dtype=torch.float64))  # type: ignore[arg-type]
    assert float(level.alpha) == Level.of_log_snr(3.0, -2.0).alpha
