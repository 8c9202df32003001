"""What `metrics="auto"` measures: numbers that mean something for this run and need no weights from
elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.adherence import has_values
from ddpm_lib.evaluation.evaluation_options import AUTO, USED_BY, EvaluationOptions, unused_options
from ddpm_lib.evaluation.feature_store import FeatureStore, layer_of
from ddpm_lib.evaluation.metric_table import METRICS
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.metrics import FEATURES, read_statistics
from ddpm_lib.metrics.moments import contents
from ddpm_lib.nn.condition_table import data_conditions

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.run_images import RunImages

FEWEST, MOST = 64, 1000
"""How many samples are drawn by default: as many as training images, within these bounds."""
LEVELS = 20
"""Levels per image from which bits/dim are estimated by default."""
AT_LEAST = {"kid": 4, "pr": 20, "memorisation": 3, "loss_gap": 2, "adherence": 16}
"""With fewer images on one side these say nothing, and are left out."""
CLEAN_SHARE = 0.1
OF_VALUES = ("pixels",)
"""Features that are taken of the values of an image, whatever they mean."""
_UNSEEN = {AUTO, "values", "memorisation", "nll", "flow_nll", "gap", "loss_gap", "adherence"}
"""Metrics that can do without features of pictures."""


@dataclass(frozen=True)
class ChosenOptions:
    """Options with all that was left open filled in, and what people are told about it."""

    options: EvaluationOptions
    notes: list[str]


def trains_likelihood(diffusion: GaussianDiffusion) -> bool:
    """Say whether training cares for nearly clean images, where most of the bits are.

    Bits/dim weigh the error of ε nearly evenly. A weighting that falls off against that by more
    than a factor of ten from SNR 1 to the cleanest level (min_snr, flat, p2) leaves the bits of the
    cleanest levels to chance.
    """
    if diffusion.loss in ("vlb", "consistency"):
        return diffusion.loss == "vlb"
    snr = diffusion.schedule.snr[1:]
    of_eps = diffusion.weighting(snr) / snr.clamp(min=1e-12)
    middle = int(snr.clamp(min=1e-12).log().abs().argmin())
    return bool(of_eps[0] >= CLEAN_SHARE * of_eps[middle])


def is_pictures(diffusion: GaussianDiffusion) -> bool:
    """Say whether a process draws what feature networks look at."""
    flat = len(diffusion.image_size) == 2 and diffusion.channels in (1, 3, 4)
    return flat and diffusion.normalization is None


def refuse_features(options: EvaluationOptions, what: str) -> None:
    """Refuse metrics of samples that look at values as at pictures.

    Args:
        options: Name metrics and features.
        what: Why there are no pictures, such as "this run draws measured values".

    Raises:
        ConfigError: If there is one, with the metrics that serve.
    """
    looking = [name for name in options.metric_names if isinstance(METRICS[name], SampleMetric)]
    features = [name for name in options.feature_names if name not in OF_VALUES]
    networks = [name for name in looking if name in USED_BY["features"] and features]
    bad = [name for name in looking if name in networks or name in ("sfid", "is")]
    if not bad:
        return
    seen = f" ({', '.join(features)})" if features else ""
    raise ConfigError(
        f"{', '.join(bad)} would compare features of RGB pictures{seen}, and {what}: the numbers"
        " would mean nothing. Use"
        f" {option('metrics', 'values,memorisation,loss_gap')}: values in their units, copies and"
        f" over-fitting. With {option('features', 'pixels')} fid, kid, pr and dc compare the values"
        " themselves."
    )


def what_is_drawn(diffusion: GaussianDiffusion) -> str:
    """Say why a process draws no pictures."""
    if diffusion.normalization is not None:
        return "this run draws measured values"
    if len(diffusion.image_size) != 2:
        return f"this run draws in {len(diffusion.image_size)} dimensions"
    return f"this run draws {diffusion.channels} channels"


def choose_metrics(
    options: EvaluationOptions, own: RunImages | None, dataset: Any, measured: bool = False
) -> ChosenOptions:
    """Fill in metrics="auto", and what depends on it.

    Args:
        options: As they were given.
        own: The run's sets; None where sets of images are compared.
        dataset: Images given as an object, which are the reference.
        measured: Whether sets of measured values are compared.

    Raises:
        ConfigError: If a metric looks at values as at pictures.
    """
    no_pictures = "measured values are compared" if measured else ""
    if own is not None and not is_pictures(own.loaded.diffusion):
        no_pictures = what_is_drawn(own.loaded.diffusion)
    unsaid = options.features == AUTO and (own is not None or options.metrics != AUTO)
    if no_pictures and unsaid and _UNSEEN.issuperset(options.metric_names):
        options = dataclasses.replace(options, features="pixels")
    if options.metrics != AUTO:
        if no_pictures:
            refuse_features(options, no_pictures)
        return ChosenOptions(_with_features(options, options.metric_names), [])
    if own is not None:
        choice = _for_run(options, own, dataset)
    elif measured:
        choice = ChosenOptions(dataclasses.replace(options, metrics="values"), [])
    else:
        choice = _for_images(options, dataset)
    if no_pictures:
        refuse_features(choice.options, no_pictures)
    return _without_unused(choice)


def _with_features(options: EvaluationOptions, metrics: Sequence[str]) -> EvaluationOptions:
    """Name the features, where a metric looks at any."""
    looks = any(isinstance(METRICS[name], SampleMetric) for name in metrics)
    return (
        dataclasses.replace(options, features=",".join(options.feature_names)) if looks else options
    )


def _without_unused(choice: ChosenOptions) -> ChosenOptions:
    """Put back options that nothing uses, so that what is written can be repeated, and say which
    metrics use them.
    """
    options, notes = choice.options, list(choice.notes)
    names = unused_options(options, options.metric_names)
    said = " ".join(notes).split()
    for name in names:
        if name not in said:  # of some it was said why their metric was not chosen
            users = USED_BY[name]
            notes.append(
                f"{name} had no effect: it is for {', '.join(users)} (metrics={users[0]!r},"
                f" --metrics {users[0]})."
            )
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(options)}
    return ChosenOptions(
        dataclasses.replace(options, **{name: defaults[name] for name in names}), notes
    )


def _for_images(options: EvaluationOptions, dataset: Any) -> ChosenOptions:
    names, features = ["kid", "pr"], ",".join(options.feature_names)
    reference = options.reference or options.data
    path = Path(reference)
    if dataset is None and path.is_file() and "images" not in (held := contents(path)) and held:
        # Statistics know a mean and a covariance only, of features that the file may name.
        names = ["fid"]
        if options.features == AUTO:
            layer = read_statistics(path)[1].get("features") if "statistics" in held else None
            known = {layer_of(name): name for name in FEATURES}
            features = known.get(layer or "", "inception2048")
    if options.held_out is not None:
        names.append("memorisation")
    return ChosenOptions(
        dataclasses.replace(options, metrics=",".join(names), features=features), []
    )


def _for_run(options: EvaluationOptions, own: RunImages, dataset: Any) -> ChosenOptions:
    diffusion, notes, names = own.loaded.diffusion, [], []
    other = dataset is not None or options.data not in ("held-out", "train")
    train: ImageDataset | None = None
    held_out: ImageDataset | None = None
    try:
        train, held_out = own.sets()
    except ConfigError as error:
        if not (other or options.reference not in (None, "train", "held-out")):
            raise
        notes.append(f"memorisation and loss_gap were left out: {error}")
    if is_pictures(diffusion):
        names += ["kid", "pr"]
    else:
        names.append("values")
    names += ["memorisation"] if train is not None else []
    if held_out is not None and len(held_out) >= AT_LEAST["loss_gap"]:
        names.append("loss_gap")
    elif train is not None:
        there = "no images" if held_out is None else "1 image"
        notes.append(
            f"this run held {there} out, so over-fitting (loss_gap) was not measured. Train with"
            f" more images, {option('val_fraction')} > 0 and {option('val_every')} > 0, or with"
            " val_data."
        )
    if held_out is not None and len(held_out) >= AT_LEAST["adherence"]:
        told = has_values(held_out, data_conditions(diffusion.conditioners))
        names += ["adherence"] if len(diffusion.image_size) == 2 and told.any() else []
    changes: dict[str, Any] = {}
    likelihood = trains_likelihood(diffusion)
    if likelihood and (held_out is not None or other):
        names.append("nll")
        changes["num_levels"] = options.num_levels or min(LEVELS, diffusion.timesteps)
    else:
        given = [name for name in ("num_levels", "num_steps") if getattr(options, name) is not None]
        if given:
            why = (
                "there are no held-out images"
                if likelihood
                else "this run was not trained for likelihood"
            )
            notes.append(
                f"{' and '.join(given)} had no effect: bits/dim were not measured, as {why} "
                "(metrics='nll', --metrics nll, measures them all the same)."
            )
    if options.num is None:
        known = train if train is not None else dataset
        n = len(known) if known is not None else MOST
        changes["num"] = min(MOST, max(FEWEST, n))
    changed = dataclasses.replace(
        _with_features(options, names), metrics=",".join(names), **changes
    )
    return ChosenOptions(changed, notes)


def too_few(name: str, store: FeatureStore | None) -> str:
    """Say why a metric of samples would say nothing of sets of these sizes; "" where it would."""
    least = AT_LEAST.get(name)
    if store is None or least is None or name in ("loss_gap", "adherence"):
        return ""
    against = "train" if name == "memorisation" else "reference"
    there = [store.n] + ([store.sets[against].n] if against in store.sets else [])
    if min(there) >= least:
        return ""
    return (
        f"{name} was left out: it needs at least {least} images on each side; got"
        f" {' and '.join(map(str, there))}."
    )
