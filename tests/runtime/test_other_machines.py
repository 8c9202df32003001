"""What other machines would show: Apple's GPUs, notebooks, full devices, older autocast."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn.summary import summarize
from ddpm_lib.runtime import devices
from ddpm_lib.runtime.accelerate_state import give_back_network, prepare_network
from ddpm_lib.runtime.memory import is_out_of_memory_error


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_a_full_gpu_says(said: str) -> None:
    assert is_out_of_memory_error(RuntimeError(said))
    assert not is_out_of_memory_error(RuntimeError("CUDA error: an illegal memory access"))


def test_normalisations_stay_in_float32_on_cuda() -> None:
    """CUDA's autocast has them on its list, the CPU's has not."""
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1)
    cpu, cuda = (summarize(model, 16, 4, "bf16", on_cuda).activation_bytes for on_cuda in (0, 1))
    assert 1.2 < cuda / cpu < 1.9
    full = (summarize(model, 16, 4, "float32", on_cuda).activation_bytes for on_cuda in (0, 1))
    assert len(set(full)) == 1
    assert not torch.is_autocast_enabled("cuda")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_process_forked_after_cuda_was_used_is_told(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(wanted).type == "cuda"
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(ConfigError, match=r"notebook_launcher.*torchrun"):
        resolve_device(wanted)
    assert resolve_device("cpu").type == "cpu"


def test_determinism_that_comes_too_late_says_what_to_set() -> None:
    said = "Deterministic behavior was enabled … set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    cpu = torch.device("cpu")
    too_late = pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8 set before")
    with too_late, devices.global_state_kept(cpu, True):
        raise RuntimeError(said)
    assert not torch.are_deterministic_algorithms_enabled()
    theirs = pytest.raises(RuntimeError, match="Deterministic behavior")
    with theirs, devices.global_state_kept(cpu, False):
        raise RuntimeError(said)


def test_processes_that_cannot_meet_do_not_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate has no group for Apple's GPUs, and says nothing."""
    import accelerate

    class Alone:
        num_processes = 1
        forgotten = 0

        def __init__(self, **options: Any) -> None:
            self.options = options

        @classmethod
        def _reset_state(cls) -> None:
            cls.forgotten += 1

    monkeypatch.setattr(accelerate, "PartialState", Alone)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr("ddpm_lib.runtime.rendezvous.before_rendezvous", lambda: None)
    with pytest.raises(ConfigError, match=r"2 processes.*meet on mps.*alone"):
        devices.join_processes("mps", 1.0)
    assert Alone.forgotten == 1


def test_the_casts_of_a_pass_without_history_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to torch 2.11 the second pass of self-conditioning took them: no weight had a gradient."""
    real, calls = torch.clear_autocast_cache, []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (calls.append(1), real()))
    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, self_condition=True)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=10)
    with torch.autocast("cpu", torch.bfloat16):
        loss = diffusion(torch.rand(8, 3, 8, 8))
        assert calls
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_constants_are_not_sent_around_at_every_step() -> None:
    """DistributedDataParallel sends all buffers, in every forward pass."""
    import torch.distributed as dist

    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=10, learn_uncertainty=True)
    assert len(list(diffusion.buffers())) == 2
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrap = SimpleNamespace(prepare_model=torch.nn.parallel.DistributedDataParallel, _models=[])
        prepared = prepare_network(wrap, diffusion)
        assert prepared.modules_buffers == []
        prepared(torch.rand(2, 3, 8, 8)).backward()
    finally:
        dist.destroy_process_group()
    assert all(p.grad is not None for p in diffusion.parameters())
    give_back_network(wrap, diffusion, None)
    assert not [name for name in vars(diffusion) if "ddp" in name]
