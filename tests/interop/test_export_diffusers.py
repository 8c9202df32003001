"""Runs as folders of diffusers: they open there, answer alike, and draw the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.export_diffusers import export_diffusers
from ddpm_lib.nn import NETWORKS, TimeBlindUnet
from ddpm_lib.nn.networks import describe_network
from ddpm_lib.runs.new_run import write_new_run
from ddpm_lib.samplers import DDPM, sample_loop
from ddpm_lib.schedules import Schedule
from diffusers_folders import unet_2d, write_unet

SMALL: dict[str, Any] = {
    "dim": 8,
    "dim_mults": (1, 2),
    "blocks_per_level": 1,
    "attention_levels": (1,),
    "groups": 4,
}


def process(network: dict[str, Any] | None = None, **options: Any) -> GaussianDiffusion:
    """Return a small process whose weights are all random."""
    torch.manual_seed(0)
    model = Unet(**{**SMALL, **(network or {})})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return GaussianDiffusion(model, **{"image_size": 8, "timesteps": 20, **options}).eval()


NETWORK: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one level": {"dim_mults": (1,), "attention_levels": ()},
    "added time": {"time_conditioning": "add"},
    "as Ho et al.": {
        "heads": 1,
        "time_conditioning": "add",
        "down_padding": "asymmetric",
        "norm_eps": 1e-6,
        "time_order": "sin_cos",
        "freq_shift": 1,
        "dropout": 0.1,
    },
    "interleaved times": {"time_order": "interleaved", "time_dim": 24},
    "pooling": {"resample": "pool", "attention_levels": (0, 1), "head_dim": 4},
    "pooling, asymmetric": {"resample": "pool", "down_padding": "asymmetric"},
    "residual resampling": {"resample": "resblock", "attention_levels": (0,), "head_dim": 8},
    "no norm in the middle": {"mid_attention": "no_norm"},
    "no attention in the middle": {"mid_attention": "none", "attention_levels": ()},
    "three levels": {"dim_mults": (1, 2, 2), "blocks_per_level": 2, "heads": 2},
    "classes": {"num_classes": 3, "class_drop_prob": 0.0},
    "classes and a null class": {"num_classes": 3, "class_drop_prob": 0.1},
    "augmentation": {"augment_dim": 9},
    "grey": {"channels": 1},
    "learned variance": {"out_channels": 6},
}


def labels_of(model: Unet, label: int) -> dict[str, Tensor] | None:
    return None if model.config["num_classes"] is None else {"class_label": torch.tensor([label])}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", NETWORK)
def test_a_network_answers_alike_and_comes_back(tmp_path: Path, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    variance = "learned_range" if name == "learned variance" else "fixed_small"
    ours = process(NETWORK[name], variance=variance)
    folder = export_diffusers(ours, tmp_path / "folder", {"step": 7})
    theirs, report = diffusers.UNet2DModel.from_pretrained(
        folder / "unet", output_loading_info=True
    )
    assert not [entry for entries in report.values() for entry in entries]
    model: Any = ours.model
    x, t = torch.randn(1, model.channels, 8, 8), torch.tensor([13.0])
    classes = model.config["num_classes"]
    pairs = [(1, 1)] if classes else [(0, 0)]
    if classes and model.config["class_drop_prob"] > 0:
        pairs.append((-1, classes))
    for label, row in pairs:
        named = {"class_labels": torch.tensor([row])} if classes else {}
        with torch.no_grad():
            wanted = model(x, t, labels_of(model, label))
            found = theirs(x, t, **named).sample
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    # And back: what training alone needs is lost, all that answers stays.
    back = read_foreign(folder)
    assert back.process is not None
    again = NETWORKS[back.network](**back.network_config)
    assert back.weights is not None
    again.load_state_dict(back.weights)
    again.eval()
    with torch.no_grad():
        for label, _ in pairs:
            wanted, found = (net(x, t, labels_of(model, label)) for net in (model, again))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    assert GaussianDiffusion(again, **back.process).schedule == ours.schedule
    # From there on nothing changes any more.
    second = export_diffusers(GaussianDiffusion(again, **back.process), tmp_path / "second")
    once_more = read_foreign(second)
    assert once_more.network_config == back.network_config
    assert once_more.process == back.process
    assert once_more.weights is not None
    assert once_more.weights.keys() == back.weights.keys()
    assert all(torch.equal(once_more.weights[k], v) for k, v in back.weights.items())


PURE_NOISE = {"schedule_options": {"zero_terminal_snr": True}, "weighting": "snr_plus_one"}
SCHEDULE: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"schedule": "linear", "timesteps": 40},
    "linear as published": {"schedule": "linear", "schedule_options": {"rescale": False}},
    "capped": {"schedule": "linear", "timesteps": 10},
    "quad": {"schedule": "quad"},
    "scaled_linear": {"schedule": "scaled_linear"},
    "sigmoid": {"schedule": "sigmoid", "timesteps": 30},
    "laplace": {"schedule": "laplace"},
    "karras": {"schedule": "karras"},
    "jsd": {"schedule": "jsd", "weighting": "snr_plus_one"},
    "to pure noise": PURE_NOISE,
    "linear to pure noise": {
        "schedule": "linear",
        "timesteps": 40,
        **PURE_NOISE,
    },
    "betas": {"schedule": "betas", "schedule_options": {"betas": [0.01 * k for k in range(1, 21)]}},
}


@pytest.mark.filterwarnings("ignore:The cleanest level")
@pytest.mark.parametrize("name", SCHEDULE)
def test_noise_levels_are_the_same_there_and_back(tmp_path: Path, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    ours = process({"dim_mults": (1,), "attention_levels": ()}, **SCHEDULE[name])
    folder = export_diffusers(ours, tmp_path / "folder")
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    wanted = ours.schedule.alpha[1:].square()
    # float32 products of up to 40 factors.
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), wanted, rtol=1e-4, atol=1e-6)
    back = read_foreign(folder).process
    assert back is not None
    found = Schedule.make(back["schedule"], back["timesteps"], back["schedule_options"])
    torch.testing.assert_close(found.alpha, ours.schedule.alpha, rtol=1e-9, atol=1e-12)
    assert float(found.alpha[-1]) == float(ours.schedule.alpha[-1]) or found.alpha[-1] > 0


PROCESS: dict[str, dict[str, Any]] = {
    "v, cosine": {},
    "eps, linear": {"parametrization": "eps", "schedule": "linear", "timesteps": 40},
    "x0, large variance": {"parametrization": "x0", "variance": "fixed_large"},
    "dynamic threshold": {"clip": "dynamic", "dynamic_threshold_ratio": 0.9},
    "unclipped": {"clip": "none"},
    "learned variance": {"variance": "learned_range"},
    "to pure noise": PURE_NOISE,
}


def exported(tmp_path: Path, name: str) -> tuple[GaussianDiffusion, Path]:
    learned = name == "learned variance"
    ours = process({"out_channels": 6} if learned else {}, **PROCESS[name])
    return ours, export_diffusers(ours, tmp_path / "folder")


def images_of(pipeline: Any, **options: Any) -> Tensor:
    """Draw two images with a pipeline of diffusers."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, output_type="np", **options).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.every(3)
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", PROCESS)
def test_the_ddpm_pipeline_draws_the_same_images(tmp_path: Path, name: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    ours, folder = exported(tmp_path, name)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    found = images_of(
        pipeline, generator=torch.Generator().manual_seed(3), num_inference_steps=steps
    )
    levels = [*(int(t) + 1 for t in pipeline.scheduler.timesteps), 0]
    assert len(levels) == steps + 1
    generator = torch.Generator().manual_seed(3)

    def noise() -> Tensor:
        return torch.randn(2, 3, 8, 8, generator=generator)

    x = sample_loop(DDPM(), noise(), [ours.schedule.level(t) for t in levels], ours.denoise, noise)
    wanted = (x / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_why_other_variances_are_exported_with_leading_steps(tmp_path: Path) -> None:
    """DDPMScheduler adds noise behind the last step where that starts above the cleanest level."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    _, folder = exported(tmp_path, "x0, large variance")
    file = folder / "scheduler"
    x, drawn = torch.zeros(1, 3, 8, 8), {}
    for spacing in ("leading", "trailing"):
        scheduler = diffusers.DDPMScheduler.from_pretrained(file, timestep_spacing=spacing)
        scheduler.set_timesteps(5)
        last = scheduler.timesteps[-1]
        step = scheduler.step(x, last, x, generator=torch.Generator().manual_seed(0))
        drawn[spacing] = float(step.prev_sample.std())
    assert drawn["leading"] == 0
    assert drawn["trailing"] > 0.1


@pytest.mark.parametrize("name", [name for name in PROCESS if name != "learned variance"])
def test_the_ddim_pipeline_draws_the_same_images(tmp_path: Path, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    ours, folder = exported(tmp_path, name)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    found = images_of(
        pipeline,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=10,
        # Its ε̂ is else that of the image before clipping, ours always that of the clipped one.
        use_clipped_model_output=True,
    )
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    spacing = pipeline.scheduler.config.timestep_spacing
    wanted = ours.sample(2, x_T=start, sampler="ddim", num_steps=10, spacing=spacing)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", ["eps, linear", "unclipped", "dynamic threshold"])
def test_dpm_solver_draws_the_same_images(tmp_path: Path, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    ours, folder = exported(tmp_path, name)
    clip = "dynamic" if name == "dynamic threshold" else "none"  # its solver knows no other
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    scheduler.set_timesteps(10)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    same = GaussianDiffusion(ours.model, **{**ours.config, "clip": clip})
    wanted = same.sample(
        2, x_T=start, sampler="dpmpp_2m", spacing=[int(t) + 1 for t in scheduler.timesteps]
    )
    torch.testing.assert_close((x / 2 + 0.5).clamp(0, 1), wanted, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_dpm_solver_takes_a_learned_variance(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    eps = process({"out_channels": 6}, variance="learned_range", parametrization="eps")
    folder = export_diffusers(eps, tmp_path / "folder")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    assert x.shape == (2, 3, 8, 8)
    assert x.isfinite().all()


@pytest.mark.parametrize("folder", ["ddpm_pipeline", "hub_style_ddpm"])
def test_what_was_read_is_written_again(shared: Path, tmp_path: Path, folder: str) -> None:
    first = read_foreign(shared / "fixtures" / "D_checkpoints" / "diffusers" / folder)
    assert first.process is not None
    assert first.weights is not None
    network = NETWORKS[first.network](**first.network_config)
    network.load_state_dict(first.weights)
    out = export_diffusers(GaussianDiffusion(network, **first.process), tmp_path / "out")
    again = read_foreign(out)
    assert again.network_config == first.network_config
    assert again.process == first.process
    assert again.weights is not None
    assert again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[name], value) for name, value in first.weights.items())
    theirs = shared / "fixtures" / "D_checkpoints" / "diffusers" / "ddpm_pipeline"
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        wanted, written = (json.loads((f / file).read_text()) for f in (theirs, out))
        differ = {k for k in wanted if written.get(k) != wanted[k] and not k.startswith("_")}
        # How images are drawn is none of a run's business.
        assert differ <= {"timestep_spacing"}, file


def test_a_network_of_diffusers_itself(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = unet_2d()
    out = export_diffusers(GaussianDiffusion(theirs, image_size=8, timesteps=20), tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(out)
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert pipeline.scheduler.config.num_train_timesteps == 20


def test_names_of_classes_come_back(tmp_path: Path) -> None:
    ours = process({"num_classes": 2})
    ours.class_names = ("cat", "dog")
    back = read_foreign(export_diffusers(ours, tmp_path / "out"))
    assert back.class_names == ("cat", "dog")
    assert back.network_config["num_classes"] == 2
    assert back.network_config["class_drop_prob"] == 0.1


def test_a_run_goes_there_and_back_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = process({"num_classes": 2})
    run, out, back = (tmp_path / name for name in ("run", "out", "back"))
    write_new_run(
        run,
        model=describe_network(ours.model),
        diffusion=ours.config,
        weights=ours.model.state_dict(),
        step=7,
        class_names=("cat", "dog"),
    )
    assert main(["export", str(run), str(out), "--to", "diffusers", "--weights", "model"]) == 0
    assert f'diffusers.DDPMPipeline.from_pretrained("{out}")' in capsys.readouterr().out
    assert main(["convert", str(out), str(back)]) == 0
    again = load_run(back, weights="model")
    assert again.class_names == ("cat", "dog")
    options: dict[str, Any] = {"cond": {"class_label": "dog"}, "guidance_scale": 2.0}
    drawn = again.diffusion.sample(2, num_steps=2, **options)
    ours.class_names = ("cat", "dog")
    torch.testing.assert_close(drawn, ours.sample(2, num_steps=2, **options))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "patches": ({"patch_size": 2}, {}, "patch_size=2.*train with patch_size=1"),
    "self-conditioning": ({"self_condition": True}, {}, "self_condition=True"),
    "super-resolution": ({"low_res_factor": 2}, {}, "low_res_factor=2"),
    "scaled skips": ({"scale_skips": True}, {}, "scale_skips=True"),
    "scaled times": ({"time_scale": 0.25}, {}, r"time_scale=0\.25"),
    "first multiple": ({"dim_mults": (2, 4)}, {}, r"dim_mults=\[2, 4\].*dim=16"),
    "middle": (
        {"mid_attention": "no_norm", "time_conditioning": "add"},
        {},
        "mid_attention='no_norm'",
    ),
    "heads": (
        {"attention_levels": (0, 1), "heads": 2},
        {},
        "heads=2 makes heads of 4 and 8 channels.*head_dim",
    ),
    "heads on the way up": ({"heads": 2, "heads_up": 4}, {}, "heads_up=4"),
    "edm": ({}, {"parametrization": "edm", "schedule": "karras"}, "parametrization='edm'.*'v'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_cannot_hold_is_refused_by_its_option(tmp_path: Path, name: str) -> None:
    network, options, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as caught:
        export_diffusers(process(network, **options), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_networks_and_sizes_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blind = GaussianDiffusion(TimeBlindUnet(), image_size=32, timesteps=20)
    with pytest.raises(ConfigError, match="class Unet; this is a TimeBlindUnet"):
        export_diffusers(blind, tmp_path / "out")
    line = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), dims=1), image_size=(8,), timesteps=20)
    with pytest.raises(ConfigError, match="dims=1"):
        export_diffusers(line, tmp_path / "out")
    write_unet(tmp_path / "taken", {}, {"a": torch.ones(1)})
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export_diffusers(process(), tmp_path / "taken")
