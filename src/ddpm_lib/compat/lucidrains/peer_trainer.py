"""`Trainer` and `Dataset` with the arguments of denoising-diffusion-pytorch, made of ours."""

from __future__ import annotations

import copy
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.compat.lucidrains.milestone_callback import Milestones
from ddpm_lib.compat.lucidrains.milestones import (
    milestone_content,
    read_milestone,
    write_milestone,
)
from ddpm_lib.compat.lucidrains.peer_networks import PeerNetwork
from ddpm_lib.compat.lucidrains.peer_process import PeerProcess
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub.folder_config import library_version
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.paths import fresh
from ddpm_lib.nn.networks import describe_network
from ddpm_lib.runs.new_run import write_new_run
from ddpm_lib.training import Callback
from ddpm_lib.training import Trainer as OurTrainer

_MODES = {"L": 1, "RGB": 3, "RGBA": 4}
_EXTS = ("jpg", "jpeg", "png", "tiff")


class Trainer:
    """The Trainer of denoising-diffusion-pytorch, made of ours.

    `results_folder` gets `model-N.pt` and `sample-N.png` as there, and in `run` a run directory of
    ours, from which a training that was cut off goes on when the script is started again. `trainer`
    is our Trainer.

    Args:
        diffusion_model: The process.
        folder: The images, or anything else that our Trainer takes.
        train_batch_size: Images per forward pass.
        gradient_accumulate_every: Forward passes per step.
        augment_horizontal_flip: Whether to flip half of the images.
        train_lr: Learning rate.
        train_num_steps: Steps of training.
        ema_update_every: The decay is meant for so many steps; the average here takes every step,
            with the same effect.
        ema_decay: Decay of the average.
        adam_betas: Decay rates of Adam's moments.
        save_and_sample_every: Steps between milestones.
        num_samples: Images of a grid, a square number.
        results_folder: Where milestones go.
        amp: Whether to train in mixed precision.
        mixed_precision_type: "fp16" or "bf16".
        split_batches: Whether the processes share train_batch_size; False: each has so many.
        convert_image_to: "L", "RGB" or "RGBA"; what it says must fit the channels.
        calculate_fid: Whether to score samples at each milestone, against the training images.
        inception_block_idx: 2048: FID of other features has no counterpart.
        max_grad_norm: Clip the norm of the gradient to this.
        num_fid_samples: Samples to take FID of.
        save_best_and_latest_only: Keep `model-best.pt` (by FID) and `model-latest.pt` alone.

    Raises:
        ConfigError: For what has no counterpart, or contradicts itself.
    """

    @answers_wrong_keywords
    def __init__(
        self,
        diffusion_model: PeerProcess,
        folder: Any,
        *,
        train_batch_size: int = 16,
        gradient_accumulate_every: int = 1,
        augment_horizontal_flip: bool = True,
        train_lr: float = 1e-4,
        train_num_steps: int = 100_000,
        ema_update_every: int = 10,
        ema_decay: float = 0.995,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        save_and_sample_every: int = 1000,
        num_samples: int = 25,
        results_folder: str | os.PathLike[str] = "./results",
        amp: bool = False,
        mixed_precision_type: str = "fp16",
        split_batches: bool = True,
        convert_image_to: str | None = None,
        calculate_fid: bool = True,
        inception_block_idx: int = 2048,
        max_grad_norm: float = 1.0,
        num_fid_samples: int = 50_000,
        save_best_and_latest_only: bool = False,
    ) -> None:
        _check_process(diffusion_model, convert_image_to)
        if math.isqrt(num_samples) ** 2 != num_samples or num_samples < 1:
            raise ConfigError(f"num_samples must be a square number, got {num_samples}. Use 25.")
        self.model, self.results_folder = diffusion_model, Path(results_folder)
        self.num_samples, self.save_and_sample_every = num_samples, save_and_sample_every
        self.train_num_steps, self.batch_size = train_num_steps, train_batch_size
        self.gradient_accumulate_every = gradient_accumulate_every
        self._decay = round(ema_decay ** (1 / ema_update_every), 6)
        self._folder = folder
        self._fid = self._judge(calculate_fid, inception_block_idx, num_fid_samples)
        if save_best_and_latest_only and self._fid is None:
            raise ConfigError(
                "save_best_and_latest_only=True needs the FID of each milestone: calculate_fid=True"
                " and the weights of its network (`ddpm weights`)."
            )
        self._best_only = save_best_and_latest_only
        processes = 1 if split_batches else int(os.environ.get("WORLD_SIZE", "1"))
        self._options: dict[str, Any] = {
            "output_dir": str(self.results_folder / "run"),
            "max_steps": train_num_steps,
            "batch_size": train_batch_size * gradient_accumulate_every * processes,
            "accumulation_steps": gradient_accumulate_every,
            "horizontal_flip": augment_horizontal_flip,
            "optimizer": "adam",
            "learning_rate": train_lr,
            "lr_schedule": "constant",
            "warmup_steps": 0,
            "adam_betas": tuple(adam_betas),
            "max_grad_norm": max_grad_norm,
            "ema_decay": (self._decay,),
            "ema_power": 2 / 3,
            "mixed_precision": _precision(amp, mixed_precision_type),
            "labels": "none",
            "val_fraction": 0.0,
            "val_every": 0,
            "sample_every": 0,
            "save_every": save_and_sample_every,
            "keep_last": 2,
            "keep_best": None,
            "keep_early": "no",
        }
        self.trainer = self._make()

    def _make(self) -> OurTrainer:
        """Return our Trainer."""
        callbacks: list[Callback] = [] if self._fid is None else [self._fid]
        drawing, every = self.model.sampling_options(), self.save_and_sample_every
        place = (every, self.num_samples, self.results_folder)
        callbacks.append(Milestones(*place, drawing, self.save, self._best_only))
        return OurTrainer(self.model.process, self._folder, callbacks=callbacks, **self._options)

    def _judge(self, wanted: bool, features: int, num: int) -> Any:
        """Return the callback that takes FID, None where it is not wanted or cannot be taken."""
        from ddpm_lib.evaluation.training_callback import Evaluate
        from ddpm_lib.metrics.weights import find_weights

        if features != 2048:
            raise ConfigError(
                f"inception_block_idx={features} has no counterpart: FID is taken of the 2,048"
                " features of the last pooling. Leave it out."
            )
        if not wanted:
            return None
        if find_weights("inception") is None:
            warnings.warn(
                "calculate_fid=True: no FID is taken, because the weights of its network are not"
                " here. `ddpm weights` says how they get here; calculate_fid=False silences this.",
                stacklevel=4,
            )
            return None
        options = self.model.sampling_options()
        steps = len(options.get("spacing", ())) or None
        eta = options.get("eta")
        chosen = {"sampler": options["sampler"], "num": num, "metrics": "fid"}
        chosen |= {} if steps is None else {"sample_steps": steps}
        chosen |= {} if eta is None else {"eta": eta}
        return Evaluate(self.save_and_sample_every, **chosen)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.step

    @property
    def device(self) -> torch.device:
        """Where the training runs."""
        self.trainer.prepare()
        return self.trainer.device

    @property
    def ema(self) -> Averaged:
        """The average: `ema.ema_model` samples with it."""
        self.trainer.prepare()
        process = copy.deepcopy(self.model)
        process.process.model.load_state_dict(self.trainer.averaged_network().state_dict())
        return Averaged(process.eval())

    def train(self) -> None:
        """Train up to `train_num_steps`."""
        self.trainer.train()

    def save(self, milestone: int | str) -> None:
        """Write `model-{milestone}.pt`, which the original can load too."""
        ours = self.trainer
        ours.prepare()
        if not ours.is_main:
            return
        written_by = f"ddpm-lib {library_version()}"
        optimizer = ours.optimizer.optimizer
        average = ours.averaged_network()
        content = milestone_content(self.model, average, optimizer, ours.step, written_by)
        write_milestone(self._path(milestone), content)

    def load(self, milestone: int | str) -> None:
        """Go on from `model-{milestone}.pt`, written here or by the original.

        A run that is in the results folder already is set aside.

        Raises:
            CheckpointError: If there is none, or it is of another network or process.
        """
        found = read_milestone(self._path(milestone), self.model, self._decay)
        run = Path(self._options["output_dir"])
        if os.environ.get("RANK", "0") == "0":
            if run.exists():
                run.rename(fresh(run))
            write_new_run(
                run,
                model=describe_network(self.model.process.model),
                diffusion=self.model.process.config,
                weights=found.weights,
                averages=found.averages,
                optimizer=found.optimizer,
                step=found.step,
                training=found.training,
                origin={"source": str(found.source), "format": found.format},
                notes=found.notes,
            )
        self.trainer = self._make()
        self.trainer.prepare()

    def _path(self, milestone: int | str) -> Path:
        return self.results_folder / f"model-{milestone}.pt"


@dataclass(frozen=True)
class Averaged:
    """What scripts read of the average.

    Attributes:
        ema_model: The process with the averaged network.
    """

    ema_model: PeerProcess


def _check_process(diffusion: object, convert_image_to: str | None) -> None:
    """Refuse what our Trainer cannot train under these names."""
    if not isinstance(diffusion, PeerProcess) or not isinstance(diffusion.model, PeerNetwork):
        raise ConfigError(
            "Trainer trains a GaussianDiffusion around a Unet of this package, whose milestones the"
            " original can read. For a network of your own use ddpm_lib.Trainer with"
            " diffusion.process."
        )
    if not diffusion.auto_normalize:
        raise ConfigError(
            "auto_normalize=False does not go with Trainer, whose images are in [0, 1]. Leave it"
            " out."
        )
    if convert_image_to is not None and _MODES.get(convert_image_to) != diffusion.channels:
        raise ConfigError(
            f"convert_image_to={convert_image_to!r} does not make images of {diffusion.channels}"
            f" channels: {', '.join(f'{k} has {v}' for k, v in _MODES.items())}."
        )


def _precision(amp: bool, kind: str) -> str:
    """Return our name of the precision."""
    if kind not in ("fp16", "bf16"):
        raise ConfigError(f"mixed_precision_type must be 'fp16' or 'bf16', got {kind!r}.")
    if not amp:
        return "no"
    if kind == "fp16" and not torch.cuda.is_available():
        warnings.warn(
            "amp=True: fp16 trains on CUDA GPUs alone; this machine has none, so the precision that"
            " suits it is taken.",
            stacklevel=4,
        )
        return "auto"
    return kind


class Dataset(torch.utils.data.Dataset[Tensor]):
    """The pictures below a folder as float images (c, h, w) in [0, 1], cropped in the middle.

    Args:
        folder: The folder.
        image_size: Side, or height and width.
        exts: Endings of the pictures to take.
        augment_horizontal_flip: Whether to flip half of them.
        convert_image_to: "L", "RGB" or "RGBA"; None for RGB.

    Raises:
        ConfigError: If there are no such pictures, or the mode has no counterpart.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        exts: tuple[str, ...] = _EXTS,
        augment_horizontal_flip: bool = False,
        convert_image_to: str | None = None,
    ) -> None:
        from ddpm_lib.data import open_dataset

        if convert_image_to is not None and convert_image_to not in _MODES:
            raise ConfigError(
                f"convert_image_to must be one of {', '.join(_MODES)}; got {convert_image_to!r}."
            )
        self.paths = sorted(p for ext in exts for p in Path(folder).glob(f"**/*.{ext}"))
        if not self.paths:
            raise ConfigError(f"{folder} holds no pictures ending in {', '.join(exts)}.")
        channels = _MODES[convert_image_to or "RGB"]
        names = [str(path) for path in self.paths]
        self.images = open_dataset(names, image_size=image_size, channels=channels, labels="none")
        self.flip = augment_horizontal_flip

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Return one picture."""
        image = self.images[index]["image"].float() / 255
        return image.flip(-1) if self.flip and bool(torch.rand(()) < 0.5) else image
