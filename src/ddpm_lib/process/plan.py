"""How to sample: with which sampler, through which levels, under which guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ddpm_lib.guidance import Guidance, LogProb, Partner
from ddpm_lib.samplers import DDPM, SAMPLERS, Sampler, UniPC, make_sampler
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import default_num_steps, is_named, sampling_levels

SAMPLER, STEPS, SPACING = "unipc", 20, "mixed"
"""What draws from noise where nothing is said, and no default is kept with the weights."""
HIGH_ORDER_STEPS = 10
"""Steps from which on UniPC's third order is better than its second (docs/sampling.md)."""

DefaultSteps = Callable[[str | Sampler, int], int | None]
"""The number of steps where none is asked for, of the sampler and T."""


FEW_JUMPS = 2
"""Steps of the sampler "consistency" where none are asked for."""


def _jumps(sampler: str | Sampler) -> bool:
    return SAMPLERS[sampler].jumps if isinstance(sampler, str) else sampler.jumps


def usual_sampler(
    eta: float | None = None, sampler_options: Mapping[str, Any] | None = None
) -> str:
    """Return the name of the sampler where none is named: ddim for who asks for its noise."""
    return "ddim" if eta is not None or "eta" in (sampler_options or {}) else SAMPLER


def usual_spacing(sampler: str | Sampler | None) -> str:
    """Return the spacing of a sampler where none is named."""
    ours = sampler is None or sampler == SAMPLER or isinstance(sampler, UniPC)
    return SPACING if ours else "trailing"


def usual_steps(sampler: str | Sampler, timesteps: int) -> int | None:
    """Return the steps of sampling from noise: all T for ddpm, 20 for unipc, 2 for consistency, 50
    for the others, at most T.
    """
    if _jumps(sampler):
        return min(FEW_JUMPS, timesteps)
    if sampler == SAMPLER or isinstance(sampler, UniPC):
        return min(STEPS, timesteps)
    return default_num_steps(sampler == "ddpm" or isinstance(sampler, DDPM), timesteps)


def all_steps(sampler: str | Sampler, timesteps: int) -> int:
    """Return the steps of editing, encoding and decoding: all T, but for consistency."""
    return min(FEW_JUMPS, timesteps) if _jumps(sampler) else timesteps


def repaint_steps(sampler: str | Sampler, timesteps: int) -> int:
    """Return the steps of one walk down of inpainting: 250 (Lugmayr et al. 2022), or T."""
    return min(250, timesteps)


def resolve_num_steps(
    sampler: str | Sampler | None,
    num_steps: int | None,
    timesteps: int,
    spacing: str | Sequence[float] | None,
    default: DefaultSteps = usual_steps,
) -> int | None:
    """Return the number of steps: what is asked for, else the default.

    None where the spacing itself says how many, as "ddim25" and lists of levels do.
    """
    if num_steps is not None or not is_named(
        usual_spacing(sampler) if spacing is None else spacing
    ):
        return num_steps
    return default(SAMPLER if sampler is None else sampler, timesteps)


def level_of_fraction(schedule: Schedule, fraction: float) -> Level:
    """Return the level that is a fraction of T, at least level 1.

    Raises:
        ValueError: If the fraction is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        remark = "1 forgets the image but for a trace."
        raise ValueError(f"fraction must be in (0, 1], got {fraction}. {remark}")
    return schedule.level(max(1, round(fraction * schedule.timesteps)))


@dataclass(frozen=True)
class SamplingPlan:
    """A sampler, the levels it visits and the guidance it has; made once, for any number of images.

    Args:
        sampler: Makes the steps.
        levels: The levels to visit, the last one included.
        guidance: By conditions, by a classifier, by a worse version.
    """

    sampler: Sampler
    levels: tuple[Level, ...]
    guidance: Guidance = field(default_factory=Guidance)

    @classmethod
    def make(
        cls,
        schedule: Schedule,
        *,
        sampler: str | Sampler | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        num_steps: int | None = None,
        spacing: str | Sequence[float] | None = None,
        spacing_options: Mapping[str, Any] | None = None,
        eta: float | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        classifier: LogProb | None = None,
        classifier_scale: float = 1.0,
        partner: Partner | None = None,
        partner_scale: float = 1.0,
        default_steps: DefaultSteps = usual_steps,
    ) -> SamplingPlan:
        """Make a plan from the keywords of `GaussianDiffusion.sample`, which describes them.

        Args:
            schedule: The noise levels to choose from.
            sampler: As for `sample`, like the next ten.
            sampler_options: As for `sample`.
            num_steps: As for `sample`.
            spacing: As for `sample`.
            spacing_options: As for `sample`.
            eta: As for `sample`.
            guidance_scale: As for `sample`.
            guidance_interval: As for `sample`.
            guidance_rescale: As for `sample`.
            classifier: As for `sample`.
            classifier_scale: As for `sample`.
            partner: The worse version that guides, of `partner_of`.
            partner_scale: Its strength.
            default_steps: Says how many steps there are where `num_steps` and the spacing do not.

        Raises:
            ValueError: If a name is unknown, an option is out of range, or steps and spacing
                contradict each other.
        """
        sampler = usual_sampler(eta, sampler_options) if sampler is None else sampler
        spacing = usual_spacing(sampler) if spacing is None else spacing
        chosen = make_sampler(sampler, sampler_options, eta=eta)
        steps = resolve_num_steps(chosen, num_steps, schedule.timesteps, spacing, default_steps)
        visited = sampling_levels(schedule, steps, spacing, spacing_options)
        low, high = (0.0, 1.0) if guidance_interval is None else guidance_interval
        parts = dict(guidance_scale) if isinstance(guidance_scale, Mapping) else {}
        whole = 1.0 if isinstance(guidance_scale, Mapping) else guidance_scale
        guidance = Guidance(
            scale=1.0 if whole is None else whole,
            parts=tuple((name, float(scale)) for name, scale in parts.items()),
            interval=(low, high),
            rescale=0.0 if guidance_rescale is None else guidance_rescale,
            classifier=classifier,
            classifier_scale=classifier_scale,
            partner=partner,
            partner_scale=partner_scale,
        )
        if sampler == "unipc" and "order" not in (sampler_options or {}):
            guided = guidance.changes_anything(t / schedule.timesteps for t in visited)
            third = len(visited) - 1 >= HIGH_ORDER_STEPS and not guided
            chosen = make_sampler(sampler, {**(sampler_options or {}), "order": 3 if third else 2})
        return cls(chosen, tuple(schedule.level(t) for t in visited), guidance)

    @property
    def num_steps(self) -> int:
        """Number of steps from the first level to the last."""
        return len(self.levels) - 1

    def starting_at(self, level: Level) -> SamplingPlan:
        """Return the part of a descending plan below a level, which comes first."""
        return replace(self, levels=(level, *(s for s in self.levels if s.t < level.t)))

    def upwards(self) -> SamplingPlan:
        """Return the levels of a descending plan in ascending order."""
        return replace(self, levels=self.levels[::-1])

    def visiting(self, positions: Sequence[int]) -> SamplingPlan:
        """Return a plan that goes up and down a descending one; position 0 is its last level."""
        return replace(self, levels=tuple(self.levels[-1 - k] for k in positions))

    def rows(self, start: int, stop: int) -> SamplingPlan:
        """Return the plan of the images start … stop − 1; see `Guidance.rows`."""
        return replace(self, guidance=self.guidance.rows(start, stop))
