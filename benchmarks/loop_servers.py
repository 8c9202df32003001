"""The training loops that `train_loop.py` compares, each in a process of its own that runs windows
of steps on demand.

    python benchmarks/loop_servers.py ours --data FOLDER

reads lines such as `loop 20` and answers each with the seconds that 20 steps took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import common
import peers

MANY = 10**9


class Line:
    """The connection to the parent: commands come by stdin, answers go to what was stdout; prints
    of libraries do not.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def commands(self) -> Iterator[tuple[str, int]]:
        for line in sys.stdin:
            name, _, steps = line.strip().partition(" ")
            if name == "quit":
                return
            yield name, int(steps)

    def answer(self, value: Any) -> None:
        self._answers.write(json.dumps(value) + "\n")


class Server:
    """A program in a process of its own that answers by a `Line`; `run("loop", 20)` returns the
    seconds of 20 steps.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._errors = log.open("w", encoding="utf-8")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )
        self.facts = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"The process ended early:\n{self.log.read_text(encoding='utf-8')[-3000:]}"
            )
        return json.loads(answer)

    def run(self, what: str, steps: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {steps}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ask the process to end; one that does not within a minute is ended."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.write("quit\n")
            self._process.stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._errors.close()


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(asked: argparse.Namespace, line: Line, folder: Path) -> None:
    """Our `Trainer` with its defaults; validation, grids and checkpoints do not fall due in the
    measured windows.
    """
    from ddpm_lib import Callback, GaussianDiffusion, Trainer

    class Windows(Callback):
        """Begin and end windows between two steps, and run the bare step there when asked to."""

        def __init__(self) -> None:
            self.commands, self.due, self.since = line.commands(), 1, 0.0

        def on_step_end(self, trainer: Trainer) -> None:
            if trainer.step < self.due:
                return
            took = now(trainer.device) - self.since
            line.answer(took if self.since else {**facts, "precision": trainer.precision})
            for name, steps in self.commands:
                if name == "loop":
                    self.due, self.since = trainer.step + steps, now(trainer.device)
                    return
                line.answer(self._bare(trainer, steps))
            trainer.stop("all rounds are done")

        def _bare(self, trainer: Trainer, steps: int) -> float:
            images = trainer.dataset.batch([i % len(trainer.dataset) for i in range(asked.batch)])[
                "image"
            ]
            images = images.to(trainer.device)
            start = now(trainer.device)
            for _ in range(steps):
                trainer.accelerator.backward(trainer.diffusion(images, reduction="none").mean())
                trainer.learner.clip_gradients(trainer.accelerator, trainer.config.max_grad_norm)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
            return now(trainer.device) - start

    model = peers.our_unet(asked.width)
    facts = dict(zip(("parameters", "macs"), peers.count(model, asked.size)))
    options = {
        "batch_size": asked.batch,
        "mixed_precision": asked.precision,
        "compile": asked.compile,
        "device": asked.device,
    }
    options |= {
        "max_steps": MANY,
        "save_every": MANY,
        "val_every": 0,
        "sample_every": 0,
        "log_every": asked.log_every,
    }
    options |= {"horizontal_flip": True, "labels": "none"}
    diffusion = GaussianDiffusion(model, image_size=asked.size)
    Trainer(diffusion, asked.data, output_dir=str(folder), callbacks=[Windows()], **options).train()


def lucidrains(asked: argparse.Namespace, line: Line, folder: Path) -> None:
    """denoising-diffusion-pytorch's Trainer as its README makes it, but for batch and FID; sampling
    does not fall due.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

    model = peers.lucidrains_unet(
        peers.count(peers.our_unet(asked.width), asked.size)[1], asked.size, tuple(asked.mults)
    )
    facts = dict(zip(("parameters", "macs"), peers.count(model, asked.size)))
    diffusion = GaussianDiffusion(
        model, image_size=asked.size, timesteps=1000, sampling_timesteps=250
    )
    trainer = Trainer(
        diffusion,
        asked.data,
        train_batch_size=asked.batch,
        train_lr=8e-5,
        ema_decay=0.995,
        amp=asked.precision != "no",
        mixed_precision_type="fp16" if asked.precision == "no" else asked.precision,
        calculate_fid=False,
        save_and_sample_every=MANY,
        results_folder=str(folder),
        train_num_steps=1,
    )
    trainer.train()
    line.answer({**facts, "precision": asked.precision})
    for _, steps in line.commands():
        trainer.train_num_steps = trainer.step + steps
        start = now(trainer.device)
        trainer.train()
        line.answer(now(trainer.device) - start)


def diffusers(asked: argparse.Namespace, line: Line, folder: Path) -> None:
    """What diffusers' script for unconditional training does with its default options and EMA (it
    is no part of the package).
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm import tqdm

    device_is_cpu = asked.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=asked.precision, cpu=device_is_cpu)
    model = peers.diffusers_unet(asked.width, asked.size)
    facts = dict(zip(("parameters", "macs"), peers.count(model, asked.size)))
    average = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    average.to(accelerator.device)
    noising = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    loader = torch.utils.data.DataLoader(
        Pictures(asked.data, asked.size), batch_size=asked.batch, shuffle=True
    )
    rates = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000
    )
    model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
    model.train()
    batches, bar = endless(loader), tqdm()

    def step() -> None:
        clean = next(batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        with accelerator.accumulate(model):
            output = model(noising.add_noise(clean, noise, t), t).sample
            loss = nn.functional.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        bar.update(1)
        bar.set_postfix(loss=loss.item(), lr=rates.get_last_lr()[0], ema=average.cur_decay_value)

    step()
    line.answer({**facts, "precision": asked.precision})
    for _, steps in line.commands():
        start = now(accelerator.device)
        for _ in range(steps):
            step()
        line.answer(now(accelerator.device) - start)


class Pictures(torch.utils.data.Dataset):
    """A folder of pictures through torchvision's transforms, decoded at every visit, in [-1, 1]."""

    def __init__(self, folder: str, size: int) -> None:
        from torchvision import transforms as T

        self.paths = sorted(
            p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")
        )
        self.transform = T.Compose(
            [
                T.Resize(size),
                T.CenterCrop(size),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[i]) as picture:
            return self.transform(picture.convert("RGB"))


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


SERVERS = {"ours": ours, "lucidrains": lucidrains, "diffusers": diffusers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=list(SERVERS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--mults", type=int, nargs="+", default=[1, 2, 2, 2])
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", *common.DTYPES])
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    line = Line()
    with contextlib.suppress(BrokenPipeError), TemporaryDirectory() as folder:
        SERVERS[asked.which](asked, line, Path(folder) / "run")


if __name__ == "__main__":
    main()
