"""End a training by what it has measured itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import in_flags, option
from ddpm_lib.runs.cadences import soonest_end
from ddpm_lib.training.by_length import settled
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.examples import low_res_of
from ddpm_lib.training.optim import cooldown_start
from ddpm_lib.training.results import StopReason

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion


class StopWhen(Callback):
    """Stop when the held-out loss says over-fitting, samples are copies, or the loss is flat; after
    validation and grids, on which it rests.

    The verdict's rules judge (`runs/verdict/stop_rules.py`), on the rows of metrics.jsonl and those
    of this process: the answer is a function of them, so that a resumed run stops where the
    uninterrupted one does. The main process judges and tells the others. While wsd cools the rate
    down nothing is called flat, as the loss falls once more then.

    Args:
        kinds: Some of "overfitting", "copying", "flat".
        patience: Validations in a row, for copying grids, that have to show it.
    """

    def __init__(self, kinds: Sequence[str], patience: int) -> None:
        self.kinds, self.patience = tuple(kinds), patience
        self._rows: list[dict[str, Any]] = []
        self._trivial: float | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Read what was measured before; stop at once where that is enough, as the same command
        would have.
        """
        if trainer.is_main:
            from ddpm_lib.runs.records import read_records
            from ddpm_lib.runs.run_status import number

            records = read_records(trainer.output_dir)
            self._rows = [dict(row) for row in records.rows if row["step"] <= trainer.step]
            self._trivial = number(records.about.get("trivial_loss"))
        if not trainer.step:
            trainer.say(price(trainer, self.kinds))
        elif trainer.step < trainer.config.max_steps and self._judge(trainer):
            all_the_same = option("stop_when", "none") if in_flags() else "stop_when=()"
            trainer.say(
                "This run has stopped here by itself, and does so again. To go on all the same:"
                f" {all_the_same}, or more {option('patience')} than {self.patience}."
            )

    def on_step_end(self, trainer: TrainingView) -> None:
        """Judge after each validation and each grid."""
        row = {name: trainer.logged(name) for name in _READ if trainer.logged(name) is not None}
        if not row:
            return
        if trainer.is_main:
            self._rows.append({"step": trainer.step, **row})
        if ("val_loss" in row or "sample_n" in row) and trainer.step < trainer.config.max_steps:
            self._judge(trainer)

    def _judge(self, trainer: TrainingView) -> bool:
        config = trainer.config
        stable = config.lr_schedule != "wsd" or trainer.step < cooldown_start(config)
        kinds = [kind for kind in self.kinds if stable or kind != "flat"]
        reason = trainer.ranks.on_main(
            lambda: reason_to_end(self._rows, self._trivial, kinds, self.patience)
        )
        if reason is not None:
            trainer.end(reason)
            if config.lr_schedule == "wsd" and reason.by == "flat":
                _say_how_to_cool_down(trainer)
        return reason is not None


def _say_how_to_cool_down(trainer: TrainingView) -> None:
    """Say how a run that was flat at its full rate is taken through the cool-down."""
    config = settled(trainer.config)
    warmup = cast(int, config.warmup_steps)
    steps = soonest_end(trainer.step, config.cooldown_fraction, warmup)
    if steps is None or steps >= config.max_steps:
        return
    no_stop = option("stop_when", "none") if in_flags() else "stop_when=()"
    trainer.say(
        "The rate is still at its height; cooled down, it lowers the loss once more. To do so from"
        f" here: {option('max_steps', steps)} and {no_stop}."
    )


def check_options(config: TrainingConfig, diffusion: GaussianDiffusion) -> None:
    """Refuse to stop by what is not measured.

    Raises:
        ConfigError: Saying which option to set.
    """
    wanted, held = config.stop_when, config.val_data is not None or config.val_fraction
    losses = [kind for kind in wanted if kind != "copying"]
    if losses and not (config.val_every and held):
        raise ConfigError(
            f"{option('stop_when', losses[0])} judges by held-out images, and this run has none."
            f" Set {option('val_every')} and {option('val_fraction')} or {option('val_data')}, or"
            " leave it out."
        )
    if "copying" not in wanted:
        return
    copying = option("stop_when", "copying")
    if low_res_of(diffusion) is not None:
        raise ConfigError(
            f"{copying} makes no sense for a network that enlarges images: its samples look like"
            " what it was given. Leave it out."
        )
    if not config.sample_every or config.sample_count < 2:
        raise ConfigError(
            f"{copying} judges by sample grids of at least 2 images, and this run draws none. Set"
            f" {option('sample_every')} and {option('sample_count')}, or leave it out."
        )


def check_images(config: TrainingConfig, images: int, held_out: int) -> None:
    """Refuse to stop by what cannot be measured on so few images.

    Args:
        config: The options.
        images: Training images.
        held_out: Held-out images.

    Raises:
        ConfigError: Saying what is missing.
    """
    losses = [kind for kind in config.stop_when if kind != "copying"]
    if losses and not held_out:
        raise ConfigError(
            f"{option('stop_when', losses[0])} judges by held-out images, and of these"
            f" {images:,} none are held out. Give more images, a larger"
            f" {option('val_fraction')} or {option('val_data')}, or leave it out."
        )
    if "copying" in config.stop_when and images < 3:
        raise ConfigError(
            f"{option('stop_when', 'copying')} tells copies from chance by 3 training images or"
            f" more; got {images}. Leave it out."
        )


_READ = (
    "loss",
    "learning_rate",
    "val_loss",
    "val_loss_error",
    "train_fixed_loss",
    "val_gap",
    "val_gap_error",
    "val_gap_start",
    "val_gap_adjusted",
    "val_gap_adjusted_error",
    "sample_n",
    "sample_copies",
    "sample_copies_p",
)
"""What the rules look at."""


def reason_to_end(
    rows: Sequence[Mapping[str, Any]],
    trivial: float | None,
    kinds: Sequence[str],
    patience: int,
) -> StopReason | None:
    """Return why a run ends by itself, None where it goes on.

    Args:
        rows: Of its metrics up to now, by step.
        trivial: The loss of a denoiser that knows the mean image alone, None if unknown.
        kinds: See `StopWhen`.
        patience: See `StopWhen`.
    """
    from ddpm_lib.runs.verdict import Readings
    from ddpm_lib.runs.verdict.sentences import finding_headline
    from ddpm_lib.runs.verdict.stop_rules import stop_finding

    found = stop_finding(Readings(rows, {}, trivial), kinds, patience)
    if found is None:
        return None
    text = f"{option('stop_when', found.kind)}: {finding_headline(found)}"
    return StopReason(text, complete=True, by=found.kind)


def price(trainer: TrainingView, kinds: Sequence[str]) -> str:
    """Say what judging costs, in shares of the training's arithmetic: a forward pass is a third of
    a step's work on an image.
    """
    config, parts = trainer.config, []
    if trainer.held_out is not None and config.cadences.val_every:
        n = min(config.val_max_images, len(trainer.held_out))
        averaged = min(n, 128) if config.ema_decay else 0
        share = (2 * n + averaged) / 3 / (config.cadences.val_every * config.images_per_step)
        parts.append(f"a validation every {config.cadences.val_every:,} steps ({share:.1%})")
    if "copying" in kinds and config.cadences.sample_every:
        steps = min(config.sample_steps, trainer.diffusion.timesteps)
        forward = steps * (2 if config.sample_guidance_scale != 1 else 1)
        share = config.sample_count * forward / 3
        share /= config.cadences.sample_every * config.images_per_step
        parts.append(f"a grid every {config.cadences.sample_every:,} ({share:.1%})")
    names = ", ".join(kinds)
    return f"Stops by itself at {names}; judged at {' and '.join(parts)} of the training's time."
