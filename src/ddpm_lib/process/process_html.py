"""What a notebook shows of a process."""

from __future__ import annotations

from typing import Any

from ddpm_lib.core.markup import card, facts, never_fails
from ddpm_lib.nn.network_html import parameter_words

_USUAL = {"variance": "fixed_small", "loss": "simple", "time_sampler": "uniform", "clip": "static"}


@never_fails
def process_html(self: Any) -> str:
    """Show network, images, noise, what is predicted and what conditions it, as HTML."""
    config = self.config
    pairs: list[tuple[str, object]] = [
        ("network", f"{type(self.model).__name__}, {parameter_words(self.model)} parameters"),
        ("images", "×".join(map(str, self.image_shape)) + " (channels×size)"),
        ("noise", f"{config['schedule']} schedule, {self.timesteps:,} levels"),
        ("predicts", config["parametrization"]),
        ("weighting", config["weighting"]),
    ]
    conditioners = self.conditioners
    if conditioners:
        pairs.append(("conditions", ", ".join(conditioners)))
    if self.class_names:
        pairs.append(("classes", ", ".join(self.class_names)))
    pairs += [(name, config[name]) for name, usual in _USUAL.items() if config[name] != usual]
    pairs.append(("device", str(self.device)))
    return card(type(self).__name__, facts(pairs))
