"""The decisions of a plan, in their order: what is given, what the data say, what time allows."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import is_path
from ddpm_lib.data.condition_words import portable_words
from ddpm_lib.data.survey_facts import Survey
from ddpm_lib.training.planning import plan_rules as rules
from ddpm_lib.training.planning.budget import TimeBudget
from ddpm_lib.training.planning.plan_rules import Decision, Network
from ddpm_lib.training.planning.rehearsing import Settings, nested, rehearse
from ddpm_lib.training.run_config import absolute_source

if TYPE_CHECKING:
    from ddpm_lib.training.estimate import Estimate


class Deciding:
    """The state of making one plan.

    Args:
        data: What is planned for.
        seen: What it is like.
        hours: How long the run may take.
        purpose: See `plan_rules.PURPOSES`.
        given: Settings that are fixed, by dotted name.
        say: Gets lines on what is done.
        began: Since when the hours count, by `time.monotonic()`; None: from the training on.

    Attributes:
        decided: The decisions so far, by name.
        images: Images that are trained on.
        cost: What the chosen network was measured to cost.
    """

    cost: Estimate

    def __init__(
        self,
        data: Any,
        seen: Survey,
        hours: float,
        purpose: str,
        given: dict[str, Any],
        say: Callable[[str], None],
        began: float | None = None,
    ) -> None:
        self.began = began
        self.data, self.survey, self.hours, self.purpose = data, seen, hours, purpose
        self.given, self.say = given, say
        self.accelerator = _accelerator(str(given.get("device", "auto")))
        self.decided = {
            name: Decision(name, value, "as asked for", "given") for name, value in given.items()
        }
        self.images = seen.images

    def decide(self, *decisions: Decision | None) -> None:
        """Take decisions, but for what is given."""
        for one in decisions:
            if one is not None and one.name not in self.given:
                self.decided[one.name] = one

    def decide_all(self) -> None:
        """Decide on everything."""
        seen = self.survey
        self.decide(rules.channels(seen), rules.held_out(seen), *rules.classes(seen, self.purpose))
        self.decide(*rules.measured(seen))
        if self.value("val_data") is None and seen.images >= 10:
            self.images -= int(min(1000, seen.images * self.value("val_fraction")))
        self.decide(rules.batch(self.images, self.accelerator))
        self.decide(*rules.drawing())
        self.say("timing a few steps …")
        self._decide_network()
        self._decide_steps()
        soon = self.steps >= rules.copies_from(self.images, self.batch) / 4  # as priors may be off
        if soon and self._can_judge:
            self.decide(*rules.ending(self.purpose, seen.images))
            self._decide_steps()  # such a run validates and draws more often
        self.decide(*rules.schedule(self.steps))
        passes = self.steps * self.batch / self.images
        augments = not self._network_is_given and rules.may_augment(seen, self.value("image_size"))
        self.decide(*rules.regularisation(seen, passes, self.purpose, augments))
        limit = "the same command continues what is left"
        self.decided["max_hours"] = Decision("max_hours", self.hours_left(), limit, "given")
        hours = self.steps * self.budget.seconds(self.steps, self.cost) / 3600
        self.cost = replace(self.cost, max_steps=self.steps, hours=hours)

    def hours_left(self) -> float:
        """Return the hours that the training may take."""
        if self.began is None:
            return self.hours
        spent = (time.monotonic() - self.began) / 3600
        return round(max(self.hours / 4, self.hours - spent), 4)

    def value(self, name: str) -> Any:
        """Return what was decided on a setting, None if nothing was."""
        found = self.decided.get(name)
        return None if found is None else found.value

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self.value("max_steps"))

    @property
    def batch(self) -> int:
        """Images per step; where that is found out when training starts, as many as the rehearsal
        took, and 32 before it.
        """
        size = self.value("batch_size")
        if size == "auto":
            return self.cost.batch_size if hasattr(self, "cost") else 32
        return int(size)

    @property
    def budget(self) -> TimeBudget:
        """What there is time for."""
        options = {name: one.value for name, one in self.decided.items() if "." not in name}
        return TimeBudget(self.hours_left(), self.survey.images, self.batch, options)

    def ordered(self) -> tuple[Decision, ...]:
        """Return all decisions in the order in which they are written."""
        found = {
            name: replace(one, value=_portable(name, one.value))
            for name, one in self.decided.items()
        }
        ordered = sorted(found.values(), key=_place)
        if not is_path(self.data):
            return tuple(ordered)
        count = f"{self.survey.images:,} images, {self.survey.looked_at:,} of them looked at"
        return (Decision("data", absolute_source(str(self.data)), count, "given"), *ordered)

    def notes(self) -> tuple[str, ...]:
        """Say what else there is to know."""
        found = []
        if self.steps < 1000:
            found.append(
                f"{self.steps:,} steps are few: expect blurred shapes. More hours, a smaller"
                f" {option('image_size')} or a GPU help most."
            )
        if self.images < 100:
            found.append(
                f"{self.images:,} images are very few: samples will be near to them. More images"
                " help most."
            )
        return tuple(found)

    def _decide_network(self) -> None:
        """Choose size and network by what this machine can do in time; one of the user's stays."""
        sides = self._sides()
        if self._network_is_given:
            self._frame(max((side for side in sides if side <= 64), default=min(sides)))
            self.decide(Decision("preset", "small", "the library's default", "default"))
            patches = (self.value("model.patch_size") or 1) > 1
            self.decide(*rules.prediction(patches, self.purpose))
            values = {name: one.value for name, one in self.decided.items()}
            self.cost = rehearse(self._settings(values), self.survey.images)
            return
        known = [(side, network) for side in sides for network in self._networks(side)]
        if not known:
            smallest = (min(sides), rules.NETWORKS[0])
            self._settings(self._options(*smallest)).check_size()
            known = [smallest]
        probe = min(known, key=lambda one: (one[1].dim, abs(one[0] - 32)))
        timed = {probe: self._try(*probe)}
        ranked = sorted(known, key=lambda one: (one[0] * one[1].dim, one[0]), reverse=True)
        able = [one for one in ranked if self._predicted(probe, timed[probe], *one)]
        for one in [*able[:2], ranked[-1]]:  # a prediction may be off: then the next one
            if one not in timed:
                timed[one] = self._try(*one)
            self.cost = timed[one]
            if self.budget.steps(self.cost) >= self._needs(*one):
                break
        self._take(*one)

    @property
    def _can_judge(self) -> bool:
        """Whether the run measures what ends it; see `check_options` and `check_images` of
        `callbacks/stop_when.py`.
        """
        if self.purpose == "samples":
            count = self.value("sample_count")
            grids = self.value("sample_every") != 0 and (count is None or count >= 2)
            return grids and self.images >= 3 and not self.value("model.low_res_factor")
        held = self.survey.images >= 10 and self.value("val_fraction")
        return bool(held or self.value("val_data")) and self.value("val_every") != 0

    @property
    def _network_is_given(self) -> bool:
        return any(name == "preset" or name.startswith("model.") for name in self.given)

    def _sides(self) -> list[int]:
        """Return the sides that may be chosen; one where the size is fixed."""
        size, why = self.given.get("image_size"), None
        if size is None and self.survey.fixed:
            size, why = self.data.image_size, Decision("image_size", [], "theirs", "data")
        if size is None:
            return rules.sides(self.survey)
        self.given["image_size"] = [*size] if isinstance(size, list | tuple) else [size]
        before = self.decided.get("image_size", why)
        assert before is not None
        self.decided["image_size"] = replace(before, value=self.given["image_size"])
        return [min(self.given["image_size"])]

    def _networks(self, side: int) -> list[Network]:
        """Return the networks that may be chosen at a side."""
        few, fixed = self.survey.images < 1000, "image_size" in self.given
        return [
            network
            for network in rules.NETWORKS
            if (fixed or side <= network.largest)
            and (not few or network.dim <= rules.WIDEST_FOR_FEW)
            and all(s % self._factor(network, side) == 0 for s in self._size(side))
            and all(s % rules.least_step(self.survey) == 0 for s in self._size(side))
        ]

    def _factor(self, network: Network, side: int) -> int:
        """Return by how much a network divides a side."""
        levels = {"tiny": 3, "small": 4}[network.preset]
        return 2 ** (levels - 1) * (2 if self._patches(network, side) else 1)

    def _patches(self, network: Network, side: int) -> bool:
        return rules.patches(side, network.dim, self.accelerator, self.purpose)

    def _size(self, side: int) -> list[int]:
        """Return height and width, or one of them for squares, for a side."""
        if "image_size" in self.given:
            return list(self.given["image_size"])
        return rules.frame(self.survey, side)[0]

    def _needs(self, side: int, network: Network) -> int:
        return network.needs(_pixels(self._size(side)))

    def _options(self, side: int, network: Network) -> dict[str, Any]:
        """Return all settings that there would be with a network at a size, by dotted name."""
        patches = self._patches(network, side)
        found: dict[str, Any] = {"preset": network.preset, "image_size": self._size(side)}
        found |= {one.name: one.value for one in rules.network(network, patches)}
        found |= {one.name: one.value for one in rules.prediction(patches, self.purpose)}
        return {**found, **{name: one.value for name, one in self.decided.items()}}

    def _try(self, side: int, network: Network) -> Estimate:
        return rehearse(self._settings(self._options(side, network)), self.survey.images)

    def _settings(self, values: dict[str, Any]) -> Settings:
        seen = self.survey
        return Settings.of(nested(values), len(seen.class_names or ()), seen.conditions)

    def _predicted(
        self, probe: tuple[int, Network], cost: Estimate, side: int, network: Network
    ) -> bool:
        """Whether a network would do the steps that it needs at a size, by its multiplications
        against those of one that was timed.
        """
        seconds = cost.seconds_per_step
        if seconds is not None:
            seconds *= self._work(side, network) / self._work(*probe)
        steps = self.budget.steps(replace(cost, seconds_per_step=seconds))
        return steps >= self._needs(side, network)

    def _work(self, side: int, network: Network) -> float:
        return network.work(_pixels(self._size(side)), self._patches(network, side))

    def _take(self, side: int, network: Network) -> None:
        """Decide on a network and the size of the images."""
        self._frame(side)
        time = f"{self._needs(side, network):,} steps that it needs, time for"
        why = f"{time} {self.budget.steps(self.cost):,}"
        source = "measured; needs: own (README's shapes), estimate for wider ones"
        self.decide(Decision("preset", network.preset, why, source))
        patches = self._patches(network, side)
        self.decide(*rules.network(network, patches), *rules.prediction(patches, self.purpose))

    def _frame(self, side: int) -> None:
        if "image_size" not in self.given:
            _, size, fit = rules.frame(self.survey, side)
            self.decide(size, fit)

    def _decide_steps(self) -> None:
        time = self.budget.steps(self.cost)
        worth = rules.worth(self.images, self.batch)
        each = self.cost.seconds_per_step or 0.0
        why, source = f"{each:.3g} s each, validation and grids besides", "measured"
        if worth < time:
            passes = worth * self.batch / self.images
            why = f"{passes:,.0f} passes, beyond which only copies are learned; time for {time:,}"
            source = rules.COPY_LAW
        self.decide(Decision("max_steps", rules.round_steps(min(time, worth)), why, source))


_ORDER = [
    *("data", "image_size", "fit", "channels", "normalize", "slice_axis", "preset"),
    *("class_conditional", "condition", "output_dir"),
    *("val_data", "val_fraction", "batch_size", "max_steps", "max_hours", "stop_when", "patience"),
    *("learning_rate", "lr_schedule", "warmup_steps", "ema_decay", "horizontal_flip", "augment"),
    *("sample_sampler", "sample_steps", "sample_guidance_scale"),
]


def _place(one: Decision) -> tuple[int, int]:
    group = ("model.", "diffusion.")
    inner = next((k + 1 for k, name in enumerate(group) if one.name.startswith(name)), 0)
    return inner, _ORDER.index(one.name) if one.name in _ORDER else len(_ORDER)


def _pixels(size: list[int]) -> int:
    """Return how many pixels images of a size have; one number is the side of a square."""
    return math.prod(size if len(size) > 1 else 2 * size)


def _portable(name: str, value: Any) -> Any:
    """Return a setting with paths that mean the same from every folder."""
    if name in ("condition", "add_condition", "val_condition"):
        return [portable_words(one) for one in value]
    if name == "add_data":
        return [absolute_source(one) if is_path(one) else one for one in value]
    if name == "val_data" and is_path(value):
        return absolute_source(os.fspath(value))
    if name in ("files", "data_root") and is_path(value):
        return os.path.abspath(os.path.expanduser(value))
    return value


def _accelerator(device: str) -> bool:
    """Whether a device, or "auto", is no CPU."""
    if device == "auto":
        return bool(torch.accelerator.is_available())
    return device.partition(":")[0] != "cpu"
