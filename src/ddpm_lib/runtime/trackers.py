"""accelerate's trackers: there or not, started or not, and finished whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("ddpm_lib")

_PACKAGES = {"comet_ml": "comet-ml"}
_REMEDIES = {
    "wandb": (
        "Log in with `wandb login` (or set WANDB_API_KEY), or record without a network:"
        " WANDB_MODE=offline."
    ),
    "comet_ml": (
        "Log in with `comet login` (or set COMET_API_KEY), or record without a network:"
        " COMET_START_ONLINE=0."
    ),
    "clearml": (
        "Set it up with `clearml-init`, or record without a network: CLEARML_OFFLINE_MODE=1."
    ),
    "mlflow": "Check MLFLOW_TRACKING_URI; without it mlflow writes into a local folder.",
    "swanlab": (
        "Log in with `swanlab login` (or set SWANLAB_API_KEY), or record without a network:"
        " SWANLAB_MODE=offline."
    ),
    "trackio": "Unset TRACKIO_SPACE_ID to record on this machine only.",
}


def check_tracker(name: str) -> None:
    """Refuse a tracker that does not exist or is not installed.

    Raises:
        ConfigError: Saying what to install.
    """
    import importlib.util

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    known = [str(t) for t in LoggerType if str(t) != "all"]
    if name not in known:
        raise ConfigError(unknown_name("tracker", name, known))
    if importlib.util.find_spec(name) is None:
        package = _PACKAGES.get(name, name)
        raise ConfigError(
            f"The tracker {name!r} needs its package. Install it with: pip install {package}"
        )
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"The tracker {name!r} is not usable with this version of accelerate.")


def start_trackers(accelerator: Accelerator, project: str, options: dict[str, Any]) -> None:
    """Start the trackers one by one, so that the one that fails can be named.

    Raises:
        ConfigError: With the tracker's own reason and what to do; those started before it are
            finished.
    """
    wanted: list[Any] = list(accelerator.log_with)
    started: list[Any] = []
    try:
        for tracker in wanted:
            name = str(tracker)
            accelerator.log_with, accelerator.trackers = [tracker], []
            try:
                accelerator.init_trackers(project, options)
            except (Exception, SystemExit) as error:
                for other in started:
                    other.finish()
                started = []
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                remedy = _REMEDIES.get(name, "Check that it can write and reach what it needs.")
                raise ConfigError(
                    f"The tracker {name!r} did not start: {reason} [{type(error).__name__}]"
                    f" {remedy} Or leave {name} out of trackers (--trackers)."
                ) from error
            started += accelerator.trackers
    finally:
        accelerator.log_with, accelerator.trackers = wanted, started


def finishers(accelerator: Accelerator) -> list[Callable[[], object]]:
    """Return what finishes each tracker, and forget them."""
    found = [tracker.finish for tracker in accelerator.trackers]
    accelerator.trackers = []
    return found


def log_to_trackers(accelerator: Accelerator, values: dict[str, Any], step: int) -> None:
    """Give a row to every tracker; those of a run whose server is away get nothing more, and the
    run goes on.
    """
    try:
        accelerator.log(values, step=step)
    except Exception as error:  # whatever a tracker's own client raises
        logger.warning(
            "The trackers failed and get nothing more from this run (%s: %s).",
            type(error).__name__,
            error,
        )
        accelerator.trackers.clear()


def tracker_names() -> set[str]:
    """Return the names of the trackers that accelerate knows."""
    from accelerate.utils import LoggerType

    return {str(name) for name in LoggerType}
