"""Compiling the library's C++ once per machine, with the eager formula of torch wherever that
cannot be done.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.files import write_aside

logger = logging.getLogger("ddpm_lib")

FOLDER = Path(__file__).parent
KERNELS = {
    "group_norm": "normalisation",
    "weight_passes": "update of weights",
    "winograd": "convolution",
    "low_gradient": "gradient of convolutions in bf16",
    "orthogonal": "orthogonal update",
}
"""Sources in C++, and what they compute."""
# No -ffast-math: NaN must stay NaN, and linking with it would flush denormals in the whole process.
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
)


def compilers() -> list[str]:
    """Return the C++ compilers to try: $CXX, g++, c++ and clang++, those of them that are there.

    What clang compiles can be loaded only where torch brings the OpenMP of LLVM or Intel.
    """
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    found = [path for name in names if name and (path := shutil.which(name))]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the compiled normalisation; see `_loaded`."""
    found = _loaded("group_norm")
    return None if found is None else _declare_group_norm(found)


@lru_cache(maxsize=1)
def weights_library() -> ctypes.CDLL | None:
    """Load the compiled passes over all weights; see `_loaded`."""
    found = _loaded("weight_passes")
    return None if found is None else _declare_weights(found)


@lru_cache(maxsize=1)
def convolution_library() -> ctypes.CDLL | None:
    """Load the compiled convolution; see `_loaded`. None where registers are too few for it."""
    if not _has_wide_registers():
        return None
    found = _loaded("winograd")
    return None if found is None else _declare_convolution(found)


@lru_cache(maxsize=1)
def gradient_library() -> ctypes.CDLL | None:
    """Load the compiled gradient of convolutions in bf16; see `_loaded`. None where the processor
    does not multiply pairs of such numbers.
    """
    if platform.machine() != "x86_64" or "avx512_bf16" not in _flags():
        return None
    found = _loaded("low_gradient")
    return None if found is None else _declare_gradient(found)


@lru_cache(maxsize=1)
def orthogonal_library() -> ctypes.CDLL | None:
    """Load the compiled step of Muon; see `_loaded`. None where registers are too few for it."""
    if not _has_wide_registers():
        return None
    found = _loaded("orthogonal")
    return None if found is None else _declare_orthogonal(found)


def _has_wide_registers() -> bool:
    """Say whether the processor multiplies and adds vectors of eight numbers in one instruction, or
    has the 32 registers of ARM.
    """
    if platform.machine() == "aarch64":
        return True
    return {"avx2", "fma"} <= _flags()


def _flags() -> set[str]:
    """Return what the processor can do, by Linux's names."""
    return set(next((x for x in _processor().splitlines() if x.startswith("flags")), "").split())


def _loaded(name: str) -> ctypes.CDLL | None:
    """Load compiled kernels, building them on first use; None where they cannot be had, with the
    reason logged.

    `DDPM_LIB_KERNELS=0` turns them off. Nodes of a cluster with different processors get a file
    each.
    """
    if os.environ.get("DDPM_LIB_KERNELS", "1") == "0" or sys.platform != "linux":
        return None
    found, reasons = compilers(), []
    if not found:
        logger.info(
            "No C++ compiler (g++) here: torch's own, slower operations run instead of %s.", name
        )
        return None
    for path in found:
        try:
            return ctypes.CDLL(str(_built(path, name)))
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append((getattr(error, "stderr", "") or str(error))[-300:])
    logger.warning(
        "The fast %s could not be compiled with %s; torch's own operations are used. [%s]",
        KERNELS[name],
        " or ".join(found),
        "] [".join(reasons),
    )
    return None


def _built(found: str, kernel: str) -> Path:
    """Return the shared library for a source, compiler and processor, compiled if it is not in the
    cache.
    """
    source = FOLDER / f"{kernel}.cpp"
    version = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    parts = (
        source.read_text(encoding="utf-8"),
        *(header.read_text(encoding="utf-8") for header in sorted(FOLDER.glob("*.h"))),
        " ".join(FLAGS),
        version,
        platform.machine(),
        _processor(),
    )
    name = f"{kernel}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    for folder in (
        cache_folder() / "kernels",
        Path(tempfile.gettempdir()) / f"ddpm_lib-kernels-{os.getuid()}",
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            about = folder.lstat()
            if (
                about.st_uid != os.getuid()
                or not stat.S_ISDIR(about.st_mode)
                or about.st_mode & 0o022
            ):
                logger.info(
                    "Kernels are not kept in %s: others may write there, and code is loaded"
                    " from it.",
                    folder,
                )
                continue
            target = folder / name
            if not target.exists():
                _compile(found, source, target)
            if target.stat().st_uid == os.getuid():
                return target
        except OSError as error:
            logger.info("Kernels are not kept in %s: %s.", folder, error)
    raise OSError("no folder to compile into; set DDPM_LIB_CACHE to one that can be written")


def _compile(found: str, source: Path, target: Path) -> None:
    """Compile in place; processes that do so at once each rename a complete file over the
    other's.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        object_file, linked = str(Path(work) / "kernel.o"), str(Path(work) / "kernel.so")
        for command in (
            [found, *FLAGS, "-c", str(source), "-o", object_file],
            # Linked without OpenMP: its symbols come from the runtime that torch has loaded.
            # A second runtime would bring threads of its own.
            [found, "-shared", object_file, "-o", linked],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        os.chmod(linked, 0o700)  # code that is loaded: nobody else may write it
        write_aside(target, lambda aside: os.replace(linked, aside))


def _processor() -> str:
    """Name what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _declare_weights(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take; see the C++ file."""
    i, k, p, d = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    lib.sum_of_squares.argtypes, lib.sum_of_squares.restype = [k, p, i, p, p], d
    lib.adam.argtypes, lib.adam.restype = [k, p, i, *[p] * 8, *[d] * 6, i], None
    lib.follow.argtypes, lib.follow.restype = [k, p, i, p, k, p, p], None
    return lib


def _declare_convolution(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take; see the C++ file."""
    i, k, p = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    lib.winograd_panel.argtypes, lib.winograd_panel.restype = [], k
    lib.winograd_weight.argtypes = [p, k, k, p, p, i]
    lib.winograd_forward.argtypes = [p, *[k] * 5, p, p, p, i]
    lib.winograd_weight_gradient.argtypes = [p, p, *[k] * 5, p, p, p, i]
    for each in (lib.winograd_weight, lib.winograd_forward, lib.winograd_weight_gradient):
        each.restype = None
    return lib


def _declare_gradient(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take; see the C++ file."""
    i, k, p = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    lib.low_gradient_panel.argtypes, lib.low_gradient_panel.restype = [], k
    lib.low_weight_gradient.argtypes = [p, p, *[k] * 5, p, p, p, i]
    lib.low_weight_gradient.restype = None
    return lib


def _declare_orthogonal(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the function takes; see the C++ file."""
    i, k, p, d = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    lib.orthogonal_step.argtypes = [k, p, p, i, p, p, p, d, p, d]
    lib.orthogonal_step.restype = None
    return lib


def _declare_group_norm(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take; see the C++ file."""
    i, k, p, d = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    how = [i, *[k] * 5, i, ctypes.c_uint64, ctypes.c_uint32, i]
    lib.norm_act_forward.argtypes = [*how, *[p] * 4, k, d, *[p] * 3]
    lib.norm_act_backward.argtypes = [*how, *[p] * 5, k, *[p] * 7]
    lib.norm_act_forward.restype = lib.norm_act_backward.restype = None
    return lib
