"""Running the metrics, and what is left out where sets are too small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation.defaults import too_few
from ddpm_lib.evaluation.feature_store import FeatureStore
from ddpm_lib.evaluation.metric_table import METRICS
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask, SampleTask
from ddpm_lib.metrics.neighbours import TooFewImagesError

Scorer = Callable[[], list[Score]]


def bind_metrics(
    names: Sequence[str],
    model: ModelTask | None,
    samples: SampleTask | None,
) -> dict[str, Scorer]:
    """Bind each metric to the task of its kind, in the order of the names."""
    scorers: dict[str, Scorer] = {}
    for name in names:
        metric = METRICS[name]
        if isinstance(metric, SampleMetric):
            if samples is not None:
                scorers[name] = partial(metric, samples)
        elif model is not None:
            scorers[name] = partial(metric, model)
    return scorers


def run_metrics(
    scorers: Mapping[str, Scorer], store: FeatureStore | None, automatic: bool
) -> tuple[list[Score], list[str]]:
    """Run metrics; of those that nobody named, leave out what rests on too few images.

    Args:
        scorers: The metrics by name.
        store: Features that metrics of samples look at; None without such a metric.
        automatic: Whether nobody named the metrics.

    Returns:
        The scores, and why metrics were left out.

    Raises:
        ConfigError: If there are no scores.
        TooFewImagesError: If a metric that was named rests on too few images.
    """
    scores: list[Score] = []
    left_out: list[str] = []
    for name, scorer in scorers.items():
        why = too_few(name, store) if automatic else ""
        if not why:
            try:
                scores += scorer()
            except TooFewImagesError as error:
                if not automatic:
                    raise
                why = f"{name} was left out: {error}"
        if why:
            left_out.append(why)
    if not scores:
        told = " ".join(left_out)
        raise ConfigError(f"{told} Use more images, or name metrics (--metrics fid).")
    return [*scores, *_likelihood_difference(scores)], left_out


def _likelihood_difference(scores: Sequence[Score]) -> list[Score]:
    """Compare the two likelihoods image by image: most of the spread between images is common to
    both.
    """
    found = {s.name: s.per_image for s in scores}
    bound, flow = found.get("nll"), found.get("flow_nll")
    if bound is None or flow is None:
        return []
    return [mean_score("nll - flow_nll", bound - flow, "bits/dim")]
