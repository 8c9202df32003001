"""Two real processes that meet over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_two_ranks
from command_line import ddpm
from launchers import torchrun
from locations import HELPERS
from training_helpers import assert_same_tensors, curve, final_tensors


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of two processes that trains, validates, samples, stops in the middle and resumes."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun(str(HELPERS / "run_two_ranks.py"), str(out))
    return out


@pytest.fixture(scope="module")
def single(two_ranks: Path) -> Path:
    """The same run as one process with two micro-batches."""
    out = two_ranks / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_two_ranks.py", str(out), "single"])
        run_two_ranks.main()
    return out


def reports(out: Path) -> list[dict]:
    return [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]


def test_parameters_and_averages_of_both_ranks_are_equal(two_ranks: Path) -> None:
    a, b = reports(two_ranks)
    assert a["weights"] == b["weights"]
    assert a["ema"] == b["ema"]
    assert a["posthoc"] == b["posthoc"]
    names = [
        sorted(p.name for p in (two_ranks / run / "posthoc").iterdir()) for run in ("whole", "cut")
    ]
    assert names == [["step-000000004.safetensors", "step-000000008.safetensors"]] * 2


def test_both_ranks_begin_with_the_weights_of_another_run(two_ranks: Path, single: Path) -> None:
    """As one process does; a pull that every rank added to its part would be another."""
    a, b = reports(two_ranks)
    assert a["tuned"] == b["tuned"]
    assert a["started_from"] == b["started_from"] != "None"
    together, alone = (final_tensors(out / "tuned") for out in (two_ranks, single))
    assert together.keys() == alone.keys()
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-5)


def threads_of_gloo(out: Path) -> list[list[str]]:
    names = [json.loads((out / f"threads{r}.json").read_text()) for r in range(2)]
    assert all("python" in name for name in map(" ".join, names))  # something was read
    return [[name for name in one if "gloo" in name] for one in names]


def test_no_thread_of_gloo_outlives_the_group(two_ranks: Path) -> None:
    """One that drops a tensor while the interpreter ends would take a finished training down with
    SIGABRT (pytorch#190489).
    """
    assert threads_of_gloo(two_ranks) == [[], []]


@pytest.fixture(scope="module")
def never_closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, the second with less memory, whose script never closes its
    trainer.
    """
    out = tmp_path_factory.mktemp("auto")
    torchrun(str(HELPERS / "run_auto_batch.py"), str(out))
    return out


@pytest.mark.slow
def test_two_processes_agree_on_the_largest_batch(never_closed: Path) -> None:
    """Both take what the second can."""
    a, b = reports(never_closed)
    assert a == b == {"batch_size": 2 * 12, "per_process": 12, "step": 2}


@pytest.mark.slow
def test_a_script_that_never_closes_its_trainer_leaves_the_group_at_its_end(
    never_closed: Path,
) -> None:
    assert threads_of_gloo(never_closed) == [[], []]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux's scheduler")
def test_late_threads_of_gloo_do_not_abort_a_finished_run(tmp_path: Path) -> None:
    """The same fault provoked: gloo's threads come to drop their tensors only long after the
    collective.
    """
    for _ in range(5):
        torchrun(str(HELPERS / "run_to_the_end.py"), str(tmp_path))


def test_data_of_the_ranks_are_disjoint_and_complete(two_ranks: Path) -> None:
    """Within an epoch no image is seen twice, and together the ranks see all."""
    a, b = (set(report["first_epoch"]) for report in reports(two_ranks))
    assert not a & b
    assert a | b == set(range(24))


def test_both_ranks_sample_and_get_all_images(two_ranks: Path) -> None:
    a, b = reports(two_ranks)
    assert a["sample_shape"] == b["sample_shape"] == [5, 3, 8, 8]
    assert a["samples"] == b["samples"]
    assert a["sampled_here"] + b["sampled_here"] == 5
    assert min(a["sampled_here"], b["sampled_here"]) >= 1


def test_stopped_on_the_same_step(two_ranks: Path) -> None:
    a, b = reports(two_ranks)
    assert a["stopped_at"] == b["stopped_at"] == 3


def test_resumed_equals_uninterrupted_with_two_processes(two_ranks: Path) -> None:
    assert_same_tensors(final_tensors(two_ranks / "whole"), final_tensors(two_ranks / "cut"))
    assert curve(two_ranks / "whole") == curve(two_ranks / "cut")


def test_one_process_makes_the_same_run(two_ranks: Path, single: Path) -> None:
    """Two micro-batches in one process are the two shares of two processes: same images, noise,
    levels and dropout.
    """
    ours, theirs = curve(single / "whole"), curve(two_ranks / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs):
        for name in ("loss", "val_loss", "grad_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-5)  # float32 sums in another order


def test_loss_aware_levels_are_learned_alike_on_both_ranks(two_ranks: Path) -> None:
    """Both hear the losses of the whole batch in its order, so that their memories are equal to the
    last bit.
    """
    a, b = reports(two_ranks)
    assert a["time_sampler"] == b["time_sampler"]
    assert a["aware_weights"] == b["aware_weights"]
    assert a["probabilities"] == b["probabilities"]
    assert a["probabilities"] != [0.25] * 4


def test_loss_aware_levels_of_one_process_are_those_of_two(two_ranks: Path, single: Path) -> None:
    """Two micro-batches instead of two processes."""
    one, two = json.loads((single / "rank0.json").read_text()), reports(two_ranks)[0]
    assert one["time_sampler"].keys() == two["time_sampler"].keys()
    # Each loss is one image's, so that only the float32 sums of the gradients differ.
    assert one["probabilities"] == pytest.approx(two["probabilities"], rel=1e-4)


@pytest.mark.slow
def test_two_ranks_of_the_sampling_command_make_one_set(two_ranks: Path, tmp_path: Path) -> None:
    import numpy as np

    run = str(two_ranks / "whole")
    flags = ["-n", "5", "--num-steps", "3", "--format", "npz", "--device", "cpu", "--no-progress"]
    torchrun("-m", "ddpm_lib.cli", "sample", run, *flags, "--output-dir", str(tmp_path / "two"))
    assert ddpm("sample", run, *flags, "--output-dir", tmp_path / "one") == 0
    two, one = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("two", "one"))
    assert two.shape == (5, 8, 8, 3)
    assert (
        int(np.abs(two.astype(int) - one.astype(int)).max()) <= 1
    )  # float32 rounding of another batch size


@pytest.mark.slow
def test_two_ranks_draw_a_cascade(two_ranks: Path, tmp_path: Path) -> None:
    """Both stages are shared; every rank enlarges images that the other one drew."""
    import numpy as np
    import torch

    from ddpm_lib import GaussianDiffusion, Shapes, Unet
    from training_helpers import tiny_trainer

    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, low_res_factor=2)
    large = GaussianDiffusion(network, image_size=16, timesteps=50)
    tiny_trainer(
        tmp_path / "sr", large, Shapes(size=16, n=8), max_steps=2, learning_rate=0.01
    ).train()
    flags = [
        "--base",
        str(two_ranks / "whole"),
        "--low-res-noise",
        "0.2",
        "-n",
        "5",
        "--num-steps",
        "3",
    ]
    flags += ["--format", "npz", "--device", "cpu", "--no-progress", "--batch-size", "2"]
    for processes in (1, 2):
        out = ["--output-dir", str(tmp_path / str(processes))]
        torchrun(
            "-m", "ddpm_lib.cli", "sample", str(tmp_path / "sr"), *flags, *out, processes=processes
        )
    one, two = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("1", "2"))
    assert two.shape == (5, 16, 16, 3)
    assert (
        int(np.abs(two.astype(int) - one.astype(int)).max()) <= 2
    )  # rounding of the first stage, seen by the second


@pytest.mark.slow
def test_notebook_launcher(tmp_path: Path) -> None:
    command = [sys.executable, str(HELPERS / "run_notebook_launcher.py"), str(tmp_path)]
    subprocess.run(
        command,
        check=True,
        timeout=120,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert sorted(p.name for p in tmp_path.glob("rank*")) == ["rank0-of-2", "rank1-of-2"]
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    command += [str(HELPERS / "run_tiny.py"), str(tmp_path), "6"]
    subprocess.run(
        command,
        check=True,
        timeout=120,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"
