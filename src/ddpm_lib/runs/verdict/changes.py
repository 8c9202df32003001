"""What another run is to do otherwise, as options of the command and as a call in Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Changes:
    """Settings that differ from those of a run, by where they belong.

    Attributes:
        training: Options of the Trainer.
        model: Arguments of the network.
        diffusion: Arguments of the process.
    """

    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    diffusion: dict[str, Any] = field(default_factory=dict)

    def flags(self) -> str:
        """Return the options of `ddpm train`.

        >>> Changes({"max_steps": 90}, {"dim": 8}, {"schedule_options": {"shift": True}}).flags()
        '--model.dim 8 --diffusion.schedule-options shift=True --max-steps 90'
        """
        groups = (("model.", self.model), ("diffusion.", self.diffusion), ("", self.training))
        words = [
            f"--{group}{name.replace('_', '-')}{_flag_value(value)}"
            for group, values in groups
            for name, value in values.items()
        ]
        return " ".join(words)

    def call(self, network: str) -> str:
        """Return the call in Python, in which `...` stands for the arguments that the program gives
        already.

        Args:
            network: Class of the network.

        >>> Changes({"max_steps": 90}, {"dim": 8}).call("Unet")
        'Trainer(GaussianDiffusion(Unet(..., dim=8), ...), ..., max_steps=90).train()'
        >>> Changes({}, {}, {"schedule": "cosine"}).call("Unet")
        "Trainer(GaussianDiffusion(..., schedule='cosine'), ...).train()"
        """
        first = [_call(network, ["..."], self.model)] if self.model else []
        process = [*first, "..."]
        named = self.model or self.diffusion
        given = [_call("GaussianDiffusion", process, self.diffusion)] if named else []
        return _call("Trainer", [*given, "..."], self.training) + ".train()"


def _flag_value(value: Any) -> str:
    """Return a value behind its flag; True is the flag alone, nothing of several is none."""
    if value is True:
        return ""
    if value == ():
        return " none"
    if isinstance(value, dict):
        return " " + " ".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, float):
        return f" {value:.6g}"
    return f" {shlex.quote(str(value))}"


def _call(name: str, given: list[str], named: dict[str, Any]) -> str:
    words = [f"{key}={_literal(value)}" for key, value in named.items()]
    return f"{name}({', '.join([*given, *words])})"


def _literal(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
