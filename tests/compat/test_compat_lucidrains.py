"""Scripts written for denoising-diffusion-pytorch, with the import line changed."""

from __future__ import annotations

import json
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddpm_lib.compat.lucidrains import (
    Dataset,
    GaussianDiffusion,
    LearnedGaussianDiffusion,
    Trainer,
    Unet,
)
from ddpm_lib.compat.lucidrains import (
    classifier_free_guidance as with_classes,
)
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub.folder_config import library_version
from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.export_weights import export_npz
from ddpm_lib.runs.loading import load_run
from ddpm_lib.training import Callback

TINY = {"dim": 8, "dim_mults": (1, 2), "attn_dim_head": 8}
QUIET = {"train_batch_size": 4, "num_samples": 4, "calculate_fid": False}

FIRST = """
import torch
from denoising_diffusion_pytorch import Unet, GaussianDiffusion

model = Unet(dim = 8, dim_mults = (1, 2), flash_attn = True)
diffusion = GaussianDiffusion(model, image_size = 8, timesteps = 20)
images = torch.rand(4, 3, 8, 8)
loss = diffusion(images)
loss.backward()
sampled = diffusion.sample(batch_size = 2)
"""

SECOND = """
from denoising_diffusion_pytorch import Unet, GaussianDiffusion, Trainer

model = Unet(dim = 8, dim_mults = (1, 2), flash_attn = True)
diffusion = GaussianDiffusion(model, image_size = 8, timesteps = 100, sampling_timesteps = 4)
trainer = Trainer(
    diffusion,
    'pictures',
    train_batch_size = 4,
    train_lr = 8e-5,
    train_num_steps = 4,
    gradient_accumulate_every = 2,
    ema_decay = 0.995,
    amp = True,
    calculate_fid = True,
    save_and_sample_every = 2,
    num_samples = 4
)
trainer.train()
"""


def run_script(text: str) -> dict:
    names: dict = {}
    exec(text.replace("denoising_diffusion_pytorch", "ddpm_lib.compat.lucidrains"), names)
    return names


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for i in range(12):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def process(**options) -> GaussianDiffusion:
    return GaussianDiffusion(Unet(**TINY), **{"image_size": 8, "timesteps": 20} | options)


def test_the_first_example():
    found = run_script(FIRST)
    assert found["loss"].ndim == 0
    assert all(p.grad is not None for p in found["model"].parameters())
    assert found["sampled"].shape == (2, 3, 8, 8)
    assert found["sampled"].min() >= 0
    assert found["sampled"].max() <= 1


@pytest.mark.filterwarnings("ignore:calculate_fid=True:UserWarning", "ignore:amp=True:UserWarning")
def test_the_second_example(pictures, monkeypatch):
    monkeypatch.setattr("ddpm_lib.metrics.weights.find_weights", lambda name: None)
    found = run_script(SECOND)
    trainer, results = found["trainer"], pictures.parent / "results"
    assert trainer.step == 4
    made = {p.name for p in results.iterdir()}
    assert made == {"model-1.pt", "model-2.pt", "sample-1.png", "sample-2.png", "run"}
    with Image.open(results / "sample-2.png") as grid:
        assert grid.width == grid.height >= 16
    imported = read_foreign(results / "model-2.pt", {"image_size": 8})
    assert imported.step == 4
    for name, tensor in found["model"].network.state_dict().items():
        torch.testing.assert_close(imported.weights[name], tensor, rtol=0, atol=0)
    average = trainer.ema.ema_model
    assert average.sample(batch_size=1).shape == (1, 3, 8, 8)
    for name, tensor in average.model.network.state_dict().items():
        torch.testing.assert_close(imported.averages[0.9995][name], tensor, rtol=0, atol=0)
    assert load_run(results / "run").step == 4
    config = trainer.trainer.config
    assert (config.images_per_step, config.accumulation_steps) == (8, 2)
    assert config.horizontal_flip
    assert config.warmup_steps == 0
    assert config.learning_rate == 8e-5
    assert config.adam_betas == (0.9, 0.99)
    assert config.ema_decay == (0.999499,)


def test_milestones_carry_the_whole_state(pictures):
    options = QUIET | {"train_num_steps": 3, "save_and_sample_every": 3, "train_lr": 1e-3}
    first = Trainer(process(sampling_timesteps=2), pictures, **options)
    first.train()
    second = Trainer(process(sampling_timesteps=2), pictures, **options | {"train_num_steps": 5})
    second.load(1)
    assert second.step == 3
    assert {p.name for p in (pictures.parent / "results").glob("run*")} == {"run", "run-2"}
    parts = [(t.model.process.model, t.trainer.optimizer.optimizer) for t in (first, second)]
    (one, adam), (other, again) = parts
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=0)
        for entry in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(again.state[q][entry], adam.state[p][entry], msg=name)
    # Read, written, read: the same file.
    second.save("copy")
    results = pictures.parent / "results"
    before, after = (
        torch.load(results / f"model-{name}.pt", weights_only=True)  # noqa: TID251
        for name in (1, "copy")
    )
    assert before.keys() == after.keys()
    for part in ("model", "ema"):
        assert list(before[part]) == list(after[part])
        for name, tensor in before[part].items():
            torch.testing.assert_close(after[part][name], tensor, rtol=0, atol=0, msg=name)
    assert before["opt"]["state"].keys() == after["opt"]["state"].keys()
    second.train()
    assert second.step == 5


def test_a_source_tree_that_is_not_installed_saves_and_exports(pictures, monkeypatch):
    installed = metadata.Distribution.from_name

    def others(name):
        if name == "ddpm-lib":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", others)
    library_version.cache_clear()
    try:
        trainer = Trainer(process(), pictures, **QUIET)
        trainer.save("now")
        folder = export_npz(trainer.model.process, pictures.parent / "exported")
    finally:
        library_version.cache_clear()
    assert json.loads((folder / "model.json").read_text())["version"] == "unknown"
    saved = torch.load(  # noqa: TID251
        pictures.parent / "results" / "model-now.pt", weights_only=True
    )
    assert saved["version"] == "ddpm-lib unknown"


def test_a_milestone_of_the_original(shared, pictures):
    results = pictures.parent / "theirs"
    results.mkdir()
    file = shared / "fixtures" / "D_checkpoints" / "lucidrains_trainer" / "model-1.pt"
    (results / "model-1.pt").symlink_to(file)
    network = Unet(dim=8, dim_mults=(1, 2), attn_dim_head=16, attn_heads=2)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=50, sampling_timesteps=5)
    options = QUIET | {"results_folder": results, "train_num_steps": 125, "train_lr": 1e-3}
    trainer = Trainer(diffusion, pictures, **options)
    trainer.load(1)
    assert trainer.step == 123
    imported = read_foreign(file, {"image_size": 8})
    for name, tensor in network.network.state_dict().items():
        torch.testing.assert_close(tensor, imported.weights[name], rtol=0, atol=0)
    trainer.train()
    assert trainer.step == 125
    for wrong, says in ((process(timesteps=50), "another network"), (None, "objective|parametriz")):
        other = wrong or GaussianDiffusion(
            Unet(dim=8, dim_mults=(1, 2), attn_dim_head=16, attn_heads=2),
            image_size=8,
            timesteps=50,
            objective="pred_x0",
        )
        with pytest.raises(CheckpointError, match=says):
            Trainer(other, pictures, **options | {"train_num_steps": 200}).load(1)
    with pytest.raises(CheckpointError, match="does not exist"):
        trainer.load(7)


def test_a_script_that_is_started_again_goes_on(pictures):
    options = QUIET | {"save_and_sample_every": 2}
    Trainer(process(sampling_timesteps=2), pictures, **options, train_num_steps=2).train()
    again = Trainer(process(sampling_timesteps=2), pictures, **options, train_num_steps=4)
    again.train()
    assert again.step == 4
    assert (pictures.parent / "results" / "model-2.pt").is_file()


class Judge(Callback):
    """Stands for the evaluation: scores that are given."""

    def __init__(self, scores) -> None:
        self.scores = list(scores)

    def on_step_end(self, trainer) -> None:
        trainer.log({"fid": self.scores[trainer.step - 1]})


def test_the_best_milestone_is_that_of_the_lowest_fid(pictures, monkeypatch):
    monkeypatch.setattr(Trainer, "_judge", lambda *_: Judge([9.0, 4.0, 6.0]))
    options = QUIET | {"train_num_steps": 3, "save_and_sample_every": 1}
    trainer = Trainer(
        process(sampling_timesteps=2), pictures, **options, save_best_and_latest_only=True
    )
    trainer.train()
    results = pictures.parent / "results"
    assert {p.name for p in results.glob("*.pt")} == {"model-best.pt", "model-latest.pt"}
    steps = {
        n: read_foreign(results / f"model-{n}.pt", {"image_size": 8}).step
        for n in ("best", "latest")
    }
    assert steps == {"best": 2, "latest": 3}


def test_fid_is_taken_as_the_samples_are_drawn(pictures, monkeypatch):
    monkeypatch.setattr("ddpm_lib.metrics.weights.find_weights", lambda name: pictures)
    options = QUIET | {"calculate_fid": True, "num_fid_samples": 30}
    trainer = Trainer(process(sampling_timesteps=3, ddim_sampling_eta=0.5), pictures, **options)
    judge = trainer._fid
    assert judge in trainer.trainer.callbacks
    found = judge.options
    assert (found.num, found.sampler, found.sample_steps, found.eta) == (30, "ddim", 3, 0.5)


def test_what_has_no_counterpart_says_so(pictures):
    diffusion = process()
    cases = [
        (ConfigError, "inception_block_idx", {"inception_block_idx": 192}),
        (ConfigError, "convert_image_to", {"convert_image_to": "L"}),
        (ConfigError, "mixed_precision_type", {"mixed_precision_type": "fp8", "amp": True}),
        (ConfigError, "square", {"num_samples": 5}),
        (ConfigError, "calculate_fid", {"save_best_and_latest_only": True}),
        (TypeError, "train_lr", {"learning_rate": 1.0}),
    ]
    for kind, says, options in cases:
        with pytest.raises(kind, match=says):
            Trainer(diffusion, pictures, **QUIET | options)
    with pytest.raises(ConfigError, match="auto_normalize"):
        Trainer(process(auto_normalize=False), pictures, **QUIET)
    with pytest.raises(AttributeError, match=r"process\.sample"):
        _ = diffusion.p_sample
    with pytest.raises(ValueError, match="continuous time"):
        GaussianDiffusion(Unet(**TINY, learned_sinusoidal_cond=True), image_size=8)
    with pytest.raises(ValueError, match="returns 6 channels"):
        GaussianDiffusion(Unet(**TINY, learned_variance=True), image_size=8)
    with pytest.raises(ConfigError, match="clamp_min"):
        process(schedule_fn_kwargs={"clamp_min": 1e-5})
    with pytest.raises(ConfigError, match="CFG"):
        with_classes.GaussianDiffusion(
            with_classes.Unet(dim=8, num_classes=2), image_size=8, use_cfg_plus_plus=True
        )
    with pytest.raises(ValueError, match="offset_noise_strength"):
        diffusion(torch.rand(1, 3, 8, 8), offset_noise_strength=0.1)


def test_classes_without_counterpart_say_so():
    with pytest.raises(ImportError, match="no counterpart here: Unet"):
        from ddpm_lib.compat.lucidrains import Unet1D  # noqa: F401
    with pytest.raises(ImportError, match="leave it out"):
        from ddpm_lib.compat.lucidrains import XMWrapper  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from ddpm_lib.compat.lucidrains import Nothing  # noqa: F401


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_the_tables_follow_the_textbook(objective):
    diffusion = process(objective=objective, min_snr_loss_weight=True, min_snr_gamma=2)
    bar, betas = diffusion.alphas_cumprod.double(), diffusion.betas.double()
    torch.testing.assert_close(torch.cumprod(1 - betas, 0), bar, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(diffusion.sqrt_alphas_cumprod.double() ** 2, bar, rtol=1e-5, atol=0)
    x0, t, noise = torch.randn(5, 3, 8, 8), torch.arange(0, 20, 4), torch.randn(5, 3, 8, 8)
    x = diffusion.q_sample(x0, t, noise)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(diffusion.predict_start_from_noise(x, t, noise), x0, **close)
    torch.testing.assert_close(diffusion.predict_noise_from_start(x, t, x0), noise, **close)
    v = diffusion.predict_v(x0, t, noise)
    torch.testing.assert_close(diffusion.predict_start_from_v(x, t, v), x0, **close)
    snr = bar / (1 - bar)
    over = {"pred_noise": snr, "pred_x0": 1, "pred_v": snr + 1}[objective]
    wanted = snr.clamp(max=2) / over
    torch.testing.assert_close(diffusion.loss_weight.double(), wanted, rtol=1e-3, atol=1e-6)


def test_state_dicts_of_another_process_are_refused():
    state = process().state_dict()
    process().load_state_dict(state)
    for other, says in (
        (process(beta_schedule="cosine"), "another beta_schedule"),
        (process(objective="pred_x0"), "another objective"),
        (process(timesteps=30), "size mismatch"),
    ):
        with pytest.raises(RuntimeError, match=says):
            other.load_state_dict(state)


def test_images_in_the_range_of_the_network():
    outside, inside = process(), process(auto_normalize=False)
    inside.load_state_dict(outside.state_dict())
    images, noise, times = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([3, 17])
    losses = [
        made(x, noise, times=times, loss_reduction="none")
        for made, x in ((outside, images), (inside, images * 2 - 1))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    drawn = []
    for made in (outside, inside):
        torch.manual_seed(5)
        drawn.append(made.sample(batch_size=1))
    torch.testing.assert_close(drawn[0] * 2 - 1, drawn[1])


def test_seeds_name_samples_and_states_are_returned():
    diffusion = process(sampling_timesteps=4, ddim_sampling_eta=0.3)
    torch.manual_seed(1)
    one = diffusion.sample(batch_size=2)
    other = diffusion.sample(batch_size=2)
    torch.manual_seed(1)
    torch.testing.assert_close(diffusion.sample(batch_size=2), one, rtol=0, atol=0)
    assert not torch.allclose(one, other)
    assert diffusion.sample(batch_size=2, return_all_timesteps=True).shape == (2, 5, 3, 8, 8)
    assert diffusion.p_sample_loop((1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert diffusion.ddim_sample((1, 3, 8, 8), True).shape == (1, 5, 3, 8, 8)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    between = diffusion.interpolate(x, -x, t=3, lam=0.25)
    assert between.shape == x.shape
    assert between.min() < 0


def test_a_learned_variance():
    network = Unet(**TINY, learned_variance=True)
    diffusion = LearnedGaussianDiffusion(network, image_size=8, timesteps=10)
    diffusion(torch.rand(2, 3, 8, 8)).backward()
    assert diffusion.process.config["variance"] == "learned_range"
    assert diffusion.process.config["vlb_weight"] == pytest.approx(1e-4)
    assert diffusion.sample(batch_size=1).shape == (1, 3, 8, 8)
    with pytest.raises(ConfigError, match="objective='pred_v' has no effect"):
        LearnedGaussianDiffusion(network, image_size=8, objective="pred_v")


class Mine(nn.Module):
    """A network of the user's own, as the original calls one."""

    channels, out_dim, self_condition = 3, 3, True

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.conv = nn.Embedding(20, 3), nn.Conv2d(6, 3, 3, padding=1)
        self.seen = False

    def forward(self, x, time, x_self_cond=None):
        self.seen |= x_self_cond is not None and bool(x_self_cond.any())
        own = torch.zeros_like(x) if x_self_cond is None else x_self_cond
        return self.conv(torch.cat((x, own), 1)) + self.levels(time)[..., None, None]


def test_a_network_of_ones_own(pictures):
    network = Mine()
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=20, sampling_timesteps=4)
    diffusion(torch.rand(8, 3, 8, 8)).backward()
    assert "model.conv.weight" in diffusion.state_dict()
    assert diffusion.sample(batch_size=1).shape == (1, 3, 8, 8)
    assert network.seen
    with pytest.raises(ConfigError, match=r"ddpm_lib\.Trainer"):
        Trainer(diffusion, pictures, **QUIET)
    with pytest.raises(TypeError, match="channels"):
        GaussianDiffusion(nn.Conv2d(3, 3, 1), image_size=8)


def test_classes():
    network = with_classes.Unet(dim=8, dim_mults=(1, 2), num_classes=3, attn_heads=1)
    diffusion = with_classes.GaussianDiffusion(
        network, image_size=8, timesteps=10, sampling_timesteps=3, objective="pred_v"
    )
    labels = torch.tensor([0, 2])
    diffusion(torch.rand(2, 3, 8, 8), classes=labels).backward()
    drawn = []
    for scale in (1.0, 6.0):
        torch.manual_seed(0)
        drawn.append(diffusion.sample(classes=labels, cond_scale=scale))
    assert drawn[0].shape == (2, 3, 8, 8)
    assert not torch.allclose(*drawn)
    x = torch.rand(2, 3, 8, 8)
    assert diffusion.interpolate(x, x, labels).shape == x.shape


def test_guidance_leaves_out_what_is_parallel():
    cond, null = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    update = with_classes.guided(cond, null, 2.0, 0.0, 0.0) - cond
    assert (update * cond).flatten(1).sum(1).abs().max() < 1e-4
    usual = with_classes.guided(cond, null, 2.0, 0.0, 1.0)
    torch.testing.assert_close(usual, 2 * cond - null)
    spread = with_classes.guided(cond, null, 5.0, 1.0, 1.0).std((1, 2, 3))
    torch.testing.assert_close(spread, cond.std((1, 2, 3)))


def test_a_dataset(pictures):
    Image.new("RGB", (16, 8), "red").save(pictures / "wide.jpg")
    whole = Dataset(pictures, 8)
    assert len(whole) == 13
    assert whole[0].shape == (3, 8, 8)
    assert whole[0].dtype == torch.float32
    assert whole[3].min() >= 0
    assert whole[3].max() <= 1
    grey = Dataset(pictures, 8, exts=("png",), convert_image_to="L")
    assert len(grey) == 12
    assert grey[0].shape == (1, 8, 8)
    flips = Dataset(pictures, 8, exts=("png",), augment_horizontal_flip=True)
    seen = torch.stack([flips[0] for _ in range(20)])
    plain = Dataset(pictures, 8, exts=("png",))[0]
    assert {bool(torch.equal(s, plain)) for s in seen} == {True, False}
    with pytest.raises(ConfigError, match="no pictures"):
        Dataset(pictures, 8, exts=("bmp",))
