"""What happens around the training loop, a file per callback."""

from __future__ import annotations

from ddpm_lib.core.progress import in_notebook
from ddpm_lib.training.callbacks.base import Callback
from ddpm_lib.training.callbacks.checkpoints import SaveCheckpoints
from ddpm_lib.training.callbacks.metrics import MetricLogger
from ddpm_lib.training.callbacks.rows import ProgressBar
from ddpm_lib.training.callbacks.samples import SampleGrid
from ddpm_lib.training.callbacks.time_sampler import LossAwareTimes
from ddpm_lib.training.callbacks.validation import Validation
from ddpm_lib.training.config import TrainingConfig

__all__ = ["Callback", "default_callbacks"]


def default_callbacks(config: TrainingConfig, learns_times: bool = False) -> list[Callback]:
    """Return the callbacks that the options, and a time sampler that learns, ask for, in the order
    in which they run.
    """
    chosen: list[Callback] = [MetricLogger()]
    if learns_times:
        chosen.append(LossAwareTimes())
    if config.val_every:
        chosen.append(Validation(config.val_max_images, config.seed))
    grids = SampleGrid() if config.sample_every else None
    if grids is not None:
        chosen.append(grids)
    if config.stop_when:
        from ddpm_lib.training.callbacks.stop_when import StopWhen

        chosen.append(StopWhen(config.stop_when, config.patience))
    if config.posthoc_ema:
        from ddpm_lib.training.callbacks.snapshots import PostHocSnapshots

        chosen.append(PostHocSnapshots(config.posthoc_every))
    chosen.append(SaveCheckpoints())
    if config.lr_schedule in ("wsd", "auto"):  # what a run that goes on began with
        from ddpm_lib.training.callbacks.stable_part import KeepStablePart

        chosen.append(KeepStablePart())
    if config.report:
        from ddpm_lib.training.callbacks.run_report import RunReport

        chosen.append(RunReport(grids))
    if config.progress:
        chosen.append(_live_view() if in_notebook() else ProgressBar())
    return chosen


def _live_view() -> Callback:
    from ddpm_lib.training.callbacks.live import LiveView

    return LiveView()
