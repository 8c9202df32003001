"""From what a caller says about conditions to what the network is given: names, nulls, dropping,
broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import in_flags, option
from ddpm_lib.images import to_model_range

C = TypeVar("C")
Cond = dict[str, Tensor]
Draws = Tensor | np.ndarray
"""Uniform numbers or booleans, one per sample, on the CPU."""
Stream = Callable[[int], torch.Generator]
"""Returns the random numbers of sample i."""


class Droppable(Protocol):
    """What the diffusion needs of an entry of `model.conditioners`."""

    drop_prob: float
    guided: bool

    @property
    def optional(self) -> bool:
        """Whether the condition may be left out."""

    def derive(self, x0: Tensor) -> Tensor | None:
        """Return the value that training makes of clean images, None if it comes with the batch."""

    def prepare(self, cond: Cond, stream: Stream | None = None) -> Cond:
        """Return the conditions of a batch as the network takes them, of what a caller gave."""

    def null_like(self, value: Tensor) -> Tensor:
        """Return the null in the shape of a value."""

    def null_for(self, x: Tensor) -> Tensor:
        """Return the null for a batch of network inputs."""

    def validate(self, value: Tensor, batch: int) -> None:
        """Raise if a value does not fit a batch of that size."""


Conditioners = Mapping[str, Droppable]


def find_conditioner(conditioners: Conditioners | None, kind: type[C]) -> C | None:
    """Return the first conditioner of a kind, None if there is none."""
    return next((c for c in (conditioners or {}).values() if isinstance(c, kind)), None)


def class_count(conditioners: Conditioners | None) -> int | None:
    """Return the number of classes of a class-conditional network, None of another one."""
    known: Mapping[str, Any] = conditioners or {}
    return known["class_label"].num_classes if "class_label" in known else None


def guidable(conditioners: Conditioners | None) -> list[str]:
    """Return the conditions that the network knows both with and without, as guidance needs it."""
    return [k for k, c in (conditioners or {}).items() if c.guided and c.drop_prob > 0]


def check_names(conditioners: Conditioners | None, cond: Mapping[str, Any]) -> None:
    """Refuse conditions the network was not built for; a network without `conditioners` takes what
    it is given.

    Raises:
        ValueError: If a name is unknown.
    """
    if conditioners is None:
        return
    for name in cond:
        if name not in conditioners:
            if not len(conditioners):
                raise ValueError(
                    f"This network takes no conditions; got {name!r}. Build it with one, or leave"
                    " it out."
                )
            raise ValueError(unknown_name("condition", name, conditioners.keys()))


def for_training(
    conditioners: Conditioners | None, cond: Mapping[str, Tensor], x0: Tensor
) -> Cond | None:
    """Return the conditions of a training batch on the device of its images x0 in [-1, 1], None if
    there are none.

    A network that was built for a condition and never sees it would train a part of itself on
    nothing, so a missing one is an error, but for those that training makes itself, of the images
    or on the way.

    Raises:
        ValueError: If a name is unknown or a condition is missing.
    """
    check_names(conditioners, cond)
    result = {name: to_device(value, x0.device) for name, value in cond.items()}
    for name, conditioner in (conditioners or {}).items():
        made = conditioner.derive(x0) if name not in cond else None
        if made is not None:
            result[name] = made
    for conditioner in (conditioners or {}).values():
        result = conditioner.prepare(result)
    for name, conditioner in (conditioners or {}).items():
        if name not in result and (conditioner.guided or not conditioner.optional):
            raise ValueError(
                f"The network was built for the condition {name!r}, which this batch lacks. Give"
                f" the dataset a field {name!r}, pass cond={{{name!r}: …}}, or build the network"
                " without it."
            )
    return result or None


def fresh_draws(conditioners: Conditioners, n: int) -> dict[str, Draws]:
    """Draw n uniform numbers per condition from torch's global generator, the same for all that
    guidance contrasts.
    """
    shared = torch.rand(n, dtype=torch.float64)
    draws: dict[str, Draws] = {}
    for name, conditioner in conditioners.items():
        own_way = getattr(conditioner, "drops", None)
        alone = shared if conditioner.guided and own_way is None else None
        draws[name] = torch.rand(n, dtype=torch.float64) if alone is None else alone
        if own_way is not None:
            draws[name] = own_way(shared.numpy(), torch.as_tensor(draws[name]).numpy())
    return draws


def drop(conditioners: Conditioners, cond: Cond, draws: Draws | Mapping[str, Draws]) -> Cond:
    """Replace conditions by their nulls for some samples, so that the network also learns to do
    without.

    Args:
        conditioners: Of the network.
        cond: Values, first dimension b.
        draws: Shape (b,): uniform numbers in [0, 1), where u < drop_prob drops, or booleans, where
            True drops. One tensor is shared by all conditions, which then drop together as guidance
            needs it; a mapping gives each condition its own.
    """
    result = dict(cond)
    for name, value in cond.items():
        if isinstance(draws, Mapping) and name not in draws:
            continue
        mask = hidden(conditioners[name], name, draws, len(value))
        mask = to_device(mask, value.device).view(-1, *[1] * (value.ndim - 1))
        result[name] = torch.where(mask, conditioners[name].null_like(value), value)
    return result


def hidden(
    conditioner: Droppable, name: str, draws: Draws | Mapping[str, Draws] | None, n: int
) -> Tensor:
    """Return for which of n samples a condition is hidden, booleans on the CPU; for none where
    there are no draws.
    """
    given = draws.get(name) if isinstance(draws, Mapping) else draws
    if given is None:
        return torch.zeros(n, dtype=torch.bool)
    u = torch.as_tensor(given).cpu()
    if u.shape != (n,):
        raise ValueError(f"drop must have shape ({n},) for {name!r}, got {tuple(u.shape)}.")
    return u if u.dtype == torch.bool else u < conditioner.drop_prob


def for_sampling(
    conditioners: Conditioners | None,
    cond: Mapping[str, Any] | None,
    n: int,
    stream: Stream | None = None,
    class_names: Sequence[str] | None = None,
) -> Cond:
    """Return the conditions given for `n` samples as tensors (n, …); a number or a single entry
    counts for all samples.

    Args:
        conditioners: Of the network.
        cond: What a caller gave.
        n: Number of samples.
        stream: Random numbers of sample i, for conditions that add noise. Default: those of seed 0.
        class_names: Names that may stand for the numbers of classes.

    Raises:
        TypeError: If a value is no number, list of numbers, or tensor.
        ValueError: If a name is unknown, a length does not fit, or a condition is missing that
            cannot be null.
    """
    given = dict(cond or {})
    check_names(conditioners, given)
    result: Cond = {}
    for name, value in given.items():
        tensor = torch.as_tensor(_numbers(name, value, conditioners, class_names))
        if tensor.ndim == 0 or len(tensor) == 1:
            tensor = tensor.expand(n, *tensor.shape[1:])
        if len(tensor) != n:
            raise ValueError(
                f"The condition {name!r} has {len(tensor)} entries for {n} samples. Give one or"
                f" {n}."
            )
        result[name] = tensor
    for conditioner in (conditioners or {}).values():
        result = conditioner.prepare(result, stream or _of_seed_zero)
    for name, conditioner in (conditioners or {}).items():
        if name in result:
            conditioner.validate(result[name], n)
    for name, conditioner in (conditioners or {}).items():
        if name not in given and not conditioner.optional:
            raise ValueError(
                f"The network needs the condition {name!r}: it was trained with drop_prob=0 and"
                f" knows no null. Give {given_as(name)}, or train with drop_prob > 0 to sample"
                " without."
            )
    return result


def given_as(name: str) -> str:
    """Write how a condition is given where the reader of a message stands.

    >>> given_as("age")
    "cond={'age': …}"
    """
    if not in_flags():
        return f"cond={{{name!r}: …}}"
    own = ("class_label", "low_res")
    return option(name) if name in own else f"--cond {name}=…"


def _numbers(
    name: str, value: Any, conditioners: Conditioners | None, class_names: Sequence[str] | None
) -> Any:
    """Put the numbers of classes in the place of their names; refuse what no tensor can be made
    of.
    """
    own = conditioners[name] if conditioners and name in conditioners else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        value = value.tolist()
    read: Callable[[Any], Any] | None = getattr(own, "read", None)
    if read is not None:
        value = read(value)
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not any(isinstance(word, str) for word in words):
        if isinstance(value, (Tensor, np.ndarray, list, tuple, int, float, np.generic)):
            return value
        raise TypeError(
            f"The condition {name!r} must be a number, a list of numbers, an array or a tensor; got"
            f" {type(value).__name__}."
        )
    if class_names is None:
        classes = getattr(own, "num_classes", None)
        known = f"numbers 0 … {classes - 1}" if classes else "numbers"
        raise ValueError(
            f"The condition {name!r} takes {known} here, because the names of the classes are not"
            f" known; got {words[0]!r}. load_run and Trainer know the names; your own process takes"
            " them as diffusion.class_names = (…)."
        )
    numbers = []
    for word in words:
        if isinstance(word, str) and word not in class_names:
            raise ValueError(unknown_name("class", word, class_names))
        numbers.append(list(class_names).index(word) if isinstance(word, str) else word)
    return numbers[0] if isinstance(value, str) else numbers


def _of_seed_zero(i: int) -> torch.Generator:
    return keys.generator("cpu", i, 0, "condition")


def with_derived(
    conditioners: Conditioners | None, cond: Mapping[str, Any] | None, images: Tensor
) -> dict[str, Any]:
    """Add the conditions that training would make of images, uint8 or in [0, 1], where they are not
    given.
    """
    x0 = to_model_range(images)
    made = {
        name: c.derive(x0) for name, c in (conditioners or {}).items() if name not in (cond or {})
    }
    return {**(cond or {}), **{name: value for name, value in made.items() if value is not None}}


def fill_nulls(conditioners: Conditioners | None, cond: Cond, x: Tensor) -> Cond | None:
    """Add the nulls of missing conditions for network inputs x (b, c, *spatial); None if there are
    no conditions.
    """
    missing = {name: c.null_for(x) for name, c in (conditioners or {}).items() if name not in cond}
    return {**cond, **missing} or None


def nulls(conditioners: Conditioners | None, cond: Cond | None) -> Cond:
    """Return the conditions with every one that can be dropped replaced by its null: the other half
    of guidance.

    Raises:
        ValueError: If there is none.
    """
    able = guided_by(conditioners, cond)
    known: Conditioners = conditioners or {}
    return {k: known[k].null_like(v) if k in able else v for k, v in (cond or {}).items()}


def check_guided(conditioners: Conditioners | None, cond: Cond, scale: float) -> None:
    """Refuse guidance by nothing, before nulls are filled in: images would come out unguided.

    A null that stands among values is no mistake: that image is drawn without the condition.

    Args:
        conditioners: Of the network.
        cond: The conditions that were given.
        scale: The strength of guidance; 1 is none, and needs no condition.

    Raises:
        ValueError: Saying how to give one.
    """
    if scale == 1:
        return
    able = guided_by(conditioners, cond)
    known: Conditioners = conditioners or {}
    if all(_says_nothing(known[name], cond[name]) for name in able):
        strength = option("guidance_scale")
        given = " and ".join(f"{name!r}" for name in able)
        hint = ": −1 is no class" if "class_label" in able else ""
        raise ValueError(
            f"{strength} strengthens a condition, and {given} says that there is none, for every"
            f" image{hint}. Give another value, or leave {strength}"
            f" {'out' if in_flags() else 'at 1'}."
        )


def check_parts(conditioners: Conditioners | None, cond: Cond, names: Sequence[str]) -> None:
    """Refuse guidance by single conditions that cannot guide, or are not given.

    Args:
        conditioners: Of the network.
        cond: The conditions that were given.
        names: Those that have a scale of their own.

    Raises:
        ValueError: Naming the condition.
    """
    check_names(conditioners, dict.fromkeys(names))
    for name in names:
        if name not in guidable(conditioners):
            raise ValueError(
                f"{name!r} cannot guide: this network has never seen images without it"
                " (drop_prob = 0)."
            )
        if name not in cond or _says_nothing((conditioners or {})[name], cond[name]):
            raise ValueError(
                f"Guidance by {name!r} strengthens its value, and none is given. Give one, or leave"
                " its scale out."
            )


def _says_nothing(conditioner: Droppable, value: Tensor) -> bool:
    """Whether a value is the null for every sample; that of numbers is NaN, which equals
    nothing.
    """
    null = conditioner.null_like(value)
    return bool(((value == null) | ((value != value) & (null != null))).all())


def guided_by(conditioners: Conditioners | None, cond: Cond | None) -> list[str]:
    """Return the names of the given conditions that guidance strengthens.

    Raises:
        ValueError: If there is none.
    """
    known = guidable(conditioners)
    able = [name for name in known if name in (cond or {})]
    if able:
        return able
    scale = option("guidance_scale")
    leave = f"leave {scale} {'out' if in_flags() else 'at 1'}"
    if not known:
        way = "Unet(num_classes=…), or ddpm train --class-conditional"
        raise ValueError(
            f"{scale} strengthens a condition that the network has learned to do without, and this"
            f" network has none. Train with classes ({way}), or {leave}."
        )
    ways = " or ".join(map(given_as, known))
    raise ValueError(
        f"{scale} strengthens a condition that is given, and none is. Give {ways}, or {leave}."
    )
