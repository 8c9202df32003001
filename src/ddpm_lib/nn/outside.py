"""Networks that were written for another library: how they are called, what they say of
themselves, and how checkpoints name them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.nn.conditioning import Conditioner, Stream, check_labels

LABEL_KEYWORDS = ("class_labels", "class_label", "y", "labels", "label")
"""Names under which networks of other libraries take class labels."""
DIFFUSERS = ("UNet2DModel", "UNet1DModel")
"""Classes of diffusers that are called with images and times, and at most class labels."""
_DROPPED = 0.1
"""How often training hides the label from a network that names its null class, unless it says."""


@dataclass(frozen=True)
class Calling:
    """What a network takes besides its input and the time, which come first.

    Attributes:
        kind: "conditions": the dict of conditions, as networks of this library do; "label": class
            labels, under a keyword; "nothing".
        keyword: Of the class labels.
    """

    kind: Literal["conditions", "label", "nothing"]
    keyword: str = ""


def calling_of(network: nn.Module | Any) -> Calling:
    """Say how a network is called, by the names of its parameters.

    Wrappers (DDP, torch.compile) are looked through.
    """
    inner = network
    while isinstance(inner, nn.Module):
        deeper = inner._modules.get("_orig_mod")
        if deeper is None and isinstance(inner, nn.parallel.DistributedDataParallel):
            deeper = inner.module
        if deeper is None:
            break
        inner = deeper
    if getattr(inner, "conditioners", None) is not None:
        return Calling("conditions")
    return _calling_of(type(inner).forward if isinstance(inner, nn.Module) else inner)


@functools.lru_cache(maxsize=64)
def _calling_of(function: Callable[..., Any]) -> Calling:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return Calling("conditions")
    if inspect.isfunction(function) and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    for parameter in parameters[2:]:
        if parameter.name in LABEL_KEYWORDS:
            return Calling("label", parameter.name)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if not variable and (len(plain) == 2 or (len(plain) > 2 and plain[2].name == "return_dict")):
        return Calling("nothing")
    return Calling("conditions")


def said(network: nn.Module, name: str) -> Any:
    """Return what a network says of itself, in its `config` or else in an attribute; None for
    nothing.
    """
    config = getattr(network, "config", None)
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    if value is None and not is_of_diffusers(network):
        # Their classes answer for their config by attributes too, with a warning.
        value = getattr(network, name, None)
    return value


def outside_conditioners(network: nn.Module) -> dict[str, Conditioner] | None:
    """Return the conditioners of a network that declares none itself, by the way it is called.

    None: it takes whatever conditions a caller gives.
    """
    calling = calling_of(network)
    if calling.kind == "conditions":
        return None
    if calling.kind == "nothing":
        return {}
    embedding = said(network, "class_embed_type")
    if embedding is not None:
        raise ValueError(
            f"{type(network).__name__} has class_embed_type={embedding!r}, which takes no class"
            " labels. Use num_class_embeds alone."
        )
    count = said(network, "num_class_embeds")
    count = said(network, "num_classes") if count is None else count
    if not isinstance(count, int) or count < 1:
        # diffusers' classes refuse labels where they have no embedding of them.
        return {} if is_of_diffusers(network) else None
    null, drop = said(network, "null_class"), said(network, "class_drop_prob")
    return {"class_label": OutsideLabel(count, null, drop)}


class OutsideLabel(Conditioner):
    """The class label of a network of another library, 0 … num_classes − 1.

    The network has no null class unless it names one, which then stands for −1.

    Args:
        num_classes: Rows of the network's table of classes, the null class included where it is
            one of them.
        null_class: The label that means "no class"; None for none.
        drop_prob: Probability of hiding a label in training; None for 0.1 with a null class, else
            0.

    Raises:
        ValueError: If labels are to be hidden and no null class is named.
    """

    def __init__(self, num_classes: int, null_class: int | None, drop_prob: float | None) -> None:
        default = 0.0 if null_class is None else _DROPPED
        super().__init__("class_label", default if drop_prob is None else drop_prob)
        if null_class is None and self.drop_prob:
            raise ValueError(
                f"class_drop_prob={drop_prob} hides class labels behind a null class, and the"
                " network names none. Give it null_class, the label that means no class."
            )
        if null_class is not None and not isinstance(null_class, int):
            raise TypeError(f"null_class must be an integer, got {null_class!r}.")
        self.null_class = null_class
        last = null_class is not None and null_class == num_classes - 1
        self.num_classes = num_classes - last

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Put the network's own null class in the place of −1."""
        value = cond.get(self.name)
        if value is None or self.null_class is None:
            return cond
        return {**cond, self.name: torch.where(value == -1, self.null_class, value)}

    def null_like(self, value: Tensor) -> Tensor:
        """Return the null class for every label; −1, which the network refuses, where it has
        none: nothing is ever hidden from it.
        """
        return torch.full_like(value, -1 if self.null_class is None else self.null_class)

    def null_for(self, x: Tensor) -> Tensor:
        """Return the null class for every sample of x."""
        if self.null_class is None:
            raise ValueError(
                "The network needs a class label and names no null class. Pass"
                " cond={'class_label': …}."
            )
        return torch.full((x.shape[0],), self.null_class, dtype=torch.long, device=x.device)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, and on the CPU the range."""
        super().validate(value, batch)
        if self.null_class is not None and value.device.type == "cpu":
            value = torch.where(value == self.null_class, 0, value)
        check_labels(self.name, value, batch, self.num_classes, null=False)


def refuse_noise_levels(network: nn.Module) -> None:
    """Refuse a network that is told the noise level σ itself, or a whole number to look up.

    Raises:
        ValueError: If it is.
    """
    kind = said(network, "time_embedding_type")
    # diffusers' one-dimensional network embeds the step itself under the same name.
    logarithm = diffusers_name(type(network)) != "diffusers.UNet1DModel"
    if kind == "fourier" and logarithm:
        raise ValueError(
            f"{type(network).__name__} embeds the logarithm of a noise level"
            " (time_embedding_type='fourier'), and a GaussianDiffusion tells its network the"
            " step, from 0, which has no logarithm. Use time_embedding_type='positional'."
        )
    if kind == "learned":
        raise ValueError(
            f"{type(network).__name__} looks whole times up in a table"
            " (time_embedding_type='learned'), and a GaussianDiffusion also asks for times"
            " between the levels. Use time_embedding_type='positional'."
        )


def is_of_diffusers(network: nn.Module) -> bool:
    """Say whether a network is of a class of diffusers itself, not of a subclass."""
    return _is_of_diffusers(type(network))


def _is_of_diffusers(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "diffusers"


def diffusers_name(cls: type) -> str | None:
    """Return the name by which checkpoints know a class of diffusers, None for any other class."""
    known = _is_of_diffusers(cls) and cls.__name__ in DIFFUSERS
    return f"diffusers.{cls.__name__}" if known else None


def diffusers_config(network: nn.Module) -> dict[str, Any]:
    """Return the config of a network of diffusers without the entries that it keeps for itself."""
    config = cast("Mapping[str, Any]", getattr(network, "config", {}))
    return {name: value for name, value in config.items() if not name.startswith("_")}


def diffusers_network(kind: str, **config: Any) -> nn.Module:
    """Build a network of diffusers from its config, by the name of its class alone.

    Args:
        kind: One of `DIFFUSERS`.
        config: Its arguments; further entries stay in its `config`.

    Raises:
        CheckpointError: If diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(
            f"The network is a {kind} of diffusers, which is not installed here: pip install"
            " diffusers."
        ) from error
    assert kind in DIFFUSERS
    made = getattr(diffusers, kind)
    known = inspect.signature(made.__init__).parameters
    network: nn.Module = made.from_config({k: v for k, v in config.items() if k in known})
    cast(Any, network).register_to_config(**{k: v for k, v in config.items() if k not in known})
    return network


OUTSIDE: dict[str, Callable[..., nn.Module]] = {
    f"diffusers.{kind}": functools.partial(diffusers_network, kind) for kind in DIFFUSERS
}
"""Builders of networks of other libraries by the names that checkpoints give them."""
