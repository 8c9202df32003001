"""The pictures of docs/symptoms.md: runs that fail in known ways, curves beside their last grid.

    python benchmarks/symptoms.py                  # all, about six minutes of one thread
    python benchmarks/symptoms.py --only copying

The runs are those by which the verdict is tested (tests/helpers/prepared_runs.py), and three more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from ddpm_lib import load_run, open_dataset  # noqa: E402
from ddpm_lib.data import ImageDataset  # noqa: E402
from ddpm_lib.images import save_grid  # noqa: E402
from ddpm_lib.runs.records import read_records  # noqa: E402
from ddpm_lib.runs.verdict import judge, words  # noqa: E402
from prepared_runs import MANY, PREPARED, SIDE, Prepared, shapes, train  # noqa: E402

SEED = 1
COLUMNS, SHOWN, SCALE = 8, 24, 5


def enlarged(seed: int) -> ImageDataset:
    """Images of 8×8 that a network of 8×8 gets as if they were 4×4 ones enlarged."""
    images = shapes(MANY)(seed).batch(range(MANY))["image"].numpy().transpose(0, 2, 3, 1)
    small = [Image.fromarray(image).resize((SIDE // 2, SIDE // 2)) for image in images]
    large = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in small]
    return open_dataset(np.stack(large), image_size=SIDE)


MORE = {
    "flat": Prepared(
        ("flat", "flat_rate"),
        "a rate that decays early",
        shapes(MANY),
        700,
        options={"learning_rate": 4e-4},
    ),
    "few_steps": PREPARED["good"],
    "enlarged": Prepared(("learning",), "images that were enlarged", enlarged, 500, classes=False),
}


def grid_of(name: str, run: Path, file: Path) -> None:
    """Draw the samples of a run: by 3 ancestral steps where that is the fault."""
    loaded = load_run(run)
    few = (
        {"sampler": "ddpm", "num_steps": 3}
        if name == "few_steps"
        else {"sampler": "ddim", "num_steps": 20}
    )
    cond = None
    if loaded.diffusion.model.config.get("num_classes"):
        import torch

        count = loaded.diffusion.model.config["num_classes"]
        cond = {"class_label": torch.arange(SHOWN) % count}
    images = loaded.diffusion.sample(SHOWN, seed=0, cond=cond, **few)
    save_grid(images, file, columns=COLUMNS, scale=SCALE)


def picture(name: str, run: Path, file: Path) -> None:
    """Write curves, grid and verdict into one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_records(run)
    told = words(judge(records))
    grid = run / "grid.png"
    grid_of(name, run, grid)
    figure = Figure(figsize=(9.6, 2.9), dpi=100)
    FigureCanvasAgg(figure)
    curves, samples = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for key, label, width in (("loss", "training", 0.9), ("val_loss", "held-out", 2.2)):
        rows = [row for row in records.rows if row.get(key) is not None]
        curves.plot(
            [row["step"] for row in rows], [row[key] for row in rows], lw=width, label=label
        )
    curves.set_yscale("log")
    curves.set_xlabel("step")
    curves.set_ylabel("loss")
    curves.legend(frameon=False, fontsize=8)
    samples.imshow(Image.open(grid), interpolation="nearest")
    samples.axis("off")
    headline = told[0] if isinstance(told, list) else str(told).splitlines()[0]
    figure.suptitle(
        "\n".join(textwrap.wrap(f"VERDICT  {headline}", 110)), fontsize=9, x=0.02, ha="left"
    )
    figure.tight_layout()
    figure.savefig(file)
    thumbnail(file)


def thumbnail(file: Path) -> None:
    """Cut the grid out of a picture, for the table that the page begins with."""
    whole = Image.open(file).convert("RGB")
    right = whole.crop((int(0.6 * whole.width), 45, whole.width, whole.height))
    box = ImageChops.difference(right, Image.new("RGB", right.size, "white")).getbbox()
    assert box is not None
    grid = right.crop(box)
    side = grid.height  # of its eight columns those that make it square
    small = grid.crop((0, 0, min(side, grid.width), side)).resize((150, 150), Image.Resampling.BOX)
    small.quantize(96).save(file.with_name(f"small-{file.name}"), optimize=True)


def main() -> None:
    runs = PREPARED | MORE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(runs), default=list(runs))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--thumbnails", action="store_true", help="cut them anew, train nothing")
    given = parser.parse_args()
    if given.thumbnails:
        for name in given.only:
            thumbnail(given.out / f"symptom-{name}.png")
        return
    PREPARED.update(MORE)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            run = Path(folder) / name
            train(name, run, SEED)
            picture(name, run, given.out / f"symptom-{name}.png")
            print(given.out / f"symptom-{name}.png", flush=True)


if __name__ == "__main__":
    main()
