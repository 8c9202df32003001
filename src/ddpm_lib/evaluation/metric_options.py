"""The options of an evaluation that metrics read: all that they know of `EvaluationOptions`."""

from __future__ import annotations

from typing import Protocol


class MetricOptions(Protocol):
    """Options that metrics read; their meaning stands at the fields of `EvaluationOptions`."""

    @property
    def num(self) -> int | None:
        """Number of samples, and of images to score; None for the default."""

    @property
    def num_levels(self) -> int | None:
        """Levels per image from which bits/dim are estimated; None for all."""

    @property
    def num_steps(self) -> int | None:
        """Steps of the chain whose bound is taken; None for all T."""

    @property
    def tolerance(self) -> float:
        """Relative and absolute tolerance of the solver of the probability flow."""

    @property
    def flow_group(self) -> int:
        """Images that are integrated together."""

    @property
    def features(self) -> str:
        """Names of features as they were given."""

    @property
    def feature_names(self) -> list[str]:
        """The names in `features`, each once."""

    @property
    def batch_size(self) -> int:
        """Images at a time, per process."""

    @property
    def seed(self) -> int:
        """Names the noise and the samples."""

    @property
    def progress(self) -> bool:
        """Whether a progress bar is shown."""

    @property
    def sampler(self) -> str | None:
        """Sampler of the samples; None for the default."""

    @property
    def sample_steps(self) -> int | None:
        """Its steps; None for the default."""

    @property
    def spacing(self) -> str | None:
        """Which levels it visits; None for the default."""

    @property
    def eta(self) -> float | None:
        """Noise of samplers that have it; None for the default."""

    @property
    def guidance_scale(self) -> float | None:
        """Strength of guidance by conditions; None for the default."""

    @property
    def guide_by(self) -> str | None:
        """The worse version that guides; None for none."""

    @property
    def guide_scale(self) -> float | None:
        """How far from it; None for the default."""

    @property
    def compile(self) -> bool:
        """Whether blocks of networks are compiled."""

    @property
    def mixed_precision(self) -> str:
        """Precision in which samples are drawn."""
