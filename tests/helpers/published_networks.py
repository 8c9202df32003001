"""Networks of `fixtures/D_unets`, restored from their compact form."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file


class PublishedNetwork:
    """A network of the published numbers: its weights in float64, inputs, outputs and gradients."""

    def __init__(self, folder: Path, name: str) -> None:
        tensors = load_file(folder / f"{name}.safetensors")
        self.values = json.loads((folder / f"{name}.json").read_text())["values"]
        scale = self.values["weight_scale"]
        self.tensors = {k: v for k, v in tensors.items() if not k.startswith("weights")}
        self.state = {
            k.removeprefix("weights_q/"): v.double() * scale[k.removeprefix("weights_q/")]
            for k, v in tensors.items()
            if k.startswith("weights_q/")
        } | {
            k.removeprefix("weights/"): v.double()
            for k, v in tensors.items()
            if k.startswith("weights/")
        }
