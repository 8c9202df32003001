"""Conditions of the data in a network: what they mean, their nulls, and how they are hidden."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.nn.condition_table import KINDS, check_conditions, data_conditions
from ddpm_lib.nn.pixel_conditions import MaskCondition
from ddpm_lib.process.conditions import for_sampling

TABLE: dict[str, dict[str, Any]] = {
    "age": {"kind": "number", "mean": 40.0, "std": 10.0, "low": 1.0, "high": 90.0},
    "turn": {"kind": "angle"},
    "code": {"kind": "vector", "size": 3},
    "hair": {"kind": "label", "names": ["dark", "fair"]},
    "tags": {"kind": "tags", "names": ["hat", "beard", "smile"]},
    "mask": {"kind": "mask", "classes": 4},
    "sketch": {"kind": "image", "channels": 1, "factor": 2},
}
VALUES: dict[str, Any] = {
    "age": torch.tensor([20.0, 60.0]),
    "turn": torch.tensor([10.0, 200.0]),
    "code": torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]),
    "hair": torch.tensor([0, 1]),
    "tags": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    "mask": torch.randint(0, 4, (2, 8, 8)),
    "sketch": torch.rand(2, 1, 4, 4),
}


def network(**conditions: Any) -> Unet:
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, conditions=conditions or TABLE)
    for parameter in model.parameters():  # a new network answers 0 to everything
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def answer(model: Unet, cond: dict[str, Any], prepared: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for conditioner in data_conditions(model.conditioners).values():
            cond = cond if prepared else conditioner.prepare(cond)
        return model(x, torch.tensor([3.0, 500.0]), cond)


def test_every_kind_changes_the_answer_and_its_null_is_its_absence() -> None:
    model = network()
    nothing = answer(model, {})
    for name, conditioner in data_conditions(model.conditioners).items():
        assert not torch.equal(answer(model, {name: VALUES[name]}), nothing), name
        null = conditioner.null_like(conditioner.prepare({name: VALUES[name]})[name])
        assert torch.equal(answer(model, {name: null}, prepared=True), nothing), name
    assert {entry["kind"] for entry in TABLE.values()} | {"text"} == set(KINDS)


def test_the_unit_of_a_number_does_not_matter() -> None:
    """Fahrenheit and Celsius are the same condition once mean and deviation are measured."""
    celsius = np.array([-5.0, 10.0, 20.0, 31.0], dtype=np.float32)
    answers = []
    for values in (celsius, celsius * 1.8 + 32):
        model = network(heat={"kind": "number"})
        data_conditions(model.conditioners)["heat"].fit(values)
        answers.append(answer(model, {"heat": torch.from_numpy(values[1:3])}))
    assert torch.allclose(*answers, atol=1e-5)


def test_vectors_are_standardised_one_by_one() -> None:
    model = network(code={"kind": "vector", "size": 2})
    conditioner = data_conditions(model.conditioners)["code"]
    values = np.random.default_rng(0).normal([3.0, -100.0], [0.1, 50.0], (4000, 2))
    conditioner.fit(values.astype(np.float32))
    seen = conditioner.features(torch.from_numpy(values).float())
    assert torch.allclose(seen.mean(0), torch.zeros(2), atol=1e-3)
    assert torch.allclose(seen.std(0, correction=0), torch.ones(2), atol=1e-3)


def test_an_angle_goes_round() -> None:
    model = network(turn={"kind": "angle", "period": 360})
    here, again = torch.tensor([10.0, 350.0]), torch.tensor([370.0, -10.0])
    assert torch.allclose(answer(model, {"turn": here}), answer(model, {"turn": again}), atol=1e-5)
    assert not torch.allclose(answer(model, {"turn": here}), answer(model, {"turn": here + 180}))


def test_a_mask_is_one_channel_per_class() -> None:
    mask = MaskCondition(
        "mask", check_conditions({"mask": {"kind": "mask", "classes": 3}})["mask"], 8
    )
    values = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    channels = mask.channels_of(values, torch.zeros(1, 3, 2, 2))
    assert channels.argmax(1)[0].flatten()[:3].tolist() == [0, 1, 2]
    assert channels.sum(1)[0].tolist() == [[1.0, 1.0], [1.0, 0.0]]  # nothing is known of the last


def test_conditions_drop_together_and_alone() -> None:
    """Each is hidden with its own probability; both at once as often as guidance by both needs."""
    conditioner = data_conditions(network().conditioners)["age"]
    conditioner.drop_prob = 0.2
    draw = np.random.default_rng(0)
    together, alone = draw.random(200_000), [draw.random(200_000) for _ in range(2)]
    a, b = (conditioner.drops(together, own) for own in alone)
    half = 0.1
    own = half / (1 - half)
    error = 4 * math.sqrt(0.2 / 200_000)
    assert abs(a.mean() - 0.2) < error
    assert abs((a & b).mean() - (half + (1 - half) * own**2)) < error
    assert abs((a & ~b).mean() - (1 - half) * own * (1 - own)) < error


def test_words_stand_for_values() -> None:
    known = data_conditions(network().conditioners)
    assert known["hair"].read("fair").tolist() == [1]
    assert known["hair"].read(["fair", "dark", 0]).tolist() == [1, 0, 0]
    assert known["tags"].read("smile| hat").tolist() == [[1.0, 0.0, 1.0]]
    assert known["tags"].read(["", "beard"]).tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert known["code"].read([1.0, 2.0, 3.0]).shape == (1, 3)
    with pytest.raises(ValueError, match=r"Unknown tag of 'tags' 'hut'.*hat"):
        known["tags"].read("hut")
    with pytest.raises(ValueError, match=r"Unknown hair 'far'.*fair"):
        known["hair"].read("far")


def test_a_folder_rebuilds_all_of_it(tmp_path: Path) -> None:
    model = network(age={"kind": "number"}, hair=TABLE["hair"])
    from ddpm_lib.nn.condition_table import keep_in_config

    data_conditions(model.conditioners)["age"].fit(np.array([1.0, 2.0, 6.0], dtype=np.float32))
    keep_in_config(model)
    assert model.config == json.loads(json.dumps(model.config))
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=10)
    diffusion.save_pretrained(tmp_path / "folder")
    again = GaussianDiffusion.from_pretrained(tmp_path / "folder")
    how = {"num_steps": 3, "cond": {"age": 2.5, "hair": ["dark", "fair"]}, "guidance_scale": 2.0}
    assert again.model.config["conditions"]["age"]["mean"] == 3.0
    assert torch.equal(again.sample(2, **how), diffusion.eval().sample(2, **how))


def test_training_and_sampling_take_all_kinds() -> None:
    diffusion = GaussianDiffusion(network().train(), image_size=8, timesteps=10)
    loss = diffusion({"image": torch.rand(2, 3, 8, 8), **VALUES})
    loss.backward()
    gradients = [p.grad for p in diffusion.model.conditioners.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    cond = {"age": 30, "tags": "hat", "mask": VALUES["mask"], "sketch": VALUES["sketch"]}
    images = diffusion.eval().sample(2, cond=cond, num_steps=2, guidance_scale=1.5)
    assert images.isfinite().all()


def test_guidance_by_nothing_is_refused() -> None:
    diffusion = GaussianDiffusion(network(), image_size=8, timesteps=10).eval()
    with pytest.raises(ValueError, match=r"says that there is none"):
        diffusion.sample(2, cond={"age": math.nan}, guidance_scale=2.0, num_steps=2)


def test_needed_where_it_is_never_hidden() -> None:
    always = network(age={"kind": "number", "drop_prob": 0.0})
    diffusion = GaussianDiffusion(always, image_size=8, timesteps=10).eval()
    with pytest.raises(ValueError, match=r"needs the condition 'age'"):
        diffusion.sample(1, num_steps=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("age", torch.rand(2, 3), r"'age' \(number\) must have shape \(2,\)"),
        ("age", torch.tensor([1.0, math.inf]), "must be finite; got an infinite value"),
        ("code", torch.rand(2, 4), r"'code' \(vector\) must have shape \(2, 3\)"),
        ("mask", torch.zeros(2, 4, 8, dtype=torch.uint8), "must have the size of the images, 8×8"),
        ("mask", torch.full((2, 8, 8), 7), "has the class 7; they go from 0 to 3"),
        ("mask", torch.rand(2, 8, 8), "must be whole numbers, a class per pixel"),
        ("mask", torch.full((2, 8, 8), -1), "holds -1; classes go from 0"),
        ("sketch", torch.rand(2, 1, 8, 8), "must have the size 4×4, 1/2 of that of the images"),
        ("sketch", torch.rand(2, 3, 4, 4), "must hold one image of 1 channels per sample"),
        ("sketch", torch.rand(2, 1, 4, 4) * 3, r"in \[0, 1\]"),
        ("hair", torch.tensor([0, 2]), "has a label 2"),
    ],
)
def test_wrong_values_are_named(name: str, value: torch.Tensor, message: str) -> None:
    diffusion = GaussianDiffusion(network(), image_size=8, timesteps=10).eval()
    with pytest.raises(ValueError, match=message):
        diffusion.sample(2, cond={name: value}, num_steps=2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"age": {}}, "'age' needs a kind"),
        ({"age": {"kind": "nubmer"}}, "Did you mean 'number'"),
        ({"age": {"kind": "number", "men": 3}}, "Did you mean 'mean'"),
        ({"code": {"kind": "vector"}}, r"'code' \(vector\) needs 'size'"),
        ({"code": {"kind": "vector", "size": 0}}, "size of the condition 'code' must be a whole"),
        ({"mask": {"kind": "mask", "classes": 256}}, "classes of the condition 'mask'.*1 to 255"),
        ({"age": {"kind": "number", "drop_prob": 2}}, "drop_prob of the condition 'age'"),
        ({"hair": {"kind": "label", "names": ["a", "a"]}}, "must be different words"),
        ({"image": {"kind": "number"}}, "cannot be called so"),
        ({"my age": {"kind": "number"}}, "must be a word"),
        ({"turn": {"kind": "angle", "period": 0}}, "period of the condition 'turn'"),
        ({"turn": {"kind": "angle", "period": float("inf")}}, "must be positive and finite"),
        (["age"], "conditions must be a table"),
    ],
)
def test_wrong_tables_are_named(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unet(dim=8, dim_mults=(1, 2), conditions=table)


def test_guidance_by_one_condition_is_guidance_where_it_is_the_only_one() -> None:
    diffusion = GaussianDiffusion(network(), image_size=8, timesteps=10, clip="none").eval()
    how = {"num_steps": 3, "sampler": "ddim", "cond": {"age": 30.0}}
    whole = diffusion.sample(2, guidance_scale=3.0, **how)
    alone = diffusion.sample(2, guidance_scale={"age": 3.0}, **how)
    assert torch.allclose(whole, alone, atol=1e-5)
    assert not torch.allclose(whole, diffusion.sample(2, **how), atol=1e-3)


def test_each_condition_guides_by_its_own_scale() -> None:
    """The output is F + Σ (s_i − 1)·(F − F_i), of which a scale of 1 adds nothing."""
    from ddpm_lib.guidance import Guidance

    diffusion = GaussianDiffusion(network(), image_size=8, timesteps=10, clip="none").eval()
    denoiser, level = diffusion.denoiser, diffusion.schedule.level(5)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = {"age": torch.tensor([20.0, 60.0]), "hair": torch.tensor([0, 1])}

    def at(**parts: float) -> torch.Tensor:
        guidance = Guidance(parts=tuple(parts.items()))
        with torch.no_grad():
            return denoiser.predict(x, level, cond, guidance).x0

    plain, age, hair, both = at(), at(age=3.0), at(hair=0.5), at(age=3.0, hair=0.5)
    assert torch.allclose(both - plain, (age - plain) + (hair - plain), atol=1e-4)
    assert torch.equal(at(age=1.0), plain)
    assert not torch.allclose(age, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"agee": 2.0}, r"Did you mean 'age'"),
        ({"hair": 2.0}, r"Guidance by 'hair' strengthens its value, and none is given"),
        ({"age": math.inf}, r"must be a finite number"),
    ],
)
def test_guidance_that_cannot_be_is_named(scales: dict[str, float], message: str) -> None:
    diffusion = GaussianDiffusion(network(), image_size=8, timesteps=10).eval()
    with pytest.raises(ValueError, match=message):
        diffusion.sample(1, cond={"age": 3.0}, guidance_scale=scales, num_steps=2)


def test_the_card_says_what_can_be_asked_for() -> None:
    from ddpm_lib.process.model_card import simple_card

    conditions = {**TABLE, "caption": {"kind": "text", "size": 2, "encoder": "letters"}}
    diffusion = GaussianDiffusion(network(**conditions), image_size=8, timesteps=10).eval()
    card = simple_card(diffusion, "me/mine", None)
    assert "number (1 … 90 in training)" in card
    assert "tags (3: hat, beard, smile)" in card
    assert "mask (4 classes)" in card
    assert "encoder letters" in card
    assert 'cond={"age": 45.5, "turn": 90.0, "hair": "dark", "tags": "hat"' in card
    assert "ddpm sample me/mine --num 16 --cond age=45.5" in card


@pytest.mark.parametrize("given", ["30", ["30", "1"], [30, None], [[1, 2], [3]]])
def test_words_are_no_numbers_even_where_classes_are_called_so(given: Any) -> None:
    names = ("1", "2", "30")
    model = Unet(dim=8, dim_mults=(1, 2), num_classes=3, conditions={"age": TABLE["age"]})
    with pytest.raises(ValueError, match=r"'age' \(number\) takes numbers.*; got "):
        for_sampling(model.conditioners, {"age": given}, 2, class_names=names)
    cond = for_sampling(model.conditioners, {"class_label": ["30", "1"]}, 2, class_names=names)
    assert cond["class_label"].tolist() == [2, 0]


def test_labels_are_names_or_whole_numbers() -> None:
    conditioners = network(hair=TABLE["hair"]).conditioners
    for given in (["fair", -1], np.array(["fair", "dark"]), np.array(["fair", "dark"], object)):
        found = for_sampling(conditioners, {"hair": given}, 2)["hair"].tolist()
        assert found == [1, -1 if given[-1] == -1 else 0]
    for wrong in (["fair", 0.9], ["fair", None], [0, None]):
        with pytest.raises(ValueError, match=r"'hair' \(label\) takes names, or numbers of them"):
            for_sampling(conditioners, {"hair": wrong}, 2)


@pytest.mark.parametrize(
    "ends", [(0.1, 0.9), (2005.0, 2008.0), (2459000.0, 2459010.0), (5e-12, 9e-12)]
)
def test_a_number_in_words_lies_in_its_range(ends: tuple[float, float]) -> None:
    low, high = ends
    known = {**TABLE["age"], "low": low, "high": high}
    age = data_conditions(network(age=known).conditioners)["age"]
    assert low < age.example < high
    first, _, last = age.words.removeprefix("number (").partition(" in ")[0].partition(" … ")
    assert (float(first), float(last)) == ends
