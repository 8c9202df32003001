"""What training does about numbers that are not finite, memory that is not there and processes that
are gone.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddpm_lib import TrainingConfig
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.runtime.watchdog import Watchdog
from ddpm_lib.training import Callback, DivergedError, LostProcessError, OutOfMemoryError
from ddpm_lib.training.nonfinite import NonFiniteGuard, check_loss_scale
from ddpm_lib.training.randomness import DataOrder
from ddpm_lib.training.recovery import is_lost_process_error, lost_process_error
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


def log_of(run: Path) -> str:
    return (run / "train.log").read_text()


def poisoned(run: Path, slots: range = range(18, 24), value: float = float("nan"), **options):
    """A trainer whose loss is not finite for the images in some slots of the data's order: step 4
    by default.
    """
    trainer = tiny_trainer(run, **options)
    trainer.prepare()
    real = trainer.forward_pass

    def forward(network, batch, rows, step, slot):
        losses, t = real(network, batch, rows, step, slot)
        first = slot + rows.start
        bad = [k for k in range(len(losses)) if first + k in slots]
        factor = torch.ones_like(losses)
        factor[bad] = value
        return losses * factor, t

    trainer._forward_pass = forward
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stop_names_step_images_and_parameters_and_keeps_the_weights(
    tmp_path: Path, value: float
) -> None:
    """Read at step 6 only, the error knows that it was step 4, which images, and no NaN has reached
    the weights.
    """
    tiny_trainer(tmp_path / "good", max_steps=3).train()
    trainer = poisoned(tmp_path / "bad", range(19, 21), value, save_every=2, log_every=6)
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    order = DataOrder(40, 0).indices(19, 21).tolist()
    names = [trainer.dataset.names[i] for i in order]
    text = str(caught.value)
    assert "not finite at step 4 (images " in text
    for name in names:
        assert f"{name} at t = " in text
    assert text.count(" at t = ") == 2
    assert "parameters, the first " in text
    assert "step-000000002" in text
    assert 'on_nonfinite="rollback"' in text
    good = final_tensors(tmp_path / "good")
    for name, weight in trainer.diffusion.model.named_parameters():
        assert torch.equal(weight, good[f"model:{name}"])
    assert json.loads((tmp_path / "bad" / "status.json").read_text())["status"] == "failed"


def test_skip_leaves_out_one_update_and_names_the_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = poisoned(run, on_nonfinite="skip", log_every=3, save_every=3).train()
    assert result.status == "finished"
    assert (
        "not finite at step 4: its update was left out (1 of at most 3). Images of its batch: "
        in log_of(run)
    )
    assert log_of(run).count("left out") == 1
    final = final_tensors(run)
    assert all(torch.isfinite(v).all() for v in final.values())
    (steps,) = {float(v) for k, v in final.items() if k.endswith("|step")}
    assert steps == 5  # Adam counts the updates it made


def test_skip_equals_leaving_the_step_out(tmp_path: Path) -> None:
    """The weights after the bad step are those before it."""
    seen = {}

    class Remember(Callback):
        def on_step_end(self, trainer):
            seen[trainer.step] = [p.detach().clone() for p in trainer.diffusion.parameters()]

    poisoned(tmp_path, on_nonfinite="skip", callbacks=[Remember()]).train()
    assert all(torch.equal(a, b) for a, b in zip(seen[3], seen[4]))
    assert not all(torch.equal(a, b) for a, b in zip(seen[4], seen[5]))


def test_skipping_has_an_end(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, range(6, 10**9), on_nonfinite="skip", max_nonfinite=2)
    with pytest.raises(DivergedError, match=r"at steps 2, 3, 4: more than max_nonfinite=2"):
        trainer.train()


@pytest.mark.parametrize("log_every", [1, 2, 100])
def test_roll_back_goes_on_with_other_images(tmp_path: Path, log_every: int) -> None:
    """The curve has every step once, the data position has moved past the bad images, and the
    weights are finite.
    """
    run = tmp_path / "run"
    trainer = poisoned(run, on_nonfinite="rollback", log_every=log_every, save_every=3, max_steps=9)
    assert trainer.train().status == "finished"
    assert trainer.images_seen == 6 * (
        4 + 6
    )  # the slots of four steps were used; from step 3 on there are six more
    assert "not finite at step 4" in log_of(run)
    assert (
        "Rolled back to step-000000003 and going on with other images (1 of at most 3 times)."
        in log_of(run)
    )
    rows = [row["step"] for row in curve(run)]
    assert rows == sorted(set(rows))
    assert all(row["loss"] is not None for row in curve(run))
    assert all(torch.isfinite(v).all() for v in final_tensors(run).values())


def test_a_rolled_back_run_resumes_exactly(tmp_path: Path) -> None:
    """Also when it is cut off before the roll-back, between the bad step and its notice, and after
    it.
    """
    options = {"on_nonfinite": "rollback", "save_every": 2, "max_steps": 10, "log_every": 5}
    poisoned(tmp_path / "a", **options).train()
    for cut in (3, 4, 7):
        poisoned(tmp_path / "b", callbacks=[StopAt(cut)], **options).train()
    poisoned(tmp_path / "b", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_rolling_back_has_an_end(tmp_path: Path) -> None:
    trainer = poisoned(
        tmp_path, range(18, 10**9), on_nonfinite="rollback", max_nonfinite=2, save_every=3
    )
    with pytest.raises(
        DivergedError, match=r"step 4 .*step-000000003, and it was rolled back 2 times"
    ):
        trainer.train()


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, on_nonfinite="rollback")
    with pytest.raises(
        DivergedError, match=r"There is no checkpoint yet, so there is nothing to roll back to"
    ):
        trainer.train()


def test_a_failed_loss_scale_is_noticed() -> None:
    class Scaler:
        def get_scale(self):
            return 0.25

    with pytest.raises(
        DivergedError,
        match=r'loss scale of fp16 has fallen to 0\.25 by step 3.*mixed_precision="bf16"',
    ):
        check_loss_scale(Scaler(), 3, None)
    check_loss_scale(None, 3, None)


def test_a_finite_run_is_bitwise_what_it_is_without_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_trainer(tmp_path / "a").train()
    monkeypatch.setattr(NonFiniteGuard, "update", lambda self, optimizer, *args: optimizer.step())
    tiny_trainer(tmp_path / "b").train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_nothing_is_read_from_the_device_in_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_local_scalar_dense` is what .item(), bool(), float() and an index by a tensor come down
    to. With torch's fused Adam, as on a GPU: the CPU's own may read, as nothing waits there.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    monkeypatch.setattr("ddpm_lib.training.optim.OnePassAdam", torch.optim.Adam)
    trainer = tiny_trainer(tmp_path)
    real = trainer.guard.update

    def step(*args):
        with Spy():
            real(*args)

    trainer.guard.update = step
    trainer.train()
    assert "_fused_adamw_" in seen
    assert "_local_scalar_dense" not in seen


def short_of_memory(run: Path, most: int, error: BaseException | None = None, **options):
    """A trainer whose forward pass takes `most` images at once."""
    trainer = tiny_trainer(run, tiny_diffusion(dropout=0.0), **options)
    trainer.prepare()
    real = trainer.forward_pass

    def forward(network, batch, rows, step, slot):
        if len(rows) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(network, batch, rows, step, slot)

    trainer._forward_pass = forward
    return trainer


def test_out_of_memory_takes_smaller_micro_batches_of_the_same_batch(tmp_path: Path) -> None:
    assert short_of_memory(tmp_path / "a", 2).train().status == "finished"
    text = log_of(tmp_path / "a")
    assert "Out of memory with 6 images per forward pass at step 1 (" in text
    assert "GiB of memory free). Going on with 3 images per forward pass" in text
    assert (
        "Going on with 2 images per forward pass: the batch stays the same. --accumulation-steps 3"
        in text
    )
    options = {"accumulation_steps": 3, "shards": 1}
    tiny_trainer(tmp_path / "b", tiny_diffusion(dropout=0.0), **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_out_of_memory_with_one_image_is_an_error_with_numbers(tmp_path: Path) -> None:
    error = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"
    )
    with pytest.raises(
        OutOfMemoryError,
        match=r"(?s)1 images per forward.* GiB of memory free.*smaller network.*\[Runtime",
    ):
        short_of_memory(tmp_path, 0, error).train()


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        short_of_memory(
            tmp_path, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        ).train()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            (
                "[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by"
                " peer"
            ),
            "is gone; process 1 of 2",
        ),
        (
            "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 8000ms for recv",
            "not answered for 10 minutes",
        ),
        ("Gloo connectFullMesh failed with remote=[127.0.0.1]", "GLOO_SOCKET_IFNAME"),
    ],
)
def test_a_lost_process_is_said_clearly(text: str, words: str) -> None:
    torchs, two = RuntimeError(text), Processes(1, 2)
    assert not is_lost_process_error(torchs, Processes()), "there is no other process"
    assert is_lost_process_error(torchs, two)
    error = lost_process_error(torchs, two, timeout_minutes=10.0, step=3, checkpoint=None)
    assert isinstance(error, LostProcessError)
    assert words in str(error)
    assert "Start the same command again: it continues from the beginning" in str(error)
    assert not is_lost_process_error(RuntimeError("size mismatch"), two)
    assert not is_lost_process_error(error, two), "it is translated already"


def test_watchdog_says_where_a_run_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if "Stuck.on_step_end" in r.getMessage()]

    class Stuck(Callback):
        def on_train_start(self, trainer):
            trainer.watchdog.seconds = 600  # this machine may be slow

        def on_step_end(self, trainer):
            if trainer.step == 3:
                trainer.watchdog.seconds = 0.1
                deadline = time.monotonic() + 240
                while not lines() and time.monotonic() < deadline:
                    time.sleep(0.02)
                trainer.watchdog.seconds = 600

    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        tiny_trainer(tmp_path, callbacks=[Stuck()], stall_minutes=0.1 / 60).train()
    (line,) = lines()
    assert "after step 3: process 0 of 1 is in Stuck.on_step_end (trainer.py:" in line
    assert "in on_step_end" in (tmp_path / "stuck-rank0.txt").read_text()


def test_watchdog_names_the_silent_and_the_late(tmp_path: Path) -> None:
    from torch.distributed import HashStore

    store = HashStore()
    dogs = [Watchdog(0.2, tmp_path, rank, 3, store) for rank in range(3)]
    for rank, dog in enumerate(dogs):
        dog.interval = 0.2
        dog.mark(7 if rank else 6, "saving" if rank == 0 else "the next step")
        dog._publish(1)
    with dogs[0], dogs[1]:
        assert (
            "Silent, so stopped, killed or cut off: process 2 (last heard at step 7, in the next"
            " step)." in dogs[1]._missing()
        )
        with dogs[2]:
            assert (
                "All processes live; furthest behind (step 6): process 0 in saving."
                in dogs[1]._missing()
            )


def test_watchdog_ends_a_process_whose_peer_is_silent(tmp_path: Path) -> None:
    """What NCCL's own watchdog would end by SIGABRT, with the exit code that means "try again"."""
    from torch.distributed import HashStore

    store, told = HashStore(), []
    dog = Watchdog(600, tmp_path, 0, 2, store, on_lost=told.append, lost_after=0.3)
    peer = Watchdog(600, tmp_path, 1, 2, store)
    dog.interval = peer.interval = 0.05
    peer.mark(4, "the next step")
    with dog:
        with peer:
            time.sleep(0.8)
            assert told == []  # both are stuck, but alive: that is not for us to end
        deadline = time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
    assert told == ["process 1 (last heard at step 4, in the next step)"]


def test_watchdog_lets_live_what_moves(tmp_path: Path) -> None:
    from torch.distributed import HashStore

    told: list[str] = []
    dog = Watchdog(600, tmp_path, 0, 2, HashStore(), on_lost=told.append, lost_after=0.4)
    dog.interval = 0.05
    with dog:
        for step in range(20):
            dog.mark(step, "the next step")
            time.sleep(0.05)
    assert told == []


def test_a_process_that_is_lost_ends_with_75(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        "from ddpm_lib.core.errors import LostProcessError\n"
        "from ddpm_lib.runtime.watchdog import leave_at_once\n"
        "error = LostProcessError('process 1 is gone')\n"
        "threading.Thread(target=leave_at_once, args=(error,)).start()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert "process 1 is gone" in done.stderr


def test_options_are_checked() -> None:
    with pytest.raises(
        ValueError,
        match=r"on_nonfinite must be one of 'stop', 'skip', 'rollback'.*Did you mean 'skip'",
    ):
        TrainingConfig(on_nonfinite="skipp")
    with pytest.raises(ValueError, match="max_nonfinite must be at least 1; got 0"):
        TrainingConfig(max_nonfinite=0)
