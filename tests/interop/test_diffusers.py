"""Folders of diffusers are read number for number, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Trainer, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.interop import Imported, read_foreign
from ddpm_lib.interop.diffusers_scheduler import SCHEDULERS
from ddpm_lib.interop.diffusers_unet import ENTRIES, in_order, network_of
from ddpm_lib.nn import NETWORKS
from ddpm_lib.samplers import DDPM, sample_loop
from ddpm_lib.schedules import Schedule
from diffusers_folders import published, unet_2d, write_unet

UNETS = (
    "diffusers_ddpm_hub_style",
    "diffusers_default_style",
    "diffusers_fourier_ncsnpp_time",
    "diffusers_scale_shift_class_resnet",
)
CHECKPOINTS = {"ddpm_pipeline": "model", "hub_style_ddpm": "hub_style", "unet_ema": "ema"}


def built(imported: Imported) -> Any:
    """Return the network with its weights, or the first average."""
    network = NETWORKS[imported.network](**imported.network_config)
    weights = imported.weights or next(iter(imported.averages.values()))
    network.load_state_dict(weights)
    return network.eval()


@pytest.mark.parametrize("name", UNETS)
def test_published_networks_are_read_number_for_number(
    shared: Path, tmp_path: Path, name: str
) -> None:
    about, tensors, weights = published(shared, name)
    imported = read_foreign(write_unet(tmp_path / "unet", about["config"], weights))
    network = built(imported)
    cond = {"class_label": tensors["in/y"]} if "in/y" in tensors else None
    out = network(tensors["in/x"], tensors["in/t"], cond)
    torch.testing.assert_close(out, tensors["out_f32"], rtol=1e-4, atol=2e-5)
    network.double()
    x = tensors["in/x"].double().requires_grad_()
    out = network(x, tensors["in/t"], cond)
    torch.testing.assert_close(out, tensors["out_f64"], rtol=1e-9, atol=1e-10)
    (out * tensors["probe"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["grad_x_f64"], rtol=1e-8, atol=1e-10)
    if name == "diffusers_fourier_ncsnpp_time":
        assert imported.process is None
        assert "belongs to no process" in imported.notes[-1]


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_published_checkpoints_become_runs(shared: Path, tmp_path: Path, folder: str) -> None:
    home = shared / "fixtures" / "D_checkpoints" / "diffusers"
    expected = load_file(home / "expected.safetensors")
    run = tmp_path / "run"
    assert main(["convert", str(home / folder), str(run)]) == 0
    imported = read_foreign(home / folder)
    loaded = load_run(run, weights="ema" if imported.averages else "model")
    network = loaded.diffusion.model
    for kind, rtol, atol in (("f32", 1e-4, 2e-5), ("f64", 1e-8, 1e-9)):
        x = expected["in/x"]
        if kind == "f64":
            network.double()
            x = x.double()
        out = network(x, expected["in/t"])
        wanted = expected[f"{CHECKPOINTS[folder]}/out_{kind}"]
        torch.testing.assert_close(out, wanted, rtol=rtol, atol=atol)
    if folder == "unet_ema":
        assert (list(imported.averages), imported.step, loaded.step) == ([0.95], 6, 6)
    else:
        assert loaded.diffusion.timesteps == 50
        assert loaded.diffusion.config["variance"] == "fixed_large"


def test_a_published_pipeline_draws_its_images(shared: Path) -> None:
    home = shared / "fixtures" / "D_checkpoints" / "diffusers"
    expected = load_file(home / "expected.safetensors")
    imported = read_foreign(home / "ddpm_pipeline")
    assert imported.process is not None
    process = GaussianDiffusion(built(imported), **imported.process)
    levels = [process.schedule.level(t) for t in (41, 31, 21, 11, 1, 0)]
    noise = iter(expected["noise"])
    x = sample_loop(DDPM(), next(noise), levels, process.denoise, lambda: next(noise))
    images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, expected["ddpm_pipeline_images"], rtol=0, atol=1e-5)


@pytest.mark.every(3)
@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_training_goes_on_from_published_checkpoints(
    shared: Path, tmp_path: Path, folder: str
) -> None:
    home, run = shared / "fixtures" / "D_checkpoints" / "diffusers", tmp_path / "run"
    assert main(["convert", str(home / folder), str(run)]) == 0
    loaded = load_run(run, weights="model")
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [{"image": (image * 255).byte()} for image in images]
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    steps = torch.linspace(1, loaded.diffusion.timesteps, 64).long()

    def loss() -> float:
        with torch.no_grad():
            many = images.repeat(8, 1, 1, 1)
            return float(loaded.diffusion.losses(many, t=steps, noise=noise).per_image.mean())

    before = loss()
    trainer = Trainer(
        loaded.diffusion,
        data,
        output_dir=run,
        batch_size=8,
        max_steps=loaded.step + 30,
        learning_rate=3e-3,
        warmup_steps=0,
        sample_every=0,
        mixed_precision="no",
        **({"ema_decay": (0.95,)} if folder == "unet_ema" else {"ema_decay": ()}),
    )
    trainer.train()
    assert trainer.step == loaded.step + 30
    assert loss() < 0.9 * before


# Against diffusers itself.

CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "attention everywhere": {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "attention_head_dim": 4,
        "layers_per_block": 2,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, normed": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
    "no attention in the middle": {"add_attention": False},
    "resnet resampling": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "as google's": {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "grey, learned variance": {"in_channels": 1, "out_channels": 2, "time_embedding_dim": 24},
    "classes": {"num_class_embeds": 5, "dropout": 0.2, "act_fn": "swish"},
    "fourier": {"time_embedding_type": "fourier"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_network_that_is_read_answers_like_theirs(tmp_path: Path, name: str) -> None:
    theirs = unet_2d(**CONFIGS[name])
    theirs.save_pretrained(tmp_path / "unet")
    imported = read_foreign(tmp_path / "unet")
    x = torch.randn(2, theirs.config.in_channels, 8, 8)
    t, label = torch.tensor([3.0, 700.0]), torch.tensor([0, 4])
    classes = theirs.config.num_class_embeds is not None
    with torch.no_grad():
        wanted = theirs(x, t, **({"class_labels": label} if classes else {})).sample
        ours = built(imported)(x, t, {"class_label": label} if classes else None)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_the_defaults_of_configs_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    import inspect

    signature = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    assert {n: p.default for n, p in signature.items() if n != "self"} == ENTRIES
    for name, defaults in SCHEDULERS.items():
        signature = inspect.signature(getattr(diffusers, name).__init__).parameters
        # Schedulers without the option never clip.
        assert defaults == {
            entry: signature[entry].default if entry in signature else False for entry in defaults
        }, name


def test_the_order_of_parameters_is_that_of_diffusers() -> None:
    for name in CONFIGS:
        theirs = [key for key, _ in unet_2d(**CONFIGS[name]).named_parameters()]
        assert in_order(sorted(theirs)) == theirs, name


BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "laplace": {"beta_schedule": "laplace"},
    "trained": {"trained_betas": [0.001 * (k + 1) for k in range(100)]},
}


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("betas", BETAS)
def test_noise_levels_are_those_of_diffusers(tmp_path: Path, betas: str, rescaled: bool) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    options = {**BETAS[betas], "num_train_timesteps": 100, "rescale_betas_zero_snr": rescaled}
    options["prediction_type"] = "v_prediction"
    scheduler = diffusers.DDPMScheduler(**options)
    theirs = unet_2d()
    diffusers.DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path / "pipeline")
    process = read_foreign(tmp_path / "pipeline").process
    assert process is not None
    schedule = Schedule.make(process["schedule"], 100, process["schedule_options"])
    wanted = scheduler.alphas_cumprod.double()
    # float32 products of 100 factors; at the noisy end of a rescaled schedule α̅ is 0 itself.
    torch.testing.assert_close(schedule.alpha[1:].square(), wanted, rtol=2e-4, atol=1e-6)
    assert (process["parametrization"], process["weighting"]) == ("v", "snr_plus_one")


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_read_as_a_process(tmp_path: Path, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = getattr(diffusers, name)()
    write_unet(tmp_path / "unet", *small_parts())
    scheduler.save_pretrained(tmp_path / "scheduler")
    process = read_foreign(tmp_path).process
    assert process is not None
    assert process["clip"] == ("static" if scheduler.config.get("clip_sample") else "none")
    found = Schedule.make(process["schedule"], 1000, process["schedule_options"])
    wanted = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(found.alpha[1:].square(), wanted, rtol=2e-4, atol=1e-6)


# What a scheduler says, in our words.


def small_parts() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights of a network without attention, by the rules of their names."""
    from ddpm_lib.interop.renaming import RES_CHILDREN

    config = {
        "sample_size": 8,
        "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "add_attention": False,
    }
    names = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
    network: Any = NETWORKS["Unet"](
        dim=8, dim_mults=(1,), blocks_per_level=1, mid_attention="none", groups=4,
        time_conditioning="add", attention_levels=(),
    )  # fmt: skip
    torch.manual_seed(0)
    paths = {
        "time_embedding.linear1": "time_embedding.linear_1",
        "time_embedding.linear2": "time_embedding.linear_2",
        "norm_out": "conv_norm_out",
        "down.0.layers.0.res": "down_blocks.0.resnets.0",
        "up.0.layers.0.res": "up_blocks.0.resnets.0",
        "up.0.layers.1.res": "up_blocks.0.resnets.1",
        "middle.res1": "mid_block.resnets.0",
        "middle.res2": "mid_block.resnets.1",
    }
    weights = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in paths.items():
            name = name.replace(ours, theirs)
        path, leaf = name.rsplit(".", 1)
        if "resnets" in path:
            parent, child = path.rsplit(".", 1)
            path = f"{parent}.{names[RES_CHILDREN.index(child)]}"
        weights[f"{path}.{leaf}"] = tensor + 0.05 * torch.randn_like(tensor)
    return config, weights


def pipeline(folder: Path, **scheduler: Any) -> Path:
    """Write a pipeline of a small network and a DDPMScheduler."""
    write_unet(folder / "unet", *small_parts())
    (folder / "scheduler").mkdir()
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 20, **scheduler}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("scheduler", "ours"),
    [
        ({}, {"parametrization": "eps", "variance": "fixed_small", "clip": "static"}),
        ({"prediction_type": "sample"}, {"parametrization": "x0", "weighting": "simple"}),
        ({"predict_epsilon": False}, {"parametrization": "x0"}),
        ({"variance_type": "fixed_small_log"}, {"variance": "fixed_small"}),
        ({"variance_type": "fixed_large_log"}, {"variance": "fixed_large"}),
        ({"clip_sample": False}, {"clip": "none"}),
        ({"thresholding": True}, {"clip": "static"}),
        (
            {"thresholding": True, "sample_max_value": 1e9, "dynamic_thresholding_ratio": 0.9},
            {"clip": "dynamic", "dynamic_threshold_ratio": 0.9},
        ),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine", "schedule_options": {}}),
    ],
)
def test_a_scheduler_in_our_words(
    tmp_path: Path, scheduler: dict[str, Any], ours: dict[str, Any]
) -> None:
    process = read_foreign(pipeline(tmp_path / "p", **scheduler)).process
    assert process is not None
    assert {name: process[name] for name in ours} == ours
    GaussianDiffusion(NETWORKS["Unet"](dim=8), **process)


def test_what_cannot_be_carried_over_is_said(tmp_path: Path) -> None:
    notes = read_foreign(pipeline(tmp_path / "p", clip_sample_range=3.0)).notes
    assert ["clip_sample_range=3" in note for note in notes] == [True]
    bare = read_foreign(write_unet(tmp_path / "bare", *small_parts()))
    assert ["no scheduler_config.json" in note for note in bare.notes] == [True]
    other = read_foreign(
        tmp_path / "bare", {"timesteps": 30, "schedule": "cosine", "parametrization": "v"}
    )
    assert other.process is not None
    assert [other.process[k] for k in ("timesteps", "schedule", "parametrization")] == [
        *(30, "cosine", "v")
    ]


def test_a_list_of_betas_has_its_length(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "p", trained_betas=[0.01 * (k + 1) for k in range(20)])
    with pytest.raises(ConfigError, match="a list of 20"):
        read_foreign(folder, {"timesteps": 30})
    process = read_foreign(folder, {"timesteps": 30, "schedule": "cosine"}).process
    assert process is not None
    assert (process["timesteps"], process["schedule"]) == (30, "cosine")


def test_the_size_of_the_images_may_have_to_be_given(tmp_path: Path) -> None:
    config, weights = small_parts()
    write_unet(tmp_path, {**config, "sample_size": None}, weights)
    with pytest.raises(ConfigError, match=r"no sample_size\. Give image_size"):
        read_foreign(tmp_path)
    imported = read_foreign(tmp_path, {"image_size": (16, 8)})
    assert imported.process is not None
    assert imported.process["image_size"] == [16, 8]


# Layouts.


def test_flat_folders_pickles_and_shards_are_the_same_network(tmp_path: Path) -> None:
    config, weights = small_parts()
    wanted = read_foreign(write_unet(tmp_path / "plain", config, weights))
    assert wanted.weights is not None
    bins = read_foreign(write_unet(tmp_path / "bin", config, weights, "bin"))
    folder = write_unet(tmp_path / "shards", config, weights)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    stem, names = "diffusion_pytorch_model", sorted(weights)
    index: dict[str, Any] = {"weight_map": {}}
    for i, part in enumerate((names[:9], names[9:]), start=1):
        file = f"{stem}-0000{i}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, folder / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    shards = read_foreign(folder)
    for found in (bins.weights, shards.weights):
        assert found is not None
        assert found.keys() == wanted.weights.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.weights.items())
    (folder / f"{stem}-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks diffusion_pytorch_model-00002-of-00002"):
        read_foreign(folder)


def test_an_average_beside_the_weights(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "p")
    config, weights = small_parts()
    ema = {"decay": 0.99, "optimization_step": 40, "use_ema_warmup": True, "power": 0.75}
    doubled = {name: 2 * value for name, value in weights.items()}
    write_unet(folder / "unet_ema", {**config, **ema}, doubled)
    imported = read_foreign(folder)
    assert imported.weights is not None
    assert (list(imported.averages), imported.step) == ([0.99], 40)
    for name, value in imported.averages[0.99].items():
        assert torch.equal(value, 2 * imported.weights[name])
    assert ["warm-up" in note for note in imported.notes] == [True]
    write_unet(folder / "unet_ema", {**config, **ema, "sample_size": 16}, doubled)
    with pytest.raises(CheckpointError, match=r"another network.*sample_size differ"):
        read_foreign(folder)


def test_the_last_class_may_be_the_null_class(tmp_path: Path) -> None:
    config, weights = small_parts()
    weights["class_embedding.weight"] = torch.randn(5, 32)
    write_unet(tmp_path, {**config, "num_class_embeds": 5}, weights)
    plain, guided = read_foreign(tmp_path), read_foreign(tmp_path, {"class_drop_prob": 0.2})
    name = "conditioners.class_label.embedding.weight"
    assert (plain.network_config["num_classes"], guided.network_config["num_classes"]) == (5, 4)
    assert guided.network_config["class_drop_prob"] == 0.2
    assert plain.weights is not None
    assert guided.weights is not None
    assert torch.equal(plain.weights[name][:5], weights["class_embedding.weight"])
    assert torch.equal(guided.weights[name], weights["class_embedding.weight"])


def test_names_of_the_first_versions(tmp_path: Path) -> None:
    from ddpm_lib.interop.diffusers_unet import present_names

    square = torch.arange(4.0).view(2, 2)
    old = {
        "mid_block.attentions.0.query.weight": square,
        "mid_block.attentions.0.proj_attn.bias": square[0],
        "mid_block.attentions.0.NIN_2.W": square,
        "mid_block.attentions.0.NIN_2.b": square[1],
        "conv_in.weight": square,
    }
    found = present_names(old)
    path = "mid_block.attentions.0"
    assert list(found) == [
        f"{path}.to_q.weight",
        f"{path}.to_out.0.bias",
        f"{path}.to_v.weight",
        f"{path}.to_v.bias",
        "conv_in.weight",
    ]
    assert torch.equal(found[f"{path}.to_v.weight"], square.t())


def test_checkpoints_of_training_scripts_keep_adam(tmp_path: Path) -> None:
    theirs = unet_2d().train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.95, 0.999))
    x = torch.randn(2, 3, 8, 8)

    def step(network: Any, adam: torch.optim.Optimizer, answer: Callable[..., Tensor]) -> None:
        answer(network).square().mean().backward()
        adam.step()
        adam.zero_grad()

    t = torch.tensor([1.0, 5.0])
    for _ in range(3):
        step(theirs, optimizer, lambda net: net(x, t).sample)
    theirs.save_pretrained(tmp_path / "unet")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    imported = read_foreign(tmp_path)
    assert imported.step == 3
    assert imported.training["learning_rate"] == 1e-3
    assert imported.training["adam_betas"] == (0.95, 0.999)
    ours = built(imported)
    adam = torch.optim.AdamW(ours.parameters(), lr=1e-3, betas=(0.95, 0.999))
    from ddpm_lib.runs.network_state import load_optimizer_tensors

    load_optimizer_tensors(adam, ours, imported.optimizer)
    step(ours, adam, lambda net: net(x, t))
    step(theirs, optimizer, lambda net: net(x, t).sample)
    theirs.save_pretrained(tmp_path / "next")
    after = read_foreign(tmp_path / "next").weights
    assert after is not None
    for name, value in ours.state_dict().items():
        if ".qkv.bias" in name:
            continue  # the keys' bias has no gradient but rounding, which Adam blows up
        torch.testing.assert_close(value, after[name], rtol=1e-4, atol=2e-5)


# Refusals, each in one line that names what is wrong.


def edited(file: str, **entries: Any) -> Callable[[Path], None]:
    """Return a change of a JSON file; an entry that is ... is removed."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text()) | entries
        (folder / file).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return change


def with_weights(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Return a change of the weights."""

    def apply(folder: Path) -> None:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file)

    return apply


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / UNET).unlink(), "has no unet/config.json"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        "there are none",
    ),
    "another class": (edited(UNET, _class_name="UNet2DConditionModel"), "UNet2DConditionModel"),
    "unknown entry": (edited(UNET, colour="red"), "no UNet2DModel takes: ['colour']"),
    "unknown block": (edited(UNET, down_block_types=["SkipDownBlock2D"]), "down_block_types"),
    "too few blocks": (edited(UNET, up_block_types=[]), "up_block_types"),
    "attention one way": (edited(UNET, up_block_types=["AttnUpBlock2D"]), "up_block_types"),
    "activation": (edited(UNET, act_fn="gelu"), "act_fn"),
    "learned times": (edited(UNET, time_embedding_type="learned"), "time_embedding_type"),
    "centred": (edited(UNET, center_input_sample=True), "center_input_sample"),
    "no middle": (edited(UNET, mid_block_type=None), "mid_block_type"),
    "class embedding": (edited(UNET, class_embed_type="timestep"), "class_embed_type"),
    "padding": (edited(UNET, downsample_padding=2), "downsample_padding"),
    "middle groups": (
        edited(UNET, add_attention=True, attn_norm_num_groups=2),
        "attn_norm_num_groups",
    ),
    "widths": (edited(UNET, block_out_channels="8"), "block_out_channels"),
    "channels": (edited(UNET, out_channels=5), "left over|do not fit|out_channels"),
    "missing key": (with_weights(lambda w: w.pop("conv_in.bias")), "missing: conv_in.bias"),
    "extra key": (
        with_weights(lambda w: w.update(extra=torch.ones(1))),
        "left over: extra",
    ),
    "wrong shape": (
        with_weights(lambda w: w.update({"conv_in.bias": torch.ones(9)})),
        "conv_in.bias: shape (9,)",
    ),
    "prediction": (edited(SCHEDULER, prediction_type="score"), "prediction_type"),
    "betas": (edited(SCHEDULER, beta_schedule="zigzag"), "beta_schedule"),
    "trained betas": (edited(SCHEDULER, trained_betas=[0.1]), "trained_betas"),
    "epsilon of pure noise": (edited(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas"),
    "levels": (edited(SCHEDULER, num_train_timesteps="many"), "num_train_timesteps"),
    "ends": (edited(SCHEDULER, beta_end="x"), "beta_end"),
    "variance": (edited(SCHEDULER, variance_type="learned"), "variance_type"),
    "learned variance": (edited(SCHEDULER, variance_type="learned_range"), "variance_type"),
    "scheduler": (edited(SCHEDULER, _class_name="ScoreSdeVeScheduler"), "ScoreSdeVeScheduler"),
    "pipeline": (
        edited("model_index.json", vae=["diffusers", "AutoencoderKL"]),
        "model_index.json has 'vae'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused_in_a_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pipeline(tmp_path / "p")
    change, says = BROKEN[name]
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        read_foreign(folder)
    message = str(caught.value)
    assert any(part in message for part in says.split("|")), message
    assert "\n" not in message
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err.count("\n") == 1


ODD = (None, "x", -1, [], True, [1], 2.5, 10**9)
NAMED = (*SCHEDULERS["DDPMScheduler"], "prediction_type", "variance_type", "trained_betas")
NUMBERS = ("num_train_timesteps", "dynamic_thresholding_ratio", "sample_max_value")
SWITCHES = ("thresholding", "rescale_betas_zero_snr", "clip_sample_range", "_class_name")


@pytest.mark.parametrize("file", [UNET, SCHEDULER])
def test_odd_values_are_refused_or_read_as_a_process(tmp_path: Path, file: str) -> None:
    folder = pipeline(tmp_path / "p")
    whole = json.loads((folder / file).read_text())
    entries = [*ENTRIES, "_class_name"] if file == UNET else [*NAMED, *NUMBERS, *SWITCHES]
    said: list[str] = []
    for entry in entries:
        for value in ODD:
            (folder / file).write_text(json.dumps({**whole, entry: value}))
            try:
                imported = read_foreign(folder)
            except (CheckpointError, ConfigError) as error:
                said.append(str(error))
                continue
            assert imported.process is not None
            GaussianDiffusion(NETWORKS[imported.network](dim=4), **imported.process)
    assert all(str(folder) in message and "\n" not in message for message in said)
    assert len(said) > 2 * len(entries)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    config, weights = small_parts()
    write_unet(tmp_path, config, {name: tensor.half() for name, tensor in weights.items()})
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    imported = read_foreign(tmp_path)
    assert imported.weights is not None
    assert {tensor.dtype for tensor in imported.weights.values()} == {torch.float32}
    shutil.copy(
        file.with_name("diffusion_pytorch_model.fp16.safetensors"),
        file.with_name("diffusion_pytorch_model.other.safetensors"),
    )
    with pytest.raises(CheckpointError, match="there are several: diffusion_pytorch_model"):
        read_foreign(tmp_path)


def test_the_network_of_cifar_10_is_our_preset() -> None:
    config = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    network = network_of(config, "config.json", {"dropout": 0.1}, [])
    with torch.device("meta"):
        ours = Unet(**network.arguments)
        preset = Unet.preset("cifar10", groups=32, class_drop_prob=0.0)
    assert ours.config == preset.config
    # Ho et al. 2020, appendix B.
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ({"block_out_channels": (8, 12), "norm_num_groups": 4}, "block_out_channels"),
        ({"downsample_type": "resnet"}, "downsample_type"),
        (
            {
                "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
                "downsample_type": "resnet",
            },
            "upsample_type",
        ),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor"),
    ],
)
def test_networks_that_the_unet_cannot_hold(
    tmp_path: Path, options: dict[str, Any], entry: str
) -> None:
    unet_2d(**options).save_pretrained(tmp_path)
    if entry == "downsample_type":
        # Only blocks with attention look at it; here the last one, which does not resample.
        assert read_foreign(tmp_path).network_config["resample"] == "conv"
        return
    with pytest.raises(CheckpointError, match=entry):
        read_foreign(tmp_path)


def test_a_file_alone_asks_for_its_folder(tmp_path: Path) -> None:
    write_unet(tmp_path, *small_parts())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match=r"has no config\.json.*Give the folder"):
        read_foreign(file)
    shutil.rmtree(tmp_path)
