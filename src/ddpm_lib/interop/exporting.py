"""What all exports share: the network as a module of plain tensors, its inputs by name, and the
JSON beside it that says how to sample.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.hub.folder_config import library_version
from ddpm_lib.core.text import printable
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn.networks import describe_for_others, registered_as
from ddpm_lib.process.conditions import class_count, guidable
from ddpm_lib.process.network_calls import call_network

FORMAT = 1
"""Of the JSON file."""

_DIRECTIONS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class Input:
    """One input of an exported network.

    Attributes:
        name: "x", "t", or the name of a condition.
        example: A value of the right shape and dtype.
        steps: Per dimension how much it grows with the image, in the units of `Inputs`; 0 for a
            dimension that stays.
        null: Whether the example stands for the absence of the condition.
    """

    name: str
    example: Tensor
    steps: tuple[int, ...]
    null: bool = True


@dataclass(frozen=True)
class Inputs:
    """The inputs of an exported network, for batches of any size.

    Attributes:
        values: x (b, c, *spatial), t (b,), and the conditions.
        unit: What every spatial size of x is a multiple of; None where its size is fixed.
        largest: The largest batch; None for any.
    """

    values: tuple[Input, ...]
    unit: int | None
    largest: int | None = None

    @property
    def conditions(self) -> tuple[Input, ...]:
        """The inputs besides x and t."""
        return self.values[2:]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Examples, as the network is called."""
        x, t, *rest = (value.example for value in self.values)
        return x, t, {c.name: value for c, value in zip(self.conditions, rest)}

    def shape_of(self, value: Input) -> list[int | str]:
        """Return the shape of an input for people: numbers, "batch", "8*height"."""
        named = _DIRECTIONS.get(self.values[0].example.ndim - 2, ())
        shape: list[int | str] = ["batch", *value.example.shape[1:]]
        for d, step in enumerate(value.steps):
            if step and self.unit is not None:
                word = named[self.direction(value, d)]
                shape[d] = word if step == 1 else f"{step}*{word}"
        return shape

    def direction(self, value: Input, dimension: int) -> int:
        """Return which direction of the image a dimension of an input is: they are its last ones,
        behind channels, and of masks behind the batch.
        """
        return dimension - value.example.ndim + self.values[0].example.ndim - 2

    def narrower(self) -> Iterator[Inputs]:
        """Yield what may be asked of a network that asks back: all; images of one size; batches
        below 64, from where on diffusers' networks take another way.
        """
        if self.unit is not None:
            yield self
        fixed = replace(self, unit=None)
        yield fixed
        yield replace(fixed, largest=63)


class PlainNetwork(nn.Module):
    """A network called with tensors alone, as the exported one is.

    Args:
        network: Called as network(x, t, cond).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Run it on x (b, c, *spatial), t (b,) float32 counting from 0, and every condition."""
        return call_network(self.network, x, t, cond or None)


def plain_network(diffusion: GaussianDiffusion) -> PlainNetwork:
    """Return a float32 copy of the network on the CPU, in eval mode, in contiguous memory."""
    copied = copy.deepcopy(diffusion.model).requires_grad_(False)
    copied = copied.cpu().float().to(memory_format=torch.contiguous_format)
    return PlainNetwork(copied).eval()


def inputs_of(diffusion: GaussianDiffusion) -> Inputs:
    """Find out what the network takes, and how its inputs grow with the image.

    Images of other sizes fit where the network says what they are multiples of
    (`downsample_factor`) and at least two of those units are left of the image: at one, what
    broadcasts and what does not is decided when it is traced.

    Raises:
        ConfigError: If a condition does not say what stands for its absence.
    """
    size = diffusion.image_size
    factor = getattr(diffusion.model, "downsample_factor", None)
    factors = [getattr(c, "factor", 1) for c in (diffusion.conditioners or {}).values()]
    unit = math.lcm(factor, *factors) if isinstance(factor, int) else 0
    if not unit or any(s % unit or s < 2 * unit for s in size):
        return Inputs(_examples(diffusion, size), None)
    small, large = (_examples(diffusion, (k * unit,) * len(size)) for k in (2, 3))
    steps = [
        tuple(b - a for a, b in zip(v.example.shape, w.example.shape)) for v, w in zip(small, large)
    ]
    grows = all(
        d >= max(1, v.example.ndim - len(size)) and step > 0 and v.example.shape[d] == 2 * step
        for v, by in zip(small, steps)
        for d, step in enumerate(by)
        if step
    )
    values = _examples(diffusion, size)
    if not grows:
        return Inputs(values, None)
    return Inputs(tuple(replace(v, steps=by) for v, by in zip(values, steps)), unit)


def _examples(diffusion: GaussianDiffusion, size: tuple[int, ...]) -> tuple[Input, ...]:
    """Return two rows of every input for images of a size: two, as one would be taken for fixed."""
    x = torch.zeros(2, diffusion.channels, *size)
    t = torch.zeros(2)
    found = [Input("x", x, (0,) * x.ndim), Input("t", t, (0,))]
    for name, conditioner in (diffusion.conditioners or {}).items():
        try:
            value, null = conditioner.null_for(x).detach().cpu(), True
        except (RuntimeError, ValueError) as error:  # what a conditioner without a null raises
            if class_count({name: conditioner}) is None:
                raise ConfigError(
                    f"The condition {name!r} cannot be exported: it does not say what stands for"
                    f" its absence ({printable(error)[:200]}). Define null_for in its conditioner."
                ) from error
            value, null = torch.zeros(2, dtype=torch.long), False
        found.append(Input(name, value, (0,) * value.ndim, null))
    return tuple(found)


def describe(
    diffusion: GaussianDiffusion,
    file: str,
    inputs: Inputs | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return all that a sampler needs to know besides the network, JSON-able.

    The lists have an entry per noise level 0 … T: x_t = alpha·x_0 + sigma·ε, the network is given
    c_in·x_t and `t`, and x̂_0 = c_skip·x_t + c_out·F with F the first channels of its output.

    Args:
        diffusion: The process.
        file: Name of the file that holds the network.
        inputs: What the network takes, where the file is the network itself; None where it holds
            weights alone.
        about: What else is known of the weights, such as their step.

    Raises:
        ConfigError: If the parametrization scales its input by no number.
    """
    return {
        "library_name": "ddpm_lib",
        "format": FORMAT,
        "version": library_version(),
        "file": file,
        **dict(about or {}),
        "image_shape": list(diffusion.image_shape),
        "range": [-1.0, 1.0],
        "class_names": list(diffusion.class_names) if diffusion.class_names else None,
        **(
            {}
            if diffusion.normalization is None
            else {"normalization": diffusion.normalization.to_json()}
        ),
        **({} if inputs is None else _signature(diffusion, inputs)),
        "clip": diffusion.clip,
        "clip_ratio": diffusion.dynamic_threshold_ratio,
        "variance": diffusion.config["variance"],
        "parametrization": diffusion.config["parametrization"],
        "timesteps": diffusion.timesteps,
        **_tables(diffusion),
        "model": _described(diffusion.model),
        "diffusion": diffusion.config,
    }


def _described(model: nn.Module) -> dict[str, Any]:
    if registered_as(type(model)) is None:
        return {"class": type(model).__name__, "config": None}
    return describe_for_others(model)


def write_description(folder: Path, described: Mapping[str, Any]) -> None:
    """Write `model.json`."""
    write_atomically(folder / "model.json", json.dumps(described, indent=1, allow_nan=False) + "\n")


def _signature(diffusion: GaussianDiffusion, inputs: Inputs) -> dict[str, Any]:
    known = diffusion.conditioners or {}
    x = inputs.values[0]
    return {
        "largest_batch": inputs.largest,
        "inputs": {
            value.name: {
                "dtype": _name(value.example.dtype),
                "shape": inputs.shape_of(value),
            }
            for value in inputs.values
        },
        "output": {
            "dtype": "float32",
            "shape": [
                "batch",
                diffusion.channels * diffusion.variance.outputs,
                *inputs.shape_of(x)[2:],
            ],
        },
        "conditions": {
            c.name: {
                "dtype": _name(c.example.dtype),
                "shape": list(c.example.shape[1:]),
                "null": _same_or_all(c.example[0]) if c.null else None,
                "may_be_null": known[c.name].optional,
                "guided": c.name in guidable(known),
            }
            for c in inputs.conditions
        },
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _same_or_all(value: Tensor) -> Any:
    """Return the one number that a tensor is made of, else all of them; "NaN", which JSON has no
    number for, as a word.
    """
    numbers = value.flatten()
    if bool(numbers.isnan().all()):
        return "NaN"
    return numbers[0].item() if bool((numbers == numbers[0]).all()) else value.tolist()


def _tables(diffusion: GaussianDiffusion) -> dict[str, list[float]]:
    p, schedule = diffusion.parametrization, diffusion.schedule
    pairs = list(zip(schedule.alpha.tolist(), schedule.sigma.tolist()))
    probe = torch.tensor([1.0, -2.0], dtype=torch.float64)
    scaled = [p.scale_input(probe, alpha, sigma) for alpha, sigma in pairs]
    if any(not torch.equal(s, s[0] * probe) for s in scaled):
        raise ConfigError(
            f"parametrization {diffusion.config['parametrization']!r} cannot be exported: what the"
            " network sees is no multiple of x_t."
        )
    return {
        "alpha": [alpha for alpha, _ in pairs],
        "sigma": [sigma for _, sigma in pairs],
        "t": [max(level - 1.0, 0.0) for level in range(len(pairs))],
        "c_in": [float(s[0]) for s in scaled],
        "c_skip": [float(p.c_skip(*pair)) for pair in pairs],
        "c_out": [float(p.c_out(*pair)) for pair in pairs],
    }
