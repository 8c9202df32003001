"""What the page of `ddpm demo` shows for each condition of the data, and the words it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_lib.core.text import digits_between, span
from ddpm_lib.nn.data_conditions import DataCondition

NOT_SAID = "not said"
"""What stands for no value among labels."""


@dataclass(frozen=True)
class Control:
    """The inputs of one condition.

    Attributes:
        name: Of the condition.
        parts: Gradio's components.
        word: From their values to what `--cond` would say; None for no value.
        needed: Whether the network always needs a value.
    """

    name: str
    parts: Sequence[Any]
    word: Callable[..., str | None]
    needed: bool


def make_controls(
    gr: Any,
    conditions: Mapping[str, DataCondition],
    said: Mapping[str, str],
    texts: Mapping[str, Sequence[str]],
) -> list[Control]:
    """Build a control per condition.

    Args:
        gr: Gradio.
        conditions: Those of the network.
        said: Words to begin with, by name.
        texts: Texts to choose among, by name.
    """
    return [
        _MAKERS[one.kind](gr, one, said.get(name), texts.get(name, ()))
        for name, one in conditions.items()
    ]


def words_of(controls: Sequence[Control], values: Sequence[Any]) -> dict[str, str]:
    """Return what the values of all parts, in their order, say: words by name."""
    found: dict[str, str] = {}
    at = 0
    for control in controls:
        word = control.word(*values[at : at + len(control.parts)])
        at += len(control.parts)
        if word is not None:
            found[control.name] = word
    return found


def _switch(gr: Any, one: DataCondition, word: str | None) -> Any:
    """Make the box that says whether there is a value; ticked for good where one is needed."""
    return gr.Checkbox(
        value=word is not None or not one.optional, label=f"say {one.name}", visible=one.optional
    )


def _number(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    spec = one.spec
    low, high = (0.0, spec["period"]) if one.kind == "angle" else (spec["low"], spec["high"])
    switch = _switch(gr, one, word)
    digits = 9 if low is None or high is None else digits_between(low, high)
    if low is None or high is None or not low < high:
        field = gr.Number(value=float(word or low or 0.0), label=one.name)
    else:
        start = (low + high) / 2 if word is None else float(word)
        few = digits_between(low, high, 4)
        ends = (float(f"{end:.{few}g}") for end in (min(low, start), max(high, start)))
        field = gr.Slider(
            *ends,
            value=start,
            step=_step(low, high),
            label=one.name,
            info=f"{span(low, high)} in training" if one.kind == "number" else None,
        )

    def said(given: bool, value: float | None) -> str | None:
        return f"{value:.{digits}g}" if given and value is not None else None

    return Control(one.name, [switch, field], said, not one.optional)


def _step(low: float, high: float) -> float:
    """Return a round step of a hundredth to a thousandth of a range."""
    return float(f"1e{math.floor(math.log10(high - low)) - 2}")


def _label(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    names = list(one.spec["names"])
    choices = [(NOT_SAID, ""), *((name, f"={name}") for name in names)]
    if not one.optional:
        choices = choices[1:]
    if word is not None and word not in names:
        word = names[int(word)]
    field = gr.Dropdown(
        choices, value=choices[0][1] if word is None else f"={word}", label=one.name
    )
    return Control(one.name, [field], lambda value: value[1:] or None, not one.optional)


def _tags(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    names = list(one.spec["names"])
    chosen = [] if word is None else [n for n in names if float(one.read(word)[0, names.index(n)])]
    switch = _switch(gr, one, word)
    field = gr.CheckboxGroup(names, value=chosen, label=one.name)

    def said(given: bool, value: Sequence[str]) -> str | None:
        return "|".join(value) if given else None

    return Control(one.name, [switch, field], said, not one.optional)


def _picture(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    field = gr.Image(
        value=word,
        type="filepath",
        image_mode=None,
        sources=["upload"],
        height=180,
        label=f"{one.name} ({one.kind})",
    )
    return Control(one.name, [field], lambda path: path or None, not one.optional)


def _vector(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    numbers = word if word is not None and not word.endswith(".npy") else ""
    size = one.spec["size"]
    field = gr.Textbox(value=numbers, label=one.name, placeholder=f"{size} numbers: A,B,C")
    file = gr.File(
        value=word if word and word.endswith(".npy") else None,
        file_types=[".npy"],
        height=110,
        label=f"{one.name} as a .npy file",
    )

    def said(text: str | None, path: str | None) -> str | None:
        return (text or "").strip() or path or None

    return Control(one.name, [field, file], said, not one.optional)


def _text(gr: Any, one: DataCondition, word: str | None, texts: Sequence[str]) -> Control:
    if texts:
        field = gr.Dropdown(
            list(texts),
            value=word,
            allow_custom_value=True,
            label=one.name,
            info="Those of the training need no encoder.",
        )
    else:
        field = gr.Textbox(value=word or "", label=one.name, placeholder="some words")
    return Control(one.name, [field], lambda text: (text or "").strip() or None, not one.optional)


_MAKERS: dict[str, Callable[..., Control]] = {
    "number": _number,
    "angle": _number,
    "label": _label,
    "tags": _tags,
    "mask": _picture,
    "image": _picture,
    "vector": _vector,
    "text": _text,
}
