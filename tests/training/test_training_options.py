"""Options of training: what each does, that resuming is exact with it, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, TrainingConfig, Unet
from ddpm_lib.core import spelling
from ddpm_lib.nn import Augmentation, Conditioner
from ddpm_lib.training import Callback, ConfigError, DivergedError
from ddpm_lib.training.sampling import check_grids, sample_shared
from training_helpers import (
    At,
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": (), "max_grad_norm": None},
        {"deterministic": True, "channels_last": "yes"},
        {"optimizer": "adam", "weight_decay": 0.1, "lr_schedule": "linear"},
        {"shards": 2, "batch_size": 6, "accumulation_steps": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_resumed_equals_uninterrupted_with_every_option(tmp_path: Path, options: dict) -> None:
    options = {"val_every": 3, "val_fraction": 0.2, **options}
    tiny_trainer(tmp_path / "a", **options).train()
    tiny_trainer(tmp_path / "b", callbacks=[StopAt(3)], **options).train()
    tiny_trainer(tmp_path / "b", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_max_grad_norm_clips_and_none_does_not(tmp_path: Path) -> None:
    """With plain Adam statistics off (ε huge), a step is proportional to the gradient that the
    optimizer saw.
    """
    moved = []
    for limit in (None, 1e-3):
        diffusion = tiny_diffusion(dropout=0.0)
        before = [p.detach().clone() for p in diffusion.parameters()]
        options = {
            "adam_eps": 1e6,
            "learning_rate": 1e6,
            "warmup_steps": 0,
            "max_steps": 1,
            "log_every": 1,
        }
        tiny_trainer(
            tmp_path / str(limit), diffusion, max_grad_norm=limit, optimizer="adam", **options
        ).train()
        moves = [(p.detach() - b).square().sum() for p, b in zip(diffusion.parameters(), before)]
        moved.append(float(sum(moves)) ** 0.5)
    norm = curve(tmp_path / "None")[0]["grad_norm"]
    assert curve(tmp_path / "0.001")[0]["grad_norm"] == pytest.approx(norm)
    assert moved[0] == pytest.approx(norm, rel=1e-3)
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_validation_hides_no_labels_and_drops_nothing_out(tmp_path: Path) -> None:
    """With the weights fixed, the loss on fixed images, noise and levels is one number, also for
    the raw network.
    """
    for name, averages in (("ema", (0.9,)), ("raw", ())):
        diffusion = tiny_diffusion(num_classes=6, class_drop_prob=0.5, dropout=0.5)
        torch.nn.init.normal_(diffusion.model.conv_out.weight, std=0.1)
        options = {
            "learning_rate": 1e-30,
            "val_every": 1,
            "val_fraction": 0.25,
            "ema_decay": averages,
        }
        tiny_trainer(tmp_path / name, diffusion, **options).train()
        assert len({row["val_loss"] for row in curve(tmp_path / name)}) == 1
        assert len({row["train_fixed_loss"] for row in curve(tmp_path / name)}) == 1


def test_val_data(tmp_path: Path) -> None:
    from ddpm_lib.images import save_image

    for part, n in (("train", 14), ("val", 6)):
        for i in range(n):
            save_image(Shapes(size=8, n=20)[i]["image"], tmp_path / part / f"{i}.png")
    trainer = tiny_trainer(
        tmp_path / "run",
        data=str(tmp_path / "train"),
        val_data=str(tmp_path / "val"),
        val_every=3,
        val_max_images=4,
    )
    trainer.train()
    assert (len(trainer.dataset), len(trainer.held_out)) == (14, 6)
    assert [row["step"] for row in curve(tmp_path / "run") if "val_loss" in row] == [3, 6]


def test_too_few_images_to_validate_on_is_said(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, data=Shapes(size=8, n=9), val_every=2, val_fraction=0.2).train()
    assert "9 images are too few to hold some out" in (tmp_path / "train.log").read_text()


def test_override_with_another_batch_size_never_draws_the_same_noise_twice(tmp_path: Path) -> None:
    """8 shards of a batch of 8 do not cut a batch of 12: rows would run into the next step's
    keys.
    """
    tiny_trainer(tmp_path, batch_size=8, shards=8).train()
    trainer = tiny_trainer(tmp_path, batch_size=12, shards=4, override=True, max_steps=8)
    trainer.prepare()
    draw = trainer.randomness.noise
    both = torch.cat([draw(step, range(12), (3,), "cpu") for step in (6, 7)])
    assert len(both.unique(dim=0)) == 24


def test_shards_stay_what_the_run_began_with_and_say_so(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", shards=2).train()
    tiny_trainer(tmp_path / "b", shards=2, callbacks=[StopAt(3)]).train()
    tiny_trainer(tmp_path / "b", shards=3).train()
    assert (
        "shards stays 2, which this run began with; 3 was asked for."
        in (tmp_path / "b" / "train.log").read_text()
    )
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_averages_that_are_given_up_are_named(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, ema_decay=(0.9, 0.99)).train()
    tiny_trainer(tmp_path, ema_decay=(0.9,), max_steps=7).train()
    assert "The EMA of decay 0.99 is not kept any more" in (tmp_path / "train.log").read_text()


def test_two_callbacks_of_one_class_keep_their_own_state(tmp_path: Path) -> None:
    class Remember(Callback):
        def __init__(self, value=None):
            self.value = value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    tiny_trainer(tmp_path, callbacks=[Remember(1), Remember(2)]).train()
    again = [Remember(), Remember()]
    tiny_trainer(tmp_path, callbacks=again).train()
    assert [r.value for r in again] == [1, 2]


def test_guidance_of_the_grids_needs_a_condition_that_they_are_given() -> None:
    class Mood(Augmentation):
        guided = True

    class Moody(Unet):
        def build_conditioners(self, emb_dim: int) -> list[Conditioner]:
            mood = Mood(2, emb_dim)
            mood.name, mood.drop_prob = "mood", 0.1
            return [mood]

    diffusion = GaussianDiffusion(Moody(dim=8, dim_mults=(1,)), image_size=8, timesteps=20)
    config = TrainingConfig(sample_guidance_scale=1.5)
    with pytest.raises(ConfigError, match=r"^sample_guidance_scale=1.5 strengthens 'mood', which"):
        check_grids(diffusion, config)
    with spelling.flags(), pytest.raises(ConfigError, match=r"^--sample-guidance-scale 1.5 stren"):
        check_grids(diffusion, config)
    check_grids(diffusion, TrainingConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_sampler": "dddim"}, r"Unknown sampler 'dddim'. Did you mean 'ddim'"),
        (
            {"sample_guidance_scale": 2.0},
            r"sample_guidance_scale=2 needs a condition.*class_drop_prob",
        ),
    ],
)
def test_what_would_end_the_run_at_its_first_grid_is_refused_at_once(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(tmp_path, sample_every=100, **options)


def test_fp16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'mixed_precision="fp16" does not train on cpu. Use bf16 or no'
    ):
        tiny_trainer(tmp_path, mixed_precision="fp16").train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"device='cuda' is not available here \(torch .*available: .*cpu"
    ):
        tiny_trainer(tmp_path, device="cuda").train()


def test_diverged_run_ends_its_workers_and_says_so(tmp_path: Path) -> None:
    poison = At(
        2, lambda t: torch.nn.init.constant_(t.diffusion.model.conv_in.weight, float("inf"))
    )
    with pytest.raises(
        DivergedError, match=r"not finite at step 3.*conv_in.weight.*There is no checkpoint yet"
    ):
        tiny_trainer(tmp_path, callbacks=[poison]).train()


def test_failing_tracker_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        name = "away"

        def log(self, values, step=None, **kwargs):
            raise ConnectionError("no route to host")

        def finish(self):
            raise AssertionError("finish of a tracker that failed")

    trainer = tiny_trainer(
        tmp_path, callbacks=[At(1, lambda t: t.accelerator.trackers.append(Away()))]
    )
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        assert trainer.train().status == "finished"
    assert sum("no route to host" in record.getMessage() for record in caplog.records) == 1
    assert len(curve(tmp_path)) == 3


def test_shared_sampling_shares_seeds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        num_processes, device = 2, torch.device("cpu")

        def __init__(self, rank):
            self.process_index = rank

    diffusion = tiny_diffusion().eval()
    torch.nn.init.normal_(diffusion.model.conv_out.weight, std=0.1)
    whole = diffusion.sample(3, seeds=[5, 6, 7], num_steps=2)
    gathered = []
    monkeypatch.setattr(
        "accelerate.utils.gather", lambda part: (gathered.append(part), torch.cat(gathered))[1]
    )
    for rank in range(2):
        shared = sample_shared(diffusion, 3, Rank(rank), seeds=[5, 6, 7], num_steps=2)
    assert torch.allclose(shared, whole, atol=1e-5)
    with pytest.raises(ValueError, match="seeds has 2 entries for 3 images"):
        sample_shared(diffusion, 3, Rank(0), seeds=[5, 6], num_steps=2)


@pytest.mark.slow
def test_compile_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and autograd as on a GPU; only the generation of kernels, minutes on a CPU, is left
    out.
    """
    real = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kw: real(self, **kw | {"backend": "aot_eager"})
    )
    options = {"compile": True, "max_steps": 4, "val_every": 2, "val_fraction": 0.2}
    tiny_trainer(tmp_path / "a", **options).train()
    tiny_trainer(tmp_path / "b", callbacks=[StopAt(2)], **options).train()
    tiny_trainer(tmp_path / "b", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    tiny_trainer(tmp_path / "plain", **options | {"compile": False}).train()
    plain = curve(tmp_path / "plain")
    for row, other in zip(curve(tmp_path / "a"), plain):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
