"""batch_size="auto": what it chooses, that choosing changes nothing, and that a run keeps its
number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, TrainingConfig
from ddpm_lib.nn.mlp import MLP
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state
from ddpm_lib.training import ConfigError, OutOfMemoryError, auto_batch
from ddpm_lib.training.auto_batch import CPU_LIMIT, largest_that_fits, rounded
from ddpm_lib.training.step import ForwardPass
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

GIB = 2**30


def auto(run: Path, *, images: int = 200, **options: Any) -> Trainer:
    return tiny_trainer(
        run, data=Shapes(size=8, n=images), **{"batch_size": "auto", "val_fraction": 0.0} | options
    )


def waiting(trainer: Trainer) -> str:
    """What was said before the run directory was known to be this run's; it is written there when
    training begins.
    """
    return "".join(trainer.run_log.pending)


def said(run: Path) -> str:
    return (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", ["auot", "64", 1.5, None, True])
def test_another_word_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size must be a whole number or 'auto'; got "):
        TrainingConfig(batch_size=bad)


def test_numbers_are_checked_as_before() -> None:
    assert TrainingConfig(batch_size=64).images_per_step == 64
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        TrainingConfig(batch_size=0)
    with pytest.raises(ConfigError, match="batch_size 10 is not divisible by accumulation_steps 3"):
        TrainingConfig(batch_size=10, accumulation_steps=3)


def test_auto_is_no_number_before_the_trainer_made_it_one() -> None:
    config = TrainingConfig(batch_size="auto", accumulation_steps=3, shards=7)
    with pytest.raises(ConfigError, match="becomes a number"):
        _ = config.images_per_step


@pytest.mark.parametrize("limit", [1, 3, 40, 64, 4096])
def test_the_search_finds_nearly_the_largest(limit: int) -> None:
    for most in (*range(70), 100, 1000, 5000):
        check_search(most, limit)


def check_search(most: int, limit: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= most

    found, refused = largest_that_fits(fits, limit)
    assert found <= min(most, limit)
    assert max(asked) <= limit
    assert len(set(asked)) == len(asked) <= 16
    if most >= limit:
        assert (found, refused) == (limit, None)
    else:
        assert refused is not None
        assert refused > most
        assert refused - found <= max(1, found // 4)
        assert rounded(most) == found or limit < 2 * found  # a limit need not be one of the sizes


def test_sizes_have_few_odd_factors() -> None:
    assert [rounded(n) for n in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert all(n * 3 / 4 < rounded(n) <= n for n in range(1, 500))


class Card:
    """A graphics card of which torch would say this: images take `each` bytes, `base` is there
    already.
    """

    def __init__(self, total: int, each: int, base: int) -> None:
        self.total, self.each, self.base, self.peak, self.emptied = total, each, base, 0, 0
        self.tried: list[int] = []

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return self.total - self.base, self.total

    def memory_reserved(self, device: Any) -> int:
        return self.base

    def reset_peak_memory_stats(self, device: Any) -> None:
        self.peak = self.base

    def max_memory_reserved(self, device: Any) -> int:
        return self.peak

    def empty_cache(self) -> None:
        self.emptied += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Make the CPU look like a card of 10 GiB, of which the passes really take nothing."""
    made = Card(total=10 * GIB, each=100 * 2**20, base=GIB)
    real = ForwardPass.__call__

    def forward(
        self: ForwardPass, network: Any, batch: Any, rows: range, step: int, slot: int
    ) -> Any:
        made.tried.append(len(rows))
        made.peak = made.base + made.each * len(rows)
        if made.peak > made.total:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, network, batch, rows, step, slot)

    monkeypatch.setattr(ForwardPass, "__call__", forward)
    monkeypatch.setattr(auto_batch, "has_own_memory", lambda device: True)
    monkeypatch.setattr(auto_batch, "device_module", lambda device: made)
    return made


@pytest.mark.slow
def test_a_card_is_filled_but_for_a_margin(card: Card, tmp_path: Path) -> None:
    trainer = auto(tmp_path / "run")
    trainer.prepare()
    # 9 GiB, nine tenths of all, less the 1 GiB that is in use: 81 images of 100 MiB.
    assert trainer.config.batch_size == 80
    assert card.tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 80]
    assert card.emptied > len(card.tried)
    assert "80 per forward pass fit in 9.0 of 10.0 GiB on cpu and 96 do not." in waiting(trainer)


def test_a_card_too_small_for_one_image(card: Card, tmp_path: Path) -> None:
    card.each = 20 * GIB
    with pytest.raises(
        OutOfMemoryError, match=r"Not even one image per forward pass.*gradient_checkpointing"
    ):
        auto(tmp_path / "run").prepare()


def test_errors_that_are_not_about_memory_stay(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ForwardPass, "__call__", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        auto(tmp_path / "run").prepare()


@pytest.mark.slow
def test_a_card_and_few_images(card: Card, tmp_path: Path) -> None:
    trainer = auto(tmp_path / "run", images=50)
    trainer.prepare()
    assert trainer.config.batch_size == 48
    assert "there are only 50 training images" in waiting(trainer)


def test_a_cpu_takes_the_documented_limit(tmp_path: Path) -> None:
    trainer = auto(tmp_path / "run")
    trainer.prepare()
    assert trainer.config.batch_size == CPU_LIMIT
    lines = [line for line in waiting(trainer).splitlines() if "batch_size auto" in line]
    assert len(lines) == 1
    assert f"more than {CPU_LIMIT} per forward pass make no cpu faster" in lines[0]


def with_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(auto_batch, "free_bytes", lambda device: free)


def test_a_cpu_with_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = tiny_diffusion()
    each = 1.5 * diffusion.model.summary(8, 1).activation_bytes
    state = 12 * sum(p.numel() for p in diffusion.parameters())
    with_memory(monkeypatch, int((20.5 * each + state) / 0.8))
    trainer = auto(tmp_path / "run", diffusion=diffusion)
    trainer.prepare()
    assert trainer.config.batch_size == 20
    assert "an image takes about" in waiting(trainer)
    with_memory(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="not enough for one"):
        auto(tmp_path / "none").prepare()


def test_other_networks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Module):
        """One hidden map of 32 channels, float32, of which both the activation's input and its
        output are kept.
        """

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 3, 1)

        def forward(self, x: torch.Tensor, t: torch.Tensor, cond: None = None) -> torch.Tensor:
            return self.last(torch.nn.functional.silu(self.first(x)))

    diffusion = GaussianDiffusion(Other(), image_size=8, channels=3, timesteps=50)
    by_hand = (32 + 32 + 3) * 64 * 4
    with_memory(monkeypatch, int(1.5 * 10.5 * by_hand / 0.8 + 20_000))
    trainer = auto(tmp_path / "run", diffusion=diffusion)
    trainer.prepare()
    assert 7 <= trainer.config.images_per_step <= 10


@pytest.mark.parametrize("searched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_is_the_one_of_the_number(
    tmp_path: Path, searched: bool, request: pytest.FixtureRequest
) -> None:
    """Bit for bit: weights, averages, moments, the loss curve; and torch's own random state."""
    if searched:
        request.getfixturevalue("card").each = 5 * GIB // 8
    torch.manual_seed(7)
    before = torch.get_rng_state()
    chosen = auto(tmp_path / "auto", max_steps=4, diffusion=tiny_diffusion())
    torch.set_rng_state(before)
    chosen.prepare()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in chosen.diffusion.parameters())
    chosen.train()
    size = chosen.config.images_per_step
    assert size == (12 if searched else CPU_LIMIT)
    auto(tmp_path / "given", max_steps=4, diffusion=tiny_diffusion(), batch_size=size).train()
    assert_same_tensors(final_tensors(tmp_path / "auto"), final_tensors(tmp_path / "given"))
    assert curve(tmp_path / "auto") == curve(tmp_path / "given")


@pytest.mark.slow
def test_statistics_of_other_networks_and_modes_are_put_back(card: Card, tmp_path: Path) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor, t: torch.Tensor, cond: None = None) -> torch.Tensor:
            return self.conv(self.norm(x))

    model = Normed()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    auto(
        tmp_path / "run",
        diffusion=GaussianDiffusion(model, image_size=8, channels=3, timesteps=50),
        images=20,
    ).prepare()
    assert_same_tensors(before, dict(model.state_dict()))
    assert (model.training, model.norm.training, model.conv.training) == (True, False, True)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = auto(tmp_path / "whole", max_steps=6, save_every=3)
    whole.train()
    auto(tmp_path / "cut", max_steps=6, save_every=3, callbacks=[StopAt(3)]).train()
    with_memory(monkeypatch, 1)  # now it would choose another
    trainer = auto(tmp_path / "cut", max_steps=6, save_every=3)
    trainer.train()
    assert trainer.config.batch_size == CPU_LIMIT
    assert f"{CPU_LIMIT} images, which this run began with" in said(tmp_path / "cut")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    auto(
        tmp_path / "cut", max_steps=7, batch_size=CPU_LIMIT
    ).train()  # the number itself is the same run


def test_files_hold_the_number(tmp_path: Path) -> None:
    auto(tmp_path / "run", max_steps=1).train()
    state = read_state(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert state["batch_size"] == state["training"]["batch_size"] == CPU_LIMIT
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["batch_size"] == CPU_LIMIT


def test_accumulation_multiplies_it(tmp_path: Path) -> None:
    trainer = auto(tmp_path / "run", accumulation_steps=3, images=500, max_steps=1)
    trainer.train()
    assert (trainer.config.batch_size, trainer.plan.micro) == (3 * CPU_LIMIT, CPU_LIMIT)
    assert f"{3 * CPU_LIMIT} images per step = 3 accumulation steps × {CPU_LIMIT}" in said(
        tmp_path / "run"
    )


def test_shards_divide_it(tmp_path: Path) -> None:
    trainer = auto(tmp_path / "run", shards=6, accumulation_steps=2, images=90)
    trainer.prepare()
    assert trainer.config.batch_size == 2 * 39  # 40 would fit; 3 of 6 shards in each half
    with pytest.raises(ConfigError, match="less than shards 500"):
        auto(tmp_path / "few", shards=500).prepare()


def test_memory_that_runs_out_later_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = auto(tmp_path / "run", max_steps=2)
    trainer.prepare()
    real = trainer.forward_pass

    def full(network: Any, batch: Any, rows: range, step: int, slot: int) -> Any:
        if len(rows) > CPU_LIMIT // 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(network, batch, rows, step, slot)

    monkeypatch.setattr(trainer, "_forward_pass", full)
    assert trainer.train().step == 2
    assert trainer.plan.micro == CPU_LIMIT // 2


def test_points_in_the_plane(tmp_path: Path) -> None:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.dataset import MemoryStore

    points = ImageDataset(MemoryStore(torch.rand(300, 2, 1)))
    diffusion = GaussianDiffusion(MLP(channels=2), image_size=(1,), channels=2, timesteps=50)
    trainer = tiny_trainer(
        tmp_path / "run", diffusion, points, batch_size="auto", horizontal_flip=False
    )
    trainer.prepare()
    assert trainer.config.batch_size == CPU_LIMIT


def test_an_ablation_wants_a_number() -> None:
    from ddpm_lib.ablation.grid_runs import _steps

    with pytest.raises(ConfigError, match="must be a number, not 'auto'"):
        _steps(SimpleNamespace(settings={"training": {"batch_size": "auto"}}), 100)


def test_what_fits_compiled_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without compiling finds half of what compiled blocks leave room for."""
    now = {"images": 0, "stance": ""}
    asked: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def passes(trial: Any) -> Iterator[Any]:
        yield lambda n, backward: asked.append((n, now["stance"])) or now.update(images=n)

    @contextlib.contextmanager
    def stance(name: str) -> Iterator[None]:
        now["stance"] = name
        yield

    memory = SimpleNamespace(
        empty_cache=lambda: None,
        mem_get_info=lambda device: (100 * GIB, 100 * GIB),
        memory_reserved=lambda device: 0,
        reset_peak_memory_stats=lambda device: None,
        max_memory_reserved=lambda device: (
            now["images"] * GIB * (2 if now["stance"] == "default" else 4)
        ),
    )
    monkeypatch.setattr(auto_batch, "_passes", passes)
    monkeypatch.setattr(torch.compiler, "set_stance", stance)
    monkeypatch.setattr(auto_batch, "device_module", lambda device: memory)
    found = {}
    for compiled in (True, False):
        asked.clear()
        monkeypatch.setattr(auto_batch, "wants_compile", lambda *a, c=compiled: c)
        config = TrainingConfig(batch_size="auto")
        cpu = torch.device("cpu")
        trial = SimpleNamespace(
            diffusion=tiny_diffusion(),
            config=config,
            device=cpu,
            processes=SimpleNamespace(count=1),
        )
        found[compiled] = auto_batch._search(trial, 64, "all.")
        assert [n for n, how in asked if how == "default"] == ([40] if compiled else [])
    assert (found[True].images, found[False].images) == (40, 20)
    assert "40 per forward pass fit compiled" in found[True].why
    assert "uncompiled it would be 20" in found[True].why
