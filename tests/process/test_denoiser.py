"""One class without bases, one place that calls the network, one place that says how to sample."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddpm_lib
from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.guidance import ClassLogProb
from ddpm_lib.nn import LowRes
from ddpm_lib.process import editing, encoding, likelihood, loss, restoring, sampling
from ddpm_lib.process.cascade import Stage
from ddpm_lib.process.conditions import class_count, find_conditioner, guidable
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.plan import (
    DefaultSteps,
    SamplingPlan,
    all_steps,
    level_of_fraction,
    repaint_steps,
    resolve_num_steps,
    usual_steps,
)
from ddpm_lib.samplers import DDIM, DDPM
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import TimeSampler
from process_tools import TinyNet
from training_helpers import tiny_trainer

ROOT = Path(ddpm_lib.__file__).parent
T = 20
SCHEDULE = Schedule.make("cosine", T)
LONG = Schedule.make("cosine", 400)


def tiny(**options: Any) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), image_size=4, timesteps=T, **options)


def test_the_process_inherits_nothing_but_a_module() -> None:
    assert GaussianDiffusion.__mro__ == (GaussianDiffusion, *nn.Module.__mro__)


def test_the_methods_are_the_functions_of_the_room() -> None:
    rooms = {
        sampling: ("sample",),
        editing: ("edit", "inpaint"),
        restoring: ("restore",),
        encoding: ("encode", "decode", "interpolate"),
        likelihood: ("bits_per_dim", "flow_bits_per_dim"),
        loss: ("forward", "losses", "effective_weights", "q_sample"),
    }
    for room, names in rooms.items():
        for name in names:
            assert vars(GaussianDiffusion)[name] is getattr(room, name)


# Who calls the network.


def calls_in(path: Path) -> set[str]:
    """Return the last name of everything that a file calls: f of f(…), of a.f(…)."""
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    return names | {call.attr for call in calls if isinstance(call, ast.Attribute)}


def test_only_the_denoiser_calls_a_network() -> None:
    files = [path for path in ROOT.rglob("*.py") if "nn" not in path.relative_to(ROOT).parts]
    users = {p.name for p in files if "call_network" in calls_in(p)}
    assert users == {"denoiser.py", "exporting.py"}, "exports trace the network as it is"
    mathematics = [*(ROOT / "process").glob("*.py"), *(ROOT / "samplers").glob("*.py")]
    mathematics += [ROOT / f"{name}.py" for name in ("diffusion", "guidance")]
    assert len(mathematics) > 25
    direct = {p.name for p in mathematics if calls_in(p) & {"network", "model", "net"}}
    assert direct == {"network_calls.py"}


class Traced(TinyNet):
    """Notes the files of the library that stand between the caller and the network."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.callers: list[list[str]] = []

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        frame, files = sys._getframe(), []
        while (frame := frame.f_back) is not None:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT):
                files.append(Path(frame.f_code.co_filename).name)
        self.callers.append(files)
        return super().forward(x, t, cond)


IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(4) > 1
METHODS: dict[str, Callable[[GaussianDiffusion], object]] = {
    "forward": lambda d: d(IMAGES),
    "sample": lambda d: d.sample(2, num_steps=2),
    "edit": lambda d: d.edit(IMAGES, num_steps=4),
    "inpaint": lambda d: d.inpaint(
        IMAGES, MASK.expand(4, 4), num_steps=4, jump_length=1, num_resamples=2
    ),
    "restore": lambda d: d.restore(IMAGES, "blur:1", num_steps=2),
    "encode": lambda d: d.encode(IMAGES, 2),
    "decode": lambda d: d.decode(IMAGES, 2),
    "interpolate": lambda d: d.interpolate(IMAGES, IMAGES.flip(0), num_steps=4),
    "bits_per_dim": lambda d: d.bits_per_dim(IMAGES, num_levels=2),
    "flow_bits_per_dim": lambda d: d.flow_bits_per_dim(IMAGES, tolerance=1e-1),
    "denoise": lambda d: d.denoise(IMAGES, d.schedule.level(3)),
    "estimate": lambda d: d.estimate(
        IMAGES,
        torch.full((2, 1, 1, 1), 0.6),
        torch.full((2, 1, 1, 1), 0.8),
        torch.tensor([4, 5]),
        None,
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_call_of_a_network_comes_from_the_denoiser(method: str) -> None:
    network = Traced()
    METHODS[method](GaussianDiffusion(network, image_size=4, timesteps=T))
    assert network.callers
    assert all(files[:2] == ["network_calls.py", "denoiser.py"] for files in network.callers)


# The denoiser.


def test_a_denoiser_has_no_parameters_and_cannot_be_changed() -> None:
    d = tiny()
    assert isinstance(d.denoiser, Denoiser)
    assert not isinstance(d.denoiser, nn.Module)
    assert set(d.state_dict()) == {f"model.{name}" for name in d.model.state_dict()}
    with pytest.raises(dataclasses.FrozenInstanceError):
        d.denoiser.clip = "none"  # type: ignore[misc]


def test_a_denoiser_follows_the_process() -> None:
    d = tiny()
    d.model = TinyNet(hidden=3)
    assert d.denoiser.network is d.model
    assert d.double().denoiser.network.a.dtype == torch.float64


def test_using_another_network() -> None:
    d, other = tiny(), TinyNet(hidden=5)
    denoiser = d.denoiser
    assert denoiser.using(None) is denoiser
    assert denoiser.clipping(None) is denoiser
    swapped = denoiser.using(other)
    assert swapped.network is other
    assert denoiser.network is d.model
    for name in (f.name for f in dataclasses.fields(Denoiser) if f.name != "network"):
        assert getattr(swapped, name) is getattr(denoiser, name)
    theirs = GaussianDiffusion(other, image_size=4, timesteps=T)
    options: dict[str, Any] = {"num_steps": 3, "seed": 4}
    assert torch.equal(d.sample(2, model=other, **options), theirs.sample(2, **options))
    assert not torch.equal(d.sample(2, model=other, **options), d.sample(2, **options))


def test_a_wrapped_network_keeps_the_conditions_of_its_process() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
            output: Tensor = self.inner(x, t, cond)
            return output

    torch.manual_seed(0)
    network = Unet(8, (1,), blocks_per_level=1, num_classes=3, class_drop_prob=0.5)
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    d = GaussianDiffusion(network, image_size=4, timesteps=T)
    options: dict[str, Any] = {
        "num_steps": 2,
        "cond": {"class_label": [0, 2]},
        "guidance_scale": 2.0,
    }
    assert torch.equal(d.sample(2, model=Wrapper(network), **options), d.sample(2, **options))


def test_the_raw_output_and_the_clean_image_make_the_prediction() -> None:
    d = GaussianDiffusion(TinyNet(outputs=2), image_size=4, timesteps=T, variance="learned_range")
    level, x = d.schedule.level(7), torch.randn(2, 3, 4, 4)
    output, v = d.denoiser.raw(x, level.alpha, level.sigma, torch.full((2,), 6.0), None)
    assert v is not None
    assert output.shape == v.shape == x.shape
    found = d.denoiser.predict(x, level)
    assert torch.equal(found.x0, d.denoiser.clean(x, output, level.alpha, level.sigma))
    free = d.denoiser.clipping("none").predict(x, level)
    assert torch.equal(free.x0, d.denoise(x, level, clip="none").x0)
    assert torch.equal(free.x0.clamp(-1, 1), found.x0)


def test_a_wrong_shape_is_refused() -> None:
    d = GaussianDiffusion(nn.AvgPool2d(2), image_size=4, channels=3, timesteps=T)
    d.model.forward = lambda x, t, cond: x[..., :2]
    with pytest.raises(ValueError, match=r"returned shape \(2, 3, 4, 2\), expected \(2, 3, 4, 4\)"):
        d.denoise(torch.zeros(2, 3, 4, 4), d.schedule.level(3))


# The plan.


@pytest.mark.parametrize(
    ("default", "sampler", "short", "long"),
    [
        (usual_steps, "ddpm", 20, 400),
        (usual_steps, DDPM(), 20, 400),
        (usual_steps, "ddim", 20, 50),
        (usual_steps, DDIM(eta=1.0), 20, 50),
        (usual_steps, "unipc", 20, 20),
        (usual_steps, "dpmpp_2m", 20, 50),
        (all_steps, "ddim", 20, 400),
        (repaint_steps, "ddpm", 20, 250),
    ],
)
def test_the_default_number_of_steps(
    default: DefaultSteps, sampler: Any, short: int, long: int
) -> None:
    for schedule, wanted in ((SCHEDULE, short), (LONG, long)):
        plan = SamplingPlan.make(schedule, sampler=sampler, default_steps=default)
        assert plan.num_steps == wanted
        assert plan.levels[0].t == schedule.timesteps
        assert plan.levels[-1].t == 0
        assert resolve_num_steps(sampler, None, schedule.timesteps, "trailing", default) == wanted
        assert (
            SamplingPlan.make(
                schedule, sampler=sampler, num_steps=3, default_steps=default
            ).num_steps
            == 3
        )


@pytest.mark.parametrize(("spacing", "steps"), [("ddim25", 25), ("10,15", 25), ([300.0, 20.5], 2)])
def test_a_spacing_that_says_how_many_steps_has_its_word(spacing: Any, steps: int) -> None:
    assert SamplingPlan.make(LONG, spacing=spacing).num_steps == steps
    assert resolve_num_steps("ddim", None, 400, spacing) is None
    with pytest.raises(ValueError, match="contradicts"):
        SamplingPlan.make(LONG, spacing=spacing, num_steps=steps + 1)


def test_a_plan_is_made_of_keywords_and_refuses_what_sample_refuses() -> None:
    plan = SamplingPlan.make(
        SCHEDULE,
        sampler="ddim",
        eta=0.5,
        num_steps=4,
        guidance_scale=3.0,
        guidance_interval=(0.1, 0.9),
    )
    assert plan.sampler == DDIM(eta=0.5)
    assert [level.t for level in plan.levels] == [20, 15, 10, 5, 0]
    assert (plan.guidance.scale, plan.guidance.interval) == (3.0, (0.1, 0.9))
    for wrong in (
        {"sampler": "nonsense"},
        {"num_steps": 21},
        {"guidance_rescale": 2.0},
        {"spacing": "nonsense"},
    ):
        with pytest.raises(ValueError) as ours:
            SamplingPlan.make(SCHEDULE, **wrong)
        with pytest.raises(ValueError) as theirs:
            tiny().sample(**wrong)
        assert str(ours.value) == str(theirs.value)


def test_parts_of_a_plan() -> None:
    plan = SamplingPlan.make(SCHEDULE, num_steps=4, spacing="trailing")
    middle = level_of_fraction(SCHEDULE, 0.6)
    assert [level.t for level in plan.starting_at(middle).levels] == [12, 10, 5, 0]
    assert [level.t for level in plan.upwards().levels] == [0, 5, 10, 15, 20]
    assert [level.t for level in plan.visiting([4, 3, 4, 0]).levels] == [20, 15, 20, 0]
    label = torch.tensor([4, 5, 6])
    guided = SamplingPlan.make(SCHEDULE, classifier=ClassLogProb(lambda x, t: x.flatten(1), label))
    part = guided.rows(1, 3).guidance.classifier
    assert isinstance(part, ClassLogProb)
    assert torch.equal(torch.as_tensor(part.label), label[1:])


def test_a_drawn_plan_is_what_sample_draws() -> None:
    d = tiny()
    options: dict[str, Any] = {"sampler": "ddim", "eta": 0.7, "num_steps": 5, "spacing": "linspace"}
    plan = SamplingPlan.make(d.schedule, **options)
    assert torch.equal(sampling.draw(d, plan, 3, seed=2), d.sample(3, seed=2, **options))


def test_a_stage_has_a_plan() -> None:
    stage = Stage(tiny(), "ddim", 5, eta=0.2, guidance_scale=2.0)
    assert stage.plan.sampler == DDIM(eta=0.2)
    assert stage.plan.num_steps == 5
    assert stage.plan.guidance.scale == 2.0
    assert Stage(tiny(), "ddpm").plan.num_steps == T


# The losses.


def test_losses_say_their_levels_and_weights() -> None:
    d = tiny(time_sampler="loss_aware", time_sampler_options={"history": 1})
    d.time_sampler.update(torch.arange(1, T + 1), torch.linspace(0.5, 2.0, T))
    u, noise = torch.tensor([0.05, 0.9], dtype=torch.float64), torch.randn(2, 3, 4, 4)
    found = d.losses(IMAGES, uniform=u, noise=noise)
    t, importance = d.time_sampler(u, T)
    assert importance is not None
    assert not torch.allclose(importance, torch.ones(2, dtype=torch.float64))
    assert torch.equal(found.t, t)
    assert torch.equal(found.weight, importance.float())
    assert torch.equal(found.per_image, d(IMAGES, uniform=u, noise=noise, reduction="none"))
    torch.testing.assert_close(
        found.per_image, found.weight * d(IMAGES, t=t, noise=noise, reduction="none")
    )
    assert torch.equal(found.per_image.mean(), d(IMAGES, uniform=u, noise=noise))
    again = d(IMAGES, uniform=u, noise=noise, reduction="losses")
    assert isinstance(again, loss.Losses)
    assert torch.equal(again.per_image, found.per_image)
    with pytest.raises(ValueError, match="reduction must be"):
        d(IMAGES, reduction="sum")


def test_levels_are_drawn_once_per_forward_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[int] = []
    real = TimeSampler.__call__

    def counted(self: TimeSampler, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        drawn.append(len(u))
        return real(self, u, timesteps)

    monkeypatch.setattr(TimeSampler, "__call__", counted)
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.train()
    assert len(drawn) == 3
    assert sum(drawn) == 3 * trainer.config.batch_size


# The conditions of a network.


def test_conditioners_are_found_by_kind() -> None:
    enlarging = Unet(
        8, (1,), blocks_per_level=1, num_classes=3, class_drop_prob=0.5, low_res_factor=2
    )
    d = GaussianDiffusion(enlarging, image_size=4, timesteps=T)
    low_res = find_conditioner(d.conditioners, LowRes)
    assert low_res is enlarging.conditioners["low_res"]
    assert class_count(d.conditioners) == 3
    assert guidable(d.conditioners) == ["class_label"]
    for nothing in (None, {}, Unet(8, (1,), blocks_per_level=1).conditioners):
        assert find_conditioner(nothing, LowRes) is None
        assert class_count(nothing) is None
        assert guidable(nothing) == []
