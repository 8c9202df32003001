"""The noisy classifiers of guided-diffusion (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.interop.given import AttentionOrder, heads_given
from ddpm_lib.interop.imported import Imported, Opened, Reader
from ddpm_lib.interop.openai_files import collect, is_classifier, parts_of
from ddpm_lib.interop.openai_shapes import State
from ddpm_lib.interop.renaming import NAMINGS, Naming, Paths, openai_trunk_paths, rename_unet
from ddpm_lib.nn.blocks import Resample
from ddpm_lib.nn.noisy_classifier import NoisyClassifier, Pooling

NAME = "openai-classifier"
_POSITION = "out.2.positional_embedding"
_OPTIONS = (
    "image_size",
    "blocks_per_level",
    "heads",
    "head_dim",
    "attention_order",
    "dropout",
    "time_scale",
)


@dataclass(frozen=True)
class _Trunk:
    """A way down that the shapes allow: widths and attention by level."""

    widths: tuple[int, ...]
    attention: tuple[int, ...]
    blocks: int


def _recognises(opened: Opened) -> bool:
    return any(is_classifier(value) for value in parts_of(opened).values())


def _read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    files = collect(opened, is_classifier)
    notes, any_weights = list(files.notes), files.any_weights
    config = classifier_config(State(any_weights, files.where), given, notes)
    with torch.device("meta"):
        model = NoisyClassifier(**config)
    naming = classifier_naming(given.get("attention_order", "legacy"), config["pool"])

    def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left = dict(weights)
        extra = {"pool.position": left.pop(_POSITION)} if _POSITION in left else {}
        return rename_unet(model, left, naming, files.where).weights | extra

    if files.optimizer is not None:
        notes.append("Adam's moments of a classifier are not carried over: nothing here trains it.")
    return Imported(
        source=opened.path,
        format=NAME,
        network="NoisyClassifier",
        network_config=config,
        process=None,
        weights=None if files.weights is None else renamed(files.weights),
        averages={decay: renamed(average) for decay, average in files.averages.items()},
        step=files.step or 0,
        notes=tuple(notes),
    )


def classifier_config(state: State, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of our `NoisyClassifier`, with a note for what no shape shows.

    Args:
        state: The weights by their names.
        given: What the user says.
        notes: Gets the notes.

    Raises:
        CheckpointError: If no classifier of theirs has these shapes.
        ConfigError: If they allow several networks.
    """
    dim, pool = state.size("time_embed.0.weight", 1), _pooling(state)
    resample = _resample(state)
    trunk, size = _choose(_trunks(state, resample), state, given, pool)
    last = {"attention": "out.2.c_proj.weight", "spatial": "out.2.weight"}
    classes = state.size(last.get(pool, "out.3.weight"), 0)
    config: dict[str, Any] = {
        "num_classes": classes,
        "image_size": size,
        "dim": dim,
        "dim_mults": tuple(width // dim for width in trunk.widths),
        "channels": state.size("input_blocks.0.0.weight", 1),
        "blocks_per_level": trunk.blocks,
        "attention_levels": trunk.attention,
        "pool": pool,
        "dropout": float(given.get("dropout", 0.0)),
        "time_conditioning": (
            "scale_shift"
            if state.size("input_blocks.1.0.emb_layers.1.weight", 0) == 2 * trunk.widths[0]
            else "add"
        ),
        "resample": resample,
        "groups": 32,
        "time_scale": float(given.get("time_scale", 1.0)),
    }
    said = heads_given(given)
    if not said:
        said = {"head_dim": 64}
        notes.append(
            "The file does not say the attention heads: taken to have 64 channels each, as"
            f" published; {option('head_dim')} or {option('heads')} otherwise."
        )
    if "attention_order" not in given:
        notes.append(
            "The file does not say the order of attention's channels: taken to be the legacy one;"
            f" {option('attention_order', 'new')} for classifier_use_new_attention_order."
        )
    return config | said


def _pooling(state: State) -> Pooling:
    if _POSITION in state.state:
        return "attention"
    if "out.1.weight" in state.state:
        return "spatial_v2"
    return "spatial" if "out.2.weight" in state.state else "adaptive"


def _resample(state: State) -> Resample:
    inputs = state.indices(r"input_blocks\.(\d+)\.")
    if state.indices(r"input_blocks\.(\d+)\.0\.op\.weight"):
        return "conv"
    return "pool" if inputs[-1] + 1 != len(inputs) else "resblock"


def _trunks(state: State, resample: Resample) -> list[_Trunk]:
    """Return the ways down that the shapes allow.

    A residual block that halves the resolution has the shapes of any other that keeps its width.
    """
    inputs = state.indices(r"input_blocks\.(\d+)\.")
    count = inputs[-1] + 1
    marks = {
        i for i in range(1, count) if f"input_blocks.{i}.0.in_layers.0.weight" not in state.state
    }
    found = []
    for levels in range(1, count):
        per_level = count // levels
        if count % levels or per_level < 2:
            continue
        boundaries = {level * per_level for level in range(1, levels)}
        if resample != "resblock" and boundaries != marks:
            continue
        trunk = _trunk(state, levels, per_level, boundaries - marks)
        if trunk is not None:
            found.append(trunk)
    return found


def _trunk(state: State, levels: int, per_level: int, halving: set[int]) -> _Trunk | None:
    """Return the way down of so many levels, None if the shapes say otherwise.

    Args:
        state: The weights.
        levels: Number of levels.
        per_level: Blocks of a level, with the one that halves the resolution.
        halving: Indices of the residual blocks that halve it.
    """
    weights = state.state
    if any(f"input_blocks.{i}.1.qkv.weight" in weights for i in halving):
        return None
    if any(f"input_blocks.{i}.0.skip_connection.weight" in weights for i in halving):
        return None
    widths, attention = [], []
    for level in range(levels):
        blocks = range(1 + level * per_level, (level + 1) * per_level)
        found = {state.size(f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in blocks}
        attends = {f"input_blocks.{i}.1.qkv.weight" in weights for i in blocks}
        if len(found) > 1 or len(attends) > 1:
            return None
        widths.append(found.pop())
        attention += [level] if attends.pop() else []
    dim = state.size("time_embed.0.weight", 1)
    if any(width % dim for width in widths) or state.size("input_blocks.0.0.weight", 0) != dim:
        return None
    return _Trunk(tuple(widths), tuple(attention), per_level - 1)


def _choose(
    trunks: list[_Trunk], state: State, given: Mapping[str, Any], pool: Pooling
) -> tuple[_Trunk, int]:
    """Return the one way down that fits what is known, and the size of the images."""
    wanted = given.get("image_size")
    if wanted is not None and wanted[0] != wanted[1]:
        raise ConfigError(f"A classifier takes square images; got image_size {list(wanted)}.")
    side = None
    if pool == "attention":
        side = math.isqrt(state.size(_POSITION, 1) - 1)
        sizes = [side * 2 ** (len(trunk.widths) - 1) for trunk in trunks]
        trunks = [t for t, s in zip(trunks, sizes) if wanted is None or s == wanted[0]]
    if "blocks_per_level" in given:
        trunks = [t for t in trunks if t.blocks == given["blocks_per_level"]]
    if not trunks:
        raise CheckpointError(
            f"The weights in {state.where} are those of no classifier of guided-diffusion that"
            " NoisyClassifier can hold, or not for images of the size given."
        )
    if len(trunks) > 1:
        numbers = ", ".join(str(t.blocks) for t in trunks)
        raise ConfigError(
            f"The shapes in {state.where} allow {numbers} residual blocks per level. Give"
            f" {option('blocks_per_level', trunks[0].blocks)} or another of these."
        )
    (trunk,) = trunks
    if side is not None:
        return trunk, side * 2 ** (len(trunk.widths) - 1)
    return trunk, 64 if wanted is None else int(wanted[0])


def classifier_naming(order: AttentionOrder, pool: Pooling) -> Naming:
    """Return how guided-diffusion names the modules of a classifier.

    Args:
        order: Of the channels of attention.
        pool: How the classifier pools.
    """
    heads: dict[Pooling, Paths] = {
        "attention": {
            "norm_out": "out.0",
            "pool.qkv": "out.2.qkv_proj",
            "pool.proj": "out.2.c_proj",
        },
        "adaptive": {"norm_out": "out.0", "linear_out": "out.3"},
        "spatial": {"hidden": "out.0", "linear_out": "out.2"},
        "spatial_v2": {"hidden": "out.0", "norm_hidden": "out.1", "linear_out": "out.3"},
    }
    known = NAMINGS["guided-diffusion" if order == "new" else "improved-diffusion"]

    def paths(model: NoisyClassifier) -> Paths:
        return openai_trunk_paths(model.down) | heads[pool]

    return Naming(paths, known.block, known.norm, known.qkv, known.per_head, known.proj)


READER = Reader(
    name=NAME,
    reads="noisy classifiers of guided-diffusion",
    recognises=_recognises,
    read=_read,
    options=_OPTIONS,
)
