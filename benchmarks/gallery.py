"""The pictures of docs/gallery.md: its blocks are run as they are printed.

    python benchmarks/gallery.py                         # all, about twenty minutes of one thread
    python benchmarks/gallery.py --only classes editing

Works in a folder that is thrown away, or in `--folder`, where trained runs are taken as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageDraw

from ddpm_lib import Shapes
from ddpm_lib.cli import main as ddpm

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
FIGURES = ROOT / "docs" / "figures"
FACTS = ROOT / "benchmarks" / "results" / "gallery.json"
WIDE = 640
"""Pictures are enlarged by whole pixels to at most so many."""


def sections() -> dict[str, list[tuple[str, str]]]:
    """Return the page's blocks, language and text, by the name of the picture above them."""
    parts = re.split(r"!\[[^\]]*\]\(figures/gallery-(\w+)\.png\)", PAGE.read_text("utf-8"))
    blocks = (re.findall(r"^```(bash|python)\n(.*?)^```", p, re.M | re.S) for p in parts[2::2])
    return dict(zip(parts[1::2], blocks))


def draw_files() -> None:
    """Draw what the page's commands read: pictures, a mask, and fields of temperature."""
    for k in range(60):
        kind = ("birch", "maple")[k % 2]
        path = Path(f"path/to/images/{kind}/{k:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        leaf(kind, np.random.default_rng(k)).save(path)
    shapes = Shapes(32, n=64, seed=5)
    chosen = [next(k for k in range(64) if int(shapes.labels[k]) == c) for c in (1, 3, 2, 4)]
    for k, row in enumerate(shapes.batch(chosen)["image"].permute(0, 2, 3, 1).numpy()):
        for folder, side in (("pictures", 32), ("tiny", 8)):
            path = Path(f"path/to/{folder}/{k}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row).resize((side, side), Image.Resampling.BOX).save(path)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 14:30] = 255
    Image.fromarray(mask).save("mask.png")
    write_fields()


def leaf(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a leaf: an oval with a stalk, or five lobes."""
    side, turn = 256, rng.uniform(-0.5, 0.5)
    ground = tuple(int(v) for v in rng.integers(225, 250, 3))
    image = Image.new("RGB", (side, side), ground)
    t = np.linspace(0, 2 * np.pi, 200)
    lobes = 0.55 + 0.45 * np.abs(np.cos(2.5 * t)) ** 0.7 if kind == "maple" else 1.0
    stretch = (0.95, 1.0) if kind == "maple" else (0.55, 1.0)
    x, y = stretch[0] * lobes * np.sin(t), -stretch[1] * lobes * np.cos(t)
    size = rng.uniform(75, 95)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    middle = 128 + rng.uniform(-12, 12, 2)
    green = (int(rng.integers(60, 130)), int(rng.integers(120, 170)), int(rng.integers(40, 70)))
    autumn = (int(rng.integers(190, 230)), int(rng.integers(80, 140)), int(rng.integers(20, 50)))
    colour = autumn if kind == "maple" else green
    brush = ImageDraw.Draw(image)
    end = middle + 1.45 * size * np.array([-np.sin(turn), np.cos(turn)])
    brush.line([tuple(middle), tuple(end)], fill=(110, 80, 50), width=9)
    brush.polygon(list(zip(middle[0] + size * x, middle[1] + size * y)), fill=colour)
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def write_fields() -> None:
    """Write 512 smooth fields of temperature, warm in the south, with fronts."""
    import h5py

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((512, 32, 32))
    far = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32)] * 2))
    smooth = np.fft.ifft2(np.fft.fft2(noise) / (0.06 + far) ** 2.2).real
    smooth /= smooth.std()
    south = np.linspace(-1, 1, 32)[:, None] * rng.uniform(6, 12, (512, 1, 1))
    with h5py.File("weather.h5", "w") as file:
        file["temperature"] = (283 + south + 4 * np.tanh(smooth)).astype(np.float32)


def rows_of(folder: str) -> Image.Image:
    """Return the grid that a command wrote."""
    found = sorted(Path(folder).rglob("*grid*.png")) or sorted(Path(folder).rglob("*.png"))
    return Image.open(found[0]).convert("RGB")


def beside(*pictures: Image.Image) -> Image.Image:
    """Put pictures below each other, all as wide as the widest."""
    wide = max(one.width for one in pictures)
    scaled = [
        one.resize((wide, round(one.height * wide / one.width)), Image.Resampling.NEAREST)
        for one in pictures
    ]
    whole = Image.new(
        "RGB", (wide, sum(one.height for one in scaled) + 8 * (len(scaled) - 1)), "white"
    )
    top = 0
    for one in scaled:
        whole.paste(one, (0, top))
        top += one.height + 8
    return whole


def strip(paths: list[Path], side: int) -> Image.Image:
    """Return pictures side by side."""
    whole = Image.new("RGB", (len(paths) * (side + 2) - 2, side), "white")
    for k, path in enumerate(paths):
        one = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        whole.paste(one, (k * (side + 2), 0))
    return whole


def own() -> Image.Image:
    """Return images of one's own above samples."""
    return beside(
        strip(sorted(Path("path/to/images").rglob("*.png"))[::11][:6], 64), rows_of("drawn/own")
    )


def student() -> Image.Image:
    """Return the rows of a student and its teacher."""
    return beside(*(rows_of(f"drawn/student-{k}") for k in ("1", "2", "4", "teacher")))


def measured() -> Image.Image:
    """Return fields above samples, in colours."""
    import h5py
    from matplotlib import colormaps

    with h5py.File("weather.h5") as file:
        data = np.asarray(file["temperature"])
    drawn = np.concatenate(
        [
            np.load(path).reshape(-1, 32, 32)
            for path in sorted(Path("drawn/measured").rglob("*.npy"))
        ]
    )
    low, high = float(data.min()), float(data.max())

    def row(fields: np.ndarray) -> Image.Image:
        colours = colormaps["viridis"]((fields - low) / (high - low))[..., :3]
        padded = np.pad(colours, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
        return Image.fromarray((255 * np.concatenate(list(padded), 1)).astype(np.uint8))

    return beside(row(data[:6]), row(drawn[:6]), row(drawn[6:12]))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "classes": lambda: rows_of("drawn/classes"),
    "own": own,
    "sweep": lambda: rows_of("drawn/sweep"),
    "inpainting": lambda: rows_of("drawn/inpainting"),
    "editing": lambda: rows_of("drawn/editing"),
    "interpolation": lambda: rows_of("drawn/interpolation"),
    "trajectories": lambda: rows_of("drawn/trajectories"),
    "restoration": lambda: rows_of("drawn/restoration"),
    "enlarging": lambda: rows_of("drawn/enlarging"),
    "student": student,
    "measured": measured,
}
"""What makes the picture of a section of what its commands wrote."""


def run_blocks(name: str, blocks: list[tuple[str, str]]) -> None:
    """Run the blocks of a section; runs that are there are taken as they are."""
    for language, text in blocks:
        if language == "python":
            Path(f"drawn/{name}").mkdir(parents=True, exist_ok=True)
            exec(compile(text, f"{PAGE.name}: {name}", "exec"), {"torch": torch})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line)[1:]
            print(f"$ {line}", flush=True)
            with contextlib.redirect_stdout(None):
                code = ddpm([*words, *([] if words[0] == "distill" else ["--no-progress"])])
            if code:
                raise SystemExit(f"{line}\nended with {code}")


def made_runs(blocks: list[tuple[str, str]]) -> list[str]:
    """Return the runs that a section trains."""
    text = "\n".join(text for _, text in blocks)
    return re.findall(r"^ddpm (?:train|distill) .*--output-dir (\S+)", text, re.M)


def write_facts(name: str, seconds: float) -> None:
    """Keep how long a section took."""
    facts = json.loads(FACTS.read_text("utf-8")) if FACTS.is_file() else {}
    facts[name] = {"cpu_seconds": seconds}
    FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")


def keep(name: str, picture: Image.Image) -> Path:
    """Store a picture, small, enlarged by whole pixels where there is room."""
    times = max(1, WIDE // picture.width)
    large = picture.resize(
        (picture.width * times, picture.height * times), Image.Resampling.NEAREST
    )
    if large.width > WIDE:
        large = large.resize((WIDE, round(large.height * WIDE / large.width)), Image.Resampling.BOX)
    path = FIGURES / f"gallery-{name}.png"
    large.quantize(128).save(path, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(PICTURES), default=list(PICTURES))
    parser.add_argument("--folder", type=Path, help="keep what is trained here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    blocks = sections()
    with contextlib.ExitStack() as stack:
        folder = given.folder or stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(folder))
        draw_files()
        if "classes" not in given.only and not Path("runs/shapes").exists():
            run_blocks("classes", blocks["classes"])
        for name in given.only:
            began, there = time.process_time(), set(Path("runs").glob("*"))
            run_blocks(name, blocks[name])
            if there.isdisjoint(Path(run) for run in made_runs(blocks[name])):
                write_facts(name, round(time.process_time() - began, 1))
            print(keep(name, PICTURES[name]()), flush=True)


if __name__ == "__main__":
    main()
