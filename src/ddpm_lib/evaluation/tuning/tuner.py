"""`tune`: learn the levels of few steps, choose the rest of how a run is sampled by one half of its
images, and report on the other.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.text import printable
from ddpm_lib.evaluation.network_conditions import identity_of
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.evaluation.tuning.learning import Learning
from ddpm_lib.evaluation.tuning.subject_of_tuning import Subject, find_subject
from ddpm_lib.evaluation.tuning.tune_options import TuneOptions, steps_for
from ddpm_lib.evaluation.tuning.tune_result import Tuned
from ddpm_lib.evaluation.tuning.units import Units
from ddpm_lib.evaluation.tuning.way_of_sampling import WHOLE, Way
from ddpm_lib.evaluation.tuning.yardstick import Measure, Yardstick, apart
from ddpm_lib.process.conditions import guidable
from ddpm_lib.process.plan import SAMPLER, SPACING
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.stored_sampling import write_sampling
from ddpm_lib.runs.synthesis import synthesise_ema
from ddpm_lib.runtime.devices import process_state
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.spacing import FEW_STEPS, sampling_levels
from ddpm_lib.training.sampling import sample_shared

if TYPE_CHECKING:
    from accelerate import PartialState

    from ddpm_lib.data import ImageDataset

SCALES, PARTNER_SCALES = (1.5, 2.0, 3.0), (1.3, 1.7)
INTERVALS = (WHOLE, (0.2, 0.8), (0.3, 1.0))
ENDS = (None, 0.05, 0.1, 0.2)
"""σ/α of the last noisy level of the library's spacing; None for its own. Trained networks err most
on nearly clean images, which learned levels, made to follow the flow, do not know.
"""
ROUNDS = 2
"""How often every choice is looked at again with the others as they are."""
MOST_LISTED = 60
"""Ways of sampling in the evidence."""


def tune(
    run: str | Path,
    dataset: Any = None,
    *,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> Tuned:
    """Choose how a run is sampled in few network calls, and keep it as the run's default.

    Levels are learned for each solver; then solver, average, guidance, interval and partner are
    chosen together by one half of the images, and the choice is reported on the other. It is kept
    only if it is nearer to the data there than the library's way with as many calls. A tuning that
    was killed goes on with the same call; all processes of a launcher call it.

    Args:
        run: A run directory, or one of its checkpoints.
        dataset: Images to compare with, instead of what the option `data` names.
        log: Gets a line for each thing that is done; default: standard error.
        **options: The fields of `TuneOptions`.

    Raises:
        ConfigError: For wrong options, too few images, or what is no run.
        CheckpointError: If there is no complete checkpoint.
    """
    chosen = TuneOptions.of(dict(options))
    checkpoint = find_subject(run, chosen.checkpoint)
    state = process_state(chosen.device)
    ranks = Processes.of(state)
    subject = Subject(checkpoint, state.device)
    process = subject.process(subject.averages[0])
    sets = RunImages(subject.known[subject.averages[0]], dataset, words=chosen.condition)
    sets.check_words(chosen.data, dataset)
    data, name = _reference(chosen, sets, dataset)
    subject.data = data
    stick = Yardstick(
        data, process, chosen.features, state.device, chosen.feature_weights, chosen.seed
    )
    about = [
        checkpoint.files[min(checkpoint.files)].sha256 if checkpoint.files else "",
        {n: r.sha256 for n, r in sorted(checkpoint.files.items())},
        {k: v for k, v in dataclasses.asdict(chosen).items() if k not in ("progress", "device")},
        identity_of(data),
        ranks.count,
    ]
    units = Units(checkpoint.run, about, ranks)
    quiet = not chosen.progress or not ranks.is_main
    say = (lambda line: None) if quiet else (log or _to_stderr)
    return Tuner(chosen, subject, stick, units, state, name, say).tune()


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _reference(options: TuneOptions, sets: RunImages, dataset: Any) -> tuple[ImageDataset, str]:
    if dataset is not None:
        own = sets.opened(dataset, None, None)
        return own, "the given images"
    if options.data in ("train", "held-out"):
        return sets.get(options.data).steady(), f"{options.data} images"
    return sets.other(options.data, None, None).steady(), printable(Path(options.data).name)


@dataclass
class Tuner:
    """One tuning.

    Attributes:
        options: How.
        subject: What is tuned.
        stick: What ways are measured by.
        units: Keeps what is known.
        state: accelerate's object that knows the ranks.
        reference: What the images are called.
        say: Gets lines.
        measured: The distance of each way to the half that chooses.
    """

    options: TuneOptions
    subject: Subject
    stick: Yardstick
    units: Units
    state: PartialState
    reference: str
    say: Callable[[str], None]
    measured: dict[Way, Measure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.usual = self.subject.averages[0]
        self.process = self.subject.process(self.usual)
        self.learning = Learning(self.subject, self.options, self.units)

    def tune(self) -> Tuned:
        """Choose, report, and keep."""
        calls, timesteps = min(self.options.calls, self.process.timesteps), self.process.timesteps
        self.say(
            f"learning the levels of {len(self.options.samplers)} solvers for {calls} calls, from"
            f" {self.options.starts} images of {self.options.teacher_calls} calls"
        )
        plain = [self._plain(name, calls) for name in self.options.samplers]
        usual = Way(SAMPLER, SPACING, calls, self.usual)
        best = self._best([*plain, *([usual] if SAMPLER in self.options.samplers else [])])
        for _ in range(ROUNDS):
            before = best
            best = self._best([best, *self._neighbours(best, calls)])
            if best == before:
                break
        self.say(f"chosen: {best.words()}")
        default, better = self._report(best, min(calls, timesteps))
        saved = None
        if better and self.units.ranks.is_main:
            self._keep_average(best)
            saved = write_sampling(self.subject.checkpoint.run, default)
        self.units.clear()
        return Tuned(default, saved, better)

    def _plain(self, sampler: str, calls: int) -> Way:
        steps = min(steps_for(sampler, calls), self.process.timesteps)
        learned = self.learning.levels(sampler, steps)
        fixed = min(learned.fixed, key=lambda k: learned.fixed[k])
        self.say(
            f"  {sampler}: {learned.error:.4g} from the end of the flow; fixed spacings"
            f" {learned.fixed[fixed]:.4g} at best ({fixed})"
        )
        return Way(sampler, learned.levels, steps, self.usual)

    def _neighbours(self, way: Way, calls: int) -> Iterable[Way]:
        """Return the ways that differ in one choice, as far as they fit into the calls."""
        found: list[Way | None] = [replace(way, weights=w) for w in self.subject.averages]
        found += [self._fitted(replace(way, sampler=s), calls) for s in self.options.samplers]
        found.append(self._fitted(replace(way, spacing=(), end=None), calls))
        found += [self._fitted(replace(way, spacing=SPACING, end=end), calls) for end in ENDS]
        if self.options.guidance:
            found += self._guided(way, calls)
        return [one for one in dict.fromkeys(found) if one is not None and one != way]

    def _guided(self, way: Way, calls: int) -> list[Way | None]:
        scales = (1.0, *SCALES) if guidable(self.process.conditioners) else (1.0,)
        partners = [name for name in self.subject.partner_names() if name != way.weights]
        guides = [(scale, way.partner, way.partner_scale) for scale in scales]
        guides += [(way.scale, None, 1.0)]
        guides += [(way.scale, name, scale) for name in partners for scale in PARTNER_SCALES]
        wanted = []
        for scale, partner, partner_scale in dict.fromkeys(guides):
            guided = scale != 1.0 or partner is not None
            for interval in INTERVALS if guided else (WHOLE,):
                one = replace(way, scale=scale, interval=interval)
                one = replace(one, partner=partner, partner_scale=partner_scale)
                wanted.append(self._fitted(one, calls))
        return wanted

    def _fitted(self, way: Way, calls: int) -> Way | None:
        """Return a way with as many steps, at levels learned for them, as the calls allow."""
        most = min(steps_for(way.sampler, calls), self.process.timesteps)
        rough = self._levels(way, most)
        for steps in range(most, 0, -1):
            if way.is_guided and self._rough_calls(way, rough, steps) > calls:
                continue
            levels = self._levels(way, steps)
            if way.calls(levels, self.process.timesteps) <= calls:
                spacing = way.spacing if isinstance(way.spacing, str) else levels
                return replace(way, spacing=spacing, steps=steps)
        return None

    def _levels(self, way: Way, steps: int) -> tuple[float, ...]:
        """Return so many noisy levels: of its spacing, or learned for them."""
        if not isinstance(way.spacing, str):
            return self.learning.levels(way.sampler, steps).levels
        schedule, options = self.process.schedule, way.spacing_options
        return tuple(sampling_levels(schedule, steps, way.spacing, options)[:-1])

    def _rough_calls(self, way: Way, rough: tuple[float, ...], steps: int) -> int:
        """Guess the calls of fewer steps from the levels of more, before any are learned."""
        picked = [rough[round(k * (len(rough) - 1) / max(1, steps - 1))] for k in range(steps)]
        return way.calls(picked, self.process.timesteps)

    def _best(self, ways: Iterable[Way]) -> Way:
        found = [(self._measure(way).distance, k, way) for k, way in enumerate(ways)]
        return min(found)[2]

    def _measure(self, way: Way) -> Measure:
        if way not in self.measured:
            values = self.units.get("way", way.to_json(), lambda: self._score(way))
            self.measured[way] = _measure_of(values)
            self.say(f"  {self.measured[way].distance:.4g}  {way.words()}")
        return self.measured[way]

    def _score(self, way: Way) -> dict[str, Any]:
        return _values_of(self.stick.measure(self._features(way, 0), 0))

    def _features(self, way: Way, half: int) -> Tensor:
        """Return features of samples; those that choose and those that report share no noise."""
        process, n = self.subject.process(way.weights), self.options.num
        how = way.arguments()
        if way.partner is not None:
            partner = self.subject.partner(way.partner, way.weights)
            how |= {"guide_by": partner, "guide_scale": way.partner_scale}
        first = half * n
        images = sample_shared(
            process,
            n,
            self.state,
            cond=self.subject.conditions(range(first, first + n)),
            seed=keys.key(self.options.seed, "tuning samples") % 2**31,
            first_index=first,
            batch_size=self.options.batch_size,
            device=self.state.device,
            progress=False,
            **how,
        )
        parts = images.split(256)
        return torch.cat([self.stick.features(part) for part in parts])

    def _report(self, best: Way, calls: int) -> tuple[SamplingDefault, bool]:
        timesteps = self.process.timesteps

        def usual(steps: int) -> Way:
            return Way(SAMPLER, SPACING, min(steps, timesteps), self.usual)

        ways = {
            "tuned": best,
            "same_calls": usual(calls),
            "twice_calls": usual(2 * calls),
            "many_calls": usual(max(FEW_STEPS, 2 * calls)),
        }
        found: dict[str, Measure] = {}
        for name, way in ways.items():
            found[name] = self._reported(way)
        gains = {}
        for name in ("same_calls", "twice_calls", "many_calls"):
            value, error = apart(found[name], found["tuned"])
            gains[name] = {"value": value, "error": error}
        rows = []
        for name, way in ways.items():
            called = way.words() if name == "tuned" else f"{way.sampler} in {way.steps} (untuned)"
            row = {"way": called, "calls": self._calls(way), **found[name].to_json()}
            if row not in rows:
                rows.append(row)
        evidence = self._evidence(rows, gains)
        return self._default(best, evidence), gains["same_calls"]["value"] > 0

    def _reported(self, way: Way) -> Measure:
        def score() -> dict[str, Any]:
            return _values_of(self.stick.measure(self._features(way, 1), 1, neighbours=True))

        return _measure_of(self.units.get("report", way.to_json(), score))

    def _calls(self, way: Way) -> int:
        levels = self._levels(way, way.steps) if isinstance(way.spacing, str) else way.spacing
        return way.calls(levels, self.process.timesteps)

    def _evidence(self, rows: list[dict[str, Any]], gains: dict[str, Any]) -> dict[str, Any]:
        ordered = sorted(self.measured.items(), key=lambda one: one[1].distance)
        return {
            "reported": rows,
            "gains": gains,
            "num": self.options.num,
            "features": self.stick.name,
            "reference": {"name": self.reference, "half": len(self.stick.rows[1])},
            "seed": self.options.seed,
            "compared": [
                {"way": way.words(), "distance": m.distance, "error": m.error}
                for way, m in ordered[:MOST_LISTED]
            ],
            "ends": {
                f"{sampler} in {steps}": {
                    "learned": one.error,
                    "fixed": one.fixed[min(one.fixed, key=lambda k: one.fixed[k])],
                    "spacing": min(one.fixed, key=lambda k: one.fixed[k]),
                }
                for (sampler, steps), one in self.learning.known.items()
            },
        }

    def _default(self, best: Way, evidence: dict[str, Any]) -> SamplingDefault:
        return SamplingDefault(
            made_by="ddpm tune",
            sampler=best.sampler,
            num_steps=best.steps if isinstance(best.spacing, str) else None,
            spacing=best.spacing,
            spacing_options=best.spacing_options,
            guidance_scale=best.scale,
            guidance_interval=best.interval,
            guide_by=best.partner,
            guide_scale=best.partner_scale if best.partner is not None else None,
            weights=best.weights,
            step=self.subject.checkpoint.state.step,
            calls=self._calls(best),
            evidence=evidence,
        )

    def _keep_average(self, best: Way) -> None:
        """Write the average that was chosen where it was made of snapshots alone."""
        kind, _, average = best.weights.partition(" ")
        checkpoint = self.subject.checkpoint
        if kind != "ema" or "=" not in average or average in checkpoint.state.ema_decay:
            return
        length = float(average.partition("=")[2])
        place = checkpoint.run / "ema" / f"sigma_rel-{length:g}-{checkpoint.path.name}"
        if not place.exists():
            synthesise_ema(checkpoint.run, length, checkpoint.state.step)


def _values_of(measure: Measure) -> dict[str, Any]:
    return {**vars(measure), "influence": measure.influence.tolist()}


def _measure_of(values: dict[str, Any]) -> Measure:
    return Measure(
        **{**values, "influence": torch.tensor(values["influence"], dtype=torch.float64)}
    )
