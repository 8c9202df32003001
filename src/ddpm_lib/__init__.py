"""Train, sample and honestly evaluate denoising diffusion models (DDPM) on your own images.

Three names do the main job: `Unet`, `GaussianDiffusion`, `Trainer`. Names are imported on first use
(PEP 562), so that `import ddpm_lib` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_lib.core.lazy_names import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset as ImageDataset
    from ddpm_lib.data import Shapes as Shapes
    from ddpm_lib.data import open_dataset as open_dataset
    from ddpm_lib.data.auditing import audit as audit
    from ddpm_lib.diffusion import GaussianDiffusion as GaussianDiffusion
    from ddpm_lib.evaluation import Evaluate as Evaluate
    from ddpm_lib.evaluation import distill as distill
    from ddpm_lib.evaluation import evaluate as evaluate
    from ddpm_lib.nn import Unet as Unet
    from ddpm_lib.nn import register_network as register_network
    from ddpm_lib.schedules import Schedule as Schedule
    from ddpm_lib.training import Callback as Callback
    from ddpm_lib.training import Trainer as Trainer
    from ddpm_lib.training import TrainingConfig as TrainingConfig
    from ddpm_lib.training import load_run as load_run
    from ddpm_lib.training.planning import plan as plan

_HOME = {
    "Unet": "nn",
    "register_network": "nn",
    "GaussianDiffusion": "diffusion",
    "Schedule": "schedules",
    "ImageDataset": "data",
    "Shapes": "data",
    "open_dataset": "data",
    "audit": "data.auditing",
    "Trainer": "training",
    "TrainingConfig": "training",
    "Callback": "training",
    "load_run": "training",
    "Evaluate": "evaluation",
    "evaluate": "evaluation",
    "distill": "evaluation",
    "plan": "training.planning",
}

__all__ = [
    "Callback",
    "Evaluate",
    "GaussianDiffusion",
    "ImageDataset",
    "Schedule",
    "Shapes",
    "Trainer",
    "TrainingConfig",
    "Unet",
    "audit",
    "distill",
    "evaluate",
    "load_run",
    "open_dataset",
    "plan",
    "register_network",
]

__getattr__, __dir__ = lazy_names(
    __name__, {name: f"ddpm_lib.{room}" for name, room in _HOME.items()}
)
