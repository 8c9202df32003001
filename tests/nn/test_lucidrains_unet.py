"""The network of denoising-diffusion-pytorch: its published numbers, and what it promises."""

from __future__ import annotations

import json

import pytest
import torch

from ddpm_lib import GaussianDiffusion
from ddpm_lib.nn import NETWORKS, LucidrainsUnet
from published_networks import PublishedNetwork

TINY = {"dim": 8, "dim_mults": (1, 2), "head_dim": (8,)}
CASES = {
    "default_dim8": {"dim": 8},
    "full_attn": {"dim": 8, "dim_mults": (1, 2), "attention_levels": (0, 1)}
    | {"heads": (2,), "head_dim": (16,)},
    "init_out_dim_gray": TINY
    | {"init_dim": 12, "out_channels": 5, "channels": 1, "time_base": 500},
    "learned_fourier": TINY | {"time_features": "learned", "fourier_dim": 10},
    "learned_variance": {"dim": 8, "dim_mults": (1, 2), "out_channels": 6},
    "linear_attn_only_levels": TINY | {"attention_levels": (), "heads": (3,)},
    "random_fourier": TINY | {"dim_mults": (1,), "time_features": "random"},
    "self_condition": {"dim": 16, "dim_mults": (1, 2), "self_condition": True},
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_published_network(shared, name):
    fixture = PublishedNetwork(shared / "fixtures" / "D_unets", f"lucidrains_{name}")
    inputs = fixture.tensors
    model = LucidrainsUnet(**CASES[name]).eval()
    model.load_state_dict(fixture.state, strict=True)
    shown = [k for k in inputs if k.startswith("in/") and k not in ("in/x", "in/t")]
    assert len(shown) == ("self_condition" in name)
    cond = dict(zip(["self_cond"], [inputs[k] for k in shown]))

    model.double().requires_grad_()  # the numbers have a gradient of the random frequencies too
    x = inputs["in/x"].double().requires_grad_()
    out = model(x, inputs["in/t"], {k: v.double() for k, v in cond.items()})
    torch.testing.assert_close(out, inputs["out_f64"], rtol=1e-9, atol=1e-10)
    (out * inputs["probe"]).sum().backward()
    torch.testing.assert_close(x.grad, inputs["grad_x_f64"], rtol=1e-8, atol=1e-10)
    norms = dict(
        zip(fixture.values["param_names"], inputs["param_grad_norm_f64"].tolist(), strict=True)
    )
    found = {k: p.grad.norm().item() for k, p in model.named_parameters()}
    assert found == pytest.approx(norms, rel=1e-7, abs=1e-9)

    model.float()
    out = model(inputs["in/x"], inputs["in/t"], cond)
    torch.testing.assert_close(out, inputs["out_f32"], rtol=1e-4, atol=2e-5)


CLASSES = TINY | {"attention_levels": (), "memory_tokens": 0, "downsampling": "conv"}
CLASSES |= {"num_classes": 3, "mid_heads": 2, "mid_head_dim": 4}
SHAPES = {
    **{name: case for name, case in CASES.items() if name != "default_dim8"},
    "classes": CLASSES,
    "classes_and_itself": CLASSES | {"self_condition": True},
    "group": TINY | {"norm": "group"},
    "per_level": {"dim": 8, "dim_mults": (1, 3), "heads": (2, 3), "head_dim": (4, 5)},
    "dropout": TINY | {"dropout": 0.1},
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SHAPES)
def test_a_network_is_rebuilt_from_its_config(name):
    torch.manual_seed(0)
    model = LucidrainsUnet(**SHAPES[name]).eval()
    config = json.loads(json.dumps(model.config))
    again = NETWORKS["LucidrainsUnet"](**config).eval()
    assert again.config == model.config == config
    again.load_state_dict(model.state_dict(), strict=True)
    x, t = torch.randn(3, model.channels, 16, 8), torch.tensor([0.0, 7.5, 999.0])
    out = again(x, t)
    assert out.shape == (3, model.out_channels, 16, 8)
    torch.testing.assert_close(out, model(x, t), rtol=0, atol=0)
    # Each sample is its own, and t matters.
    torch.testing.assert_close(model(x[1:2], t[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x, t.flip(0)), out)
    assert model.summary(16).parameters == sum(p.numel() for p in model.parameters())


def test_random_frequencies_are_not_trained():
    by_kind = {}
    for kind in ("learned", "random"):
        model = LucidrainsUnet(**TINY, time_features=kind)
        by_kind[kind] = model.time_mlp[0].weights.requires_grad
    assert by_kind == {"learned": True, "random": False}


def test_labels_count_and_the_null_is_what_a_missing_label_means():
    torch.manual_seed(0)
    model = LucidrainsUnet(**CLASSES).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 9.0])

    def out(*labels):
        return model(x, t, {"class_label": torch.tensor(labels)})

    torch.testing.assert_close(out(-1, -1), model(x, t), rtol=0, atol=0)
    assert not torch.allclose(out(0, 1), out(0, 2))
    torch.testing.assert_close(out(0, 1)[0], out(0, 2)[0])


def test_it_trains_and_samples_with_classes_and_its_own_estimate():
    torch.manual_seed(0)
    model = LucidrainsUnet(**CLASSES, self_condition=True)
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=10)
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    diffusion(images, {"class_label": labels}).backward()
    # Every weight is used, but for the biases of keys, which softmax does not see: there are none.
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    drawn = diffusion.sample(2, cond={"class_label": 1}, guidance_scale=2.0, num_steps=3)
    assert drawn.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"heads": (1, 2, 3)}, "heads needs one entry for all 2 levels"),
        ({"attention_levels": (2,)}, "go from 0"),
        ({"dim": 7}, "even"),
        ({"fourier_dim": 3, "time_features": "random"}, "Use fourier_dim=2"),
        ({"norm": "layer"}, "norm"),
        ({"norm": "group", "init_dim": 12}, "divisible by 8"),
        ({"dropout": 1.0}, "dropout"),
        ({"dim_mults": ()}, "dim_mults"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        LucidrainsUnet(**TINY | wrong)


def test_inputs_that_do_not_fit_are_refused():
    model = LucidrainsUnet(**TINY)
    t = torch.zeros(1)
    with pytest.raises(ValueError, match="divisible by 2"):
        model(torch.zeros(1, 3, 9, 8), t)
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\)"):
        model(torch.zeros(1, 1, 8, 8), t)
    with pytest.raises(ValueError, match="no conditions"):
        model(torch.zeros(1, 3, 8, 8), t, {"class_label": torch.zeros(1).long()})
