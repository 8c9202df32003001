"""What a distributed test runs under torchrun: run_tuning.py RUN."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    import torch.distributed as dist

    from ddpm_lib.evaluation.tuning import tune

    found = tune(
        sys.argv[1],
        calls=3,
        samplers=("ddim",),
        num=20,
        starts=4,
        teacher_calls=8,
        iterations=2,
        device="cpu",
        progress=False,
    )
    mine = {
        "found": json.dumps(dataclasses.replace(found.default, created="").to_json()),
        "saved": found.saved is not None,
        "better": found.is_better,
    }
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        print(found.table())
        together = {key: [one[key] for one in ranks] for key in mine}
        reported = found.evidence["reported"]
        print(json.dumps({**together, "ranks": len(ranks), "reported": reported}))
    dist.destroy_process_group()


main()
