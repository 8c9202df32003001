"""Commands as users type them, with little to compute."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from ddpm_lib import GaussianDiffusion
from ddpm_lib.cli import ablate, distill, evaluate, train, tune
from ddpm_lib.evaluation.tuning.tuner import Tuner
from ddpm_lib.training.planning import deciding
from plan_tools import cost

STEPS = 4


def less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make networks narrow, trainings and samplings short, large numbers of samples small."""
    settings_of, sample, ablated = train.settings_of, GaussianDiffusion.sample, ablate.ablate

    def few_steps(command: Any) -> Any:
        settings = settings_of(command)
        model = {"dim": 8, "blocks_per_level": 1, "attention_levels": ()}
        if len(settings.model.dim_mults) > 2:
            model["dim_mults"] = (1, 2, 2, 2)[: len(settings.model.dim_mults)]
        names = ("sample_every", "val_every", "save_every")
        told = {name: getattr(settings, name) for name in names}
        cadence = {name: STEPS if v == "auto" else min(v, STEPS) for name, v in told.items()}
        return dataclasses.replace(
            settings,
            max_steps=STEPS,
            model=dataclasses.replace(settings.model, **model),
            sample_steps=2,
            posthoc_every=STEPS // 2,
            sample_count=4,
            val_max_images=16,
            warmup_steps=0,
            **cadence,
        )

    @functools.wraps(sample)
    def quick(self: GaussianDiffusion, *args: Any, **options: Any) -> Any:
        listed = isinstance(options.get("spacing"), (list, tuple)) or self.sampling_default
        return sample(self, *args, **options if listed else options | {"num_steps": 2})

    tuned = distill.Distillation.run

    def few_tunings(self: distill.Distillation, given: Any, callbacks: Any = ()) -> Any:
        own = dataclasses.replace(self.options, num_samples=64, teacher_steps=2)
        cadence = {"val_every": STEPS, "sample_every": STEPS, "save_every": STEPS}
        few = {**given, **cadence, "max_steps": STEPS, "sample_count": 4, "val_max_images": 16}
        return tuned(dataclasses.replace(self, options=own), few, callbacks)

    found, reported = tune.tune, Tuner._report

    def few_ways(*args: Any, **options: Any) -> Any:
        few = {"num": 20, "starts": 4, "iterations": 1, "samplers": ("ddim",), "guidance": False}
        return found(*args, **options | few | {"calls": 3, "teacher_calls": 6})

    def better(self: Tuner, *args: Any) -> Any:
        return reported(self, *args)[0], True

    def few_images(*args: Any, **options: Any) -> Any:
        return ablated(*args, **options | {"images": 256, "seeds": options["seeds"][:1]})

    def few_samples(scored: Any) -> Any:
        def fewer(target: Any, **options: Any) -> Any:
            # The usual number follows small sets; the thousands of the built-in one take long.
            usual = 24 if "shapes" in str(target) else None
            num = min(options["num"], 24) if options["num"] else usual
            return scored(target, **options | {"num": num})

        return fewer

    for name in ("evaluate", "evaluate_checkpoints", "evaluate_verified"):
        monkeypatch.setattr(evaluate, name, few_samples(getattr(evaluate, name)))
    monkeypatch.setattr(train, "settings_of", few_steps)
    monkeypatch.setattr(distill.Distillation, "run", few_tunings)
    monkeypatch.setattr(deciding, "rehearse", lambda settings, images: cost(0.1, 10**7, 32))
    monkeypatch.setattr(ablate, "ablate", few_images)
    monkeypatch.setattr(tune, "tune", few_ways)
    monkeypatch.setattr(Tuner, "_report", better)
    monkeypatch.setattr(GaussianDiffusion, "sample", quick)


def smaller_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Inception the smallest pictures it takes, 75×75 instead of 299×299."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
