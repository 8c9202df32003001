"""What guidance and inpainting do on real models: a small class-conditional one of the built-in
shapes, trained once.

Minutes on one core, so all of it is slow. SHAPES_RUN=path takes a finished run of `ddpm train
shapes` instead of training one, and the grids are written to SHAPES_GRIDS, if it is set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Shapes, load_run
from ddpm_lib.cli import main
from ddpm_lib.guidance import ClassLogProb
from ddpm_lib.images import save_grid, to_uint8

pytestmark = pytest.mark.slow
CLASSES = 6


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> GaussianDiffusion:
    """The network that `ddpm train` builds for the shapes, trained a little longer: about five
    minutes.
    """
    run = os.environ.get("SHAPES_RUN")
    if run is None:
        run = str(tmp_path_factory.mktemp("shapes") / "run")
        flags = [
            "--max-steps",
            "1100",
            "--sample-every",
            "0",
            "--val-every",
            "0",
            "--device",
            "cpu",
            "--no-progress",
        ]
        assert main(["train", "shapes", "--output-dir", run, *flags]) == 0
    return load_run(run).diffusion


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU())


class Reader(nn.Module):
    """Says which shape it sees; told the noise level, it also reads noisy pictures."""

    def __init__(self, timesteps: int, width: int = 24) -> None:
        super().__init__()
        self.timesteps = timesteps
        convolutions = [block(4, width), block(width, 2 * width), block(2 * width, 4 * width)]
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4 * width * 16, CLASSES))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = (t / self.timesteps).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([x, level], 1))

    def read(self, images: Tensor) -> Tensor:
        """Return the classes of clean images in [0, 1]."""
        with torch.inference_mode():
            return self(images * 2 - 1, torch.zeros(len(images))).argmax(1)


def train_reader(diffusion: GaussianDiffusion, top: int, steps: int, told: bool) -> Reader:
    """Train on real shapes at the levels 1 … top, told of the level or not."""
    torch.manual_seed(0)
    data = Shapes(size=32, n=8192).batch(range(8192))
    reader = Reader(diffusion.timesteps)
    optimizer = torch.optim.Adam(reader.parameters(), 2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        g = torch.Generator().manual_seed(step)
        rows, t = (
            torch.randint(0, 8192, (64,), generator=g),
            torch.randint(1, top + 1, (64,), generator=g),
        )
        x = diffusion.q_sample(data["image"][rows], t, torch.randn(64, 3, 32, 32, generator=g))
        logits = reader(x, (t - 1).float() if told else torch.zeros(64))
        loss = nn.functional.cross_entropy(logits, data["class_label"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval()


@pytest.fixture(scope="module")
def reader(diffusion: GaussianDiffusion) -> Reader:
    """A judge of clean pictures, itself judged on shapes it never saw; a little noise taught it not
    to mind blemishes.
    """
    judge = train_reader(diffusion, top=diffusion.timesteps // 8, steps=800, told=False)
    unseen = Shapes(size=32, n=2000, seed=1).batch(range(2000))
    accuracy = float((judge.read(unseen["image"] / 255) == unseen["class_label"]).float().mean())
    print(f"accuracy of the judge on unseen shapes: {accuracy:.4f}")
    assert accuracy >= 0.99
    return judge


def grid(images: Tensor, name: str, columns: int) -> None:
    folder = os.environ.get("SHAPES_GRIDS")
    if folder:
        save_grid(images, Path(folder) / f"{name}.png", columns, 3)


def test_samples_are_of_the_class_asked_for(diffusion: GaussianDiffusion, reader: Reader) -> None:
    labels, rates = torch.arange(240) % CLASSES, {}
    for scale in (1.0, 2.0):
        options = {
            "sampler": "dpmpp_2m_sde",
            "num_steps": 30,
            "cond": {"class_label": labels},
            "batch_size": 60,
        }
        images = diffusion.sample(240, guidance_scale=scale, **options)
        grid(images[:36], f"guidance-{scale:g}", 6)
        rates[scale] = float((reader.read(images) == labels).float().mean())
    print(f"read as the class asked for: {rates}")
    assert rates[2.0] >= 0.95
    assert rates[2.0] > rates[1.0]


def test_a_classifier_guides_the_unconditional_network(
    diffusion: GaussianDiffusion, reader: Reader
) -> None:
    noisy, labels = (
        train_reader(diffusion, top=diffusion.timesteps, steps=1200, told=True),
        torch.arange(96) % CLASSES,
    )
    rates = {}
    for scale in (0.0, 1.0, 5.0):
        towards = ClassLogProb(noisy, labels)
        images = diffusion.sample(
            96, sampler="ddim", num_steps=30, classifier=towards, classifier_scale=scale
        )
        grid(images[:36], f"classifier-{scale:g}", 6)
        rates[scale] = float((reader.read(images) == labels).float().mean())
    print(f"read as the class asked for: {rates}")
    # Without guidance the classes come as they like; a sixth fits by chance.
    assert rates[0.0] < 0.4
    assert rates[1.0] > rates[0.0] + 0.15
    assert rates[5.0] > 0.6


def test_inpainting(diffusion: GaussianDiffusion, reader: Reader) -> None:
    """The right half is painted, and the result is of the class of the hidden picture. The seams
    are printed only.

    The small network misses the tint of the background, which weighs more in them than resampling
    (see test_inpainting.py).
    """
    unseen = Shapes(size=32, n=24, seed=1).batch(range(24))
    images, cond = unseen["image"], {"class_label": unseen["class_label"]}
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True

    def seam(pictures: Tensor) -> float:
        return float((pictures[..., 16] - pictures[..., 15]).abs().mean())

    grey = torch.where(mask, torch.tensor(128, dtype=torch.uint8), images)
    rows, seams, rates = [images, grey], {}, {}
    for resamples in (1, 8):
        walk = {"num_steps": 50, "jump_length": 5, "num_resamples": resamples}
        done = diffusion.inpaint(images, mask, cond=cond, guidance_scale=2.0, **walk)
        assert torch.equal(to_uint8(done)[..., :16], images[..., :16])
        assert torch.equal(done[..., :16], images[..., :16] / 255)
        rows.append(to_uint8(done))
        seams[resamples] = seam(done)
        rates[resamples] = float((reader.read(done) == unseen["class_label"]).float().mean())
    grid(torch.stack(rows, 1)[:12].flatten(0, 1), "inpainting", 8)
    real, hidden = (
        seam(images / 255),
        float((reader.read(grey / 255) == unseen["class_label"]).float().mean()),
    )
    print(
        f"seams {seams}, of real pictures {real:.4f}; read as their class {rates}, half hidden"
        f" {hidden}"
    )
    assert rates[8] >= 0.9
    assert rates[8] > hidden
