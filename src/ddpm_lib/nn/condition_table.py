"""The table of a network's conditions that come with the data: what it may say, and the kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.nn.conditioning import Conditioner
from ddpm_lib.nn.data_conditions import (
    AngleCondition,
    DataCondition,
    LabelCondition,
    NumberCondition,
    TagsCondition,
    TextCondition,
    VectorCondition,
)
from ddpm_lib.nn.pixel_conditions import UNKNOWN, ImageCondition, MaskCondition
from ddpm_lib.nn.text_vectors import TextVectors

RESERVED = ("image", "class_label", "self_cond", "augment", "low_res", "low_res_noise")
"""Names of fields and conditions that mean something else."""
DROP_PROB = 0.1
"""The probability of hiding a condition in training, where nobody says another."""

KINDS: dict[str, type[Any]] = {
    cls.kind: cls
    for cls in (
        NumberCondition,
        AngleCondition,
        VectorCondition,
        LabelCondition,
        TagsCondition,
        MaskCondition,
        ImageCondition,
        TextCondition,
    )
}
"""The kinds of conditions by name: constructors of (name, entry, emb_dim, dims)."""


def check_conditions(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a table of conditions with all defaults filled in.

    Args:
        table: By name, what `KINDS` and the class of the kind say: {"age": {"kind": "number"}}.

    Raises:
        ValueError: Naming the condition, what is wrong, and what it may be.
    """
    if not isinstance(table, Mapping):
        raise ValueError(
            'conditions must be a table such as {"age": {"kind": "number"}}; got'
            f" {type(table).__name__}."
        )
    return {name: _checked(name, entry) for name, entry in table.items()}


def check_name(name: Any) -> None:
    """Refuse what a condition cannot be called.

    Raises:
        ValueError: Saying why.
    """
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"The name of a condition must be a word such as age or hair_colour; got {name!r}."
        )
    if name in RESERVED:
        raise ValueError(
            f"The condition {name!r} cannot be called so: that is the field of something else"
            f" ({', '.join(RESERVED)}). Take another name."
        )


def _checked(name: str, entry: Any) -> dict[str, Any]:
    check_name(name)
    if not isinstance(entry, Mapping) or "kind" not in entry:
        raise ValueError(
            f'The condition {name!r} needs a kind, as in {{"kind": "number"}}. There are:'
            f" {', '.join(KINDS)}."
        )
    if entry["kind"] not in KINDS:
        raise ValueError(unknown_name(f"kind of the condition {name!r}", entry["kind"], KINDS))
    cls = KINDS[entry["kind"]]
    known = {"kind": ..., "drop_prob": DROP_PROB, **cls.fields}
    for field in entry:
        if field not in known:
            raise ValueError(unknown_name(f"field of the condition {name!r}", field, known))
    for field, default in known.items():
        if default is ... and entry.get(field) is None:
            raise ValueError(f"The condition {name!r} ({entry['kind']}) needs {field!r}.")
    full = {**known, **entry}
    if full.get("names") is not None:
        full["names"] = [str(word) for word in full["names"]]
    _check_values(name, full)
    return full


def _check_values(name: str, entry: Mapping[str, Any]) -> None:
    drop = entry["drop_prob"]
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
        raise ValueError(f"drop_prob of the condition {name!r} must be in [0, 1], got {drop!r}.")
    for field, least, most in (
        ("size", 1, 2**20),
        ("classes", 1, UNKNOWN),
        ("channels", 1, 2**10),
        ("factor", 1, 2**10),
    ):
        value = entry.get(field)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most
        ):
            raise ValueError(
                f"{field} of the condition {name!r} must be a whole number from {least} to {most};"
                f" got {value!r}."
            )
    names = entry.get("names")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ValueError(f"names of the condition {name!r} must be different words; got {names}.")
    if "period" in entry and not 0 < entry["period"] < math.inf:
        raise ValueError(
            f"period of the condition {name!r} must be positive and finite, 360 for degrees; got"
            f" {entry['period']!r}."
        )


def data_conditioners(
    table: Mapping[str, Mapping[str, Any]] | None, emb_dim: int, dims: int
) -> list[Conditioner]:
    """Return the conditioners of a checked table.

    Args:
        table: What `check_conditions` returned, or None.
        emb_dim: Length of the vectors.
        dims: Spatial dimensions of the images.
    """
    return [
        KINDS[entry["kind"]](name, entry, emb_dim, dims) for name, entry in (table or {}).items()
    ]


def data_conditions(conditioners: Mapping[str, Any] | None) -> dict[str, DataCondition]:
    """Return the conditions of the data among those of a network."""
    return {k: c for k, c in (conditioners or {}).items() if isinstance(c, DataCondition)}


def known_texts_of(conditioners: Mapping[str, Any] | None) -> dict[str, TextVectors]:
    """Return the vectors of texts that a network knows, by condition; none where it knows none."""
    found = data_conditions(conditioners).items()
    return {k: c.known for k, c in found if isinstance(c, TextCondition) and c.known is not None}


def learn_texts(conditioners: Mapping[str, Any] | None, known: Mapping[str, TextVectors]) -> None:
    """Let the conditions of a network know vectors of texts, beside those that they know."""
    for name, conditioner in data_conditions(conditioners).items():
        more = known.get(name, TextVectors.none())
        fits = len(more) > 0 and more.vectors.shape[1] == conditioner.spec.get("size")
        if fits and isinstance(conditioner, TextCondition):
            before = conditioner.known or TextVectors.none()
            conditioner.known = before.with_more(more.keys, more.vectors)


def keep_in_config(model: nn.Module) -> None:
    """Write what the conditioners of a network say of themselves to its config."""
    config: Any = getattr(model, "config", None)
    for name, conditioner in data_conditions(getattr(model, "conditioners", None)).items():
        config["conditions"][name] = dict(conditioner.spec)
