"""Networks of EDM (Karras et al. 2022), by way of two steps.

Their published files are pickles that bring the source code of their classes along and run it, so
they are never unpickled here. What their own program saves of them in safetensors and JSON is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.text import short
from ddpm_lib.interop.given import refuse_given
from ddpm_lib.interop.imported import Imported, Opened, Reader
from ddpm_lib.interop.renaming import Naming, Paths, rename_unet
from ddpm_lib.nn.blocks import ResolutionLevel
from ddpm_lib.nn.edm_unet import EdmUnet
from ddpm_lib.nn.unet import Unet

NAME = "edm"
_PERSISTENT = b"torch_utils.persistence"
_LOOKED_AT = 2**20
_OPTIONS = ("timesteps", "dropout", "class_drop_prob")
_HEAD_DIM = 64
"""Channels per attention head in their DhariwalUNet."""


def refuse_persistent_pickle(path: Path) -> None:
    """Recognise a published pickle of NVIDIA's, by what it imports: nothing is unpickled.

    Raises:
        CheckpointError: Saying how it becomes something that can be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    if _PERSISTENT not in head or head[:4] == b"PK\x03\x04":
        return
    raise CheckpointError(
        f"{path} is a pickle of EDM, EDM2 or StyleGAN, which carries program code and runs it when"
        " it is opened, so it never is opened here. Save its weights as safetensors with their own"
        " program first: docs/interop.md#edm-and-edm2 has the few lines."
    )


def _weights(opened: Opened) -> dict[str, Any]:
    found = [v for v in opened.content.values() if isinstance(v, Mapping)]
    return dict(found[0]) if opened.path.is_dir() and len(found) == 1 else dict(opened.content)


def _recognises(opened: Opened) -> bool:
    names = {str(name) for name in _weights(opened)}
    edm = "model.map_layer0.weight" in names and any(n.startswith("model.enc.") for n in names)
    edm2 = "unet.emb_noise.weight" in names and any(n.startswith("unet.enc.") for n in names)
    return edm or edm2


def _read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    state, notes = _weights(opened), list[str]()
    saved = next(iter(opened.configs.values()), {})
    _refuse_others(state, saved, opened.path)
    size, unet = _unet_config(state, given, str(opened.path))
    sigma_data = _sigma_data(saved, opened.path)
    if "sigma_data" not in saved:
        notes.append("The file does not say sigma_data: taken to be 0.5, their default.")
    timesteps = int(given.get("timesteps", 1000))
    notes.append(
        "Their noise is continuous; the process has"
        f" {timesteps} levels of it, from 0.002 to 80 as their sampler has them."
    )
    config: dict[str, Any] = {"unet": unet, "timesteps": timesteps}
    with torch.device("meta"):
        model = EdmUnet(**config)
    renamed = rename_unet(model.unet, _prepared(state), _naming(size), str(opened.path)).weights
    return Imported(
        source=opened.path,
        format=NAME,
        network="EdmUnet",
        network_config=config,
        process={
            "image_size": [size, size],
            "channels": unet["channels"],
            "timesteps": timesteps,
            "schedule": "karras",
            "parametrization": "edm",
            "parametrization_options": {"sigma_data": sigma_data},
            "weighting": "edm",
            "weighting_options": {"sigma_data": sigma_data},
            "variance": "fixed_small",
            "loss": "simple",
            "time_sampler": "log_normal_sigma",
        },
        weights=None,
        averages={"ema": {f"unet.{name}": tensor for name, tensor in renamed.items()}},
        notes=tuple(notes),
    )


def _sigma_data(saved: Mapping[str, Any], path: Path) -> float:
    value = saved.get("sigma_data", 0.5)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise CheckpointError(f"{path} has sigma_data={short(value)}; it is a positive number.")
    return float(value)


def _refuse_others(state: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Refuse what no network of ours can hold, by its name."""
    other = None
    if "unet.emb_noise.weight" in state:
        other = "EDM2's magnitude-preserving network"
    elif any("aux_" in name for name in state) or any("enc." in n and "_aux" in n for n in state):
        other = "EDM's NCSN++ (SongUNet with Fourier features and a residual encoder)"
    elif not any(re.fullmatch(r"model\.out_norm\.weight", name) for name in state):
        other = "EDM's DDPM++ or NCSN++ (SongUNet), whose way up has attention in one block alone"
    elif saved.get("precond", "EDMPrecond") != "EDMPrecond":
        other = f"a network with the preconditioning {saved['precond']}"
    elif "model.map_augment.weight" in state:
        other = "a DhariwalUNet that is told augmentations"
    if other is not None:
        raise CheckpointError(
            f"{path} holds {other}, which no network here can hold. Of EDM, the ADM network"
            " (DhariwalUNet) with EDMPrecond can be read."
        )


def _unet_config(
    state: Mapping[str, Tensor], given: Mapping[str, Any], where: str
) -> tuple[int, dict[str, Any]]:
    """Return the size of the images and the arguments of our `Unet`, from names and shapes."""
    names = "\n".join(state)
    sizes = sorted({int(s) for s in re.findall(r"^model\.enc\.(\d+)x\1_", names, re.M)})[::-1]
    blocks = len(set(re.findall(r"^model\.enc\.\d+x\d+_block(\d+)\.", names, re.M)))
    first = [f"model.enc.{s}x{s}_block0" for s in sizes]
    wanted = ["model.map_layer0.weight", "model.out_conv.weight"]
    wanted += [f"{name}.conv1.weight" for name in first]
    shapes = {name: tuple(state[name].shape) for name in wanted if name in state}
    if len(shapes) != len(wanted) or any(len(shape) < 2 for shape in shapes.values()):
        raise CheckpointError(f"The weights in {where} are incomplete for a network of EDM.")
    dim = shapes["model.map_layer0.weight"][1]
    widths = [shapes[f"{name}.conv1.weight"][0] for name in first]
    if dim < 128 or dim % 32 or any(width % dim for width in widths):
        raise CheckpointError(
            f"The network in {where} has {dim} channels and levels of {widths}; Unet has groups of"
            " as many channels as theirs from 128 channels in multiples of 32 on."
        )
    label = state.get("model.map_label.weight")
    if label is None:
        refuse_given(given, ("class_drop_prob",), f"The network in {where} knows no classes")
    return sizes[0], {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": shapes["model.out_conv.weight"][0],
        "blocks_per_level": blocks,
        "attention_levels": tuple(
            level for level, name in enumerate(first) if f"{name}.qkv.weight" in state
        ),
        "head_dim": _HEAD_DIM,
        "dropout": float(given.get("dropout", 0.1)),
        "resample": "resblock",
        "groups": 32,
        "num_classes": None if label is None else int(label.shape[-1]),
        "class_drop_prob": float(given.get("class_drop_prob", 0.0)),
    }


def _prepared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring labels and attention into the order of other libraries, without the fixed filters.

    Their projection has, for each head and each of its channels, query, key and value beside each
    other; ours has all queries first. Their label embedding is a linear layer on one-hot labels.
    """
    result = {}
    for full, tensor in state.items():
        name, value = full.removeprefix("model."), tensor.float()
        if name.endswith(".resample_filter"):
            if not torch.equal(value, torch.full_like(value, 0.25)):
                raise CheckpointError(f"{full} is no average of 2×2 pixels, as Unet has it.")
            continue
        if ".qkv." in name:
            value = value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
        result[name] = value.T if name == "map_label.weight" else value
    return result


def _naming(size: int) -> Naming:
    def paths(model: Unet) -> Paths:
        found = {
            "time_embedding.linear1": "map_layer0",
            "time_embedding.linear2": "map_layer1",
            "conditioners.class_label.embedding": "map_label",
            "conv_in": f"enc.{size}x{size}_conv",
            "norm_out": "out_norm",
            "conv_out": "out_conv",
        }
        last = size >> (len(model.down) - 1)
        low = f"dec.{last}x{last}"
        found |= {"middle.res1": f"{low}_in0", "middle.attn": f"{low}_in0"}
        found |= {"middle.res2": f"{low}_in1"}
        for ours, theirs, part in (("down", "enc", model.down), ("up", "dec", model.up)):
            for s, stage in enumerate(part):
                assert isinstance(stage, ResolutionLevel)
                side = size >> s if ours == "down" else last << s
                for i in range(len(stage.layers)):
                    block = f"{theirs}.{side}x{side}_block{i}"
                    found |= {f"{ours}.{s}.layers.{i}.res": block}
                    found |= {f"{ours}.{s}.layers.{i}.attn": block}
                next_side = side // 2 if ours == "down" else side * 2
                found[f"{ours}.{s}.resample.block"] = f"{theirs}.{next_side}x{next_side}_{ours}"
        return found

    block = ("norm0", "conv0", "affine", "norm1", "conv1", "skip")
    return Naming(paths, block, "norm2", ("qkv",), False, "proj")


READER = Reader(
    name=NAME,
    reads="ADM networks of EDM, saved as safetensors by their own program",
    recognises=_recognises,
    read=_read,
    options=_OPTIONS,
)
