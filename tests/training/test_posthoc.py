"""Post-hoc EMA: profiles in closed form, synthesis against averages that were tracked directly,
exact resuming.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from command_line import ddpm
from ddpm_lib import evaluate, load_run
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.runs.checkpoint import list_checkpoints, read_tensors
from ddpm_lib.runs.snapshots import combine, gamma_of, gram, list_snapshots
from ddpm_lib.training import ConfigError, TrainingConfig, synthesise_ema
from ddpm_lib.training.posthoc import PostHocAverages
from training_helpers import StopAt, assert_same_tensors, final_tensors, tiny_trainer

KEPT = (0.05, 0.10)


def profile(gamma: float, t: float, tau: np.ndarray) -> np.ndarray:
    return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_sigma_rel_is_the_relative_standard_deviation(sigma_rel: float) -> None:
    tau = (np.arange(400_000) + 0.5) / 400_000
    p = profile(gamma_of(sigma_rel), 1.0, tau) / len(tau)
    assert p.sum() == pytest.approx(1.0, rel=1e-6)
    mean = (p * tau).sum()
    assert math.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-5)


def test_published_exponents() -> None:
    """Karras et al. 2024, section 3.1: 16.97 and 6.94 for 5 % and 10 %."""
    assert [round(gamma_of(s), 2) for s in KEPT] == [16.97, 6.94]


def test_gram_matrix_is_the_integral_of_products() -> None:
    times, gammas = np.array([3.0, 7.0, 10.0]), np.array([6.94, 16.97, 1.0])
    tau = 10.0 * (np.arange(200_000) + 0.5) / 200_000
    rows = np.array([profile(g, t, tau) for g, t in zip(gammas, times)])
    np.testing.assert_allclose(
        gram(times, gammas, times, gammas), rows @ rows.T * (tau[1] - tau[0]), rtol=1e-4
    )


def test_updates_weight_each_step_by_the_integral_of_the_profile() -> None:
    """θ_k, constant from k − 1 to k, gets (k^{γ+1} − (k−1)^{γ+1})/t^{γ+1}."""
    model, t = nn.Linear(1, 1, bias=False).double(), 30
    averages = PostHocAverages(model, KEPT)
    thetas = np.random.default_rng(0).normal(size=t)
    for k, theta in enumerate(thetas, 1):
        with torch.no_grad():
            model.weight.fill_(theta)
        averages.update(k)
    edges = np.arange(t + 1) / t
    for sigma_rel in KEPT:
        weights = np.diff(edges ** (gamma_of(sigma_rel) + 1))
        assert averages.tensors()[f"{sigma_rel}/weight"].item() == pytest.approx(
            weights @ thetas, rel=1e-12
        )


def test_the_solution_is_the_least_squares_one() -> None:
    """Against numpy's solver on finely sampled profiles, with the sum of the coefficients
    eliminated.
    """
    times, gammas = [4.0, 4.0, 8.0, 8.0, 12.0, 12.0], [gamma_of(s) for s in KEPT] * 3
    wanted = gamma_of(0.14)
    tau = 12.0 * (np.arange(100_000) + 0.5) / 100_000
    rows = np.array([profile(g, t, tau) for g, t in zip(gammas, times)])
    target = profile(wanted, 12.0, tau)
    free, *_ = np.linalg.lstsq((rows[:-1] - rows[-1]).T, target - rows[-1], rcond=None)
    coefficients, error = combine(times, gammas, 12.0, wanted)
    np.testing.assert_allclose(coefficients, [*free, 1 - free.sum()], atol=1e-4)
    assert coefficients.sum() == pytest.approx(1.0, abs=1e-12)
    assert error == pytest.approx(
        np.linalg.norm(target - coefficients @ rows) / np.linalg.norm(target), rel=1e-3
    )


def test_a_stored_average_is_returned_as_it_is() -> None:
    times, gammas = np.repeat(np.arange(1.0, 9.0), 2), [gamma_of(s) for s in KEPT] * 8
    coefficients, error = combine(times, gammas, 8.0, gamma_of(0.10))
    np.testing.assert_allclose(coefficients, [0.0] * 15 + [1.0], atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2])
def test_many_snapshots_span_the_lengths_between(sigma_rel: float) -> None:
    """64 snapshots as in the paper: 6.5 to 20 % are spanned to a per mille of the profile, 3 % is
    too sharp for them.
    """
    times, gammas = np.repeat(np.arange(1.0, 65.0), 2), [gamma_of(s) for s in KEPT] * 64
    coefficients, error = combine(times, gammas, 64.0, gamma_of(sigma_rel))
    assert error < (0.06 if sigma_rel < 0.05 else 2e-3)
    assert np.abs(coefficients).sum() < 100  # float32 snapshots lose no more than two digits


@pytest.mark.parametrize("kind", ["constant", "linear", "walk"])
def test_synthesised_equals_tracked(kind: str) -> None:
    """The same trajectory of weights averaged on the way, with the length asked for later."""
    steps, every, wanted = 640, 20, (0.07, 0.15)
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(50, 1, bias=False)
    kept, tracked = PostHocAverages(model, KEPT), PostHocAverages(model, wanted)
    snapshots: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        model.weight.fill_(3.0)
        for k in range(1, steps + 1):
            moves = {
                "constant": 0.0,
                "linear": 0.01,
                "walk": 0.1 * torch.randn(1, 50, generator=generator),
            }
            model.weight += moves[kind]
            kept.update(k)
            tracked.update(k)
            if k % every == 0:
                snapshots.append({name: v.clone() for name, v in kept.tensors().items()})
    times = [float(every * (k + 1)) for k in range(len(snapshots)) for _ in KEPT]
    rows = torch.stack([s[f"{sigma_rel}/weight"] for s in snapshots for sigma_rel in KEPT]).double()
    gammas = [gamma_of(s) for s in KEPT] * len(snapshots)
    for sigma_rel in wanted:
        coefficients, _ = combine(times, gammas, steps, gamma_of(sigma_rel))
        made = torch.tensordot(torch.from_numpy(coefficients), rows, 1)
        exact = tracked.tensors()[f"{sigma_rel}/weight"].double()
        moved = float((exact - kept.tensors()["0.05/weight"]).norm())
        scale = float(exact.norm()) if kind == "constant" else moved
        assert float((made - exact).norm()) < (1e-6 if kind == "constant" else 5e-3) * scale


def test_half_precision_weights_are_averaged_in_float32_and_counters_are_copied() -> None:
    model = nn.BatchNorm1d(2).to(torch.bfloat16)
    averages = PostHocAverages(model, (0.1,))
    for k in (1, 2, 3):
        model(torch.randn(4, 2, dtype=torch.bfloat16))
        averages.update(k)
    tensors = averages.tensors()
    assert tensors["0.1/running_mean"].dtype == torch.float32
    assert tensors["0.1/num_batches_tracked"].item() == 3


OPTIONS = {"max_steps": 9, "save_every": 4, "posthoc_ema": KEPT, "posthoc_every": 3}


def files_of(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "posthoc").iterdir())}


def test_resuming_repeats_averages_and_snapshots_bit_by_bit(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "whole", **OPTIONS).train()
    tiny_trainer(tmp_path / "cut", callbacks=[StopAt(5)], **OPTIONS).train()
    tiny_trainer(tmp_path / "cut", **OPTIONS).train()
    assert [s.step for s in list_snapshots(tmp_path / "whole")] == [3, 6, 9]
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "cut")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert any(k.startswith("posthoc:0.1/") for k in final_tensors(tmp_path / "whole"))


def test_snapshots_after_the_checkpoint_are_cut_back(tmp_path: Path) -> None:
    """A crash after step 6 leaves a snapshot that the run, continued from step 4, has yet to
    make.
    """
    import shutil

    tiny_trainer(tmp_path / "whole", **OPTIONS).train()
    run = tmp_path / "crashed"
    shutil.copytree(tmp_path / "whole", run)
    for checkpoint in list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    (run / "posthoc" / "step-000000006.safetensors").write_bytes(
        (run / "posthoc/step-000000003.safetensors").read_bytes()
    )
    tiny_trainer(run, callbacks=[StopAt(5)], **OPTIONS).train()
    assert [s.step for s in list_snapshots(run)] == [3]
    tiny_trainer(run, **OPTIONS).train()
    assert files_of(run) == files_of(tmp_path / "whole")


def test_an_average_cannot_begin_in_the_middle(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, max_steps=2).train()
    with pytest.raises(
        ConfigError, match=r"no post-hoc average of sigma_rel 0.05, 0.1.*this run keeps \(none\)"
    ):
        tiny_trainer(tmp_path, **OPTIONS).train()


@pytest.mark.parametrize("value", [(0.3,), (0.0,), (0.1, 0.1)])
def test_bad_lengths(value: tuple[float, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"posthoc_ema must be different numbers between 0 and 0.288"
    ):
        TrainingConfig(posthoc_ema=value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept 0.05, 0.10 and, to compare with, 0.15."""
    out = tmp_path_factory.mktemp("posthoc") / "run"
    options = {
        "max_steps": 24,
        "save_every": 12,
        "posthoc_every": 2,
        "learning_rate": 0.01,
        "val_every": 24,
        "keep_early": "no",
    }
    tiny_trainer(out, posthoc_ema=(*KEPT, 0.15), val_fraction=0.2, **options).train()
    return out


def test_command_makes_a_checkpoint_that_everything_reads(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ddpm("ema", run, "--sigma-rel", 0.15, 0.12) == 0
    told = capsys.readouterr().out
    path = run / "ema" / "sigma_rel-0.15-step-000000024"
    assert "sigma_rel 0.15 at step 24 from 36 stored averages, profile error" in told
    assert not list((run / "ema").glob(".*"))
    loaded = load_run(path)
    assert (loaded.weights, loaded.step) == ("ema sigma_rel=0.15", 24)
    tracked = read_tensors(list_checkpoints(run / "checkpoints")[-1], "posthoc")
    for name, tensor in loaded.diffusion.model.state_dict().items():
        torch.testing.assert_close(tensor, tracked[f"0.15/{name}"], rtol=1e-5, atol=1e-6)
    assert ddpm("sample", path, "-n", 2, "--num-steps", 2, "--device", "cpu", "--no-progress") == 0
    assert "(ema sigma_rel=0.15): 2 images" in capsys.readouterr().out
    found = evaluate(path, load_shapes(), metrics="nll", num_levels=2, device="cpu", progress=False)
    assert math.isfinite(found["nll"])
    assert found.about["weights"] == "ema sigma_rel=0.15"
    with pytest.raises(ConfigError, match=r"keeps no EMA of decay 0.9. It keeps: sigma_rel=0.15"):
        load_run(path, ema_decay=0.9)


def load_shapes():
    from ddpm_lib import Shapes

    return Shapes(size=8, n=3)


def test_fewer_snapshots_come_close(run: Path, tmp_path: Path) -> None:
    """Without the stored 0.15, from 0.05 and 0.10 alone."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    few = tmp_path / "few"
    shutil.copytree(run, few)
    shutil.rmtree(few / "ema", ignore_errors=True)
    for path in (few / "posthoc").iterdir():
        tensors = {k: v for k, v in load_file(path).items() if not k.startswith("0.15/")}
        save_file(tensors, path, {"sigma_rel": json.dumps(KEPT)})
    made = synthesise_ema(few, 0.15)
    assert made.snapshots == 24
    tracked = read_tensors(list_checkpoints(run / "checkpoints")[-1], "posthoc")
    weights = load_run(made.path).diffusion.model.state_dict()
    error = sum(float((weights[k] - tracked[f"0.15/{k}"]).square().sum()) for k in weights)
    apart = sum(float((tracked[f"0.1/{k}"] - tracked[f"0.15/{k}"]).square().sum()) for k in weights)
    assert error < 0.05**2 * apart
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        synthesise_ema(few, 0.15)


def test_wrong_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        ((run, "--sigma-rel", "0.4"), "sigma_rel must lie between 0 and 0.288"),
        ((run, "--step", "7"), "not at 7. The nearest is 6"),
        ((tmp_path,), "is no run directory. Give a run directory"),
        (
            (run, "--sigma-rel", "0.1", "0.2", "--output-dir", str(tmp_path / "x")),
            "--output-dir takes one average",
        ),
    ):
        assert ddpm("ema", *args) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    damaged = tmp_path / "posthoc"
    damaged.mkdir()
    (damaged / "step-000000002.safetensors").write_bytes(b"broken")
    with pytest.raises(
        CheckpointError, match=r"step-000000002.safetensors cannot be read.*Move it away"
    ):
        synthesise_ema(tmp_path, 0.1)
