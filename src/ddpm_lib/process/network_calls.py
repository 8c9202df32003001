"""Calling any network: where it is, in eval mode, in its precision, whatever wraps its output."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.nn.outside import Calling, calling_of

_WIDE = (torch.float32, torch.float64)
_LOW = (torch.bfloat16, torch.float16)

_WRAPPER = """\
class Wrapped(torch.nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x, t, cond=None): return self.net(x, t)"""


def device_of(network: nn.Module) -> torch.device:
    """Return where the parameters of a network are (the CPU for one without)."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode and give every part of it its own mode back, whatever happens."""
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def call_network(
    network: nn.Module | Any, x: Tensor, time: Tensor, cond: Mapping[str, Tensor] | None
) -> Tensor:
    """Return network(x, time, cond) as a tensor.

    Images in float64 go into a float32 network in float32, and the other way round. A network whose
    weights are all bf16 or fp16 works under torch's autocast of that type, and returns float32.
    What diffusers' networks return, an object with the field `sample` or a tuple of one tensor, is
    opened.

    Args:
        network: Called as network(x, t, cond); as network(x, t, class_labels=…) or under another
            keyword of `nn.outside.LABEL_KEYWORDS` if it has such a parameter; as network(x, t) if
            it has no third one.
        x: Inputs (b, c, *spatial).
        time: The network's time, (b,) float32.
        cond: Conditions by name, or None.

    Raises:
        TypeError: If it takes other arguments or returns something else, with the wrapper that
            helps.
    """
    own = weights_dtype(network) if x.dtype in _WIDE else None
    kind = torch.float32 if own in _LOW else own or x.dtype
    if kind != x.dtype:
        x = x.to(kind)
        cond = cond and {k: v.to(kind) if v.dtype in _WIDE else v for k, v in cond.items()}
    calling = calling_of(network)
    given, named = _conditions(calling, cond)
    try:
        with _autocast_of(own, x.device.type):
            output = network(x, time, *given, **named)
    except TypeError as error:
        if _takes(network, 2 + len(given), named):
            raise
        raise TypeError(
            f"A network is called as model(x, t, cond), which {type(network).__name__}.forward does"
            f" not take: {error}. Wrap it:\n{_WRAPPER}"
        ) from error
    output = unwrapped(output, network)
    return output.float() if own in _LOW else output


def _autocast_of(dtype: torch.dtype | None, device: str) -> AbstractContextManager[Any]:
    """Return autocast for weights of a low precision, nothing for others and where it is on."""
    if dtype not in _LOW or torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=dtype)


def _conditions(
    calling: Calling, cond: Mapping[str, Tensor] | None
) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """Return what follows x and t in a call: arguments, and keywords."""
    if calling.kind == "conditions":
        return (cond,), {}
    label = (cond or {}).get("class_label")
    if cond and (calling.kind == "nothing" or set(cond) != {"class_label"}):
        able = "no conditions" if calling.kind == "nothing" else "the condition 'class_label' alone"
        raise ValueError(f"This network takes {able}; got {', '.join(map(repr, cond))}.")
    return (), {} if label is None else {calling.keyword: label}


def weights_dtype(network: nn.Module | Any) -> torch.dtype | None:
    """Return the precision of a network's weights: float32 or float64 if one of them has it, else
    bfloat16 or float16; None where it has none of them.
    """
    if not isinstance(network, nn.Module):
        return None
    low = None
    for weight in network.parameters():
        if weight.dtype in _WIDE:
            return weight.dtype
        low = low or (weight.dtype if weight.dtype in _LOW else None)
    return low


def unwrapped(output: Any, network: Any) -> Tensor:
    """Return the tensor that a network's answer is or holds.

    Raises:
        TypeError: If there is none.
    """
    if isinstance(output, Tensor):
        return output
    held = output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output
    held = getattr(held, "sample", held)
    if isinstance(held, Tensor):
        return held
    raise TypeError(
        f"{type(network).__name__} returned {type(output).__name__}; a network returns one tensor"
        f" in the shape of x. Wrap it, and let `forward` return the tensor alone:\n{_WRAPPER}"
    )


def _takes(network: Any, positional: int, named: Mapping[str, Any]) -> bool:
    target = network.forward if isinstance(network, nn.Module) else network
    try:
        inspect.signature(target).bind(*[None] * positional, **named)
    except (TypeError, ValueError):
        return False
    return True
