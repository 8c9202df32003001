"""The alarm of memorisation: exact with few images, rings for copies of 30, 60 and 300 pictures,
and seldom else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact, mannwhitneyu
from torch import Tensor

from ddpm_lib import Shapes, evaluate
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.metrics import copies, copy_test, measure_copying, nearest_distances
from ddpm_lib.metrics.memorisation import (
    EXACT,
    cells_p_value,
    rank_distribution,
    rank_p_value,
)

SETS = ((29, 1), (57, 3), (285, 15))
"""Training and held-out images of 30, 60 and 300 pictures of which 5 % are held out."""
SAMPLES = 64


def normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=generator)


def clusters(n: int, generator: torch.Generator) -> Tensor:
    """Ten scenes, each seen from more or less far: data in which images look like copies of others
    by nature.
    """
    scenes = 5.0 * torch.randn(10, 16, generator=torch.Generator().manual_seed(5))
    chosen = torch.randint(10, (n,), generator=generator)
    return scenes[chosen] + normal(n, 16, generator) * torch.rand(n, 1, generator=generator)


DATA: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "line": lambda n, g: normal(n, 1, g),
    "plane": lambda n, g: normal(n, 2, g),
    "features": lambda n, g: normal(n, 64, g),
    "heavy tails": lambda n, g: normal(n, 4, g) / torch.rand(n, 1, generator=g),
    "clusters": clusters,
}


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (5, 3), (4, 7), (6, 6)])
def test_distribution_of_ranks_is_that_of_all_arrangements(n: int, m: int) -> None:
    counts = np.zeros(n * m + 1)
    for places in itertools.combinations(range(n + m), n):
        counts[sum(place - i for i, place in enumerate(places))] += 1
    assert np.allclose(rank_distribution(n, m), counts / counts.sum(), atol=1e-15)


@pytest.mark.parametrize(("n", "m"), [(64, 3), (1000, 15), (50, 50), (10_000, 20)])
def test_distribution_of_ranks_stays_one(n: int, m: int) -> None:
    found = rank_distribution(n, m)
    assert found.sum() == pytest.approx(1.0, abs=1e-10)
    assert float(found.min()) >= 0.0
    assert np.allclose(found, found[::-1], atol=1e-12)
    assert found[0] == pytest.approx(1 / math.comb(n + m, m), rel=1e-6)
    mean = float(found @ np.arange(n * m + 1))
    assert mean == pytest.approx(n * m / 2)


def test_p_values_of_ranks_are_scipy_s() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m in ((64, 1), (64, 3), (40, 45), (200, 7), (EXACT + 30, EXACT + 1)):
        q, p = (torch.randn(k, generator=generator, dtype=torch.float64) for k in (n, m))
        q = q - 0.3
        found, lowest = rank_p_value(q, p)
        exact = min(n, m) <= EXACT
        theirs = mannwhitneyu(
            q.numpy(), p.numpy(), alternative="less", method="exact" if exact else "asymptotic"
        )
        assert found == pytest.approx(theirs.pvalue, rel=1e-9)
        if exact:
            assert lowest == pytest.approx(1 / math.comb(n + m, m), rel=1e-6)


def test_ties_count_against_copying() -> None:
    """Broken at random they give an exact test; the p-value with all of them on one side is never
    smaller.
    """
    q, p = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 3.0])
    found, _ = rank_p_value(q, p)
    draws = np.random.default_rng(0)
    for _ in range(20):
        noise = [torch.from_numpy(draws.uniform(0, 1e-6, len(x))) for x in (q, p)]
        assert rank_p_value(q + noise[0], p + noise[1])[0] <= found + 1e-12


@pytest.mark.parametrize(("held_out", "possible"), [(1, False), (2, True), (3, True), (15, True)])
def test_c_t_of_few_held_out_images_cannot_reach_the_old_threshold_but_its_p_value_can_ring(
    held_out: int, possible: bool
) -> None:
    g = torch.Generator().manual_seed(1)
    train = normal(60, 8, g)
    found = measure_copying(train[:SAMPLES], normal(held_out, 8, g), train)
    n, h = min(60, SAMPLES), held_out
    assert found.least == pytest.approx(-math.sqrt(3 * n * h / (n + h + 1)))
    assert (found.least > -3) == (held_out <= 3)
    assert found.statistic == pytest.approx(found.least)  # nothing is nearer than a copy
    assert found.can_ring == possible == (found.p_value <= COPY_ALARM)
    assert found.p_value == pytest.approx(1 / math.comb(n + h, h), rel=1e-6)


def test_several_cells_have_the_p_value_of_their_weighted_sum() -> None:
    g = torch.Generator().manual_seed(2)
    train, held_out = normal(600, 4, g), normal(300, 4, g)
    p = [measure_copying(normal(200, 4, g), held_out, train, cells=3).p_value for _ in range(60)]
    assert 0.3 < np.mean(p) < 0.7
    assert min(p) > COPY_ALARM
    assert (
        measure_copying(train[:200] + 0.05 * normal(200, 4, g), held_out, train, cells=3).p_value
        < 1e-6
    )


@pytest.mark.parametrize("sizes", [((4, 3), (3, 5)), ((7, 2), (2, 2), (5, 3)), ((12, 10), (9, 11))])
def test_p_values_of_cells_are_those_of_all_arrangements(
    sizes: tuple[tuple[int, int], ...],
) -> None:
    """The weighted sum over cells, counted out; so far from normal, the normal one is not it."""
    g = torch.Generator().manual_seed(len(sizes))
    weights = [m / sum(m for _, m in sizes) for _, m in sizes]
    cells = [
        (torch.randn(n, generator=g) - 0.8, torch.randn(m, generator=g), w)
        for (n, m), w in zip(sizes, weights)
    ]
    factors = [w / math.sqrt(n * m * (n + m + 1) / 12) for (n, m), w in zip(sizes, weights)]
    seen = sum(a * int((q[:, None] >= p).sum()) for (q, p, _), a in zip(cells, factors))
    likely = [rank_distribution(n, m) for n, m in sizes]
    exact = sum(
        math.prod(float(chance[u]) for chance, u in zip(likely, us))
        for us in itertools.product(*(range(len(chance)) for chance in likely))
        if sum(a * u for a, u in zip(factors, us)) <= seen + 1e-9
    )
    found, lowest = cells_p_value(cells)
    assert exact * (1 - 1e-9) <= found <= exact * 1.01
    assert lowest == pytest.approx(math.prod(1 / math.comb(n + m, m) for n, m in sizes))
    nearest = [(q - 100, p, w) for q, p, w in cells]
    assert cells_p_value(nearest) == (pytest.approx(lowest, rel=1e-6), lowest)
    assert cells_p_value([(q + 100, p, w) for q, p, w in cells])[0] == pytest.approx(1.0)


def test_cells_of_many_images_are_normal() -> None:
    g = torch.Generator().manual_seed(4)
    n, m = EXACT + 90, EXACT + 40
    q, p = torch.randn(n, generator=g) - 0.2, torch.randn(m, generator=g)
    one, lowest = rank_p_value(q, p)
    alone = cells_p_value([(q, p, 1.0)])
    assert alone[0] == pytest.approx(one, rel=1e-3)
    assert alone[1] == pytest.approx(lowest, rel=1e-9)
    three = cells_p_value([(q, p, 1 / 3)] * 3)[0]  # z of the mean of three equal ones is √3·z
    z = NormalDist().inv_cdf(one)
    assert three == pytest.approx(NormalDist().cdf(math.sqrt(3) * z), rel=0.05)


def test_copy_test_is_fisher_s_on_copies_and_on_what_cannot_be_copies() -> None:
    g = torch.Generator().manual_seed(3)
    train, held_out = clusters(40, g), clusters(5, g)
    samples = torch.cat([train[:6] + 0.01 * normal(6, 16, g), clusters(14, g)])
    found = copy_test(samples, train, held_out)
    alone = [
        copies(train[i : i + 1], torch.cat([train[:i], train[i + 1 :]]))[0]
        for i in range(len(train))
    ]
    assert torch.equal(found.controls, torch.cat([torch.stack(alone), copies(held_out, train)]))
    k, c = int(found.copies.sum()), int(found.controls.sum())
    table = [[k, 20 - k], [c, 45 - c]]
    assert found.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert found.lowest == pytest.approx(1 / math.comb(65, 20), rel=1e-6)
    assert not copy_test(train[:1], train[:30]).can_ring  # one of 31 images: 0.03 at best
    assert copy_test(train[:3], train[:30]).can_ring


def memorised(
    train: Tensor, share: float, fresh: Tensor, g: torch.Generator, noise: float = 0.1
) -> Tensor:
    """Samples of which a share are training images with noise of a tenth of the usual distance
    between neighbours.
    """
    n = round(share * len(fresh))
    usual = float(nearest_distances(train, train, 1, same=True).median())
    rows = torch.randint(len(train), (n,), generator=g)
    copied = train[rows] + noise * usual * normal(n, train.shape[1], g) / train.shape[1] ** 0.5
    return torch.cat([copied, fresh[n:]])


def alarms(
    kind: str, sizes: tuple[int, int], share: float, draws: int, seed: int
) -> tuple[float, float]:
    """Return how often each test rings."""
    g, draw = torch.Generator().manual_seed(seed), DATA[kind]
    rings = np.zeros(2)
    for _ in range(draws):
        train, held_out, fresh = (draw(n, g) for n in (*sizes, SAMPLES))
        samples = memorised(train, share, fresh, g)
        rings += [
            copy_test(samples, train, held_out).rings,
            measure_copying(samples, held_out, train).p_value <= COPY_ALARM,
        ]
    copied, nearer = rings / draws
    return float(copied), float(nearer)


@pytest.mark.parametrize("sizes", SETS, ids=lambda s: str(sum(s)))
@pytest.mark.parametrize("kind", ["plane", "features", "heavy tails", "clusters"])
def test_alarm_rings_for_memorised_pictures(kind: str, sizes: tuple[int, int]) -> None:
    assert alarms(kind, sizes, 1.0, 6, seed=0)[0] == 1.0
    if kind in ("features", "heavy tails"):
        assert alarms(kind, sizes, 0.5, 6, seed=1)[0] == 1.0


@pytest.mark.every(3)
@pytest.mark.parametrize("sizes", SETS[:2], ids=lambda s: str(sum(s)))
@pytest.mark.parametrize("kind", DATA)
def test_alarm_rings_seldom_for_new_pictures(kind: str, sizes: tuple[int, int]) -> None:
    """At most 5 % of the draws (clusters; next to none elsewhere), with room for the chance of 60
    draws.
    """
    copied, nearer = alarms(kind, sizes, 0.0, 60, seed=2)
    assert copied <= 0.1
    assert nearer <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SETS, ids=lambda s: str(sum(s)))
@pytest.mark.parametrize("kind", DATA)
def test_false_alarms_are_fewer_than_five_in_a_hundred(kind: str, sizes: tuple[int, int]) -> None:
    copied, nearer = alarms(kind, sizes, 0.0, 1000, seed=3)
    assert copied < 0.05
    assert nearer < 0.01


def shapes(n: int, seed: int) -> Tensor:
    image: Tensor = Shapes(size=16, n=n, seed=seed).batch(np.arange(n))["image"]
    return image


@pytest.mark.parametrize("pictures", [30, 60, 300])
def test_evaluation_says_memorised_and_says_when_it_cannot_tell(
    pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    held = max(1, pictures // 20)
    train = shapes(pictures - held, 0)
    np.save(tmp_path / "held.npy", shapes(held, 1).permute(0, 2, 3, 1).numpy())
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(len(train), (SAMPLES,), generator=g)
    noise = torch.randint(-6, 7, (SAMPLES, 3, 16, 16), generator=g)
    copied = (train[rows].int() + noise).clamp(0, 255).to(torch.uint8)
    asked = {
        "metrics": "memorisation",
        "features": "random64",
        "held_out": tmp_path / "held.npy",
        "device": "cpu",
        "progress": False,
    }
    for samples, rings in ((copied, True), (shapes(SAMPLES, 7), False)):
        found = {s.name: s for s in evaluate(samples, train, **asked).scores}
        for space in ("pixels", "random64"):
            share, test = found[f"copies_{space}_given_64"], found[f"copying_ct_{space}_given_64/p"]
            assert share.remark.startswith("MEMORISES") == rings
            assert (found[f"copies_{space}_given_64/p"].value <= COPY_ALARM) == rings
            assert ("cannot tell with 1 held-out image" in test.remark) == (held == 1)
            assert (test.value <= COPY_ALARM) == (rings and held > 1)


def test_blurred_samples_are_no_copies() -> None:
    """Drawn to the middle they lie nearer to training images than new images do, which C_T takes
    for copying; not the alarm.
    """
    g = torch.Generator().manual_seed(4)
    train, held_out = normal(285, 64, g), normal(15, 64, g)
    blurred = 0.3 * normal(SAMPLES, 64, g)
    assert measure_copying(blurred, held_out, train).p_value <= COPY_ALARM
    assert not copy_test(blurred, train, held_out).rings
