"""What becomes of the memory that a step frees, on a CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
PROGRAM = """
import resource
import torch
from ddpm_lib.training import process_state
from ddpm_lib.training.allocator import give_back_freed_memory
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


def run(**variables: str) -> tuple[int, int]:
    """Return the page faults of ten steps, and the MiB that are given back after them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**os.environ, **variables}
    )
    faults, freed = done.stdout.split()
    return int(faults), int(freed)


@glibc
def test_what_a_step_frees_is_kept_for_the_next_and_given_back_at_the_end():
    faults, freed = run()
    assert faults < 16_384  # of 163,840 pages
    assert freed > 50


@glibc
@pytest.mark.parametrize(
    "variable",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=str,
)
def test_who_set_the_allocator_himself_is_left_alone(variable: dict[str, str]):
    faults, _ = run(**variable)
    assert faults > 10_000  # 16,384 pages of 4 KiB in each step
