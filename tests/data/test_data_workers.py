"""What this process may use, and batches in order from any number of workers."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import (
    BadImagesError,
    Shapes,
    available_cpus,
    available_memory,
    check_num_workers,
    default_num_workers,
    make_loader,
    open_dataset,
)
from ddpm_lib.runtime import limits

BATCHES = [[k, (7 * k) % 40, 39 - k] for k in range(40)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 CPUs without limits; files below it set limits."""
    for name in (
        "SLURM_CPUS_PER_TASK",
        "PBS_NUM_PPN",
        "NSLOTS",
        "LOCAL_WORLD_SIZE",
        "SLURM_MEM_PER_NODE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("SLURM_MEM_PER_CPU", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal: 64000 kB\nMemAvailable:   48000 kB\n")
    return write


def test_affinity(machine, monkeypatch):
    assert available_cpus() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert available_cpus() == 2


def test_cgroup_v2_quota_of_an_outer_group(machine):
    machine("proc/self/cgroup", "0::/job/step\n")
    machine("cgroup/job/step/cpu.max", "max 100000\n")
    assert available_cpus() == 16
    machine("cgroup/job/cpu.max", "350000 100000\n")
    assert available_cpus() == 3
    machine("cgroup/cpu.max", "50000 100000\n")
    assert available_cpus() == 1


def test_cgroup_v1_quota(machine):
    machine("proc/self/cgroup", "3:cpuset:/\n2:cpu,cpuacct:/slurm/job\n")
    machine("cgroup/cpu,cpuacct/slurm/job/cpu.cfs_quota_us", "-1\n")
    machine("cgroup/cpu,cpuacct/slurm/job/cpu.cfs_period_us", "100000\n")
    assert available_cpus() == 16
    machine("cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us", "400000\n")
    machine("cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us", "100000\n")
    assert available_cpus() == 4


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "PBS_NUM_PPN", "NSLOTS"])
def test_batch_systems(machine, monkeypatch, name):
    monkeypatch.setenv(name, "5")
    assert available_cpus() == 5
    monkeypatch.setenv(name, "nonsense")
    assert available_cpus() == 16


def test_memory(machine, monkeypatch):
    assert available_memory() == 48000 * 1024
    machine("proc/self/cgroup", "0::/job\n")
    machine("cgroup/job/memory.max", "20000000\n")
    machine("cgroup/job/memory.current", "9000000\n")
    machine("cgroup/job/memory.stat", "anon 5\ninactive_file 4000000\n")
    assert available_memory() == 15_000_000
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "10")
    assert available_memory() == 5 << 20


def test_default_workers(machine, monkeypatch):
    assert default_num_workers() == 8
    assert default_num_workers(local_ranks=4) == 3
    assert default_num_workers(local_ranks=16) == 0
    assert default_num_workers(in_memory=True) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_num_workers() == 7
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
    assert default_num_workers() == 1


def test_check_num_workers(machine):
    assert check_num_workers(None) is None
    assert check_num_workers(16) is None
    assert "16 CPUs" in check_num_workers(17)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="num_workers"):
            check_num_workers(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    for k, array in enumerate(pixels):
        (path / "ab"[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(array).save(path / "ab"[k % 2] / f"{k:02d}.png")
    return path


def stack(batches) -> dict[str, torch.Tensor]:
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.every(2)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_order_is_that_of_the_indices(folder, num_workers):
    expected = stack(make_loader(open_dataset(folder, image_size=6), BATCHES))
    before = torch.random.get_rng_state()
    with make_loader(
        open_dataset(folder, image_size=6, cache="none"), BATCHES, num_workers=num_workers
    ) as stream:
        found = stack(stream)
    assert torch.equal(torch.random.get_rng_state(), before), (
        "the global random state is never touched"
    )
    assert set(found) == {"image", "class_label"}
    for name, value in expected.items():
        assert torch.equal(value, found[name])


def test_sets_in_ram_use_no_workers():
    stream = make_loader(Shapes(8, 16), [[1, 2]], num_workers=4)
    assert stream.num_workers == 0
    assert next(stream)["image"].shape == (2, 3, 8, 8)
    with pytest.raises(StopIteration):
        next(stream)


def test_endless_indices_and_close(folder):
    def forever():
        while True:
            yield [0, 1]

    data = open_dataset(folder, image_size=6, cache="none")
    stream = make_loader(data, forever(), num_workers=2)
    next(stream)
    processes = list(stream._pool._workers)
    stream.close()
    stream.close()
    assert not any(process.is_alive() for process in processes)
    assert list(stream) == []


def test_workers_ignore_the_signals_of_batch_systems(folder):
    data = open_dataset(folder, image_size=6, cache="none")
    with make_loader(data, BATCHES, num_workers=2) as stream:
        next(stream)  # the second worker may not have begun yet
        for process in stream._pool._workers:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                os.kill(process.pid, number)
        assert len(list(stream)) == len(BATCHES) - 1
        assert stream.num_workers == 2
        assert all(process.is_alive() for process in stream._pool._workers)


def test_killed_workers_are_replaced_by_fewer_without_losing_a_batch(folder):
    expected = stack(make_loader(open_dataset(folder, image_size=6), BATCHES))
    lines = []
    with make_loader(
        open_dataset(folder, image_size=6, cache="none"), BATCHES, num_workers=2, log=lines.append
    ) as stream:
        found = [next(stream) for _ in range(3)]
        for process in stream._pool._workers:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)
        found += list(stream)
        assert stream.num_workers == 1
    assert torch.equal(stack(found)["image"], expected["image"])
    assert "Going on with 1 instead of 2" in lines[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_breaks_later_is_named(tmp_path, num_workers):
    for k in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{k}.png")
    data = open_dataset(tmp_path, image_size=4, cache="none")
    (tmp_path / "2.png").write_bytes(b"gone")
    with make_loader(data, [[0], [1], [2], [3]], num_workers=num_workers) as stream:
        next(stream)
        next(stream)
        with pytest.raises(
            BadImagesError, match=r"^1 of 4 images cannot be used:\n  2\.png: a text file"
        ):
            next(stream)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(12, "Cannot allocate memory"), "killed, most likely for memory"),
        (
            RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
                " (28)"
            ),
            "/dev/shm",
        ),
        (OSError(28, "No space left on device"), "--shm-size"),
        (
            RuntimeError("unable to mmap 12 bytes: Cannot allocate memory (12)"),
            "fewer workers need less",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "killed, most likely for memory",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "killed, most likely for memory",
        ),
        (BlockingIOError(11, "Resource temporarily unavailable"), "The loader workers failed"),
        (RuntimeError("can't start new thread"), "The loader workers failed"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (ConnectionResetError(104, "Connection reset by peer"), "The loader workers failed"),
        (EOFError(), "The loader workers failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_pool_that_cannot_start_is_tried_with_fewer_workers(folder, monkeypatch, error, words):
    """Down to none, with the cause and the remedy, and every batch."""
    from ddpm_lib.data import loader

    class Refusing:
        def __init__(self, *args, **options):
            raise error

    monkeypatch.setattr(loader, "DataLoader", Refusing)
    lines = []
    stream = make_loader(
        open_dataset(folder, image_size=6, cache="none"),
        BATCHES[:3],
        num_workers=4,
        log=lines.append,
    )
    assert len(list(stream)) == 3
    assert stream.num_workers == 0
    assert [line.split("Going on with ")[1][:1] for line in lines] == ["2", "1", "0"]
    assert words in lines[0]
