"""Plans: from a look at the data, a pretended speed and hours to settings with reasons."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ddpm_lib
from ddpm_lib import Shapes, TrainingConfig, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import open_dataset
from ddpm_lib.data.survey_facts import Survey
from ddpm_lib.nn import PRESETS
from ddpm_lib.training.callbacks.stop_when import check_images, check_options
from ddpm_lib.training.estimate import Estimate
from ddpm_lib.training.planning import deciding, plan
from ddpm_lib.training.planning import plan_rules as rules
from ddpm_lib.training.planning.budget import RESERVE, TimeBudget
from ddpm_lib.training.planning.rehearsing import Settings
from plan_tools import cost


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Pretend a machine of so many multiplications per second, forward and back."""

    def make(rate: float) -> None:
        def rehearse(settings: Settings, images: int) -> Estimate:
            batch, model = settings.training["batch_size"], settings.model
            size = settings.diffusion["image_size"]
            pixels = math.prod(size) if isinstance(size, tuple) else size**2
            near = min(rules.NETWORKS, key=lambda network: abs(network.dim - model["dim"]))
            macs = round(near.work(pixels, model.get("patch_size", 1) > 1))
            return cost(3 * macs * batch / rate, macs, batch)

        monkeypatch.setattr(deciding, "rehearse", rehearse)

    make(30e9)
    return make


def seen(images: int = 2000, size: tuple[int, int] = (200, 200), **more: Any) -> Survey:
    """A set of pictures of one width and height."""
    sizes = np.tile(size, (min(images, 400), 1))
    return Survey(images, min(images, 400), sizes, False, False, 3, **more)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend data."""

    def make(*args: Any, **kwargs: Any) -> None:
        found = seen(*args, **kwargs)
        monkeypatch.setattr("ddpm_lib.training.planning.planner.survey", lambda *a, **k: found)

    make()
    return make


Machine = Callable[[float], None]
Data = Callable[..., None]


def test_a_batch_that_is_found_out_is_that_of_the_rehearsal(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes and the onset of copies are of so many images per step."""
    monkeypatch.setattr(deciding, "rehearse", lambda settings, images: cost(0.1, batch=48))
    made = plan("pictures", hours=1, batch_size="auto")
    assert made.settings["batch_size"] == "auto"
    assert made.passes == made.steps * 48 / made.train_images
    assert made.copies_from == rules.copies_from(made.train_images, 48)
    assert "batch_size: auto" in str(made)


def test_every_line_has_a_reason_and_what_it_rests_on(machine: Machine, data: Data) -> None:
    """And the file says what the plan says."""
    made = plan("pictures", hours=1)
    assert all(one.reason and one.evidence for one in made.decisions)
    text = str(made)
    assert yaml.safe_load(text) == made.settings
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(" # " in line for line in lines if not line.endswith(":"))
    for word in ("time", "memory", "disk", "passes", "copies"):
        assert f"\n# {word} " in text


def test_a_plan_can_be_trained(machine: Machine) -> None:
    """Network, process and options are those of the plan."""
    images = Shapes(size=16, n=300)
    made = plan(images, hours=0.5, seed=3)
    trainer = made.trainer(output_dir="unused", progress=False)
    assert trainer.config.max_steps == made.steps
    assert trainer.config.seed == 3
    assert trainer.diffusion.image_size == (16, 16)
    process = made.settings["diffusion"]
    assert {name: trainer.diffusion.config[name] for name in process} == process
    assert trainer.diffusion.model.config["num_classes"] == 6


def test_it_fits_into_the_hours(machine: Machine, data: Data) -> None:
    """Steps, validations, grids, start and final score, with a fifth in reserve."""
    for rate in (1e9, 30e9, 1e12):
        machine(rate)
        for hours in (0.05, 0.5, 5.0):
            made = plan("pictures", hours=hours)
            assert made.seconds <= 3600 * hours * (RESERVE + 0.05)
            assert made.settings["max_hours"] == hours


def test_more_time_makes_more_of_it(machine: Machine, data: Data) -> None:
    """Side × width never falls with the hours, and grows."""
    data(100_000)
    sizes = []
    for hours in (0.1, 0.5, 2, 10, 100, 1000):
        made = plan("pictures", hours=hours).settings
        dim = made["model"].get("dim", {"tiny": 32, "small": 64}[made["preset"]])
        sizes.append(made["image_size"][0] * dim)
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 4 * sizes[0]


def test_a_network_gets_the_steps_that_it_needs(machine: Machine, data: Data) -> None:
    """Where there is time for one at all."""
    data(100_000)
    for hours in (1, 4, 40):
        made = plan("pictures", hours=hours)
        options, side = made.settings, made.settings["image_size"][0]
        dim = options["model"].get("dim", {"tiny": 32, "small": 64}[options["preset"]])
        chosen = next(n for n in rules.NETWORKS if n.dim == dim)
        assert made.steps >= chosen.needs(side * side)


@pytest.mark.parametrize("patches", [False, True])
def test_the_work_of_networks_is_what_they_do(patches: bool) -> None:
    """Within 7 %, at the size that the numbers are for."""
    network = rules.NETWORKS[0]
    model = Unet(**PRESETS[network.preset], patch_size=2 if patches else 1)
    assert network.work(32**2, patches) == pytest.approx(model.summary((32, 32)).macs, rel=0.07)


def test_what_is_given_stays(machine: Machine, data: Data) -> None:
    """And is planned around."""
    given = {"image_size": (48, 32), "batch_size": 8, "learning_rate": 1e-5}
    made = plan("pictures", hours=1, model={"dim": 24, "dim_mults": (1, 2)}, **given)
    options = made.settings
    assert options["image_size"] == [48, 32]
    assert (options["batch_size"], options["learning_rate"]) == (8, 1e-5)
    assert (options["model"]["dim"], options["model"]["dim_mults"]) == (24, (1, 2))
    assert {one.evidence for one in made.decisions if one.name in given} == {"given"}
    fewer = plan("pictures", hours=1, max_steps=77)
    assert fewer.steps == 77
    assert fewer.settings["warmup_steps"] == 3


OTHER: dict[str, dict[str, Any]] = {
    **{"output_dir": {"output_dir": "runs/x"}, "resume": {"resume": "never"}},
    **{"override": {"override": True}, "init_from": {"init_from": "runs/old"}},
    "init_weights": {"init_from": "runs/old", "init_weights": "model"},
    **{"freeze": {"freeze": ("time_embedding",)}, "pull_to_start": {"pull_to_start": 0.1}},
    **{"seed": {"seed": 1}, "max_steps": {"max_steps": 500}, "max_hours": {"max_hours": 2.0}},
    **{"stop_when": {"stop_when": ("flat",)}, "patience": {"patience": 5}},
    **{"batch_size": {"batch_size": 16}, "accumulation_steps": {"accumulation_steps": 2}},
    **{"shards": {"shards": 2}, "optimizer": {"optimizer": "adam"}},
    **{"learning_rate": {"learning_rate": 1e-4}, "lr_schedule": {"lr_schedule": "linear"}},
    **{"warmup_steps": {"warmup_steps": 7}, "weight_decay": {"weight_decay": 0.1}},
    "final_learning_rate_ratio": {"final_learning_rate_ratio": 0.1},
    **{"cooldown_fraction": {"lr_schedule": "wsd", "cooldown_fraction": 0.1}},
    **{"adam_betas": {"adam_betas": (0.8, 0.99)}, "adam_eps": {"adam_eps": 1e-6}},
    **{"max_grad_norm": {"max_grad_norm": None}, "ema_decay": {"ema_decay": (0.9,)}},
    **{"ema_power": {"ema_power": 0.5}, "posthoc_ema": {"posthoc_ema": (0.05, 0.1)}},
    "posthoc_every": {"posthoc_ema": (0.05, 0.1), "posthoc_every": 10},
    **{"fit": {"fit": "pad"}, "labels": {"labels": "none"}},
    **{"image_column": {"image_column": "img"}, "label_column": {"label_column": "fine"}},
    **{"add_data": {"add_data": ("more",)}, "split": {"split": "train"}},
    "add_condition": {"add_data": ("more",), "add_condition": ("age=meta.csv:age",)},
    **{"condition": {"condition": ("age=meta.csv:age",)}, "files": {"files": "keep.txt"}},
    **{"data_root": {"data_root": "archive"}, "download": {"download": True}},
    **{"on_bad_image": {"on_bad_image": "skip"}, "background": {"background": "black"}},
    **{"max_pixels": {"max_pixels": 10**6}, "value_range": {"value_range": (0.0, 4095.0)}},
    **{"normalize": {"normalize": "affine"}, "slice_axis": {"slice_axis": 0}},
    **{"frames": {"frames": "all"}, "cache": {"cache": "none"}},
    **{"cache_limit_mb": {"cache_limit_mb": 10.0}, "num_workers": {"num_workers": 1}},
    **{"horizontal_flip": {"horizontal_flip": True}, "augment": {"augment": 0.1}},
    **{"val_data": {"val_data": "held"}, "val_labels": {"val_data": "held", "val_labels": "none"}},
    "val_condition": {"val_data": "held", "val_condition": ("age=held.csv:age",)},
    **{"val_fraction": {"val_fraction": 0.2}, "val_every": {"val_every": 10}},
    **{"val_max_images": {"val_max_images": 64}, "log_every": {"log_every": 3}},
    **{"save_every": {"save_every": 10}, "keep_last": {"keep_last": 2}},
    "keep_every": {"save_every": 10, "keep_every": 20},
    **{"keep_best": {"keep_best": None}, "keep_early": {"keep_early": "no"}},
    **{"save_async": {"save_async": True}, "sample_every": {"sample_every": 5}},
    **{"sample_count": {"sample_count": 4}, "sample_sampler": {"sample_sampler": "ddim"}},
    **{"sample_steps": {"sample_steps": 5}, "sample_seed": {"sample_seed": 1}},
    **{"sample_guidance_scale": {"sample_guidance_scale": 2.0}, "report": {"report": False}},
    **{"trackers": {"trackers": ("tensorboard",)}, "progress": {"progress": False}},
    **{"device": {"device": "cpu"}, "mixed_precision": {"mixed_precision": "no"}},
    **{"channels_last": {"channels_last": "no"}, "compile": {"compile": False}},
    **{"cuda_graph": {"cuda_graph": True}, "deterministic": {"deterministic": True}},
    **{"on_nonfinite": {"on_nonfinite": "skip"}, "max_nonfinite": {"max_nonfinite": 5}},
    **{"stall_minutes": {"stall_minutes": 1.0}},
    "process_timeout_minutes": {"process_timeout_minutes": 20.0},
}
"""Every option of a run with a value that is not its default, and what goes with it."""


def test_every_option_is_among_them() -> None:
    """So that a new one is planned with, too."""
    assert set(OTHER) == {field.name for field in dataclasses.fields(TrainingConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_can_be_given(name: str, monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    """What is rehearsed is a possible run, and so is what is planned."""
    configs: list[TrainingConfig] = []

    def estimate(process: Any, config: TrainingConfig, *_: Any) -> Estimate:
        configs.append(config)
        return cost(0.1, 10**6, 32)

    monkeypatch.setattr("ddpm_lib.training.estimate.estimate", estimate)
    if name in ("init_from", "init_weights", "max_hours"):
        with pytest.raises(ConfigError, match=r"A plan chooses a network|limit of a plan"):
            plan("pictures", hours=1, **OTHER[name])
        return
    made = plan("pictures", hours=1, **OTHER[name])
    assert configs
    given, found = OTHER[name][name], made.settings[name]
    if name in ("files", "data_root"):  # so that a plan may be trained from elsewhere
        given = os.path.abspath(given)
    assert found == (list(given) if isinstance(found, list) else given)


def test_small_sets_stop_by_themselves_and_large_ones_do_not(machine: Machine, data: Data) -> None:
    """For copies where samples are wanted, for over-fitting where likelihood is; not where there is
    no time for either.
    """
    data(500)
    assert plan("pictures", hours=9).settings["stop_when"] == ["copying"]
    assert plan("pictures", hours=9, purpose="likelihood").settings["stop_when"] == ["overfitting"]
    assert "stop_when" not in plan("pictures", hours=0.1).settings
    data(50_000)
    assert "stop_when" not in plan("pictures", hours=1).settings


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"val_every": 0},
        {"val_fraction": 0.0},
        {"val_data": "others"},
        {"val_data": "others", "val_fraction": 0.0},
        {"sample_every": 0},
        {"sample_count": 1},
        {"model": {"low_res_factor": 2}},
    ],
)
@pytest.mark.parametrize("purpose", ["samples", "likelihood"])
def test_a_plan_ends_by_what_its_run_measures(
    machine: Machine, data: Data, purpose: str, given: dict[str, Any]
) -> None:
    """However few images there are: no plan is refused when it is trained."""
    stops = set()
    for images in (1, 2, 3, 9, 10, 40):
        data(images)
        made = plan("pictures", hours=20, purpose=purpose, image_size=16, **given)
        settings = Settings.of(made.settings)
        config = TrainingConfig(**settings.training)
        held = 4 if config.val_data else (images - made.train_images) * bool(config.val_every)
        check_options(config, settings.process())
        check_images(config, made.train_images, held)
        stops.add(config.stop_when)
    judged = {"samples": {"sample_every", "sample_count", "model"}, "likelihood": {"val_every"}}
    named = {*given} & judged[purpose] or (purpose == "likelihood" and given == {"val_fraction": 0})
    assert any(stops) == (not named)


def test_a_plan_means_the_same_elsewhere(
    machine: Machine, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is named beside the data is found from every folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "more", "others"):
        (tmp_path / name).mkdir()
    for name in ("keep.txt", "meta.csv"):
        (tmp_path / name).touch()
    given = {
        "files": "keep.txt",
        "val_data": "more",
        "add_data": ("others",),
        "data_root": "more",
        "condition": ("age=meta.csv:age",),
        "val_condition": ("age=meta.csv:years",),
        "add_condition": ("age=meta.csv:old",),
    }
    found = plan("pictures", hours=1, **given).settings
    here = str(tmp_path)
    assert found["files"] == f"{here}/keep.txt"
    assert (found["val_data"], found["data_root"]) == (f"{here}/more", f"{here}/more")
    assert found["add_data"] == [f"{here}/others"]
    for name, column in (
        ("condition", "age"),
        ("val_condition", "years"),
        ("add_condition", "old"),
    ):
        assert found[name] == [f"age={here}/meta.csv:{column}"]


def test_more_time_than_the_data_are_worth_is_left(machine: Machine, data: Data) -> None:
    """60 pictures: three times the prior of the onset of copies, not a day of them."""
    data(60, (32, 32))
    made = plan("pictures", hours=24)
    assert made.steps <= 3 * made.copies_from
    assert made.passes <= 3 * rules.COPY_PASSES
    assert "copies    to be expected from about step 3,000 on" in str(made)


def test_the_prior_is_proportional_to_the_images() -> None:
    """A constant number of passes, at any batch."""
    assert rules.copies_from(2000, 32) == 2 * rules.copies_from(1000, 32)
    assert rules.copies_from(1000, 64) == rules.copies_from(1000, 32) // 2


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grey": ({"images": 2000, "grey": True}, {"channels": 1}),
    "wide": ({"images": 2000, "size": (320, 200)}, {}),
    "classes": (
        {"images": 2000, "class_counts": (500, 1500), "class_names": ("a", "b")},
        {"class_conditional": True, "sample_guidance_scale": 2.0},
    ),
    "classes of few": ({"images": 60, "class_counts": (2,) * 30}, {"class_conditional": False}),
    "no side": ({"images": 2000, "farther": 0.5}, {"horizontal_flip": True}),
    "a side": ({"images": 2000, "farther": 0.9}, {"horizontal_flip": False}),
    "few": ({"images": 100, "size": (32, 32)}, {"val_fraction": 0.2, "batch_size": 32}),
    "very few": ({"images": 20, "size": (32, 32)}, {"batch_size": 8}),
    "many": ({"images": 100_000}, {"val_fraction": 0.05}),
}


@pytest.mark.parametrize(("known", "expected"), CASES.values(), ids=CASES)
def test_what_the_data_say(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    known: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """A rule per line."""
    known = {"grey": False, **known}
    grey = known.pop("grey")
    found = dataclasses.replace(seen(**known), grey=grey)
    monkeypatch.setattr("ddpm_lib.training.planning.planner.survey", lambda *a, **k: found)
    options = plan("pictures", hours=1).settings
    assert {name: options[name] for name in expected} == expected
    assert options["image_size"][0] <= found.short_side


def test_pictures_of_one_shape_keep_it() -> None:
    """A square crop of 320×200 loses three eighths, one of 3:2 hardly anything."""
    size, decided, fit = rules.frame(seen(size=(300, 200)), 32)
    assert (size, fit) == ([32, 48], None)
    assert "a square crop loses 33% of them, this 0%" in decided.reason
    assert rules.frame(seen(size=(200, 300)), 32)[0] == [48, 32]
    assert rules.frame(seen(size=(210, 200)), 32)[0] == [32]
    sizes = np.array([[300, 100], [100, 300]] * 20)
    mixed = dataclasses.replace(seen(40), sizes=sizes)
    size, _, fit = rules.frame(mixed, 32)
    assert (size, fit.value if fit else None) == ([32], "pad")


def test_likelihood_plans_for_bits(machine: Machine, data: Data) -> None:
    """The hybrid loss with learned variances, without flips, augmentation or patches."""
    options = plan("pictures", hours=1, purpose="likelihood").settings
    assert options["diffusion"]["loss"] == "hybrid"
    assert options["diffusion"]["variance"] == "learned_range"
    assert options["model"]["patch_size"] == 1
    assert "horizontal_flip" not in options
    assert "augment" not in options


def test_all_settings_are_possible_together(machine: Machine, data: Data) -> None:
    """Each plan builds, whatever data, hours and purpose."""
    for images, size in ((20, (16, 16)), (900, (500, 375)), (60_000, (28, 28)), (500, (9, 9))):
        data(images, size)
        for purpose in rules.PURPOSES:
            for hours in (0.02, 1.0, 50.0):
                made = plan("pictures", hours=hours, purpose=purpose)
                settings = Settings.of(made.settings)
                TrainingConfig(**settings.training)
                settings.process().model.check_size(settings.process().image_size)


def weather(folder: Path, n: int = 40) -> Path:
    """Write images of two channels of values, with a column and masks beside them."""
    from PIL import Image

    draw = np.random.default_rng(0)
    (folder / "values").mkdir(parents=True)
    (folder / "masks").mkdir()
    for k in range(n):
        name = f"{k:02d}"
        np.save(folder / "values" / f"{name}.npy", draw.standard_normal((2, 24, 24)))
        Image.fromarray(draw.integers(0, 3, (24, 24), np.uint8)).save(folder / f"masks/{name}.png")
    lines = ["file_name,wind", *(f"{k:02d}.npy,{k / 7}" for k in range(n))]
    (folder / "wind.csv").write_text("\n".join(lines))
    return folder


def test_measured_values_are_planned_for(machine: Machine, tmp_path: Path) -> None:
    """Without being told that they are; with a network of their channels, in two and three
    dimensions.
    """
    made = plan(str(weather(tmp_path) / "values"), hours=0.1)
    options = made.settings
    assert (options["normalize"], options["channels"]) == ("affine", 2)
    assert "2 × 24×24 values of float64" in str(made)
    trainer = made.trainer(output_dir=str(tmp_path / "run"), progress=False, device="cpu")
    trainer.prepare()
    assert trainer.dataset.normalization.dtype == "float64"
    np.save(tmp_path / "volumes.npy", np.random.default_rng(1).standard_normal((12, 20, 20, 20)))
    volumes = plan(str(tmp_path / "volumes.npy"), hours=0.1, image_size=[16, 16, 16])
    model = volumes.trainer(output_dir="unused", progress=False).diffusion.model
    assert (model.config["dims"], volumes.settings["horizontal_flip"]) == (3, False)


def test_conditions_are_planned_for(machine: Machine, tmp_path: Path) -> None:
    """The network learns them; what would part images from their masks is not planned; words mean
    the same in other folders.
    """
    root = weather(tmp_path)
    words = (f"wind={root}/wind.csv:wind", f"mask={root}/masks")
    made = plan(str(root / "values"), hours=50, condition=words, augment=0.0)
    table = made.trainer(output_dir="unused", progress=False).diffusion.model.config["conditions"]
    assert {name: one["kind"] for name, one in table.items()} == {"wind": "number", "mask": "mask"}
    assert plan(str(root / "values"), hours=50, condition=words[:1]).settings["augment"] == 0.12
    assert "augment" not in plan(str(root / "values"), hours=50, condition=words).settings
    assert "wind (number), mask (mask)" in str(made)


def test_an_angle_is_not_mirrored() -> None:
    """Its image would be; nor are sizes chosen that small images do not divide."""
    known = seen(farther=0.5, conditions={"turn": {"kind": "angle"}})
    assert rules.flips(known).value is False
    assert rules.flips(seen(farther=0.5)).value is True
    low = {"kind": "image", "factor": 3}
    assert rules.least_step(seen(conditions={"low": low})) == 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no time": ({"hours": 0}, "hours must be a number of at least 0.01; got 0"),
    "a word": ({"hours": "two"}, "hours must be a number"),
    "for ever": ({"hours": float("inf")}, "finite"),
    "not a number": ({"hours": float("nan")}, "hours must be a number"),
    "another purpose": ({"purpose": "sample"}, "samples"),
    "an unknown option": ({"learning_rte": 1}, "learning_rate"),
    "weights": ({"init_from": "runs/a"}, "trained weights have one already"),
    "a limit": ({"max_hours": 1}, "hours is the limit of a plan"),
    "a preset": ({"preset": "tinny"}, "tiny"),
    "a published run": ({"preset": "cifar10-edm"}, "nothing is left to plan"),
    "a size": ({"image_size": 30}, "must be divisible by"),
}


@pytest.mark.parametrize(("options", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_planned_is_refused(
    machine: Machine, data: Data, options: dict[str, Any], told: str
) -> None:
    """Naming what is wrong and what would be right."""
    with pytest.raises((ConfigError, ValueError), match=told):
        plan("pictures", **{"hours": 1, **options})


def test_a_network_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    """With what to ask less of."""
    monkeypatch.setattr(deciding, "rehearse", lambda settings, images: cost(None))
    with pytest.raises(ConfigError, match="does not fit in the memory of this device"):
        plan("pictures", hours=1)


def test_steps_fill_the_time_that_there_is() -> None:
    """Within a tenth of it, and validations of short runs are counted."""
    budget = TimeBudget(2.0, 2000, 32, {"sample_steps": 30})
    steps = budget.steps(cost(0.1))
    whole = budget.whole(steps, cost(0.1))
    assert 0.85 * 7200 * RESERVE <= whole <= 7200 * RESERVE
    assert budget.overhead(100) > budget.overhead(1000) > budget.overhead(10_000)


def test_a_plan_is_written_once(machine: Machine, data: Data, tmp_path: Path) -> None:
    """What lies there is kept; objects have no name that a file could say."""
    path = plan("pictures", hours=1).save(tmp_path / "run.yaml")
    assert path.read_text().startswith("# A plan for 1 hours on cpu, for samples.\n")
    with pytest.raises(ConfigError, match="is there already"):
        plan("pictures", hours=1).save(path)
    images = open_dataset(np.zeros((30, 16, 16, 3), dtype=np.uint8), image_size=16)
    with pytest.raises(ConfigError, match="has no name that a file could say"):
        plan(images, hours=1).save(tmp_path / "other.yaml")


def test_it_is_a_name_of_the_library() -> None:
    """Imported on first use."""
    assert ddpm_lib.plan is plan
