from __future__ import annotations

import json
import math
import typing

import pytest
import torch
from docstring_parser import DocstringStyle, parse
from torch import nn

from ddpm_lib.nn import PRESETS, Unet, preset_config
from ddpm_lib.nn.blocks import Layer, resize
from ddpm_lib.nn.embeddings import sinusoids
from ddpm_lib.nn.summary import summarize


def small(**arguments) -> Unet:
    """A network of some ten thousand parameters whose output is not zero."""
    arguments = {"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1, **arguments}
    torch.manual_seed(0)
    model = Unet(**arguments)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(model: Unet, size: int = 8, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, model.channels, *(size,) * model.dims, generator=generator)
    return x, torch.arange(n) * 333.25


@pytest.mark.parametrize("resample", ["conv", "pool", "resblock"])
@pytest.mark.parametrize(("dims", "shape"), [(1, (16,)), (2, (8, 12)), (3, (4, 8, 4))])
def test_output_has_the_shape_of_the_input(dims, shape, resample):
    model = small(dims=dims, resample=resample, down_padding="asymmetric")
    assert model(torch.randn(2, 3, *shape), torch.tensor([0, 7])).shape == (2, 3, *shape)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_free(channels):
    model = small(channels=channels, out_channels=2 * channels)
    x, t = batch(model)
    assert model(x, t).shape == (3, 2 * channels, 8, 8)
    assert (model.channels, model.out_channels) == (channels, 2 * channels)


@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
def test_a_batch_as_large_as_a_width_is_not_confused_with_it(time_conditioning):
    model = small(time_conditioning=time_conditioning).eval()
    for n in (8, 16, 32):
        x, t = batch(model, n=n)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(model(x, t)[:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resample", ["conv", "pool", "resblock"])
def test_a_batch_of_nothing_gives_nothing(resample, dtype):
    """As of torch's own layers, in both memory formats; the kernels leave it to them."""
    model = small(attention_levels=(0, 1), patch_size=2, resample=resample)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(0, 3, 8, 8).to(memory_format=layout)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = model.to(memory_format=layout)(x, torch.zeros(0))
        assert out.shape == x.shape
        out.sum().backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_sample_does_not_depend_on_the_others_in_its_batch():
    model = small().eval()
    x, t = batch(model)
    others, times = torch.randn_like(x), torch.rand(3) * 999
    others[1], times[1] = x[1], t[1]
    assert torch.equal(model(x, t)[1], model(others, times)[1])


def test_integer_and_float_times_mean_the_same():
    model = small()
    x, _ = batch(model)
    t = torch.tensor([0, 10, 999])
    assert torch.equal(model(x, t), model(x, t.float()))
    assert torch.equal(small(time_scale=0.5)(x, 2 * t), model(x, t))


def test_one_level_takes_any_size():
    model = small(dim_mults=(1,), dims=1)
    assert model.downsample_factor == 1
    assert model(torch.randn(1, 3, 5), torch.zeros(1)).shape == (1, 3, 5)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_new_network_predicts_exactly_zero(name):
    model = Unet.preset(name, dim=8, num_classes=3)
    assert torch.equal(model(*batch(model, 16)), torch.zeros(3, 3, 16, 16))


def test_last_convolutions_of_residual_branches_start_at_zero():
    model = Unet(dim=8, dim_mults=(1, 2), resample="resblock")
    zero = [name for name, p in model.named_parameters() if name.endswith("weight") and not p.any()]
    blocks = [f"{name}.conv2.weight" for name, m in model.named_modules() if hasattr(m, "conv2")]
    projections = [f"{name}.proj.weight" for name, m in model.named_modules() if hasattr(m, "proj")]
    assert sorted(zero) == sorted([*blocks, *projections, "conv_out.weight"])


@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
@pytest.mark.parametrize("resample", ["conv", "pool", "resblock"])
def test_no_parameter_is_dead(time_conditioning, resample):
    # Gradients pass the zero output convolution after one step and the zero ends of the blocks
    # after two.
    torch.manual_seed(0)
    model = Unet(
        8,
        (1, 2),
        blocks_per_level=1,
        time_conditioning=time_conditioning,
        resample=resample,
        num_classes=2,
    )
    x, t = batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = torch.randn_like(x)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x, t, {"class_label": torch.tensor([0, 1, -1])}) - target).square().mean().backward()
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert dead == []
    # Softmax does not change when all keys shift, so the keys' part of the bias has no gradient but
    # rounding.
    for name, p in model.named_parameters():
        if name.endswith("qkv.bias"):
            q, k, v = p.grad.chunk(3)
            assert k.abs().max() < 1e-5 * max(q.abs().max(), v.abs().max()) + 1e-9


def test_gradient_checkpointing_changes_nothing_but_memory():
    # With dropout: the masks of the second forward pass must be those of the first.
    results = []
    for flag in (False, True):
        model = small(gradient_checkpointing=flag, dropout=0.3, resample="resblock")
        x, t = batch(model)
        x.requires_grad_()
        torch.manual_seed(5)
        out = model(x, t)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
    assert (
        small(gradient_checkpointing=True).summary(8, 4).activation_bytes
        < small().summary(8, 4).activation_bytes / 2
    )


@pytest.mark.slow
def test_gradient_checkpointing_saves_most_of_the_activations():
    # What autograd really keeps of a forward pass is what the summary says, and at least 40 % less.
    from ddpm_lib.nn.summary import _count_saved_bytes

    plain, recomputed = (
        Unet(dim=16, dropout=0.1, gradient_checkpointing=flag) for flag in (False, True)
    )
    for model in (plain, recomputed):
        real = _count_saved_bytes(model, torch.randn(1, 3, 32, 32), torch.tensor([5.0]))
        assert model.summary(32, 1).activation_bytes == pytest.approx(real, rel=0.05)
    for precision in ("float32", "bf16"):
        kept = [
            summarize(model, 32, 4, precision).activation_bytes for model in (plain, recomputed)
        ]
        assert kept[1] < 0.6 * kept[0]


@pytest.mark.slow
def test_summary_counts_bf16():
    from ddpm_lib.nn.summary import _count_saved_bytes

    model = Unet(dim=16, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        real = _count_saved_bytes(model, torch.randn(4, 3, 32, 32), torch.zeros(4))
    counted = summarize(model, 32, 4, "bf16")
    assert counted.activation_bytes == pytest.approx(real, rel=0.02)
    assert counted.activation_bytes < 0.7 * model.summary(32, 4).activation_bytes
    assert "bf16" in str(counted)


def test_dropout_acts_in_training_only():
    model = small(dropout=0.5)
    x, t = batch(model)
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))


def test_skip_connections_can_be_scaled():
    model, scaled = small(), small(scale_skips=True)
    assert not torch.allclose(model(*batch(model)), scaled(*batch(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32(dtype):
    model = small(dim=16, time_conditioning="scale_shift")
    x, t = batch(model)
    exact = model(x, t)
    with torch.autocast("cpu", dtype):
        low = model(x, t).float()
    # bf16 has 8 bits, some twenty layers: a few percent.
    assert (low - exact).norm() < (0.03 if dtype == torch.bfloat16 else 0.004) * exact.norm()
    low.square().mean().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


def test_sinusoids_are_not_rounded_to_bf16():
    model = small().to(torch.bfloat16)
    near = model.time_embedding(torch.tensor([998.0, 999.0]))
    assert not torch.equal(near[0], near[1])


def test_sinusoids_have_the_stated_frequencies():
    t = torch.tensor([0.0, 1.0, 1000.0], dtype=torch.float64)
    for order, shift in (("sin_cos", 0), ("sin_cos", 1)):
        e = sinusoids(t, 8, order, shift)
        angles = torch.atan2(e[1, :4], e[1, 4:])
        expected = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / (4 - shift))
        torch.testing.assert_close(angles, expected, rtol=1e-12, atol=0)
    sin_cos = sinusoids(t, 8, "sin_cos")
    assert torch.equal(sinusoids(t, 8, "cos_sin"), sin_cos.roll(4, dims=1))
    assert torch.equal(
        sinusoids(t, 8, "interleaved"), sin_cos.view(3, 2, 4).transpose(1, 2).flatten(1)
    )


@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
@pytest.mark.parametrize("resample", ["conv", "pool", "resblock"])
def test_channels_last_is_kept_through_the_network(time_conditioning, resample):
    model = small(time_conditioning=time_conditioning, resample=resample, down_padding="asymmetric")
    x, t = batch(model)
    expected = model(x, t)
    model = model.to(memory_format=torch.channels_last)
    wrong = []

    def check(module: nn.Module, args, output) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last):
            wrong.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(check)
    out = model(x.contiguous(memory_format=torch.channels_last), t)
    assert wrong == []
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def compile_and_compare(backend: str) -> None:
    model = small(num_classes=3)
    x, t = batch(model)
    label = torch.tensor([0, 2, -1])
    expected = model(x, t, {"class_label": label})
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        compiled(x, t, {"class_label": label}), expected, rtol=1e-4, atol=1e-5
    )
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3):
            compiled(x + step, t + step, {"class_label": (label + step) % 3}).sum().backward()


@pytest.mark.slow
def test_the_network_is_one_graph_that_is_compiled_once():
    compile_and_compare("eager")


@pytest.mark.slow
def test_inductor_compiles_the_network():
    compile_and_compare("inductor")


def test_class_labels_change_the_output_and_missing_means_null():
    model = small(num_classes=4, class_drop_prob=0.2).eval()
    x, t = batch(model)
    one, two = (model(x, t, {"class_label": torch.full((3,), label)}) for label in (1, 2))
    null = model(x, t, {"class_label": torch.full((3,), -1)})
    assert not torch.allclose(one, two)
    assert not torch.allclose(one, null)
    for cond in (None, {}, {"class_label": None}):
        assert torch.equal(model(x, t, cond), null)
    conditioner = model.conditioners["class_label"]
    assert conditioner.drop_prob == 0.2
    assert conditioner.null_like(torch.tensor([3, 0])).tolist() == [-1, -1]
    assert torch.equal(model(x, t, {"class_label": torch.full((3,), 1, dtype=torch.int32)}), one)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.tensor([0, 4, 1]), ValueError, ["label 4", "0 to 3", "-1 means no class"]),
        (torch.tensor([0, -2, 1]), ValueError, ["label -2"]),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, ["float32", "labels.long()"]),
        (torch.tensor([True, False, True]), TypeError, ["bool"]),
        (torch.zeros(3, 4, dtype=torch.long), ValueError, ["(3, 4)", "one-hot"]),
        (torch.tensor([0, 1]), ValueError, ["one entry per sample", "(2,)"]),
        (torch.tensor(0), ValueError, ["one entry per sample"]),
        ([0, 1, 2], TypeError, ["must be a tensor", "list"]),
    ],
)
def test_wrong_labels_are_refused(value, error, words):
    model = small(num_classes=4)
    with pytest.raises(error) as caught:
        model(*batch(model), {"class_label": value})
    assert all(word in str(caught.value) for word in [*words, "class_label"])


def test_unknown_conditions_are_refused():
    label = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="Did you mean 'class_label'"):
        small(num_classes=4)(*batch(small()), {"class_labels": label})
    with pytest.raises(ValueError, match="no conditions but got 'class_label'"):
        small()(*batch(small()), {"class_label": label})


def test_config_makes_the_same_network_through_json():
    model = small(attention_levels=(0, 1), num_classes=3, head_dim=4)
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    again = Unet(**config)
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.config == model.config
    assert torch.equal(again(*batch(model)), model(*batch(model)))


def test_every_argument_is_documented_simple_and_in_the_config():
    hints = {k: v for k, v in typing.get_type_hints(Unet.__init__).items() if k != "return"}
    documented = {
        p.arg_name: p.description for p in parse(Unet.__doc__, DocstringStyle.GOOGLE).params
    }
    assert all(documented.values())
    assert list(documented) == list(hints) == list(Unet().config)
    simple = {int, float, bool, str, type(None), tuple[int, ...]}
    del hints["conditions"]  # a table of plain values, checked by itself
    for name, hint in hints.items():
        parts = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        assert all(part in simple or typing.get_origin(part) is typing.Literal for part in parts), (
            name
        )


@pytest.mark.parametrize(
    ("name", "overrides", "parameters"),
    [
        # Ho et al. 2020, appendix B: "35.7 million".
        ("cifar10", {}, 35_746_307),
        ("tiny", {}, 1_192_387),
        ("small", {}, 9_593_539),
        # Dhariwal & Nichol 2021, table 4: 296 M; ours has one more row for the null class.
        ("imagenet64", {"num_classes": 1000, "out_channels": 6}, 295_905_222),
    ],
)
def test_presets_have_the_published_sizes(name, overrides, parameters):
    with torch.device("meta"):
        model = Unet.preset(name, **overrides)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert name in PRESETS


def test_presets_name_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        Unet.preset("cifar-10")
    with pytest.raises(ValueError, match="Did you mean 'dropout'"):
        Unet.preset("tiny", droput=0.1)
    assert preset_config("tiny", dim=16)["dim"] == 16
    assert PRESETS["tiny"]["dim"] == 32


def test_default_attention_is_on_the_two_deepest_levels():
    def levels(mults):
        with torch.device("meta"):
            return [i for i, s in enumerate(Unet(8, mults).down) if s.layers[0].attn is not None]

    assert [levels(m) for m in ((1,), (1, 2), (1, 2, 2), (1, 2, 2, 2))] == [[], [1], [1, 2], [2, 3]]


@pytest.mark.parametrize("dim", [4, 6, 8, 32, 64, 96, 128, 320])
def test_default_groups_leave_two_channels_in_a_group(dim):
    with torch.device("meta"):
        model = Unet(dim, (1, 2), heads=1)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert all(m.num_channels >= 2 * m.num_groups and m.num_groups <= 32 for m in norms)


def test_one_channel_per_group_with_added_time_warns():
    with pytest.warns(UserWarning, match="removes the added time embedding"):
        Unet(8, (1,), groups=8, time_conditioning="add")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 40, "groups": 32}, ["groups=32", "does not divide", "20 or 40", "multiple of 32"]),
        ({"heads": 3}, ["heads=3", "128", "2 or 4"]),
        ({"head_dim": 48}, ["head_dim=48", "128", "32 or 64"]),
        ({"heads_up": 7}, ["heads_up=7", "4 or 8"]),
        (
            {"attention_levels": (4,)},
            ["(4,)", "0 (full resolution) to 3", "nearest value that fits: 3"],
        ),
        ({"attention_levels": (-1,)}, ["-1 is out of range", "fits: 0"]),
        ({"dims": 4}, ["dims", "got 4", "3 (volumes)"]),
        ({"dropout": 1.0}, ["dropout", "[0, 1)", "1.0"]),
        ({"dropout": -0.1}, ["dropout", "-0.1"]),
        ({"class_drop_prob": 1.5}, ["class_drop_prob", "1.5"]),
        ({"dim": 7}, ["dim must be even", "got 7", "dim=6"]),
        ({"dim": 0}, ["dim must be at least 1", "0"]),
        ({"dim_mults": ()}, ["dim_mults", "at least one"]),
        ({"dim_mults": (1, 0)}, ["dim_mults", "at least 1", "0"]),
        ({"time_conditioning": "scale-shift"}, ["Did you mean 'scale_shift'"]),
        ({"resample": "convs"}, ["Did you mean 'conv'"]),
        ({"time_order": "sincos"}, ["Did you mean 'sin_cos'"]),
        ({"freq_shift": 2}, ["freq_shift must be 0 or 1", "2"]),
        ({"norm_eps": 0.0}, ["norm_eps", "positive"]),
        ({"num_classes": 0}, ["num_classes must be at least 1"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError) as caught, torch.device("meta"):
        Unet(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_argument_types_are_checked():
    with pytest.raises(TypeError, match=r"dim must be an integer, got 64.0 \(float\)"):
        Unet(dim=64.0)


@pytest.mark.parametrize(
    ("x", "t", "words"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), ["3 channels", "(2, 1, 8, 8)", "channels=1"]),
        (
            torch.zeros(2, 3, 9, 8),
            torch.zeros(2),
            ["9×8", "divisible by 4", "deepest level", "8×8 or 12×8"],
        ),
        (torch.zeros(2, 3, 8), torch.zeros(2), ["4 dimensions", "(2, 3, 8)"]),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3), ["shape (2,)", "got (3,)"]),
        (torch.zeros(2, 3, 8, 8), torch.tensor(0.0), ["shape (2,)", "got ()"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, t, words):
    with pytest.raises(ValueError) as caught:
        small(dim_mults=(1, 2, 2))(x, t)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_image_sizes_are_checked_at_construction_of_the_trainer():
    model = small(dim_mults=(1, 2, 2))
    model.check_size(64)
    model.check_size((4, 12))
    with pytest.raises(ValueError, match=r"2×2 must be divisible by 4.*4×4"):
        model.check_size(2)
    with pytest.raises(ValueError, match="2 entries"):
        model.check_size((4, 4, 4))


def test_multiplications_equal_a_count_by_hand():
    n = 64
    plain = Unet(4, (1,), 1, blocks_per_level=1, mid_attention="none", heads=1)
    # Time 4→16→16; five residual blocks of 3×3 convolutions, each with a 16→8 projection of the
    # time; two of them take 8 channels, through a 1×1 shortcut.
    block, wide = 2 * 9 * 16 * n, (9 * 32 + 9 * 16 + 32) * n
    by_hand = (4 * 16 + 16 * 16) + 2 * 9 * 4 * n + 3 * block + 2 * wide + 5 * 16 * 8
    assert plain.summary(8).macs == by_hand
    attending = Unet(4, (1,), 1, blocks_per_level=1, attention_levels=(0,), heads=1)
    attention = 4 * 16 * n + 2 * n * n * 4
    assert attending.summary((8, 8), batch_size=7).macs == by_hand + 4 * attention


def test_summary_counts_memory():
    model = Unet.preset("tiny")
    one, eight = model.summary(32, 2), model.summary(32, 16)
    assert one.parameters == 1_192_387
    assert one.state_bytes == 5 * 4 * one.parameters
    assert eight.activation_bytes == pytest.approx(8 * one.activation_bytes, rel=0.01)
    assert eight.training_bytes == eight.state_bytes + eight.activation_bytes
    assert "1,192,387" in str(one)
    assert "MiB" in str(one)
    with pytest.raises(ValueError, match="divisible by 4"):
        model.summary(30)


def test_estimated_activations_are_those_a_real_pass_keeps():
    from ddpm_lib.nn.summary import _count_saved_bytes

    model = small(attention_levels=(0, 1), heads=2)
    x, t = batch(model, 16, 4)
    real = _count_saved_bytes(model, x, t)
    assert model.summary(16, 4).activation_bytes == pytest.approx(real, rel=0.05)


def test_resizing_is_repetition_and_averaging():
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(resize(x, "up"), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(resize(x, "down")[0, 0, 0, 0], x[0, 0, :2, :2].mean())


@pytest.mark.parametrize(("dims", "size"), [(1, (24,)), (2, (8, 24)), (3, (4, 8, 8))])
def test_patches_go_there_and_back(dims: int, size: tuple[int, ...]) -> None:
    """Every pixel of a patch becomes a channel of the same place, and returns."""
    from ddpm_lib.nn.patches import from_patches, to_patches

    x = torch.arange(2 * 3 * math.prod(size), dtype=torch.float32).reshape(2, 3, *size)
    patches = to_patches(x, 4)
    assert patches.shape == (2, 3 * 4**dims, *(s // 4 for s in size))
    assert torch.equal(patches[0, : 4**dims, *[0] * dims], x[0, 0, *[slice(4)] * dims].flatten())
    assert torch.equal(from_patches(patches, 4), x)


def test_patch_network() -> None:
    model = Unet(dim=8, dim_mults=(1, 2), patch_size=2)
    assert model.downsample_factor == 4
    assert model(torch.randn(2, 3, 8, 12), torch.tensor([0, 1])).shape == (2, 3, 8, 12)
    plain = Unet(dim=8, dim_mults=(1, 2)).summary(image_size=32)
    assert model.summary(image_size=32).macs < 0.3 * plain.macs
    with pytest.raises(ValueError, match="divisible by 4"):
        model(torch.randn(2, 3, 6, 6), torch.tensor([0, 1]))


def test_skip_connections_join_inside_the_layers_that_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, given = Layer.forward, []

    def seen(self: Layer, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        given.append(len(rest))
        return real(self, x, *rest)

    monkeypatch.setattr(Layer, "forward", seen)
    model = small(scale_skips=True)
    model(*batch(model))
    down = sum(len(level.layers) for level in model.down)
    assert given == [1] * down + [2] * (len(given) - down)
    assert len(given) > 2 * down
