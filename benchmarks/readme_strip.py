"""README's strip of pictures: the data, and what a network draws after 1, 10 and 60 minutes of CPU.

    python benchmarks/readme_strip.py --data path/to/sysu-shape-dataset

One training run of one thread. Its clock is the processor time that training took, so that other
work on the machine does not count; the pictures themselves are not counted either. The same command
continues a run that was cut off, and draws the strip anew from what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common import cpu_name
from ddpm_lib import Callback, GaussianDiffusion, Trainer, Unet
from ddpm_lib.core.files import write_atomically
from ddpm_lib.data import prepare_sysu
from ddpm_lib.training.callbacks.base import TrainingView

ROOT = Path(__file__).resolve().parents[1]
STRIP = ROOT / "docs" / "figures" / "strip.png"
FACTS = ROOT / "benchmarks" / "results" / "strip.json"
PER_CLASS = 8
"""Samples of each class, of which the strip shows the first `SHOWN`."""
SHOWN = 4
SCALE = 2
GUIDANCE = 2.0
NETWORK: dict[str, Any] = {
    "dim": 32,
    "dim_mults": (1, 2, 2),
    "blocks_per_level": 1,
    "attention_levels": (2,),
    "patch_size": 2,
}
"""The preset tiny with patches, as `ddpm prepare sysu` proposes for CPUs."""
PROCESS: dict[str, Any] = {"parametrization": "x0", "weighting": "flat"}
TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "warmup_steps": 50,
    "ema_decay": 0.999,
    "horizontal_flip": True,
    "sample_every": 0,
    "val_every": 500,
    "save_every": 250,
    "log_every": 50,
}


class CpuMinutes(Callback):
    """Count the processor time of training, draw at the marks and stop at the last one.

    Args:
        marks: Minutes after which to draw.
        folder: Where samples go, `minutes-<n>.npz` each.
    """

    def __init__(self, marks: tuple[float, ...], folder: Path) -> None:
        self.marks, self.folder = marks, folder
        self.used = 0.0
        self._since = time.process_time()

    def on_train_start(self, trainer: TrainingView) -> None:
        """Begin to count."""
        self._since = time.process_time()

    def on_step_end(self, trainer: TrainingView) -> None:
        """Draw when a mark has been passed."""
        self._count()
        for mark in self.marks:
            if self.used >= 60 * mark and not self._file(mark).exists():
                self._draw(trainer, mark)
                self._since = time.process_time()  # the pictures are not counted
        if self.used >= 60 * self.marks[-1]:
            trainer.stop(f"{self.marks[-1]:g} minutes of CPU are used")

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used."""
        self._count()
        return {"seconds": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.used = float(state.get("seconds", 0.0))

    def _count(self) -> None:
        now = time.process_time()
        self.used, self._since = self.used + now - self._since, now

    def _file(self, mark: float) -> Path:
        return self.folder / f"minutes-{mark:g}.npz"

    def _draw(self, trainer: TrainingView, mark: float) -> None:
        classes = len(trainer.dataset.class_names or ())
        labels = torch.arange(classes).repeat_interleave(PER_CLASS)
        images = trainer.sample(
            len(labels),
            cond={"class_label": labels},
            sampler="dpmpp_2m",
            num_steps=25,
            seed=0,
            guidance_scale=GUIDANCE,
            progress=False,
        )
        facts = {
            "minutes": mark,
            "cpu_seconds": round(self.used, 1),
            "steps": trainer.step,
            "images": trainer.images_seen,
        }
        pixels = (images * 255).round().byte().cpu().numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self._file(mark), images=pixels, facts=json.dumps(facts))
        trainer.say(f"drawn: {facts}")


def train(prepared: Path, run: Path, marks: tuple[float, ...]) -> None:
    """Train up to the last mark; what the run is goes to `marks/about.json`."""
    torch.manual_seed(0)
    model = Unet(**NETWORK, num_classes=5)
    diffusion = GaussianDiffusion(model, image_size=32, **PROCESS)
    trainer = Trainer(
        diffusion,
        str(prepared / "train_data"),
        val_data=str(prepared / "normalized_eval_data"),
        val_labels="prefix",
        output_dir=str(run),
        max_steps=10**6,
        device="cpu",
        callbacks=[CpuMinutes(marks, run / "marks")],
        **TRAINING,
    )
    trainer.prepare()
    facts = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": trainer.accelerator.mixed_precision,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_images": len(trainer.dataset),
    }
    (run / "marks").mkdir(parents=True, exist_ok=True)
    write_atomically(run / "marks" / "about.json", json.dumps(facts))
    trainer.train()


def panels(
    prepared: Path, run: Path, wanted: list[float]
) -> tuple[list[tuple[str, np.ndarray]], list[dict[str, Any]]]:
    """Return a title and pictures (classes, SHOWN, 3, h, w) per panel: the data, then the marks."""
    folders = sorted(p for p in (prepared / "train_data").iterdir() if p.is_dir())
    data = []
    for folder in folders:
        files = sorted(folder.glob("*.png"))
        chosen = [files[int(k)] for k in np.linspace(0, len(files) - 1, SHOWN)]
        data.append([np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in chosen])
    found: list[tuple[str, np.ndarray]] = [("data", np.asarray(data))]
    marks = []
    for file in sorted((run / "marks").glob("*.npz")):
        with np.load(file) as stored:
            marks.append((json.loads(str(stored["facts"])), stored["images"]))
    marks = [mark for mark in marks if mark[0]["minutes"] in wanted]
    marks.sort(key=lambda mark: mark[0]["minutes"])
    for facts, images in marks:
        shaped = images.reshape(len(folders), -1, *images.shape[1:])[:, :SHOWN]
        unit = "minute" if facts["minutes"] == 1 else "minutes"
        found.append((f"{facts['minutes']:g} {unit}", shaped))
    return found, [facts for facts, _ in marks]


def draw(found: list[tuple[str, np.ndarray]], file: Path) -> None:
    """Compose the strip."""
    rows, columns, _, height, width = found[0][1].shape
    gap, head = 2, 26
    cell_w, cell_h = SCALE * width + gap, SCALE * height + gap
    panel = columns * cell_w + 16
    strip = Image.new("RGB", (len(found) * panel - 16, head + rows * cell_h), "white")
    pen = ImageDraw.Draw(strip)
    font = ImageFont.load_default(16)
    for k, (title, images) in enumerate(found):
        middle = k * panel + columns * cell_w // 2
        pen.text((middle, head // 2), title, fill="#333333", font=font, anchor="mm")
        for row in range(rows):
            for column in range(columns):
                tile = Image.fromarray(images[row, column].transpose(1, 2, 0))
                tile = tile.resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST)
                strip.paste(tile, (k * panel + column * cell_w, head + row * cell_h))
    file.parent.mkdir(parents=True, exist_ok=True)
    strip.save(file, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="clone of sysu-shape-dataset")
    parser.add_argument("--run", type=Path, default=Path("runs/readme-strip"), help="run directory")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60], help="marks")
    parser.add_argument("--strip", type=Path, default=STRIP, help="picture")
    parser.add_argument("--output", type=Path, default=FACTS, help="facts")
    parser.add_argument("--draw-only", action="store_true", help="compose what is there")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    prepared = options.run.with_name(f"{options.run.name}-data")
    prepare_sysu(options.data, prepared, size=32, mode="masked", log=print)
    if not options.draw_only:
        train(prepared, options.run, tuple(sorted(options.minutes)))
    found, marks = panels(prepared, options.run, options.minutes)
    draw(found, options.strip)
    facts = json.loads((options.run / "marks" / "about.json").read_text(encoding="utf-8"))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, json.dumps({**facts, "marks": marks}, indent=1) + "\n")
    print(f"{options.strip}: {', '.join(title for title, _ in found)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
