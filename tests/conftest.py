import functools
import gc
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from locations import ROOT

# One thread: the tensors of the tests are tiny, and several test processes share a small machine.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

# A shell starts what runs in its background with Ctrl-C ignored, which every child would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count most cases of dear families as slow, and give slow tests an hour before they count as
    hanging.
    """
    cases: dict[str, int] = defaultdict(int)
    for item in items:
        family = item.get_closest_marker("every")
        if family is not None:
            name = item.nodeid.partition("[")[0]
            if cases[name] % family.args[0]:
                item.add_marker(pytest.mark.slow)
            cases[name] += 1
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_collection_finish() -> None:
    """Leave what has been imported and collected out of garbage collection, which otherwise visits
    it all each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_disk_or_git() -> Iterator[None]:
    """Let hundreds of tiny runs neither wait until a disk has their files, which only a power
    failure would show, nor ask git for the state of one directory again and again. Runs in
    processes of their own do both, and so do the tests of either.
    """
    from ddpm_lib.runs import about

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(about, "git_state", functools.cache(about.git_state))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with numbers of published implementations; tests that need it are skipped where it
    is not.
    """
    path = Path(os.environ.get("DDPM_LIB_SHARED", ROOT / ".." / "shared")).resolve()
    if not (path / "fixtures").is_dir():
        pytest.skip(f"no published numbers at {path} (set DDPM_LIB_SHARED)")
    return path
