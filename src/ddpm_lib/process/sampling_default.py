"""How a process draws where its user does not say: chosen once, by measuring, and kept with the
weights.

Loads no torch, because `ddpm status` and pages show it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.text import printable, short

STEPS = ("sampler", "sampler_options", "num_steps", "spacing", "spacing_options", "eta")
"""Arguments of `sample` that say which steps are made."""
GUIDANCE = (
    "guidance_scale",
    "guidance_interval",
    "guidance_rescale",
    "classifier",
    "guide_by",
    "guide_scale",
)
"""Arguments of `sample` that say what guides them."""

MOST_STEPS = 100_000
_MOST_EVIDENCE = 200_000  # letters


@dataclass(frozen=True, kw_only=True)
class SamplingDefault:
    """A sampler with its levels and its guidance, for the weights that it was chosen for.

    `GaussianDiffusion.sampling_default` holds one; `load_run` and `from_pretrained` set it.

    Attributes:
        made_by: What chose it, "ddpm tune" for example.
        sampler: As for `sample`, like the next eight.
        sampler_options: As for `sample`.
        num_steps: As for `sample`.
        spacing: As for `sample`; a tuple where the levels are given one by one.
        spacing_options: As for `sample`.
        eta: As for `sample`.
        guidance_scale: As for `sample`; without effect on images that are given no condition.
        guidance_interval: As for `sample`.
        guidance_rescale: As for `sample`.
        guide_by: Name of the worse version that guides: "model", "ema:0.999", a step; None for
            none.
        guide_scale: As for `sample`.
        weights: The average that it was chosen with, "ema 0.999" or "model"; None for any.
        step: The step of training of these weights; None where that is not known.
        calls: Network calls for an image, those of guidance included; None where not known.
        created: When, in ISO 8601.
        evidence: What was compared and measured, JSON-able.
        load_partner: Loads what `guide_by` names; set by what opens runs and folders.
        loaded_step: The step of the weights that the process has now; None where not known.
    """

    made_by: str
    sampler: str
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    spacing: str | tuple[float, ...] = "trailing"
    spacing_options: Mapping[str, Any] = field(default_factory=dict)
    eta: float | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    guide_by: str | None = None
    guide_scale: float | None = None
    weights: str | None = None
    step: int | None = None
    calls: int | None = None
    created: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)
    load_partner: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    loaded_step: int | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        spacing = self.spacing if isinstance(self.spacing, str) else list(self.spacing)
        return {
            "made_by": self.made_by,
            "created": self.created,
            "step": self.step,
            "weights": self.weights,
            "calls": self.calls,
            "sampling": {
                "sampler": self.sampler,
                "sampler_options": dict(self.sampler_options),
                "num_steps": self.num_steps,
                "spacing": spacing,
                "spacing_options": dict(self.spacing_options),
                "eta": self.eta,
                "guidance_scale": self.guidance_scale,
                "guidance_interval": list(self.guidance_interval),
                "guidance_rescale": self.guidance_rescale,
                "guide_by": self.guide_by,
                "guide_scale": self.guide_scale,
            },
            "evidence": dict(self.evidence),
            **({} if self.loaded_step is None else {"weights_step": self.loaded_step}),
        }

    @property
    def is_stale(self) -> bool:
        """Whether the weights have been trained since it was chosen."""
        known = self.step is not None and self.loaded_step is not None
        return known and self.step != self.loaded_step

    def words(self) -> str:
        """Say in a line what it is: "unipc in 8 steps at learned levels, ema 0.999".

        >>> SamplingDefault(made_by="ddpm tune", sampler="unipc", spacing=(100.0, 40.5)).words()
        'unipc in 2 steps at learned levels'
        """
        steps = self.num_steps
        where = ""
        if not isinstance(self.spacing, str):
            steps, where = len([t for t in self.spacing if t > 0]), " at learned levels"
        elif self.spacing != "trailing":
            where = f", spacing {printable(self.spacing)}"
        options = {**self.sampler_options, **({} if self.eta is None else {"eta": self.eta})}
        listed = "".join(f" {printable(k)}={_number(v)}" for k, v in options.items())
        count = "" if steps is None else f" in {steps} step{'' if steps == 1 else 's'}"
        parts = [f"{printable(self.sampler)}{listed}{count}{where}"]
        if self.guidance_scale != 1.0:
            low, high = self.guidance_interval
            inside = "" if (low, high) == (0.0, 1.0) else f" where {low:g} < t/T <= {high:g}"
            parts.append(f"guidance {self.guidance_scale:g}{inside}")
        if self.guide_by is not None:
            scale = "" if self.guide_scale is None else f" {self.guide_scale:g}"
            parts.append(f"autoguidance{scale} by {printable(self.guide_by)}")
        if self.weights is not None:
            parts.append(printable(self.weights))
        return ", ".join(parts)

    def origin(self) -> str:
        """Say what chose it and for which step: "ddpm tune at step 1,200"."""
        at = f" at step {self.step:,}" if self.step is not None else ""
        return f"{printable(self.made_by)}{at}"

    def notice(self) -> str:
        """Return what there is to say of weights that were trained on since; "" for others."""
        if not self.is_stale:
            return ""
        return (
            f"the default of {printable(self.made_by)} was chosen for step {self.step:,}, and these"
            f" are weights of step {self.loaded_step:,}: choose it anew, or name sampler and steps."
        )

    def without_partner(self) -> SamplingDefault:
        """Return the same without autoguidance."""
        return replace(self, guide_by=None, guide_scale=None, load_partner=None)


def parse_default(values: Any, where: str) -> SamplingDefault:
    """Read what `SamplingDefault.to_json` returned.

    Args:
        values: It, as it comes from a file.
        where: Names the file in messages.

    Raises:
        CheckpointError: If something is missing or cannot be.
    """
    whole = _Values(_object(values, "the sampling default", where), where)
    said = _Values(_object(whole.values.get("sampling"), "sampling", where), where)
    evidence = whole.mapping("evidence")
    if len(json.dumps(evidence)) > _MOST_EVIDENCE:
        raise whole.wrong("evidence", "more", f"at most {_MOST_EVIDENCE:,} letters")
    return SamplingDefault(
        made_by=whole.text("made_by", needed=True) or "",
        sampler=said.text("sampler", needed=True) or "",
        sampler_options=said.mapping("sampler_options"),
        num_steps=said.whole("num_steps", 1),
        spacing=said.spacing(),
        spacing_options=said.mapping("spacing_options"),
        eta=said.real("eta"),
        guidance_scale=said.real("guidance_scale", 1.0),
        guidance_interval=said.interval(),
        guidance_rescale=said.real("guidance_rescale", 0.0),
        guide_by=said.text("guide_by"),
        guide_scale=said.real("guide_scale"),
        weights=whole.text("weights"),
        step=whole.whole("step", 0),
        calls=whole.whole("calls", 1),
        created=(whole.text("created") or "")[:40],
        evidence=evidence,
        loaded_step=whole.whole("weights_step", 0),
    )


def _object(values: Any, name: str, where: str) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    got = short(values, 80)
    raise CheckpointError(f"{where} is damaged: {name} must be an object; got {got}.")


@dataclass(frozen=True)
class _Values:
    """An object from a file, whose entries are checked when they are taken."""

    values: dict[str, Any]
    where: str

    def wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        got = short(value, 80)
        return CheckpointError(f"{self.where} is damaged: {name} must be {wanted}; got {got}.")

    def text(self, name: str, *, needed: bool = False) -> str | None:
        value = self.values.get(name)
        if value is None and not needed:
            return None
        if not isinstance(value, str) or len(value) > 200:
            raise self.wrong(name, value, "a text")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return value

    def whole(self, name: str, least: int) -> int | None:
        value = self.values.get(name)
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53
        if value is not None and not fits:
            raise self.wrong(name, value, f"a whole number from {least}")
        return value

    def real(self, name: str, usual: float | None = None) -> Any:
        value = self.values.get(name, usual)
        if value is None and usual is None:
            return None
        if not _is_number(value):
            raise self.wrong(name, value, "a number")
        return float(value)  # type: ignore[arg-type]

    def spacing(self) -> str | tuple[float, ...]:
        value = self.values.get("spacing", "trailing")
        if isinstance(value, str):
            return value
        levels = value if isinstance(value, list) else []
        above = [t for t in levels if _is_number(t) and t >= 0]
        falling = all(a > b for a, b in pairwise(above))
        if len(above) != len(levels) or not 0 < len(above) <= MOST_STEPS or not falling:
            raise self.wrong("spacing", value, "a name, or levels that decrease")
        return tuple(t if isinstance(t, int) else float(t) for t in above)

    def interval(self) -> tuple[float, float]:
        ends = self.values.get("guidance_interval", [0.0, 1.0])
        known = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))
        if not known or not 0.0 <= ends[0] < ends[1] <= 1.0:
            raise self.wrong("guidance_interval", ends, "two numbers, 0 <= low < high <= 1")
        return float(ends[0]), float(ends[1])


def _is_number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _number(value: object) -> str:
    return f"{value:g}" if _is_number(value) else printable(value)


def is_given(value: Any) -> bool:
    """Say whether a caller said something: None, and options without entries, say nothing."""
    return value is not None and not (isinstance(value, Mapping) and not value)


@dataclass(frozen=True)
class Chosen:
    """How images are drawn, with nothing left open but what the library decides.

    Attributes:
        arguments: Of `sample`, those of `STEPS` and `GUIDANCE`; None where the library decides.
            "guide_by" is what the caller gave, or the name in the default.
        default: What steps or guidance were taken from; None where nothing was.
        named: Which of steps and guidance the caller named.
    """

    arguments: dict[str, Any]
    default: SamplingDefault | None
    named: tuple[str, ...] = ()

    @property
    def partner_is_stored(self) -> bool:
        """Whether what guides is named by the default, and still to be loaded."""
        taken = self.default is not None and "guidance" not in self.named
        return taken and self.default is not None and self.default.guide_by is not None

    def line(self) -> str:
        """Say in a line that a default was taken; "" where none was."""
        if self.default is None:
            return ""
        own = "; guidance as asked for" if "guidance" in self.named else ""
        return f"as chosen by {self.default.origin()}: {self.default.words()}{own}"


def choose_sampling(
    default: SamplingDefault | None,
    wishes: Mapping[str, Any],
    *,
    can_guide: bool = True,
    jumps: bool = False,
) -> Chosen:
    """Fill in what a caller of `sample` left open.

    Whoever names sampler, steps or spacing gets nothing of the default, as its parts were chosen
    together. Whoever names guidance alone keeps its steps, guided as asked for.

    Args:
        default: What the process holds.
        wishes: The arguments of `sample`, those of `STEPS` and `GUIDANCE`; None for what was not
            said.
        can_guide: Whether the images have a condition that guidance could strengthen.
        jumps: Whether the network was tuned for consistency, so that one sampler fits it alone.
    """
    said = {name: wishes.get(name) for name in (*STEPS, *GUIDANCE)}
    if default is None or any(is_given(said[name]) for name in STEPS):
        if jumps and said["sampler"] is None:
            said["sampler"] = "consistency"
        return Chosen(said, None)
    arguments: dict[str, Any] = {
        "sampler": default.sampler,
        "sampler_options": dict(default.sampler_options),
        "num_steps": default.num_steps,
        "spacing": default.spacing,
        "spacing_options": dict(default.spacing_options),
        "eta": default.eta,
    }
    if any(is_given(said[name]) for name in GUIDANCE):
        return Chosen({**said, **arguments}, default, ("guidance",))
    arguments |= {
        "guidance_scale": default.guidance_scale if can_guide else None,
        "guidance_interval": default.guidance_interval,
        "guidance_rescale": default.guidance_rescale,
        "guide_by": default.guide_by,
        "guide_scale": default.guide_scale,
    }
    return Chosen({**said, **arguments}, default)
