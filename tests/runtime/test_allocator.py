"""What becomes of the memory that a step frees, on a CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ddpm_lib.runtime import allocator

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone"
)
PROGRAM = """
import resource
import torch
from ddpm_lib.training import process_state
from ddpm_lib.runtime.allocator import give_back_freed_memory
process_state("cpu")
def step():
    blocks = [torch.ones(1 << 22) for _ in range(4)]  # 64 MiB
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
step()
before = faults()
for _ in range(10):
    step()
held = resident()
after = faults()
give_back_freed_memory()
print(after - before, held - resident())
"""


@pytest.mark.slow
@glibc
def test_what_a_step_frees_is_kept_for_the_next_and_given_back_at_the_end():
    variables = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=variables
    )
    faults, freed = map(int, done.stdout.split())
    assert faults < 16_384  # as it comes: 163,840 pages of 4 KiB
    assert freed > 50


@glibc
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_who_set_the_allocator_himself_is_left_alone(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", asked.append)
    monkeypatch.setenv(variable, value)
    assert not allocator.keep_freed_memory()
    assert not asked
