"""How processes meet again when torchrun has started them before."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.runtime.launch import explain_rendezvous_errors
from ddpm_lib.runtime.rendezvous import agree_on_name, group_options


def names(
    store: torch.distributed.Store, ranks: range, processes: int, seconds: float = 60
) -> dict[int, str]:
    found: dict[int, str] = {}

    def one(rank: int) -> None:
        found[rank] = agree_on_name(store, rank, processes, seconds)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_every_attempt_agrees_on_a_name_of_its_own() -> None:
    """In one store, as torchrun keeps it; attempts before have died at any point of the
    agreement.
    """
    store = torch.distributed.HashStore()
    seen = set()
    for attempt in range(12):
        with pytest.raises(
            torch.distributed.DistStoreError
        ):  # nobody answers: this process had come and is killed
            agree_on_name(store, 1 + attempt % 3, 4, 0.01)
        with pytest.raises(torch.distributed.DistStoreError):
            agree_on_name(store, 0, 4, 0.01)
        found = names(store, range(4), 4)
        assert len(set(found.values())) == 1
        seen |= set(found.values())
    assert len(seen) == 12


def test_who_does_not_come_is_named() -> None:
    store = torch.distributed.HashStore()
    words = r"process 1, 2 has not come within 0\.001 minutes \(process_timeout_minutes\)"
    with pytest.raises(LostProcessError, match=words), explain_rendezvous_errors():
        agree_on_name(store, 0, 3, 0.06)
    with (
        pytest.raises(LostProcessError, match="process 0 has not come"),
        explain_rendezvous_errors(),
    ):
        agree_on_name(store, 2, 3, 0.06)


def test_torchruns_store_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert group_options(10.0) == {"timeout": timedelta(minutes=10)}
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert group_options(0.3) == {"timeout": timedelta(seconds=18), "init_method": "ddpm-lib://"}
    group_options(0.3)


PROGRAM = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch
from ddpm_lib.runtime.devices import make_accelerator
accelerator = make_accelerator(Path(sys.argv[1]), device="cpu")
group = torch.distributed.group.WORLD
assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=10)
accelerator.wait_for_everyone()
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with open(sys.argv[2], "a") as out:
    out.write(f"{attempt}{accelerator.process_index}\\n")
if attempt < 1:
    sys.exit(accelerator.process_index)  # one rank dies, and torchrun starts both again
accelerator.state.destroy_process_group()
"""


@pytest.mark.slow
def test_a_restart_meets_at_the_first_attempt(tmp_path: Path) -> None:
    (tmp_path / "meet.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "--max-restarts",
        "1",
    ]
    command += [str(tmp_path / "meet.py"), str(tmp_path / "run"), str(tmp_path / "met")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"01", "10", "11"} <= set((tmp_path / "met").read_text().split())
