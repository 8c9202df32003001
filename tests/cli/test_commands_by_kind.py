"""Every command on runs of measured values, of volumes and of each kind of condition.

It works, with units, type and place, or says in a line why not and what to do.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import DRAW, TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Shapes, load_run
from ddpm_lib.metrics import condition_readers
from ddpm_lib.nn import register_text_encoder
from ddpm_lib.runs.drawing import Artist, Wish
from ddpm_lib.runs.loading import find_checkpoints

N = 80
QUIET = ["--device", "cpu", "--no-progress"]
VALUES = ("tiff", "bands", "volumes")
CONDITIONS = ("number", "angle", "vector", "label", "tags", "mask", "image", "text", "both")
KINDS = (*VALUES, *CONDITIONS)
DTYPE = {"tiff": np.uint16, "bands": np.float32, "volumes": np.int16, "both": np.float32}
SHAPE = {"tiff": (8, 8), "bands": (5, 8, 8), "volumes": (8, 8, 8), "both": (2, 8, 8)}
AFFINE = np.diag([2.0, 2, 3, 1])
ONE = ("--channels", 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")


def write_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "tiff", "volumes"):
        (root / name).mkdir()
    nibabel, tifffile = pytest.importorskip("nibabel"), pytest.importorskip("tifffile")
    shapes = Shapes(size=8, n=N)
    rows = []
    for i in range(N):
        pixels = shapes[i]["image"].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(shapes.column("mask")[i]).save(root / "masks" / f"{i:03d}.png")
        values = rng.integers(0, 40_000, (8, 8)).astype(np.uint16)
        tifffile.imwrite(root / "tiff" / f"{i:03d}.tif", values)
        volume = rng.integers(-50, 900, (8, 8, 8)).astype(np.int16)
        made = nibabel.Nifti1Image(volume, AFFINE)
        made.header.set_xyzt_units("mm")
        nibabel.save(made, root / "volumes" / f"{i:03d}.nii.gz")
        colour = shapes.column("colour")[i]
        tags = ["a", "a|b", "c"][i % 3]
        rows.append([f"{i:03d}.png", shapes.column("size")[i], 7.5 * i, colour, tags])
    head = ["file_name", "size", "turn", "colour", "tags"]
    with open(root / "meta.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    np.save(root / "code.npy", rng.normal(3, 2, (N, 2)))
    np.save(root / "bands.npy", rng.normal(280, 10, (N, 5, 8, 8)).astype(np.float32))
    np.save(root / "two.npy", rng.normal(280, 10, (N, 2, 8, 8)).astype(np.float32))


def data_of(kind: str, root: Path) -> list[object]:
    """The words of `ddpm train` that say what is learned."""
    meta, images = root / "meta.csv", root / "images"
    code = f"code={root / 'code.npy'}"
    values = {
        "tiff": [root / "tiff", "--normalize", "affine", "--channels", 1],
        "bands": [root / "bands.npy", "--normalize", "quantile", "--channels", 5],
        "both": [root / "two.npy", "--normalize", "affine", "--channels", 2, "--condition", code],
        "volumes": [*(root / "volumes", "--normalize", "affine"), *ONE, "--image-size", 8, 8, 8],
    }
    conditions = {
        "number": f"size={meta}:size",
        "angle": f"turn={meta}:turn,kind=angle",
        "vector": code,
        "label": f"colour={meta}:colour",
        "tags": f"tags={meta}:tags,kind=tags",
        "mask": f"mask={root / 'masks'},classes=7",
        "image": f"low={images},factor=2",
        "text": f"caption={meta}:colour,encoder=test-words",
    }
    return values.get(kind) or [images, "--condition", conditions[kind]]


def asked(kind: str, root: Path) -> list[str]:
    """The words of `ddpm sample` that say for which condition."""
    wish = {
        "number": "size=0.5",
        "angle": "turn=90",
        "vector": "code=1,2",
        "both": "code=1,2",
        "label": "colour=red",
        "tags": "tags=a|b",
        "mask": f"mask={root / 'masks' / '001.png'}",
        "image": f"low={root / 'images' / '001.png'}",
        "text": "caption=red",
    }
    return ["--cond", wish[kind]] if kind in wish else []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("kinds")
    write_data(where)
    register_text_encoder("test-words", lambda texts: [[len(t), t.count("e")] for t in texts])
    return where


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Path]:
    return {}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(kind: str, root: Path, runs: dict[str, Path]) -> Path:
    """A run of the kind, trained once."""
    if kind not in runs:
        words = data_of(kind, root)
        tiny = TINY[2:] if "--image-size" in words else TINY
        more = ["--posthoc-ema", 0.1, "--posthoc-every", 1, "--val-fraction", 0.4]
        rest = [*tiny, *more, "--final-samples", 0, "--output-dir", root / "runs" / kind]
        assert ddpm("train", *words, *rest) == 0
        runs[kind] = root / "runs" / kind
    return runs[kind]


def test_samples_have_type_units_and_place(
    kind: str, run: Path, root: Path, tmp_path: Path
) -> None:
    for words in dict.fromkeys([(), tuple(asked(kind, root))]):
        out = tmp_path / f"out-{len(words)}"
        how = ["-n", 2, *DRAW, *words, "--format"]
        assert ddpm("sample", run, *how, "npy", "--output-dir", out) == 0
        values = np.load(out / "000001.npy")
        assert values.dtype == DTYPE.get(kind, np.uint8)
        assert values.shape == SHAPE.get(kind, (3, 8, 8))
        units = load_run(run).diffusion.normalization
        assert (units is not None) == (kind in DTYPE)
        if units is not None:
            low, high = (np.reshape(ends, (-1, 1, 1)) for ends in (units.low, units.high))
            assert (values >= low - 1e-3).all()
            assert (values <= high + 1e-3).all()
        assert ddpm("sample", run, *how, "all", "--output-dir", tmp_path / f"all-{len(words)}") == 0
        packed = np.load(tmp_path / f"all-{len(words)}" / "samples.npz")["arr_0"]
        assert packed.dtype == DTYPE.get(kind, np.uint8)
    if kind == "volumes":
        assert ddpm("sample", run, *how, "nifti", "--output-dir", tmp_path / "place") == 0
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.load(tmp_path / "place" / "000001.nii.gz")
        assert (image.shape, image.get_data_dtype()) == ((8, 8, 8), np.int16)
        assert np.allclose(image.affine, AFFINE)


def test_evaluations_choose_what_fits(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition_readers.Reader.__init__, "__defaults__", (0, 5))
    flags = ["--sample-steps", 1, "-n", 16, "--metrics", "auto", "--output-dir", tmp_path]
    assert ddpm("evaluate", run, *flags, *QUIET) == 0
    saved = json.loads((tmp_path / "eval-0001.json").read_text())
    metrics = set(saved["options"]["metrics"].split(","))
    assert ("values" in metrics) == (kind in DTYPE)
    assert ("kid" in metrics) == (kind not in DTYPE)
    assert ("adherence" in metrics) == (kind in CONDITIONS)
    assert saved["skipped"] == {}
    assert ddpm("compare", tmp_path / "eval-0001.json", tmp_path / "eval-0001.json") == 0


READERS: dict[str, list[object]] = {
    "status": [],
    "watch": ["--once"],
    "best": [],
    "report": [],
    "ema": ["--sigma-rel", "0.1"],
}


@pytest.mark.parametrize("command", READERS)
def test_commands_that_read_records(command: str, run: Path) -> None:
    assert ddpm(command, run, *READERS[command]) == 0


@pytest.mark.parametrize("command", ["edit", "inpaint", "restore"])
def test_pictures_are_drawn_anew_by_runs_on_pictures_alone(
    command: str,
    kind: str,
    run: Path,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = root / "images" / "001.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
    more = {
        "inpaint": ["--mask", tmp_path / "white.png", "--num-resamples", 1],
        "restore": ["--operator", "blur:1"],
    }
    words = [command, run, picture, *more.get(command, []), "--num-steps", 2, "--device", "cpu"]
    words += ["--output-dir", tmp_path / "out"]
    if kind in DTYPE:
        said = error_of(capsys, *words)
        assert "learns measured values" in said
        assert "normalization.inverse" in said
    else:
        assert ddpm(*words) == 0
        assert list((tmp_path / "out").rglob("*.png"))


def test_worse_versions_guide(run: Path, kind: str, root: Path, tmp_path: Path) -> None:
    words = ["--guide-by", 2, *asked(kind, root), *DRAW, "-n", 2, "--format", "npy"]
    assert ddpm("sample", run, *words, "--output-dir", tmp_path) == 0
    assert np.load(tmp_path / "000000.npy").dtype == DTYPE.get(kind, np.uint8)


def test_exports_keep_units_and_conditions_or_say_so(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = load_run(run).diffusion
    assert ddpm("export", run, tmp_path / "folder", "--to", "safetensors") == 0
    again = GaussianDiffusion.from_pretrained(tmp_path / "folder")
    assert sorted(again.conditioners or {}) == sorted(ours.conditioners or {})
    assert ddpm("export", run, tmp_path / "npz", "--to", "npz-weights") == 0
    told = json.loads((tmp_path / "npz" / "model.json").read_text())
    if kind in DTYPE:
        assert again.normalization.to_json() == ours.normalization.to_json()
        assert told["normalization"] == ours.normalization.to_json()
    said = error_of(capsys, "export", run, tmp_path / "diffusers", "--to", "diffusers")
    if kind in DTYPE:
        assert "learns measured values" in said
        assert "--to safetensors" in said
    else:
        assert "conditions=[" in said
        assert "takes classes alone" in said
    assert not (tmp_path / "diffusers").exists()


def test_what_is_uploaded_says_how_values_come_back(kind: str, run: Path, tmp_path: Path) -> None:
    assert ddpm("push", run, "owner/name", "--dry-run", tmp_path / "push") == 0
    card = (tmp_path / "push" / "README.md").read_text()
    assert ("values = diffusion.normalization.inverse(images)" in card) == (kind in DTYPE)
    if kind in DTYPE:
        assert "--format npy" in card
        again = GaussianDiffusion.from_pretrained(tmp_path / "push").normalization
        assert again.dtype == np.dtype(DTYPE[kind]).name


def test_costs_and_scripts_follow_from_the_file_of_options(
    kind: str, run: Path, tmp_path: Path
) -> None:
    script = tmp_path / "x.slurm.sh"
    flags = ["--output", script, "--probe-steps", 0, "--hours", 1]
    assert ddpm("slurm", run / "config.yaml", *flags) == 0
    assert script.is_file()
    again = ["train", "--config", run / "config.yaml", "--output-dir", tmp_path / "again"]
    assert ddpm(*again, "--max-steps", 2, "--final-samples", 0) == 0
    ours, theirs = load_run(run).diffusion, load_run(tmp_path / "again").diffusion
    if ours.normalization is not None:
        assert theirs.normalization.to_json() == ours.normalization.to_json()
    assert sorted(theirs.conditioners or {}) == sorted(ours.conditioners or {})


def test_runs_need_no_conversion(run: Path, tmp_path: Path, capsys: Any) -> None:
    said = error_of(capsys, "convert", run, tmp_path / "made")
    assert "needs no conversion: ddpm sample" in said


@pytest.mark.parametrize("kind", ["bands", "volumes"], indirect=True)
def test_ablations_are_of_pictures(
    kind: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of(kind, root)[0]
    words = ["--vary", "learning_rate=1e-4,3e-4", "--output-dir", tmp_path / "out"]
    said = error_of(capsys, "ablate", data, *words, "--image-size", 8)
    assert "holds measured values" in said
    assert "ddpm train --normalize affine" in said


TUNED = "--calls 2 --num 20 --starts 4 --teacher-calls 4 --iterations 1 --samplers unipc"
STUDENT = "--max-steps 2 --batch-size 4 --num-samples 64 --steps 1 --teacher-steps 3"
SLOW: dict[str, list[object]] = {
    "tune": [*TUNED.split(), "--no-guidance", *QUIET],
    "distill": [*STUDENT.split(), *QUIET],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_commands_that_learn_of_a_run(
    command: str, kind: str, run: Path, root: Path, tmp_path: Path
) -> None:
    made = ["--output-dir", tmp_path / "student"] if command == "distill" else []
    assert ddpm(command, run, *SLOW[command], *made) == 0
    drawn = tmp_path / "student" if made else run
    words = ["-n", 2, "--format", "npy", *asked(kind, root), "--device", "cpu"]
    assert ddpm("sample", drawn, *words, "--output-dir", tmp_path / "out") == 0
    values = np.load(tmp_path / "out" / "000000.npy")
    assert values.dtype == DTYPE.get(kind, np.uint8)
    if command == "tune":
        assert ddpm("tune", run, "--undo") == 0


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_exported_programs_say_what_they_take(
    to: str, kind: str, run: Path, tmp_path: Path
) -> None:
    assert ddpm("export", run, tmp_path / "out", "--to", to) == 0
    told = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(told.get("conditions") or {}) == set(load_run(run).diffusion.conditioners or {})
    assert ("normalization" in told) == (kind in DTYPE)


@pytest.mark.slow
def test_costs_are_estimated(run: Path) -> None:
    assert ddpm("estimate", "--config", run / "config.yaml") == 0


def test_a_page_draws_previews_of_values(run: Path) -> None:
    found = find_checkpoints(run, "latest")[-1]
    artist = Artist(found, torch.device("cpu"), "no")
    for picture in artist.draw(Wish(weights=artist.weights[0], num=2, steps=2)):
        assert picture.dtype == np.uint8
        assert picture.ndim == 2 or picture.shape[-1] in (1, 3)
