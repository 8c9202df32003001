"""Samples become features once, whoever draws them: any batch, any number of processes, killed in
between.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Evaluate, GaussianDiffusion, Shapes, Unet, evaluate
from ddpm_lib.cli import main
from ddpm_lib.data import open_dataset, tensor_dataset
from ddpm_lib.evaluation import EvaluationOptions, evaluate_checkpoints
from ddpm_lib.evaluation.sample_set import sample_images
from ddpm_lib.images import save_image
from ddpm_lib.metrics import read_statistics, statistics_of
from ddpm_lib.training import ConfigError
from launchers import torchrun
from training_helpers import tiny_trainer

QUIET = {"device": "cpu", "progress": False}
SMALL = {**QUIET, "features": "random64", "sample_steps": 2}
EVERY = "fid,sfid,is,kid,pr,dc,memorisation"


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DDPM_LIB_CACHE", str(folder))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")
    return folder


def pictures(n: int, seed: int = 0, size: int = 8) -> np.ndarray:
    return (
        Shapes(size=size, n=n, seed=seed).batch(np.arange(n))["image"].permute(0, 2, 3, 1).numpy()
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints whose network treats every image by itself, with seven images held
    out of forty-one.
    """
    folder = tmp_path_factory.mktemp("engine")
    np.save(folder / "images.npy", pictures(41))
    out = folder / "run"
    flags = (
        "--image-size 8 --max-steps 2 --batch-size 4 --model.dim 8 --model.dim-mults 1"
        " --model.blocks-per-level 1 --diffusion.timesteps 6 --save-every 1 --sample-every 0"
        " --val-every 2 --val-fraction 0.18 --ema-decay 0.5 --device cpu --mixed-precision no"
        f" --no-progress --model.attention-levels 0 --output-dir {out}"
    )
    assert main(["train", str(folder / "images.npy"), *flags.split()]) == 0
    return out


def scores(found: Any) -> dict[str, float]:
    listed = found["scores"] if isinstance(found, dict) else found.to_dict()["scores"]
    return {s["name"]: s["value"] for s in listed}


def assert_close(a: dict[str, float], b: dict[str, float], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), name


def test_scores_are_those_of_the_samples_and_the_training_images(run: Path) -> None:
    from ddpm_lib import load_run, open_dataset
    from ddpm_lib.images import to_uint8
    from ddpm_lib.metrics import copies, frechet_distance, kernel_distance, make_extractor

    found = evaluate(run, metrics=EVERY, num=25, seed=3, batch_size=4, **SMALL)
    samples = to_uint8(load_run(run).diffusion.sample(25, num_steps=2, seed=3))
    train, held_out = open_dataset(str(run.parent / "images.npy"), image_size=8).split(7, 0)
    features = make_extractor("random", ["64"], "cpu")
    x = features(samples)["64"]
    y = features(train.batch(np.arange(len(train)))["image"])["64"]
    assert found["fd_random64_train_25"] == pytest.approx(
        frechet_distance(statistics_of(x), statistics_of(y)), rel=1e-4
    )
    assert found["kd_random64_train_25"] == pytest.approx(kernel_distance(x, y), rel=1e-4)
    assert found["copies_random64_train_25"] == float(copies(x, y).mean())
    assert found.about["samples"]["sampler"] == "unipc"
    assert (found.about["train"]["n"], found.about["held_out"]["n"]) == (34, 7)
    assert found.about["features"] == {"pixels": "pixels", "random": "random"}
    assert "copying_ct_pixels_train_25" in scores(found)
    for score in found.scores:
        if "/" not in score.name and score.name != "is_random_25" and score.interval is not None:
            assert score.interval[0] <= score.value <= score.interval[1], score.name
    other = evaluate(run, metrics="fid", reference="held-out", num=25, seed=3, **SMALL)
    z = features(held_out.batch(np.arange(len(held_out)))["image"])["64"]
    expected = frechet_distance(statistics_of(x), statistics_of(z))
    assert other["fd_random64_heldout_25"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.every(3)
@pytest.mark.parametrize("n", [2, 7, 41, pytest.param(1001, marks=pytest.mark.slow)])
def test_numbers_do_not_depend_on_the_batch(run: Path, n: int) -> None:
    asked = {"metrics": "fid,is,kid" if n < 4 else EVERY, "num": n, **SMALL}
    found = [scores(evaluate(run, batch_size=size, **asked)) for size in (1, 8, 64)]
    # Convolutions of another batch round otherwise, which may move a pixel by one grey value in a
    # thousand images.
    assert_close(found[0], found[1], 1e-5)
    assert_close(found[0], found[2], 1e-5)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run: Path) -> None:
    flags = (
        f"{run} --metrics {EVERY},gap -n 23 --features random64 --sample-steps 2 --batch-size 4"
        " --num-levels 2 --device cpu --no-progress"
    ).split()
    torchrun("-m", "ddpm_lib.cli", "evaluate", *flags)
    path = sorted((run / "evaluations").glob("*.json"))[-1]
    written = json.loads(path.read_text())
    assert written["processes"] == 2
    one = evaluate(run, metrics=f"{EVERY},gap", num=23, batch_size=4, num_levels=2, **SMALL)
    assert_close(scores(written), scores(one))
    path.unlink()


def test_one_sample_is_too_few_for_a_distance_but_not_for_all(run: Path) -> None:
    assert evaluate(run, metrics="is", num=1, **SMALL)["is_random_1"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        evaluate(run, metrics="fid", num=1, **SMALL)


def test_interrupted_evaluation_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    """Interrupted in the third batch of four, it draws only what is missing, to the same numbers,
    and leaves nothing behind.
    """
    asked = {"metrics": "fid,memorisation", "num": 30, "batch_size": 8, **SMALL}
    whole = scores(evaluate(run, **asked))
    monkeypatch.setattr("ddpm_lib.evaluation.engine.FLUSH_IMAGES", 8)
    drawn: list[int] = []
    sample = GaussianDiffusion.sample

    def counted(self: Any, n: int, **options: Any) -> Any:
        if options["first_index"] == 16 and len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(options["first_index"])
        return sample(self, n, **options)

    monkeypatch.setattr(GaussianDiffusion, "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, **asked)
    assert drawn == [0, 8]
    assert len(list(caches.glob("unfinished/*/*.safetensors"))) >= 2
    drawn += [0]
    assert scores(evaluate(run, **asked)) == whole
    assert drawn == [0, 8, 0, 16, 24]
    assert list(caches.glob("unfinished/*")) == []


def test_interrupted_likelihoods_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    from ddpm_lib.diffusion import GaussianDiffusion

    asked = {"metrics": "nll", "num_levels": 2, "batch_size": 2, **QUIET}
    whole = scores(evaluate(run, **asked))
    monkeypatch.setattr("ddpm_lib.evaluation.engine.FLUSH_IMAGES", 2)
    scored: list[int] = []
    bits = GaussianDiffusion.bits_per_dim

    def counted(self: Any, images: Any, **options: Any) -> Any:
        if options["first_index"] == 4 and len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(options["first_index"])
        return bits(self, images, **options)

    monkeypatch.setattr(GaussianDiffusion, "bits_per_dim", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, **asked)
    scored += [-1]
    evaluate(run, seed=1, **asked)  # other numbers: nothing of them is taken
    assert scored == [0, 2, -1, 0, 2, 4, 6]
    assert scores(evaluate(run, **asked)) == whole
    assert scored[7:] == [4, 6]
    assert list(caches.glob("unfinished/*")) == []


@pytest.mark.slow
def test_killed_evaluation_goes_on(run: Path, caches: Path) -> None:
    """kill -9 in the middle; two processes finish what one began."""
    code = (
        "import sys; import ddpm_lib.evaluation.engine as e; e.FLUSH_IMAGES = 8; "
        "from ddpm_lib.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = (
        f"evaluate {run} --metrics fid,kid,memorisation -n 1001 --features random64 --sample-steps"
        " 6 --batch-size 8 --device cpu --no-progress"
    ).split()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while len(list(caches.glob("unfinished/*/*.safetensors"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(list(caches.glob("unfinished/*/*.safetensors")))
    assert kept >= 10
    torchrun("-m", "ddpm_lib.cli", *flags)
    path = sorted((run / "evaluations").glob("*.json"))[-1]
    resumed = scores(json.loads(path.read_text()))
    path.unlink()
    assert list(caches.glob("unfinished/*")) == []
    whole = evaluate(
        run, metrics="fid,kid,memorisation", num=1001, batch_size=8, **{**SMALL, "sample_steps": 6}
    )
    assert_close(resumed, scores(whole))


def test_reference_is_remembered_until_something_changes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm_lib.evaluation.engine import Engine

    seen: list[str] = []
    features = Engine.features
    monkeypatch.setattr(
        Engine,
        "features",
        lambda self, images, wanted: seen.append(images.name) or features(self, images, wanted),
    )
    first = evaluate(run, metrics="fid", num=9, references=False, **SMALL)
    again = evaluate(run, metrics="fid", num=9, references=False, **SMALL)
    assert seen == ["samples", "train", "samples"]
    assert scores(first) == scores(again)
    evaluate(run, metrics="fid", num=9, reference="held-out", references=False, **SMALL)
    assert seen[-1] == "heldout"


def test_statistics_are_written_and_read_back(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    first = evaluate(run, metrics="fid", num=9, save_stats=str(path), **SMALL)
    statistics, about = read_statistics(path)
    assert (statistics.n, about["features"]) == (34, "random/64")
    again = evaluate(run, metrics="fid", num=9, reference=str(path), **SMALL)
    assert again["fd_random64_train_9"] == pytest.approx(first["fd_random64_train_9"], rel=1e-9)
    with pytest.raises(ConfigError, match=r"a file of statistics, enough for fid and sfid only"):
        evaluate(run, metrics="kid", num=9, reference=str(path), **SMALL)
    with pytest.raises(
        ConfigError, match=r"train holds statistics of random/64, not of random/spatial"
    ):
        evaluate(run, metrics="sfid", num=9, reference=str(path), **SMALL)


def test_files_of_statistics_and_images_serve_each_metric_with_what_it_needs(
    tmp_path: Path,
) -> None:
    """ADM's reference batches: statistics of a whole dataset, and some of its images for precision
    and recall.
    """
    images = pictures(30)
    other = statistics_of(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)))
    np.savez(tmp_path / "batch.npz", arr_0=images, mu=other.mean, sigma=other.cov)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = evaluate(
        tensor, metrics="fid,pr,kid", reference=str(tmp_path / "batch.npz"), **NO_STEPS
    )
    assert found["fd_random64_batch_30"] > 10
    assert found["recall_k3_random64_batch_30"] == 1.0


def test_images_are_compared_without_a_model(tmp_path: Path) -> None:
    """A set is at distance 0 of itself, as folder, as array and as tensor; grey and transparent
    pictures read as PIL does.
    """
    from PIL import Image

    images = pictures(30, size=12)
    for i, image in enumerate(images):
        mode = "RGBA" if i % 2 else "RGB"
        picture = Image.fromarray(image).convert(mode)
        (tmp_path / "folder").mkdir(exist_ok=True)
        picture.save(tmp_path / "folder" / f"{i:03d}.png")
    np.savez(tmp_path / "adm.npz", arr_0=images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    for target in (
        str(tmp_path / "folder"),
        str(tmp_path / "adm.npz"),
        tensor,
        tensor_dataset(tensor),
    ):
        found = evaluate(
            target, metrics="fid,pr,memorisation", reference=str(tmp_path / "adm.npz"), **NO_STEPS
        )
        assert found["fd_random64_adm_30"] == pytest.approx(0.0, abs=1e-6)
        assert found["copies_pixels_adm_30"] == 1.0
        assert found["recall_k3_random64_adm_30"] == 1.0
    few = evaluate(str(tmp_path / "folder"), metrics="is", num=7, **NO_STEPS)
    assert few.about["samples"]["n"] == 7
    grey = tensor.float().mean(1, keepdim=True).to(torch.uint8)
    assert (
        evaluate(grey, metrics="fid", reference=str(tmp_path / "adm.npz"), **NO_STEPS)[
            "fd_random64_adm_30"
        ]
        > 0
    )
    wide = evaluate(
        tensor[:, :, :6], metrics="fid", reference=str(tmp_path / "adm.npz"), **NO_STEPS
    )
    assert wide["fd_random64_adm_30"] > 0
    with pytest.raises(ConfigError, match="scores a model, and there are only images"):
        evaluate(tensor, metrics="nll", **QUIET)
    with pytest.raises(ConfigError, match=r'compared with a reference.*reference="path/to/others"'):
        evaluate(tensor, metrics="fid", **NO_STEPS)
    many = evaluate(str(tmp_path / "folder"), metrics="is", num=31, **NO_STEPS)
    assert many.about["samples"]["n"] == 30
    assert (
        "samples: num=31 is more than the 30 images there are; all were taken."
        in many.about["notes"]
    )
    Image.fromarray(images[0][:5]).save(tmp_path / "folder" / "x.png")
    with pytest.raises(ConfigError, match=r"000.png is 12×12, x.png 12×5.*--image-size"):
        evaluate(str(tmp_path / "folder"), metrics="is", **NO_STEPS)
    assert (
        evaluate(str(tmp_path / "folder"), metrics="is", image_size=8, **NO_STEPS).about["samples"][
            "n"
        ]
        == 31
    )
    assert (
        evaluate(str(tmp_path), metrics="is", image_size=8, **NO_STEPS).about["samples"]["n"] == 31
    )  # sub-folders too
    with pytest.raises(ConfigError, match="differ in size"):
        evaluate(str(tmp_path), metrics="is", **NO_STEPS)


NO_STEPS = {k: v for k, v in SMALL.items() if k != "sample_steps"}


def test_gap_is_that_of_the_two_sets(run: Path) -> None:
    found = evaluate(run, metrics="gap", num_levels=3, **QUIET)
    data = {
        "train": evaluate(run, metrics="nll", data="train", num=7, num_levels=3, **QUIET)["nll"]
    }
    data["heldout"] = evaluate(run, metrics="nll", num=7, num_levels=3, **QUIET)["nll"]
    assert found["nll_train_7"] == pytest.approx(data["train"], rel=1e-6)
    assert found["nll_gap_7"] == pytest.approx(data["heldout"] - data["train"], rel=1e-4, abs=1e-6)
    assert found["loss_gap_7"] == pytest.approx(found["loss_heldout_7"] - found["loss_train_7"])


def test_missing_weights_stop_only_what_needs_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    flags = f"evaluate {run} --num 9 --sample-steps 1 --device cpu --no-progress --metrics".split()
    assert main([*flags, "fid,memorisation,nll", "--num-levels", "2"]) == 1
    told = capsys.readouterr().out
    assert "skipped fid: The weights weights-inception-2015-12-05-6726825d.pth (96 MB)" in told
    assert "copies_pixels_train_9" in told
    assert "nll" in told
    assert main([*flags, "fid"]) == 2
    said = capsys.readouterr().err
    for word in (
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://",
        "ddpm weights fetch",
    ):
        assert word in said


def test_curve_over_checkpoints_and_comparison(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((run / "evaluations").glob("*.json"))
    found = list(evaluate_checkpoints(run, metrics="fid", num=9, **SMALL))
    assert [r.about["step"] for r in found] == [1, 2]
    flags = [
        "--metrics",
        "fid",
        "--num",
        "9",
        "--features",
        "random64",
        "--sample-steps",
        "2",
        "--device",
        "cpu",
        "--no-progress",
        "--checkpoint",
        "all",
    ]
    assert main(["evaluate", str(run), *flags]) == 0
    told = capsys.readouterr().out.splitlines()
    start = next(k for k, line in enumerate(told) if line.split()[0] == "step")
    assert told[start].split() == ["step", "1", "2"]
    assert told[start + 1].split()[0] == "fd_random64_train_9"
    assert float(told[start + 1].split()[2]) == pytest.approx(
        found[1]["fd_random64_train_9"], abs=1e-5
    )
    evaluate(run, metrics="fid", num=12, **SMALL).save()
    files = [str(p) for p in sorted(set((run / "evaluations").glob("*.json")) - before)]
    assert main(["compare", *files[:2], str(run)]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("fd_random64_train "))
    assert [word for word in row.split() if word.startswith("(n=")] == ["(n=9)", "(n=9)", "(n=12)"]
    assert "the number of samples differs (A: 9, B: 9, C: 12) in fd_random64_train." in table
    assert main(["compare", str(run.parent)]) == 2
    assert "holds no evaluations" in capsys.readouterr().err
    for path in files:
        Path(path).unlink()


def test_callback_scores_the_averaged_weights(tmp_path: Path) -> None:
    watch = Evaluate(
        2, metrics="fid,memorisation", features="random64", num=9, sample_steps=2, batch_size=4
    )
    trainer = tiny_trainer(tmp_path / "run", max_steps=3, callbacks=[watch])
    trainer.train()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    curve = {
        row["step"]: row["fd_random64_train_9"] for row in rows if "fd_random64_train_9" in row
    }
    assert sorted(curve) == [2, 3]
    found = evaluate(tmp_path / "run", trainer.dataset, metrics="fid", num=9, batch_size=4, **SMALL)
    assert curve[3] == pytest.approx(found["fd_random64_given_9"], rel=1e-4)
    bare = tiny_trainer(tmp_path / "bare", max_steps=3)
    bare.train()
    from training_helpers import assert_same_tensors, final_tensors

    assert_same_tensors(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "bare"))
    with pytest.raises(ConfigError, match="nll scores the model itself"):
        Evaluate(2, metrics="nll")
    with pytest.raises(ConfigError, match=r"'metric' \(did you mean 'metrics'\?\)"):
        Evaluate(2, metric="fid")


def test_samples_that_are_no_numbers_are_refused_and_not_scored_as_black() -> None:
    process = GaussianDiffusion(
        Unet(dim=8, dim_mults=(1,), blocks_per_level=1), image_size=8, timesteps=8
    )
    for weights in process.model.parameters():
        torch.nn.init.constant_(weights, math.nan)
    options = EvaluationOptions(sample_steps=1)

    def read(**how: Any) -> torch.Tensor:
        images = sample_images(process, options, 2, "", torch.device("cpu"), **how)
        return images.read(range(2))

    with pytest.raises(ConfigError, match=r"NaN or infinite.*Look at the weights"):
        read()
    with pytest.raises(ConfigError, match='mixed_precision="no"'):
        read(precision="bf16")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["pictures", "values"])
def test_callback_gives_no_score_of_samples_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
) -> None:
    """Of one batch of several, at one of two steps; training goes on."""
    sample, seen = GaussianDiffusion.sample, []

    def broken(self: Any, n: int, **options: Any) -> torch.Tensor:
        seen.append(n)
        images: torch.Tensor = sample(self, n, **options)
        return images.index_fill(0, torch.tensor([1]), value) if len(seen) == 2 else images

    monkeypatch.setattr(GaussianDiffusion, "sample", broken)
    pictures: dict[str, Any] = {"metrics": "fid,memorisation", "features": "random64"}
    options = pictures if kind == "pictures" else {"metrics": "values"}
    watch = Evaluate(1, num=9, sample_steps=2, batch_size=4, **options)
    data: Any = Shapes(size=8, n=30)
    if kind == "values":
        rows = np.random.default_rng(0).normal(size=(30, 3, 8, 8)).astype(np.float32)
        data = open_dataset(rows, image_size=8, channels=3, normalize="affine")
    run = tmp_path / "run"
    trainer = tiny_trainer(run, data=data, max_steps=2, callbacks=[watch], horizontal_flip=False)
    trainer.train()
    told = (run / "train.log").read_text(encoding="utf-8")
    words = options["metrics"].replace(",", ", ")
    assert f"Step 1: the samples hold NaN or infinite values, so there is no {words}." in told
    assert "Step 2: the samples" not in told
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scored = [row["step"] for row in map(json.loads, lines) if watch.scores[0].name in row]
    assert scored == [2]
    assert not list((run / "evaluations" / "unfinished").glob("*"))


def test_callback_does_not_go_on_with_samples_of_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off within an evaluation; the step comes again with other options of training."""
    monkeypatch.setattr("ddpm_lib.evaluation.engine.FLUSH_IMAGES", 8)
    sample = GaussianDiffusion.sample

    def judged(folder: Path, seed: int, cut: bool = False) -> list[float]:
        torch.manual_seed(seed)
        process = GaussianDiffusion(
            Unet(dim=8, dim_mults=(1,), blocks_per_level=1), image_size=8, timesteps=8
        )
        for weights in process.model.parameters():  # none of zeros, which draw the same anywhere
            torch.nn.init.normal_(weights, std=0.3)
        watch = Evaluate(2, features="random64", num=24, sample_steps=1, batch_size=8)
        view: Any = SimpleNamespace(
            step=2,
            config=SimpleNamespace(max_steps=2),
            output_dir=folder,
            diffusion=process,
            dataset=Shapes(size=8, n=30),
            held_out=None,
            device=torch.device("cpu"),
            averaged_network=lambda: process.model,
            log=lambda values: None,
        )

        def drawn(self: Any, n: int, **options: Any) -> Any:
            if cut and options["first_index"] == 16:
                raise RuntimeError("cut off")
            return sample(self, n, **options)

        monkeypatch.setattr(GaussianDiffusion, "sample", drawn)
        watch.on_train_start(view)
        watch.on_step_end(view)
        return [score.value for score in watch.scores]

    with pytest.raises(RuntimeError, match="cut off"):
        judged(tmp_path / "run", 0, cut=True)
    assert list((tmp_path / "run").glob("evaluations/unfinished/*/*"))
    assert judged(tmp_path / "run", 1) == judged(tmp_path / "fresh", 1)


@pytest.mark.slow
def test_trivial_baselines_on_photos_stand_in_order(shared: Path, tmp_path: Path) -> None:
    """SYSU-Shape at 64×64: copies of training images, held-out images, blurred ones and noise, as
    distances and as copies.
    """
    from torchvision.transforms.functional import gaussian_blur

    from ddpm_lib import open_dataset
    from ddpm_lib.data import prepare_sysu
    from ddpm_lib.images import to_uint8

    photos = shared / "data" / "sysu-shape-dataset"
    if not photos.is_dir():
        pytest.skip(f"no photos at {photos}")
    prepare_sysu(str(photos), str(tmp_path / "sysu"), size=64, mode="fit", num_workers=0)
    train = open_dataset(str(tmp_path / "sysu" / "train_data"), image_size=64)
    held_out = open_dataset(
        str(tmp_path / "sysu" / "normalized_eval_data"), image_size=64, labels="none"
    )
    x, h = (d.batch(np.arange(len(d)))["image"] for d in (train, held_out))
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "train.npy", x)
    np.save(tmp_path / "held.npy", h)
    sets = {
        "copies": x[torch.arange(len(h)) * len(x) // len(h)],
        "held out": h,
        "blurred": gaussian_blur(h, [33, 33], [6.0, 6.0]),
        "noise": to_uint8((0.5 + 0.25 * noise).clamp(0, 1)),
    }
    found = {
        name: evaluate(
            images,
            metrics="fid,memorisation",
            reference=str(tmp_path / "train.npy"),
            held_out=str(tmp_path / "held.npy"),
            **NO_STEPS,
        )
        for name, images in sets.items()
    }
    distances = [result[f"fd_random64_train_{len(h)}"] for result in found.values()]
    assert distances == sorted(distances)
    for space in ("pixels", "random64"):
        assert found["copies"][f"copies_{space}_train_{len(h)}"] >= 0.99
        assert found["held out"][f"copies_{space}_train_{len(h)}"] <= 0.02
        assert found["copies"][f"copying_ct_{space}_train_{len(h)}"] < -3
        assert abs(found["held out"][f"copying_ct_{space}_train_{len(h)}"]) < 1


def test_networks_that_enlarge_get_small_versions_of_the_held_out_images(tmp_path: Path) -> None:
    from ddpm_lib import load_run
    from ddpm_lib.images import to_model_range, to_uint8
    from ddpm_lib.metrics import make_extractor
    from training_helpers import tiny_diffusion

    trainer = tiny_trainer(
        tmp_path / "run",
        tiny_diffusion(low_res_factor=2),
        max_steps=2,
        val_every=2,
        val_fraction=0.3,
        augment=0.0,
        callbacks=[watch := Evaluate(2, metrics="fid", features="random64", num=5, sample_steps=2)],
    )
    trainer.train()
    images = trainer.held_out.batch(np.arange(5))["image"]
    diffusion = load_run(tmp_path / "run").diffusion
    small = next(iter(diffusion.model.conditioners.values())).derive(to_model_range(images))
    samples = to_uint8(diffusion.sample(5, num_steps=2, cond={"low_res": small}))
    features = make_extractor("random", ["64"], "cpu")
    train = statistics_of(
        features(trainer.dataset.batch(np.arange(len(trainer.dataset)))["image"])["64"]
    )
    from ddpm_lib.metrics import frechet_distance

    expected = frechet_distance(statistics_of(features(samples)["64"]), train)
    assert watch.scores[0].value == pytest.approx(expected, rel=1e-3)
    found = evaluate(
        tmp_path / "run", trainer.held_out, metrics="is,nll", num=5, num_levels=2, **SMALL
    )
    assert found["nll"] > 0


def test_a_folder_of_pictures_is_told_the_ways_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pix" / "stars").mkdir(parents=True)
    for k in range(3):
        save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "pix" / "stars" / f"{k}.png")
    for words, told in (
        (["evaluate", "pix"], "Name it with --reference path/to/others: a folder of pictures"),
        (["evaluate", "empty"], "Or give pictures: a folder of them, an .npz, .npy or .parquet"),
        (["evaluate", "./nothing"], "does not exist. Give a run directory"),
        (["evaluate", "./nothing"], "to be compared with those of --reference."),
        (["compare", "pix"], "Of pictures: `ddpm evaluate pix --reference …` makes one."),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
    assert main(["compare", "empty"]) == 2
    assert "Of pictures" not in capsys.readouterr().err
