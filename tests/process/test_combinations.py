"""Every combination of parts trains and samples, or is refused for a reason; published libraries
ship options that crash.

Training does not look at samplers and spacings, sampling does not look at weights, losses and time
samplers: the two products together are every combination. They take minutes (`pytest -m slow`);
what runs by default meets every pair of parts.
"""

import warnings
from collections import Counter
from functools import cache
from itertools import cycle, islice, product

import pytest
import torch
from torch import nn

from ddpm_lib import Unet
from ddpm_lib.data import open_dataset, tensor_dataset
from ddpm_lib.diffusion import LOSSES, GaussianDiffusion
from ddpm_lib.nn import register_text_encoder
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.process.clipping import CLIPS
from ddpm_lib.samplers import OF_DENOISERS, SAMPLERS
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.time_sampling import TIME_SAMPLERS
from ddpm_lib.variance import VARIANCES
from ddpm_lib.weighting import WEIGHTINGS
from process_tools import REQUIRED, TinyNet

T = 8
WAYS = list(product(VARIANCES, LOSSES, TIME_SAMPLERS))
LEVELS = [*SPACINGS, [7, 3, 1], "1,2", "ddim4"]


def refusal(
    schedule: Schedule, parametrization: str, variance: str, loss: str, time_sampler: str
) -> str | None:
    """Why this combination makes no sense, None if it does."""
    if PARAMETRIZATIONS[parametrization].needs_signal and float(schedule.alpha[-1]) == 0:
        return "zero terminal SNR"
    learned = VARIANCES[variance].outputs > 1
    if learned and loss == "simple":
        return "never train a learned variance"
    if not learned and loss == "hybrid":
        return "nothing to train"
    if loss in ("hybrid", "vlb") and TIME_SAMPLERS[time_sampler].continuous:
        return "draws times between"
    if loss == "consistency" and parametrization == "eps":
        return "predicts eps"
    return None


FITTING = [way for way in WAYS if refusal(Schedule.make("cosine", T), "v", *way) is None]


@cache
def schedule_of(name: str, zero_terminal_snr: bool) -> Schedule:
    return Schedule.make(
        name, T, {**REQUIRED.get(name, {}), "zero_terminal_snr": zero_terminal_snr}
    )


def build(
    schedule: Schedule,
    parametrization: str = "v",
    weighting: str = "flat",
    way: tuple[str, str, str] = ("fixed_small", "simple", "uniform"),
    clip: str = "static",
    model: nn.Module | None = None,
    **options: object,
) -> GaussianDiffusion:
    variance, loss, time_sampler = way
    with warnings.catch_warnings():
        # A weighting may give level T no weight on a schedule of zero terminal SNR; that it is said
        # is tested elsewhere.
        warnings.simplefilter("ignore", UserWarning)
        return GaussianDiffusion(
            model or TinyNet(outputs=VARIANCES[variance].outputs),
            **{
                "image_size": 3,
                "schedule": schedule,
                "parametrization": parametrization,
                "weighting": weighting,
                "variance": variance,
                "loss": loss,
                "time_sampler": time_sampler,
                "clip": clip,
                **options,
            },
        )


def loss_for(sampler: str, variance: str) -> str:
    """With which a network answers what the sampler takes its answer for."""
    if SAMPLERS[sampler].jumps:
        return "consistency"
    return "hybrid" if VARIANCES[variance].outputs > 1 else "simple"


def train(diffusion: GaussianDiffusion, images: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(diffusion.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        value = diffusion(images)
        value.backward()
        # Some weights on some schedules span thirty orders of magnitude.
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        assert torch.isfinite(value), diffusion.config


def draw(diffusion: GaussianDiffusion, sampler: str, levels: object, n: int = 1) -> None:
    steps = 3 if isinstance(levels, str) and levels in SPACINGS else None
    if diffusion.loss == "consistency":
        sampler = "consistency"
    images = diffusion.sample(n, sampler=sampler, spacing=levels, num_steps=steps)
    assert torch.isfinite(images).all(), (diffusion.config, sampler, levels)


@pytest.mark.every(3)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pair_of_parts(schedule: str, parametrization: str, zero_terminal_snr: bool) -> None:
    table = schedule_of(schedule, zero_terminal_snr)
    if refusal(table, parametrization, *FITTING[0]):
        with pytest.raises(ValueError, match="zero terminal SNR"):
            build(table, parametrization)
        return
    torch.manual_seed(0)
    images = torch.rand(2, 3, 3, 3)
    ways = list(product(OF_DENOISERS, SPACINGS))
    # Where the walk through clips, time samplers and ways to sample begins;
    # `test_every_way_to_sample` sees all of those.
    start = 5 * list(SCHEDULES).index(schedule) + 7 * list(PARAMETRIZATIONS).index(parametrization)
    fitting = [way for way in FITTING if refusal(table, parametrization, *way) is None]
    for i, weighting in enumerate(WEIGHTINGS, start):
        diffusion = build(
            table,
            parametrization,
            weighting,
            fitting[i % len(fitting)],
            list(CLIPS)[i % len(CLIPS)],
        )
        train(diffusion, images)
        draw(diffusion, *ways[i % len(ways)])
    diffusion = build(table, parametrization)
    assert torch.isfinite(diffusion.bits_per_dim(images, num_levels=3).total).all()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train(way: tuple[str, str, str]) -> None:
    table = Schedule.make("cosine", T)
    reason = refusal(table, "v", *way)
    if reason is None:
        train(build(table, way=way), torch.rand(2, 3, 3, 3))
    else:
        with pytest.raises(ValueError, match=reason):
            build(table, way=way)


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_way_to_sample(parametrization: str, variance: str, sampler: str) -> None:
    loss = loss_for(sampler, variance)
    if refusal(schedule_of("cosine", False), parametrization, variance, loss, "uniform"):
        with pytest.raises(ValueError, match="predicts eps"):
            build(schedule_of("cosine", False), parametrization, way=(variance, loss, "uniform"))
        return
    # Each way of clipping meets each choice of levels with one parametrization at least.
    clips = cycle(CLIPS)
    for levels, clip in zip(
        LEVELS, islice(clips, list(PARAMETRIZATIONS).index(parametrization), None)
    ):
        diffusion = build(
            schedule_of("cosine", False),
            parametrization,
            way=(variance, loss, "uniform"),
            clip=clip,
        )
        draw(diffusion, sampler, levels, 2)


SWITCHES = {
    "offset_noise": 0.1,
    "input_perturbation": 0.1,
    "immiscible": True,
    "learn_uncertainty": True,
    "self_condition": True,
    "num_classes": 2,
    "loss": "consistency",
}
FORBIDDEN = ("input_perturbation", "learn_uncertainty", "self_condition")
"""Where answers at two levels are compared."""


@pytest.mark.every(3)
@pytest.mark.parametrize("on", list(product([False, True], repeat=len(SWITCHES))))
def test_every_set_of_training_variants(on: tuple[bool, ...]) -> None:
    chosen = {name: value for (name, value), used in zip(SWITCHES.items(), on) if used}
    of_model = {k: chosen.pop(k) for k in ("self_condition", "num_classes") if k in chosen}
    torch.manual_seed(0)
    model = Unet(dim=4, dim_mults=(1,), channels=1, blocks_per_level=1, **of_model)
    if "loss" in chosen and set(FORBIDDEN) & {*chosen, *of_model}:
        with pytest.raises(ValueError, match="loss='consistency'"):
            build(schedule_of("cosine", False), model=model, image_size=4, channels=1, **chosen)
        return
    diffusion = build(schedule_of("cosine", False), model=model, image_size=4, channels=1, **chosen)
    batch = {"image": torch.rand(3, 1, 4, 4), "class_label": torch.tensor([0, 1, 1])}
    train(diffusion, batch)
    guidance = (
        {"cond": {"class_label": 1}, "guidance_scale": 2.0} if "num_classes" in of_model else {}
    )
    sampler = "consistency" if "loss" in chosen else "dpmpp_2m"
    assert torch.isfinite(diffusion.sample(2, sampler=sampler, num_steps=3, **guidance)).all()
    if "loss" in chosen:
        return
    assert torch.isfinite(
        diffusion.bits_per_dim(batch["image"], num_levels=2, cond=guidance.get("cond")).total
    ).all()


@pytest.mark.every(3)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_data(channels: int, dims: int) -> None:
    """With the real network: parametrizations × variances, the samplers in turn."""
    torch.manual_seed(0)
    samplers = islice(cycle(SAMPLERS), dims + channels, None)
    for parametrization, variance in product(PARAMETRIZATIONS, VARIANCES):
        sampler = next(samplers)
        if SAMPLERS[sampler].jumps and parametrization == "eps":
            sampler = next(samplers)
        outputs = VARIANCES[variance].outputs
        model = Unet(
            dim=4,
            dim_mults=(1,),
            channels=channels,
            out_channels=outputs * channels,
            blocks_per_level=1,
            attention_levels=(),
            mid_attention="none",
            dims=dims,
        )
        way = (variance, loss_for(sampler, variance), "uniform")
        size = (4,) * dims
        diffusion = build(
            schedule_of("linear", False),
            parametrization,
            "min_snr",
            way,
            model=model,
            image_size=size,
            channels=channels,
        )
        train(diffusion, torch.rand(2, channels, *size))
        draw(diffusion, sampler, "trailing")


@pytest.mark.slow
def test_the_whole_product_of_training() -> None:
    torch.manual_seed(0)
    images, counts = torch.rand(2, 3, 3, 3), Counter[str]()
    for name, zero, parametrization in product(SCHEDULES, [False, True], PARAMETRIZATIONS):
        table = schedule_of(name, zero)
        for weighting, way in product(WEIGHTINGS, WAYS):
            reason = refusal(table, parametrization, *way)
            if reason is not None:
                with pytest.raises(ValueError, match=reason):
                    build(table, parametrization, weighting, way)
                counts[f"refused: {reason}"] += 1
                continue
            diffusion = build(table, parametrization, weighting, way)
            train(diffusion, images)
            counts["trained"] += 1
    print("\n", dict(counts))
    assert sum(counts.values()) == len(SCHEDULES) * 2 * len(PARAMETRIZATIONS) * len(
        WEIGHTINGS
    ) * len(WAYS)


@pytest.mark.slow
def test_the_whole_product_of_sampling() -> None:
    torch.manual_seed(0)
    count = 0
    for name, zero, parametrization, variance in product(
        SCHEDULES, [False, True], PARAMETRIZATIONS, VARIANCES
    ):
        for sampler in SAMPLERS:
            way = (variance, loss_for(sampler, variance), "uniform")
            if refusal(schedule_of(name, zero), parametrization, *way):
                continue
            diffusion = build(schedule_of(name, zero), parametrization, way=way)
            for levels in LEVELS:
                draw(diffusion, sampler, levels)
                count += 1
    print("\n", count, "ways sampled")


CONDITIONS_OF_DATA = {
    "number": [0.5, 1.0, 2.0, 3.5],
    "angle": [0.0, 90.0, 180.0, 270.0],
    "vector": [[1.0, 2.0], [0.0, 1.0], [3.0, -1.0], [2.0, 2.0]],
    "label": ["a", "b", "a", "b"],
    "tags": ["a", "a|b", "b", "a"],
    "text": ["red", "blue", "green", "grey"],
    "mask": None,
    "image": None,
}
MEASURED: dict[str, tuple[tuple[int, ...], str | None]] = {
    "pictures": ((3, 4, 4), None),
    "one channel, affine": ((1, 4, 4), "affine"),
    "five channels, quantile": ((5, 4, 4), "quantile"),
    "volumes, affine": ((1, 4, 4, 4), "affine"),
}


@pytest.mark.parametrize("kind", CONDITIONS_OF_DATA)
@pytest.mark.parametrize("values", MEASURED)
def test_every_condition_with_every_kind_of_values(values: str, kind: str) -> None:
    """Learned, drawn with and without it, and guided by it."""
    shape, normalize = MEASURED[values]
    torch.manual_seed(0)
    if normalize is None:
        data = tensor_dataset(torch.rand(4, *shape))
    else:
        array = (280 + 9 * torch.randn(4, *shape)).numpy()
        size = shape[1:]
        data = open_dataset(array, image_size=size, channels=shape[0], normalize=normalize)
    given, options = CONDITIONS_OF_DATA[kind], {"kind": kind}
    if kind == "text":
        register_text_encoder("test-combinations", lambda texts: [[len(t), 1.0] for t in texts])
        options["encoder"] = "test-combinations"
    elif kind == "mask":
        given = torch.randint(0, 3, (4, 4, 4), dtype=torch.uint8)
    elif kind == "image":
        given = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
        options["factor"] = 2
    if kind in ("mask", "image") and len(shape) == 4:
        with pytest.raises(ValueError, match="two dimensions; the data have 3"):
            data.with_conditions({"c": given}, c=options)
        return
    data = data.with_conditions({"c": given}, c=options)
    dims = len(shape) - 1
    model = Unet(
        dim=4,
        dim_mults=(1,),
        channels=shape[0],
        blocks_per_level=1,
        dims=dims,
        conditions=data.condition_table,
    )
    diffusion = build(
        schedule_of("cosine", False), model=model, image_size=shape[1:], channels=shape[0]
    )
    batch = data.batch([0, 1, 2, 3])
    train(diffusion, {"image": batch["image"], "c": batch["c"]})
    with_it = {"cond": {"c": batch["c"][:2]}, "num_steps": 2, "seed": 0}
    for how in ({"num_steps": 2}, with_it, {**with_it, "guidance_scale": 2.0}):
        images = diffusion.sample(2, **how)
        assert torch.isfinite(images).all()
        if normalize is not None:
            assert data.normalization.inverse(images).dtype.name == "float32"
