"""What the page says in tables: how far the run is, its data, its machine, its scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ddpm_lib.core.text import so_many
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.energy import estimate_energy
from ddpm_lib.runs.report.marking_up import duration, number_words, with_error
from ddpm_lib.runs.run_status import number

Pairs = list[tuple[str, object]]


def part(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object inside an object, empty where there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def last_number(records: RunRecords, name: str) -> float | None:
    """Return the newest value of a logged quantity."""
    return next(
        (v for row in reversed(records.rows) if (v := number(row.get(name))) is not None), None
    )


def best_validation(records: RunRecords) -> tuple[int, float] | None:
    """Return step and value of the lowest held-out loss."""
    found = [
        (v, row["step"]) for row in records.rows if (v := number(row.get("val_loss"))) is not None
    ]
    return (min(found)[1], min(found)[0]) if found else None


def seconds_trained(records: RunRecords) -> float | None:
    """Return how long training took so far, as of the last row."""
    return last_number(records, "seconds")


def progress_words(records: RunRecords) -> list[str]:
    """Return how far the run is: steps, passes over the data, time, time left."""
    status, found = records.status, []
    if status.step is not None:
        of = f" of {status.max_steps:,}" if status.max_steps else ""
        found.append(f"step {status.step:,}{of}")
    epoch = last_number(records, "epoch")
    if epoch is not None:
        found.append(f"{epoch:.3g} passes over the data")
    seconds = seconds_trained(records)
    if seconds is not None:
        found.append(f"{duration(seconds)} of training")
    left = status.seconds_left() if status.word == "running" else None
    if left:
        found.append(f"about {duration(left)} left")
    return found


def data_facts(records: RunRecords) -> Pairs:
    """Return what is known of the data."""
    data = part(records.about, "data")
    size = data.get("size")
    shape = "×".join(map(str, size)) if isinstance(size, list) else None
    channels = number(data.get("channels"))
    kinds = {1: "grey", 3: "colour", 4: "colour and alpha"}
    crop = number(data.get("crop_loss"))
    return [
        ("data", data.get("name") or records.config.get("data")),
        ("training images", _count(data.get("images"))),
        ("held-out images", _count(data.get("held_out"))),
        ("grown", "; ".join(event.words() for event in records.grown)),
        (
            "size for the network",
            f"{shape} pixels, {kinds.get(int(channels or 0), f'{channels:g} channels')}"
            if shape and channels
            else shape,
        ),
        ("sizes", data.get("sizes_note")),
        (
            "the crop loses",
            None if crop is None else _crop_words(crop),
        ),
        ("classes", _classes_words(data)),
        ("mean per channel", _per_channel(data.get("mean"))),
        ("standard deviation per channel", _per_channel(data.get("std"))),
    ]


def _crop_words(share: float) -> str:
    return f"{100 * share:.1f} % of the pixels on average" if share >= 5e-4 else "nothing"


def _classes_words(data: dict[str, Any]) -> str | None:
    counts = data.get("class_counts")
    names = data.get("class_names")
    n = (
        len(counts)
        if isinstance(counts, list) and counts
        else len(names)
        if isinstance(names, list)
        else 0
    )
    if not n:
        return None
    used = data.get("classes_used")
    told = {True: "; the network is told the class", False: "; the network is not told the class"}
    return f"{n:,}{told.get(used, '') if isinstance(used, bool) else ''}"


def class_rows(records: RunRecords, most: int = 40) -> tuple[list[tuple[str, str]], int]:
    """Return names and numbers of images of the classes, and how many classes are left out."""
    data = part(records.about, "data")
    names, counts = data.get("class_names"), data.get("class_counts")
    counts = counts if isinstance(counts, list) else []
    names = names if isinstance(names, list) else [str(k) for k in range(len(counts))]
    rows = [
        (str(name), _count(counts[k]) or "" if k < len(counts) else "")
        for k, name in enumerate(names)
    ]
    return rows[:most], max(0, len(rows) - most)


def _count(value: Any) -> str | None:
    found = number(value)
    return None if found is None else f"{found:,.0f}"


def _per_channel(values: Any) -> str | None:
    if not isinstance(values, list) or not values:
        return None
    found = [number(v) for v in values]
    return ", ".join("?" if v is None else f"{v:.3f}" for v in found) + " (0 black, 1 white)"


def run_facts(records: RunRecords) -> Pairs:
    """Return what the run is: network, machine, versions, git, time, energy."""
    about = records.about
    device, git = part(about, "device"), part(about, "git")
    versions = part(about, "versions")
    seconds = seconds_trained(records)
    count = int(number(device.get("count")) or 1)
    energy = None
    if seconds is not None:
        energy = estimate_energy(device, count, seconds) if device else None
    commit = git.get("commit")
    state = f"{git.get('describe') or commit} ({commit})" if commit else None
    parameters = number(about.get("parameters"))
    starts = [s for s in about.get("starts") or () if isinstance(s, dict)]
    return [
        ("parameters", None if parameters is None else f"{parameters:,.0f}"),
        ("device", _device_words(device)),
        ("precision", _PRECISION.get(str(about.get("precision")), about.get("precision"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("git", f"{state}, with uncommitted changes" if state and git.get("dirty") else state),
        ("directory", about.get("directory")),
        ("started", about.get("started")),
        ("starts", len(starts) if len(starts) > 1 else None),
        ("time training", None if seconds is None else duration(seconds)),
        ("energy", None if energy is None else str(energy)),
        ("checkpoint", records.status.checkpoint),
        ("sampling unless told otherwise", _sampling_words(records)),
    ]


def _sampling_words(records: RunRecords) -> str | None:
    default = records.sampling
    return None if default is None else f"{default.words()} ({default.origin()})"


_PRECISION = {"no": "float32", "bf16": "bfloat16, mixed", "fp16": "float16, mixed"}


def _device_words(device: dict[str, Any]) -> str:
    count, threads = number(device.get("count")) or 1, number(device.get("threads"))
    words = str(device.get("name") or device.get("kind") or "")
    if count > 1:
        words = f"{count:.0f} × {words}"
    return f"{words}, {so_many(int(threads), 'thread')}" if words and threads else words


def option_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return all options of a run, those in groups by their full names."""
    return list(_flat(config))


def _flat(values: dict[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        full = f"{above}{name}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{full}.")
        else:
            yield full, _option_words(value)


def _option_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_option_words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def score_rows(evaluation: dict[str, Any]) -> list[tuple[tuple[str, str, str, str], bool]]:
    """Return an evaluation's scores as name, value ± error, interval and what it is, and whether
    each is a part of the one before: what held-out images or noise score, for example.
    """
    found: list[tuple[tuple[str, str, str, str], bool]] = []
    scores = evaluation.get("scores")
    listed = [s for s in scores if isinstance(s, dict)] if isinstance(scores, list) else []
    known = {str(score.get("name")) for score in listed}
    references = part(evaluation, "references")
    for k, score in enumerate(listed):
        found.append(_score_row(score))
        outer = str(score.get("name", "")).split("/", 1)[0]
        following = str(listed[k + 1].get("name", "")) if k + 1 < len(listed) else ""
        if following.startswith(f"{outer}/"):
            continue  # its own parts come first
        for word, row in part(references, outer).items():
            if isinstance(row, dict) and f"{outer}/{word}" not in known:
                found.append(_score_row({**row, "name": f"{outer}/{word}"}))
    return found


def _score_row(score: dict[str, Any]) -> tuple[tuple[str, str, str, str], bool]:
    name = str(score.get("name", ""))
    words = with_error(number(score.get("value")), number(score.get("standard_error")))
    ends, interval = score.get("interval"), ""
    if isinstance(ends, list) and len(ends) == 2:
        interval = " … ".join(number_words(number(end)) for end in ends)
    remark = str(score.get("remark") or "")
    what = str(score.get("unit") or "") + (f". {remark}" if remark else "")
    inner = "/" in name
    return (name.split("/", 1)[1] if inner else name, words, interval, what), inner
