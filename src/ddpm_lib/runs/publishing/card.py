"""The model card of a run: its facts in words, and its scores as metadata."""

from __future__ import annotations

import re
import shlex
from typing import Any

from ddpm_lib.core.hub.markdown import block, code, plain, table
from ddpm_lib.process.model_card import (
    card_text,
    license_section,
    metadata,
    noun,
    outline,
    summary,
    task_of,
    usage,
)
from ddpm_lib.runs.growth import events_in
from ddpm_lib.runs.publishing.card_limits import limits
from ddpm_lib.runs.publishing.facts import Base, RunFacts, Source
from ddpm_lib.runs.publishing.measured import Measurement
from ddpm_lib.runs.publishing.wording import amount, duration, percent, span

PICTURE = "samples.png"
SETTINGS = "training.yaml"


def run_card(
    facts: RunFacts, repo_id: str, license: str | None = None, revision: str | None = None
) -> str:
    """Return the README.md of a run's repository.

    Args:
        facts: What is known of the run.
        repo_id: The repository, "owner/name".
        license: The hub's name of a licence, None for none.
        revision: The branch that the card is for.
    """
    process = facts.loaded.diffusion
    images = facts.state.trained_on.images
    count = f"{images:,} {noun(process)} of " if images else ""
    source = f"{count}{_linked(facts.data)}" if facts.data is not None else ""
    name = repo_id.rsplit("/", 1)[-1]
    data = metadata(
        process,
        license,
        datasets=[facts.data.hub_id] if facts.data is not None and facts.data.hub_id else None,
        base_model=[base.source.hub_id for base in facts.bases if base.source.hub_id] or None,
        model_name=name,
        eval_results=eval_results(facts) or None,
    )
    parts = [
        f"# {plain(name)}",
        summary(process, source),
        _picture(facts),
        usage(process, repo_id, revision),
        "## Model\n\n" + table(("Property", "Value"), [*outline(process), *_weights(facts)]),
        _training(facts, repo_id),
        _scores(facts),
        limits(facts),
        license_section(license),
    ]
    return card_text(data, parts)


def _linked(source: Source) -> str:
    if source.hub_id is None:
        return code(source.name)
    return f"[{plain(source.hub_id)}](https://huggingface.co/datasets/{source.hub_id})"


def _picture(facts: RunFacts) -> str:
    if facts.grid is None:
        return ""
    said, drawn = facts.training, [f"Samples at step {facts.grid_step:,}, not selected"]
    if "sample_sampler" in said:
        how = f"{code(said['sample_sampler'])} in {said.get('sample_steps')} steps"
        guided = said.get("sample_guidance_scale", 1.0)
        strength = f", guidance scale {guided:g}" if guided != 1.0 else ""
        drawn.append(f"{how}, seed {said.get('sample_seed')}{strength}")
    if "low_res" in set(facts.loaded.diffusion.conditioners or ()):
        drawn.append("each row: small image, result, truth")
    return f"![Samples]({PICTURE})\n\n*{'; '.join(drawn)}.*"


def _weights(facts: RunFacts) -> list[tuple[str, str]]:
    listed = ", ".join(f"{code(name)} ({plain(label)})" for name, label in facts.weights.items())
    return [("Weights", f"{listed} at step {facts.loaded.step:,}")]


def _training(facts: RunFacts, repo_id: str) -> str:
    parts = ["## Training"]
    parts += [_based_on(base) for base in facts.bases]
    rows = [(name, text) for name, text in _training_rows(facts) if text]
    parts.append(table(("Property", "Value"), rows))
    if facts.settings is not None:
        parts += ["To train it the same way:", block("bash", _train_commands(facts, repo_id))]
    return "\n\n".join(parts)


def _based_on(base: Base) -> str:
    where = base.source.name
    hub = base.source.hub_id
    name = f"[{plain(hub)}](https://huggingface.co/{hub})" if hub else code(where)
    known = [f"{base.step:,} steps"] if base.step else []
    known += [f"trained on {_linked(base.data)}"] if base.data is not None else []
    about = f" ({', '.join(known)})" if known else ""
    lines = "".join(f"\n- {plain(note)}" for note in base.notes)
    return f"It began with the weights of {name}, {plain(base.kind)}{about}." + (
        f"\n{lines}" if lines else ""
    )


def _training_rows(facts: RunFacts) -> list[tuple[str, str]]:
    state, said, on = facts.state, facts.training, facts.state.trained_on
    process = facts.loaded.diffusion
    held = f", {100 * on.held_fraction:g} % more held out" if on.held_fraction else ""
    if facts.held_out is not None:
        held = f"; held out: {code(facts.held_out.name)}"
    seen = f"{state.images_seen:,}" if state.images_seen else ""
    epochs = state.images_seen / on.images if on.images else 0.0
    steps = f"{state.step:,}" + (f" of {said['max_steps']:,}" if "max_steps" in said else "")
    return [
        ("Data", f"{on.images:,} {noun(process)}{held}" if on.images else "not recorded"),
        ("Growth", "; ".join(map(str, events_in(on.grown)))),
        ("Steps", steps),
        ("Images seen", f"{seen}, each {amount(epochs, 3)} times" if seen and epochs else seen),
        ("Batch", f"{state.batch_size:,}" if said else ""),
        ("Optimizer", _optimizer(said)),
        ("Average of the weights", _average(facts)),
        ("Augmentation", _augmentation(said)),
        ("Precision", plain(_hardware(facts).get("precision", ""))),
        ("Time", duration(state.elapsed_seconds) if state.elapsed_seconds else ""),
        ("Hardware", _machine(facts)),
        ("Seed", f"{state.seed}" if said else ""),
        ("Versions", _versions(facts)),
    ]


def _optimizer(said: Any) -> str:
    if "optimizer" not in said:
        return ""
    parts = [f"{code(said['optimizer'])}, learning rate {said.get('learning_rate'):g}"]
    parts.append(f"{code(said.get('lr_schedule'))} after {said.get('warmup_steps')} steps")
    if said.get("weight_decay"):
        parts.append(f"weight decay {said['weight_decay']:g}")
    if said.get("max_grad_norm"):
        parts.append(f"gradients clipped at norm {said['max_grad_norm']:g}")
    return ", ".join(parts)


def _average(facts: RunFacts) -> str:
    kept = ", ".join(str(decay) for decay in facts.state.ema_decay)
    return f"EMA of decay {plain(kept)}" if kept else "none"


def _augmentation(said: Any) -> str:
    if "horizontal_flip" not in said:
        return ""
    parts = ["horizontal flips"] if said["horizontal_flip"] else []
    parts += [f"augment {said['augment']:g}"] if said.get("augment") else []
    return ", ".join(parts) or "none"


def _hardware(facts: RunFacts) -> dict[str, Any]:
    known = getattr(facts.state, "hardware", None)
    return known if isinstance(known, dict) else {}


def _machine(facts: RunFacts) -> str:
    known = _hardware(facts)
    if not known.get("name"):
        return "not recorded"
    n, what = known.get("processes", 1), plain(known["name"])
    threads = facts.state.versions.get("threads")
    if known.get("device") == "cpu" and threads:
        what = f"{what}, {threads} thread{'s' if threads != 1 else ''}"
        return what if n == 1 else f"{n} processes on {what} each"
    return f"{n} × {what}"


def _versions(facts: RunFacts) -> str:
    known = facts.state.versions if isinstance(facts.state.versions, dict) else {}
    wanted = ("ddpm-lib", "torch", "python")
    return ", ".join(f"{name} {plain(known[name])}" for name in wanted if name in known)


def _train_commands(facts: RunFacts, repo_id: str) -> list[str]:
    data, name = facts.data, repo_id.rsplit("/", 1)[-1]
    given = "DATA"
    if data is not None:
        given = shlex.quote(f"path/to/{data.name}" if data.local else data.name)
    other = facts.held_out
    if other is not None and other.local:
        given = f"{given} --val-data {shlex.quote(f'path/to/{other.name}')}"
    return [
        f"hf download {repo_id} {SETTINGS} --local-dir .",
        f"ddpm train {given} --config {SETTINGS} --output-dir {shlex.quote(f'runs/{name}')}",
    ]


def _scores(facts: RunFacts) -> str:
    measured, parts = facts.measured, ["## Scores"]
    main = [score for score in measured.scores if not score.is_part]
    if main:
        head = ("Score", "Value", "95\u00a0% interval", "For comparison")
        parts.append(table(head, [_score_row(facts, score) for score in main]))
        parts += [_drawn(main)] if any(score.samples for score in main) else []
        remarks = [f"{code(s.name)}: {plain(s.remark)}" for s in measured.scores if s.remark]
        listed = "\n".join(f"- {line}" for line in [*remarks, *map(plain, measured.notes)])
        return "\n\n".join([*parts, listed])
    if measured.other_step is not None:
        parts.append(
            f"Of these weights nothing was measured; the newest evaluation of this run is of step"
            f" {measured.other_step:,} or of other weights. {code('ddpm evaluate RUN')} measures."
        )
    else:
        parts.append(f"Nothing was measured on samples; {code('ddpm evaluate RUN')} does that.")
    row = facts.validation
    if row:
        error = f" ± {amount(row['val_loss_error'])}" if "val_loss_error" in row else ""
        parts.append(
            f"Loss on held-out images, of the objective that was trained: {amount(row['val_loss'])}"
            f"{error} (standard error) at step {row['step']:,.0f}."
        )
    return "\n\n".join(parts)


def _score_row(facts: RunFacts, score: Measurement) -> tuple[str, ...]:
    told = [
        f"p = {amount(part.value, 2)}" if name == "p" else f"{plain(name)} {_value(part)}"
        for part in facts.measured.parts(score)
        for name in [part.name.split("/", 1)[1]]
    ]
    title = f"{plain(score.title)}<br>" if score.title else ""
    unit = f" {plain(score.unit)}" if score.unit else ""
    ends = span(score.interval, score.is_share) if score.interval is not None else ""
    return f"{title}{code(score.name)}", f"{_value(score)}{unit}", ends, "; ".join(told)


def _value(score: Measurement) -> str:
    return percent(score.value) if score.is_share else amount(score.value)


def _drawn(scores: list[Measurement]) -> str:
    how: dict[str, None] = {}
    for score in scores:
        said = score.samples
        if "n" in said and "sampler" in said:
            how[f"{said['n']:,} samples by {code(said['sampler'])} in {said['steps']} steps"] = None
    return f"Measured on {'; '.join(how)}." if how else ""


def eval_results(facts: RunFacts) -> list[Any]:
    """Return the scores as huggingface_hub's `EvalResult`s; the held-out loss where there are
    none.
    """
    from huggingface_hub import EvalResult

    task, _ = task_of(facts.loaded.diffusion)
    name = facts.data.name if facts.data is not None else "unknown"
    known = facts.data.hub_id if facts.data is not None else None
    about: dict[str, Any] = {
        "task_type": task or "other",
        "dataset_name": name,
        "dataset_type": known
        or re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")
        or "unknown",
    }
    found = []
    for score in facts.measured.scores:
        if score.is_part:
            continue
        more: dict[str, Any] = {"unit": score.unit, "standard_error": score.error}
        more["interval_95"] = list(score.interval) if score.interval is not None else None
        more |= {"samples": score.samples.get("n"), "sampler": score.samples.get("sampler")}
        more |= {"steps": score.samples.get("steps"), "reference_images": score.images}
        more["remark"] = score.remark or None
        found.append(
            EvalResult(
                **about,
                dataset_split=score.reference or None,
                metric_type=score.kind,
                metric_name=score.name,
                metric_value=score.value,
                metric_args={k: v for k, v in more.items() if v is not None},
            )
        )
    row = facts.validation
    if not found and row:
        error = {"standard_error": row["val_loss_error"]} if "val_loss_error" in row else {}
        found.append(
            EvalResult(
                **about,
                dataset_split="held-out",
                metric_type="loss",
                metric_name="val_loss",
                metric_value=row["val_loss"],
                metric_args={"step": int(row["step"]), **error},
            )
        )
    return found
