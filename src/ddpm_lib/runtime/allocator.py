"""Memory of the C library between the steps of a run on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of the settings, from malloc.h."""
_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let glibc keep what a step frees for the next one, for the rest of this process.

    As it comes, it returns large blocks to the system at once and asks for them anew in the next
    step, page by page: tens of thousands of page faults, 3 to 10 % of a training step. The peak
    stays what it is. Whoever has set glibc's own variables (`MALLOC_TRIM_THRESHOLD_`,
    `GLIBC_TUNABLES`, …) is left alone; other C libraries are too.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = ctypes.CDLL(None)
    # Older ones take no more than 32 MiB here.
    large = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(large and libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back_freed_memory() -> None:
    """Return to the system what is kept free, for whoever else runs on this machine; nothing with
    other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
