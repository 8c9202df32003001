"""What a model cannot do, and what nobody looked at: the last part of a card."""

from __future__ import annotations

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.core.hub.markdown import code
from ddpm_lib.process.conditions import class_count
from ddpm_lib.process.model_card import noun, products
from ddpm_lib.runs.publishing.facts import RunFacts
from ddpm_lib.runs.publishing.measured import Measurement
from ddpm_lib.runs.publishing.wording import amount, percent, span

FEW_IMAGES = 10_000
"""Below so many training images a card says that the set is small."""


def limits(facts: RunFacts) -> str:
    """Word the limits of a run's model."""
    process = facts.loaded.diffusion
    lines = [f"It makes {products(process)}; other sizes were not trained."]
    classes = class_count(process.conditioners)
    if classes is not None:
        lines.append(f"It knows the {classes:,} classes above and no others.")
    lines += [_size_of_set(facts), *_unfinished(facts), _copies(facts), _gap(facts)]
    lines.append("What it draws was not looked through for what is harmful or somebody's own.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _size_of_set(facts: RunFacts) -> str:
    images = facts.state.trained_on.images
    if not images:
        return "On how many images it was trained was not recorded."
    small = ", which is few: expect little variety" if images < FEW_IMAGES else ""
    return f"It has seen {images:,} different {noun(facts.loaded.diffusion)}{small}."


def _unfinished(facts: RunFacts) -> list[str]:
    most = facts.training.get("max_steps")
    if not isinstance(most, int) or facts.loaded.step >= most:
        return []
    return [
        f"Training had not ended: these are the weights of step {facts.loaded.step:,} of {most:,}."
    ]


def _copies(facts: RunFacts) -> str:
    shares = [s for s in facts.measured.scores if s.kind == "copies" and not s.is_part]
    if not shares:
        how = code("ddpm evaluate RUN --metrics memorisation")
        return f"Whether it copies training images was **not measured**; {how} does."
    return "Copies of training images: " + "; ".join(_share(facts, s) for s in shares) + "."


def _share(facts: RunFacts, score: Measurement) -> str:
    features = score.name.split("_")[1] if "_" in score.name else "features"
    ends = score.interval
    within = f" ({span(ends, share=True)})" if ends is not None else ""
    n = score.samples.get("n")
    of = f" of {n:,} samples" if isinstance(n, int) else " of the samples"
    p = next((s for s in facts.measured.parts(score) if s.name.endswith("/p")), None)
    verdict = ""
    if p is not None:
        rings = "**more than chance explains**" if p.value <= COPY_ALARM else "no more than chance"
        verdict = f", {rings} (p = {amount(p.value, 2)})"
    return f"{percent(score.value)}{within}{of} by {code(features)}{verdict}"


def _gap(facts: RunFacts) -> str:
    gap = next((s for s in facts.measured.scores if s.name.startswith("loss_gap")), None)
    row, at = facts.validation, ""
    value, error = (gap.value, gap.error) if gap is not None else (None, None)
    if gap is None and "val_gap" in row:
        name = "val_gap_adjusted" if "val_gap_adjusted" in row else "val_gap"
        value, error = row[name], row.get(f"{name}_error")
        at = f" at step {row['step']:,.0f}"
    if value is None:
        return "Over-fitting was **not measured**: no images were held out."
    spread = f" ± {amount(error)}" if error is not None else ""
    return (
        f"Over-fitting: the loss of held-out images minus that of training images is"
        f" {amount(value)}{spread}{at}."
    )
