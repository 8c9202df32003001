"""The metrics on given features: closed forms first, then numbers of the published tools."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.metrics import (
    Moments,
    Statistics,
    bootstrap_interval,
    copies,
    copying_test,
    frechet_distance,
    frechet_infinity,
    frechet_of_features,
    inception_score,
    kernel_distance,
    manifolds,
    mmd2,
    nearest_distances,
    read_statistics,
    save_statistics,
    share_interval,
    statistics_of,
)
from ddpm_lib.metrics.kernel import inception_influence, kernel_influence
from ddpm_lib.metrics.memorisation import k_means
from process_tools import load


def normal(n: int, d: int, index: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=keys.generator("cpu", index, "metrics test"))


def test_moments_in_any_blocks_and_merges_are_those_of_numpy() -> None:
    x = normal(101, 7) * 3.0 + 1000.0  # a large mean, against which sums of squares would cancel
    whole = statistics_of(x)
    assert np.allclose(whole.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(whole.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-10)
    parts = Moments(7)
    for start, stop in ((0, 1), (1, 1), (1, 40), (40, 101)):
        parts.merge(Moments(7).update(x[start:stop], block=6))
    merged = parts.statistics()
    assert merged.n == 101
    assert torch.allclose(merged.cov, whole.cov, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        Moments(7).update(x[:1]).statistics()


def test_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    """For covariances with the same eigenvectors d² = |μ₁ − μ₂|² + Σ(√λ₁ − √λ₂)², singular ones
    included.
    """
    q, _ = torch.linalg.qr(normal(6, 6))
    a, b = (
        torch.tensor([4.0, 1.0, 9.0, 0.25, 0.0, 1e-9]).double(),
        torch.tensor([1.0, 1.0, 0.0, 16.0, 0.0, 1e-7]).double(),
    )
    shift = torch.arange(6).double()
    first, second = (
        Statistics(shift, (q * a) @ q.T),
        Statistics(torch.zeros(6).double(), (q * b) @ q.T),
    )
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)


def test_published_distances(shared: Path) -> None:
    data, about = load(shared, "E_metrics/frechet_distance")
    singular = ("rank_deficient", "one_side_rank_deficient", "ill_conditioned", "zero_covariance")
    for name, peers in about["values"]["distance"].items():
        pair = [
            Statistics(data[f"{name}/mu{i}"].double(), data[f"{name}/sigma{i}"].double())
            for i in (1, 2)
        ]
        got = frechet_distance(*pair)
        tolerance = {"abs": 2e-4} if name in singular else {"rel": 1e-8, "abs": 1e-8}
        for peer in ("pytorch_fid", "torch_fidelity", "guided_diffusion"):
            assert got == pytest.approx(peers[peer], **tolerance), (name, peer)


def test_distance_of_features_is_that_of_their_statistics_on_both_routes() -> None:
    for n in (5, 12, 13, 60):  # fewer, as many and more images than features
        x, y = normal(n, 12) * 2.0 + 0.3, normal(40, 12, 1)
        got, influence = frechet_of_features(x, statistics_of(y))
        assert got == pytest.approx(frechet_distance(statistics_of(x), statistics_of(y)), rel=1e-6)
        assert float(influence.mean()) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("n", [9, 50])
def test_influence_is_the_derivative_by_the_weight_of_an_image(n: int) -> None:
    x, b = normal(n, 12) * 1.5 + 0.2, statistics_of(normal(300, 12, 1))
    _, influence = frechet_of_features(x, b)

    def weighted(row: int, extra: float) -> float:
        w = torch.ones(n).double()
        w[row] += extra
        mean = (w[:, None] * x).sum(0) / n  # to first order, the weights need not sum to n
        mean = mean - extra / n * x.mean(0)
        centred = (x - mean) * w.sqrt()[:, None]
        cov = centred.T @ centred / (n - 1)
        return frechet_distance(Statistics(mean, cov), b)

    step = 1e-4
    slopes = torch.tensor(
        [n * (weighted(i, step) - weighted(i, -step)) / (2 * step) for i in range(n)]
    ).double()
    assert torch.allclose(
        influence, slopes - slopes.mean(), rtol=1e-3, atol=2e-2 * float(influence.std())
    )


def test_infinite_samples_remove_the_bias() -> None:
    """Samples of the reference's own Gaussian are at distance 0; 200 of them in 10 dimensions look
    far away.
    """
    reference = Statistics(torch.zeros(10).double(), torch.eye(10).double())
    raw, corrected = [], []
    for k in range(8):
        x = normal(200, 10, 10 + k)
        raw.append(frechet_distance(statistics_of(x), reference))
        corrected.append(frechet_infinity(x, reference, seed=k))
    assert np.mean(raw) > 0.15
    assert abs(np.mean(corrected)) < 0.25 * np.mean(raw)
    assert (
        frechet_infinity(normal(19, 3), Statistics(torch.zeros(3).double(), torch.eye(3).double()))
        is None
    )


def test_interval_covers_the_value_of_many_images_as_often_as_it_says() -> None:
    b = Statistics(torch.zeros(4).double(), torch.eye(4).double())
    true, hits = 4 * 0.25 + 4 * (1.5 - 1.0) ** 2, 0
    for k in range(60):
        x = normal(400, 4, 100 + k) * 1.5 + 0.5
        value, influence = frechet_of_features(x, b)
        low, high = bootstrap_interval(value, influence, seed=k, replicates=200)
        hits += low < true < high
    assert 50 <= hits <= 60


def test_interval_of_a_mean_is_the_normal_one() -> None:
    x = normal(500, 1)[:, 0]
    low, high = bootstrap_interval(float(x.mean()), x)
    assert high - low == pytest.approx(2 * 1.96 * float(x.std()) / math.sqrt(500), rel=0.1)
    assert bootstrap_interval(1.0, x[:1]) is None


def test_statistics_files(tmp_path: Path) -> None:
    own = statistics_of(normal(30, 5))
    path = save_statistics(tmp_path / "own.npz", own, features="random64")
    back, about = read_statistics(path)
    assert torch.equal(back.cov, own.cov)
    assert (back.n, about) == (30, {"features": "random64"})
    for mean, cov in (("mu", "sigma"), ("m1", "s1")):
        np.savez(tmp_path / "x.npz", **{mean: own.mean.numpy(), cov: own.cov.numpy()})
        assert torch.equal(read_statistics(tmp_path / "x.npz")[0].mean, own.mean)
    torch.save({"mu": own.mean.numpy(), "sigma": own.cov.numpy()}, tmp_path / "fidelity.pt")
    assert torch.equal(read_statistics(tmp_path / "fidelity.pt")[0].cov, own.cov)
    torch.save(normal(30, 5), tmp_path / "features.pt")
    assert torch.allclose(read_statistics(tmp_path / "features.pt")[0].cov, own.cov)
    np.savez(tmp_path / "bad.npz", arr=own.mean.numpy())
    with pytest.raises(ValueError, match=r"expected one of mu/sigma, m1/s1.*; got arr"):
        read_statistics(tmp_path / "bad.npz")
    torch.save({"mu": Path("x"), "sigma": print}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="holds Python objects, which are never loaded"):
        read_statistics(tmp_path / "code.pt")
    with pytest.raises(ValueError, match="5 and 4 features cannot be compared"):
        frechet_distance(own, statistics_of(normal(30, 4)))


def test_published_kernel_distances(shared: Path) -> None:
    data, about = load(shared, "E_metrics/kid")
    x, y = data["features_1"], data["features_2"]
    values = about["values"]["kid_mean_std"]
    size, count = about["config"]["subset_size"], about["config"]["subsets"]
    for seed in (2020, 11):
        got = kernel_distance(x, y, subsets=count, size=size, seed=seed)
        assert got == pytest.approx(values[f"f64/poly3/seed{seed}"][0], rel=1e-9)
    assert mmd2(x[:64], y) == pytest.approx(values["f64/poly3/full"], rel=1e-9)


def test_kernel_distance_is_unbiased_and_its_spread_known() -> None:
    found = [mmd2(normal(40, 3, 2 * k), normal(40, 3, 2 * k + 1)) for k in range(100)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(100)
    moved = [normal(80, 3, k) + 0.7 for k in range(60)]
    reference = normal(400, 3, 999)
    spread = np.std([mmd2(x, reference) for x in moved])
    predicted = [float(kernel_influence(x, reference).std()) / math.sqrt(80) for x in moved[:20]]
    assert np.mean(predicted) == pytest.approx(spread, rel=0.35)


def test_published_inception_scores(shared: Path) -> None:
    data, about = load(shared, "E_metrics/inception_score")
    for name, (mean, std) in about["values"]["torch_fidelity_mean_std"].items():
        splits, shuffle, seed = (
            int("".join(c for c in part if c.isdigit())) for part in name.split("_")
        )
        got = inception_score(data["logits"], splits=splits, seed=seed if shuffle else None)
        assert got == pytest.approx((mean, std), rel=1e-10, abs=1e-12)


def test_inception_score_of_certain_and_of_undecided_images() -> None:
    certain = 100.0 * torch.eye(5).repeat(4, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(5.0)
    assert inception_score(torch.zeros(20, 5), splits=1)[0] == pytest.approx(1.0)
    assert inception_score(certain[:3])[0] == pytest.approx(1.0)  # three splits of one image
    influence = inception_influence(normal(50, 5))
    assert float(influence.mean()) == pytest.approx(0.0, abs=1e-12)


def test_published_precision_and_recall(shared: Path) -> None:
    data, about = load(shared, "E_metrics/precision_recall")
    for k in (1, 3, 5):
        got = manifolds(data["features_gen"], data["features_real"], k)
        precision, recall, _ = about["values"]["torch_fidelity_precision_recall_f"][
            f"k{k}_save_cpu_ram0"
        ]
        assert float(got.precision.mean()) == pytest.approx(precision, abs=1e-6)
        assert float(got.recall.mean()) == pytest.approx(recall, abs=1e-6)
    radii = nearest_distances(data["features_real"], data["features_real"], 3, same=True)[:, -1]
    assert torch.allclose(radii.float(), data["radii_real_k3"], rtol=1e-5)


def test_density_and_coverage_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference 0, 1, 3, 7 with k = 1: radii 1, 1, 2, 4. Samples 0.5 (balls of 0 and 1), 3.5 (of 3
    and 7) and 50 (none).
    """
    reference, samples = (
        torch.tensor([[0.0], [1.0], [3.0], [7.0]]),
        torch.tensor([[0.5], [3.5], [50.0]]),
    )
    for block in (1 << 24, 1):
        monkeypatch.setattr("ddpm_lib.metrics.neighbours._BLOCK", block)
        got = manifolds(samples, reference, k=1)
        assert got.density.tolist() == [2.0, 2.0, 0.0]
        assert got.precision.tolist() == [1.0, 1.0, 0.0]
        assert got.coverage.tolist() == [1.0, 1.0, 1.0, 1.0]
        assert got.recall.tolist() == [1.0, 1.0, 1.0, 1.0]  # radii of the samples: 3, 3, 46.5
    with pytest.raises(ValueError, match="3 nearest neighbours need 4 images; got 3"):
        manifolds(samples, reference)


@pytest.mark.parametrize("n", [64, 256])
def test_the_error_of_recall_and_coverage_is_that_of_drawing_other_samples(n: int) -> None:
    """Reference images are many and agree with each other: by them alone, the error of recall would
    be a third of what other samples show.
    """
    reference = normal(1000, 4)
    drawn = [manifolds(0.7 * normal(n, 4, index=1 + k), reference) for k in range(40)]
    for name in ("recall", "coverage"):
        values = torch.tensor([float(getattr(one, name).mean()) for one in drawn])
        stated = sum(getattr(one, f"{name}_error") for one in drawn) / len(drawn)
        assert 0.8 < stated / float(values.std()) < 1.6
    one_set = drawn[0].recall
    narrow, wide = share_interval(one_set), share_interval(one_set, more=drawn[0].recall_error)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < float(one_set.mean()) < narrow[1] < wide[1]
    assert wide[1] - wide[0] == pytest.approx(
        3.92 * math.hypot((narrow[1] - narrow[0]) / 3.92, drawn[0].recall_error), rel=0.05
    )


def test_copies_are_found_and_new_images_are_not() -> None:
    train = normal(400, 20) * 5.0 + 100.0
    train[1] = train[0]  # an image that occurs twice
    assert float(copies(train, train).mean()) == 1.0
    assert float(copies(train[2:200] + 0.1 * normal(198, 20, 5), train).mean()) == 1.0
    assert float(copies(normal(400, 20, 6) * 5.0 + 100.0, train).mean()) == 0.0


def test_copying_statistic() -> None:
    train, held_out = normal(600, 4), normal(300, 4, 1)
    honest = [copying_test(normal(200, 4, 10 + k), held_out, train, cells=3)[0] for k in range(12)]
    assert abs(np.mean(honest)) < 1.0
    near, influence = copying_test(train[:200] + 0.05 * normal(200, 4, 5), held_out, train)
    assert near < -10
    assert len(influence) == 200
    assert copying_test(normal(200, 4, 7) * 3.0, held_out, train)[0] > 3
    # ties (copies at distance 0) count half; one cell is the Mann–Whitney test itself
    from scipy.stats import mannwhitneyu

    z, _ = copying_test(train[:50], held_out[:40], train, cells=1)
    q = nearest_distances(train[:50], train, 1)[:, 0]
    p = nearest_distances(held_out[:40], train, 1)[:, 0]
    u = mannwhitneyu(q, p, method="asymptotic", use_continuity=False).statistic
    assert z == pytest.approx((u - 50 * 40 / 2) / math.sqrt(50 * 40 * 91 / 12))


def test_few_images_in_cells_fall_back_to_one_cell() -> None:
    train, held_out, samples = normal(600, 4), normal(12, 4, 1), normal(9, 4, 2)
    assert copying_test(samples, held_out, train, cells=8)[0] == pytest.approx(
        copying_test(samples, held_out, train, cells=1)[0]
    )


def test_k_means_finds_separate_clusters() -> None:
    x = torch.cat([normal(50, 2, k) * 0.1 + 10.0 * k for k in range(3)])
    centres = k_means(x, 3).sort(0).values
    assert torch.allclose(
        centres, torch.tensor([[0.0, 0.0], [10.0, 10.0], [20.0, 20.0]]).double(), atol=0.1
    )
    assert k_means(torch.ones(5, 2), 3).shape == (3, 2)


def test_nothing_is_made_on_another_device_than_the_features() -> None:
    """Where the default device is another, a tensor made without naming one would not go together
    with the features.
    """
    samples, held_out, train = normal(60, 4), normal(50, 4, 1), normal(450, 4, 2)
    with torch.device("meta"):
        found = (
            manifolds(samples, held_out),
            copies(samples, train),
            copying_test(samples, held_out, train),
        )
        other = kernel_distance(samples, held_out, subsets=3), kernel_influence(samples, held_out)
    assert float(found[0].density.mean()) > 0
    assert found[1].device.type == found[2][1].device.type == other[1].device.type == "cpu"


def test_pairs_are_compared_in_blocks_that_fit_any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.28 million images of 3,072 numbers would be 31 GB in float64."""
    from ddpm_lib.metrics import neighbours

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(37, 6, generator=generator) + 50, torch.randn(101, 6, generator=generator)
    whole = [
        nearest_distances(x, y, 3),
        nearest_distances(y, y, 3, same=True),
        *vars(manifolds(x - 50, y, 3)).values(),
    ]
    real, sizes = neighbours.distances, []

    def seen(a: torch.Tensor, b: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        sizes.append((len(a), len(b)))
        return real(a, b, centre)

    monkeypatch.setattr(neighbours, "distances", seen)
    monkeypatch.setattr(neighbours, "_BLOCK", 60)
    blocks = [
        nearest_distances(x, y, 3),
        nearest_distances(y, y, 3, same=True),
        *vars(manifolds(x - 50, y, 3)).values(),
    ]
    assert max(b for _, b in sizes) <= 10  # 60 numbers of six each
    assert max(a * b for a, b in sizes) <= 60
    for a, b in zip(blocks, whole):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
