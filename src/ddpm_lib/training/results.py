"""What a step, a run and a failed run leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ddpm_lib.runtime.launch import under_torchrun

if TYPE_CHECKING:
    from ddpm_lib.runs.verdict import Verdict


@dataclass(frozen=True)
class StopReason:
    """Why training is to stop before its end.

    Attributes:
        text: For the user.
        signal: Name of the signal that asked for it, such as SIGTERM; None for other reasons.
        complete: Whether all was done that the call was asked for.
        by: Which of `stop_when` it was, such as "overfitting"; "" for other reasons.
    """

    text: str
    signal: str | None = None
    complete: bool = False
    by: str = ""


@dataclass(frozen=True)
class TrainingResult:
    """How a call of `Trainer.train` ended.

    Attributes:
        status: "finished" at `max_steps` or by what `stop_when` names, or "stopped" before (the
            same command continues).
        step: Optimizer steps done in the whole run.
        reason: Why it stopped.
        output_dir: The run directory.
        checkpoint: The last checkpoint.
        signal: Name of the signal that stopped it, None if none did.
        complete: Whether the call did all that it was asked for: it came to `max_steps`, did its
            `steps`, or stopped by what `stop_when` names.
        stopped_by: Which of `stop_when` it was, such as "overfitting"; "" for other reasons.
        exit_code: 0 complete, 130 interrupted by Ctrl-C, 143 stopped early for another reason (a
            launcher may requeue).
    """

    status: str
    step: int
    reason: str
    output_dir: Path
    checkpoint: Path | None
    signal: str | None = None
    complete: bool = False
    stopped_by: str = ""

    @property
    def exit_code(self) -> int:
        """Return the process exit code that fits; under torchrun always 0, because it would restart
        the job otherwise.
        """
        if self.status == "finished" or self.complete or under_torchrun():
            return 0
        return 130 if self.signal == "SIGINT" else 143

    def __repr__(self) -> str:
        """Return one line: how, where and why it ended, and what was saved."""
        saved = f", {self.checkpoint}" if self.checkpoint is not None else ""
        return f"TrainingResult({self.status} at step {self.step:,}: {self.reason}{saved})"

    def _repr_html_(self) -> str:
        from ddpm_lib.training.training_html import result_html

        return result_html(self)

    @property
    def verdict(self) -> Verdict:
        """How the run went, from its records; `ddpm_lib.runs.verdict.words` says it."""
        from ddpm_lib.runs.records import read_records
        from ddpm_lib.runs.verdict import judge

        return judge(read_records(self.output_dir))

    def summary(self) -> str:
        """Return the screen that `ddpm train` ends with: verdict, scores, files and next steps."""
        from ddpm_lib.runs.end_screen import end_screen

        return end_screen(self.output_dir)


@dataclass
class StepResult:
    """What one optimizer step leaves behind for the callbacks: tensors on the device, read by
    nobody unless needed.

    Attributes:
        losses: Loss of each image of this process (b,).
        levels: The noise level t of each image (b,), on the CPU.
        grad_norm: Norm of the gradient before clipping, a scalar tensor.
        learning_rate: The rate used.
    """

    losses: Tensor
    levels: Tensor
    grad_norm: Tensor
    learning_rate: float

    def __repr__(self) -> str:
        """Return one line that reads nothing from the device."""
        shape, device = len(self.losses), self.losses.device
        return f"StepResult({shape} losses on {device}, learning_rate={self.learning_rate:g})"
