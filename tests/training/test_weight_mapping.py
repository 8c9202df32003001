"""Weights of one network in another: what is mapped is mapped so that the function stays, what has
no meaning is refused by name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.nn import MLP
from ddpm_lib.training.fine_tuning.network_changes import Changes, Described, compare, effective
from ddpm_lib.training.fine_tuning.starting_weights import described, weights_digest
from ddpm_lib.training.fine_tuning.weight_mapping import channel_map, map_weights, rows_of

BASE = {"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1}


def process(seed: int = 0, model: dict[str, Any] | None = None, **options: Any):
    torch.manual_seed(seed)
    network = Unet(**{**BASE, **(model or {})})
    for p in network.parameters():  # zero-initialised layers too: every weight counts
        torch.nn.init.normal_(p, std=0.1)
    settings = {"image_size": 8, "timesteps": 50, **options}
    return GaussianDiffusion(network.eval(), **settings)


def mapped(old: GaussianDiffusion, new: GaussianDiffusion, names=(None, None)) -> list[str]:
    there, here = described(old), described(new)
    assert compare(there, here, "X").refused == []
    lines: list[str] = []
    weights = old.model.state_dict()
    own = new.model.state_dict()
    new.model.load_state_dict(map_weights(weights, own, there, here, names, lines.append))
    return lines


def changes(old: GaussianDiffusion, new: GaussianDiffusion) -> Changes:
    return compare(described(old), described(new), "X")


def out(diffusion: GaussianDiffusion, x: Tensor, **cond: Tensor) -> Tensor:
    t = torch.linspace(0, 49, len(x))
    with torch.no_grad():
        return diffusion.model(x, t, cond)


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
GREY = X[:, :1].expand(-1, 3, -1, -1)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"num_classes": 4},
        {"self_condition": True, "augment_dim": 9, "patch_size": 2},
        {"low_res_factor": 2, "out_channels": 6},
    ],
    ids=["plain", "classes", "conditions", "superres"],
)
def test_nothing_changes_to_the_bit_where_the_networks_are_the_same(model: dict) -> None:
    options = {"variance": "learned_range"} if "out_channels" in model else {}
    old, new = process(0, model, **options), process(1, model, **options)
    assert mapped(old, new) == []
    assert changes(old, new) == Changes()
    for name, tensor in old.model.state_dict().items():
        assert torch.equal(tensor, new.model.state_dict()[name])
    assert torch.equal(out(old, X), out(new, X))


ADDED = {
    "self_condition": {"self_condition": True},
    "augment": {"augment_dim": 9},
    "classes": {"num_classes": 3},
    "low_res": {"low_res_factor": 2},
    "low_res without noise": {"low_res_factor": 2, "low_res_max_noise": 0.0},
    "several": {"self_condition": True, "low_res_factor": 2, "num_classes": 2, "augment_dim": 9},
}
CONDITIONS = {
    "self_cond": torch.rand(3, 3, 8, 8),
    "augment": torch.rand(3, 9),
    "class_label": torch.tensor([0, 1, -1]),
    "low_res": torch.rand(3, 3, 4, 4),
    "low_res_noise": torch.rand(3) / 2,
}


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_a_condition_that_is_new_adds_nothing_whatever_it_says(
    added: dict, patch_size: int
) -> None:
    old, new = (
        process(0, {"patch_size": patch_size}),
        process(1, {"patch_size": patch_size} | added),
    )
    lines = mapped(old, new)
    assert any("begin at 0" in line or "begins at 0" in line for line in lines)
    said = {name: value for name, value in CONDITIONS.items() if name in new.model.conditioners}
    torch.testing.assert_close(out(new, X, **said), out(old, X), rtol=1e-5, atol=1e-6)


GONE = {
    "self_condition": {"self_condition": True},
    "augment": {"augment_dim": 9},
    "classes": {"num_classes": 3},
    "hidden low_res": {"low_res_factor": 2, "low_res_drop_prob": 0.1},
    "several": {"self_condition": True, "num_classes": 2, "augment_dim": 9},
}


@pytest.mark.parametrize("gone", GONE.values(), ids=GONE)
def test_a_condition_that_goes_leaves_the_network_as_without_it(gone: dict) -> None:
    old, new = process(0, gone), process(1)
    lines = mapped(old, new)
    assert any("begins as" in line for line in lines)
    torch.testing.assert_close(out(new, X), out(old, X), rtol=1e-5, atol=1e-6)


def test_noise_on_the_small_image_comes_and_goes() -> None:
    quiet = {"low_res_factor": 2, "low_res_max_noise": 0.0}
    small = {"low_res": CONDITIONS["low_res"]}
    level = {"low_res_noise": torch.zeros(3)}
    old, new = process(0, {"low_res_factor": 2}), process(1, quiet)
    assert "low_res_noise goes" in mapped(old, new)[0]
    torch.testing.assert_close(out(new, X, **small), out(old, X, **small, **level))
    old, new = process(0, quiet), process(1, {"low_res_factor": 2})
    assert "low_res_noise is a new condition" in mapped(old, new)[0]
    noisy = {"low_res_noise": torch.rand(3) / 2}
    torch.testing.assert_close(out(new, X, **small, **noisy), out(old, X, **small))


@pytest.mark.parametrize("old", [1, 3, 4])
@pytest.mark.parametrize("new", [1, 3, 4])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_channels_leave_the_response_to_a_grey_image(old: int, new: int, patch_size: int) -> None:
    before = process(0, {"channels": old, "patch_size": patch_size, "self_condition": True})
    after = process(1, {"channels": new, "patch_size": patch_size, "self_condition": True})
    lines = mapped(before, after)
    assert bool(lines) == (old != new)

    def grey(channels: int) -> Tensor:
        alpha = torch.zeros(3, 1, 8, 8)
        return {1: X[:, :1], 3: GREY, 4: torch.cat([GREY, alpha], 1)}[channels]

    a = out(before, grey(old), self_cond=grey(old))
    b = out(after, grey(new), self_cond=grey(new))
    expected = torch.tensordot(channel_map(old, new, "out"), a, dims=([1], [1])).movedim(0, 1)
    torch.testing.assert_close(b, expected, rtol=1e-5, atol=1e-6)


def test_grey_and_back_is_the_identity_on_grey() -> None:
    for side in ("in", "out"):
        there_and_back = channel_map(3, 1, side) @ channel_map(1, 3, side)
        torch.testing.assert_close(there_and_back, torch.eye(1))


def test_variance_learned_and_back() -> None:
    fixed, learned = {}, {"out_channels": 6}
    old = process(0, fixed)
    new = process(1, learned, variance="learned_range")
    assert "begin at 0" in mapped(old, new)[0]
    result = out(new, X)
    assert torch.equal(result[:, :3], out(old, X))
    assert not result[:, 3:].any()
    back = process(2, fixed)
    assert "left out" in mapped(new, back)[0]
    assert torch.equal(out(back, X), out(old, X))


def test_learned_variance_of_other_channels_keeps_its_halves() -> None:
    old = process(0, {"out_channels": 6}, variance="learned_range")
    new = process(1, {"channels": 1, "out_channels": 2}, variance="learned_range")
    mapped(old, new)
    a, b = out(old, GREY), out(new, X[:, :1])
    torch.testing.assert_close(b[:, :1], a[:, :3].mean(1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b[:, 1:], a[:, 3:].mean(1, keepdim=True), rtol=1e-5, atol=1e-6)


def embedding(diffusion: GaussianDiffusion) -> Tensor:
    return diffusion.model.conditioners["class_label"].embedding.weight.detach()


def test_classes_by_name_new_ones_from_the_null_class() -> None:
    old, new = process(0, {"num_classes": 3}), process(1, {"num_classes": 4})
    (line,) = mapped(old, new, (["ant", "bee", "cat"], ["bee", "dog", "cat", "elk"]))
    rows, null = embedding(old), embedding(old)[-1]
    expected = torch.stack([rows[1], null, rows[2], null, null])
    assert torch.equal(embedding(new), expected)
    assert "2 of 4 are known" in line
    assert "new: dog, elk" in line
    assert "left out: ant" in line
    assert "new rows are the null class" in line


def test_without_a_trained_null_class_new_rows_are_the_mean() -> None:
    old = process(0, {"num_classes": 3, "class_drop_prob": 0.0})
    new = process(1, {"num_classes": 3})
    (line,) = mapped(old, new, (["ant", "bee", "cat"], ["bee", "cat", "dog"]))
    rows = embedding(old)
    mean = rows[:3].mean(0)
    assert torch.equal(embedding(new), torch.stack([rows[1], rows[2], mean, mean]))
    assert "the mean of all classes" in line
    same = process(1, {"num_classes": 3})
    (line,) = mapped(old, same)
    assert "null class is new" in line
    assert torch.equal(embedding(same)[-1], mean)
    gone = process(1)
    mapped(old, gone)
    bias = [d.model.time_embedding.linear2.bias.detach() for d in (old, gone)]
    torch.testing.assert_close(bias[1] - bias[0], mean)


@pytest.mark.parametrize(
    ("counts", "names", "rows", "says"),
    [
        ((2, 2), (None, None), [0, 1], ""),
        ((2, 2), (["a", "b"], None), [0, 1], "by number"),
        ((2, 3), (None, None), [None, None, None], "none is known to be another"),
        ((2, 2), (["a", "b"], ["b", "a"]), [1, 0], "2 of 2 are known"),
        ((2, 3), (["a", "b"], ["b"]), [1, None, None], "1 of 3 are known"),
        ((3, 3), (["a", "b"], ["a", "b"]), [0, 1, 2], ""),
    ],
)
def test_rows_of_classes(counts, names, rows, says) -> None:
    taken, line = rows_of(*counts, *names)
    assert taken == rows
    assert says in line
    assert bool(says) == bool(line)


OTHER = {
    "dim": {"dim": 16},
    "dim_mults": {"dim_mults": (1, 2, 2)},
    "blocks_per_level": {"blocks_per_level": 2},
    "heads": {"heads": 2},
    "patch_size": {"patch_size": 2},
    "resample": {"resample": "pool"},
    "time_order": {"time_order": "sin_cos"},
    "norm_eps": {"norm_eps": 1e-6},
    "time_conditioning": {"time_conditioning": "add"},
}


@pytest.mark.parametrize("name", OTHER)
def test_another_architecture_is_refused_by_name(name: str) -> None:
    (line,) = [
        line
        for line in changes(process(), process(0, OTHER[name])).refused
        if line.startswith(f"{name}: ")
    ]
    assert " in X" in line
    assert " here" in line


REFUSED = {
    "parametrization": ({}, {"parametrization": "eps"}, "learned is how to predict v"),
    "timesteps": ({}, {"timesteps": 100}, "timesteps=50 fits, or a Unet with time_scale=0.5"),
    "channels": ({"channels": 2}, {}, "channels: 3 in X, 2 here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_meaningless_is_refused_with_its_reason(name: str) -> None:
    model, options, says = REFUSED[name]
    (line,) = changes(process(), process(0, model, **options)).refused
    assert line.startswith(name)
    assert says in line


def test_a_small_image_that_was_never_hidden_cannot_go() -> None:
    (line,) = changes(process(0, {"low_res_factor": 2}), process()).refused
    assert line.startswith("low_res_factor: 2 in X")


def test_another_network_is_refused() -> None:
    points = GaussianDiffusion(MLP(channels=3, width=8), image_size=(1,), timesteps=50)
    (line,) = compare(described(points), described(process()), "X").refused
    assert line == "network: MLP in X, Unet here"


ALLOWED = {
    "size": ({}, {"image_size": 16}, "schedule shifted_cosine makes up for"),
    "schedule": ({}, {"schedule": "linear"}, "learns anew how noisy each is"),
    "levels": ({"time_scale": 0.5}, {"timesteps": 100}, "fits the other number of levels"),
    "loss": ({}, {"weighting": "flat"}, "the loss or the sampling"),
    "dropout": ({"dropout": 0.1}, {}, "no weight depends on it"),
    "uncertainty": ({}, {"learn_uncertainty": True}, "the loss or the sampling"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_may_be_another_is_said(name: str) -> None:
    model, options, says = ALLOWED[name]
    found = changes(process(), process(0, model, **options))
    assert found.refused == []
    assert any(says in note for note in found.notes)


def test_a_network_without_a_process_is_taken_to_predict_what_is_asked() -> None:
    alone = Described(network="Unet", config=BASE, process=None)
    found = compare(alone, described(process()), "X")
    assert found.refused == []
    assert "taken to predict v" in found.notes[0]


def test_arguments_that_say_the_same_are_no_difference() -> None:
    """Each default that stands for a number equals that number."""
    spelt = {"attention_levels": [1], "time_dim": 32, "heads_up": 4, "out_channels": 3}
    assert effective("Unet", BASE | spelt) == effective("Unet", BASE)
    headed = [effective("Unet", BASE | {"head_dim": 8, "heads": n}) for n in (1, 4)]
    assert headed[0] == headed[1]


def test_mlp_classes_are_mapped_too() -> None:
    def points(**model: Any) -> GaussianDiffusion:
        network = MLP(channels=2, width=8, **model)
        return GaussianDiffusion(network, image_size=(1,), timesteps=50)

    old, new = points(), points(num_classes=2)
    torch.nn.init.normal_(old.model.linear_out.weight)
    mapped(old, new)
    x, t = torch.randn(2, 2, 1), torch.tensor([0.0, 9.0])
    label = {"class_label": torch.tensor([0, 1])}
    torch.testing.assert_close(new.model(x, t, label), old.model(x, t))


def test_the_digest_knows_names_and_values_but_not_the_order() -> None:
    a, b = torch.arange(3.0), torch.ones(2, dtype=torch.int64)
    assert weights_digest({"a": a, "b": b}) == weights_digest({"b": b, "a": a})
    others = [{"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a, "b": b.float()}, {"a": a}]
    digests = {weights_digest(w) for w in [{"a": a, "b": b}, *others]}
    assert len(digests) == 5


def test_a_learned_uncertainty_begins_anew_and_that_is_said() -> None:
    both = [process(k, learn_uncertainty=True) for k in range(2)]
    assert changes(*both).notes == ["The learned uncertainty begins anew."]
