"""What starting costs: imports, and the time from the command to the first training step.

    python benchmarks/startup.py --output startup.json

Every number is of a fresh process; the processes take turns. Imports are timed inside, behind
`import torch`, which all need.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import peers

IMPORT = """
import json, sys, time
a = time.perf_counter(); import torch
b = time.perf_counter(); {statement}
c = time.perf_counter(); print(json.dumps([b - a, c - b]))
"""
STATEMENTS = {
    "import ddpm_lib": "import ddpm_lib",
    "from ddpm_lib import Unet, GaussianDiffusion, Trainer": (
        "from ddpm_lib import Unet, GaussianDiffusion, Trainer"
    ),
}
PEER_STATEMENTS = {
    "from diffusers import UNet2DModel, DDPMScheduler": (
        "from diffusers import UNet2DModel, DDPMScheduler"
    ),
    "from denoising_diffusion_pytorch import Unet, …": (
        "from denoising_diffusion_pytorch import Unet, GaussianDiffusion, Trainer"
    ),
}
OURS = """
import time
from ddpm_lib import Callback, GaussianDiffusion, Trainer, Unet
class First(Callback):
    def on_step_end(self, trainer):
        if trainer.step == 1:
            print("first step", time.time(), flush=True)
diffusion = GaussianDiffusion(Unet(dim={width}, dim_mults=(1, 2)), image_size={size})
Trainer(diffusion, {data!r}, output_dir={run!r}, max_steps=1, batch_size=16,
        callbacks=[First()], progress=False, val_every=0, sample_every=0,
        labels="none", device={device!r}).train()
"""
LUCIDRAINS = """
import time
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
unet = Unet(dim={width}, dim_mults=(1, 2), flash_attn=True)
diffusion = GaussianDiffusion(unet, image_size={size}, sampling_timesteps=250)
Trainer(diffusion, {data!r}, results_folder={run!r}, train_num_steps=1,
        train_batch_size=16, calculate_fid=False).train()
print("first step", time.time(), flush=True)
"""


def imports(statement: str) -> tuple[float, float]:
    """Return the seconds of `import torch` and of what follows it, in a fresh process."""
    code = IMPORT.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch_took, took = json.loads(done.stdout.splitlines()[-1])
    return torch_took, took


def first_step(script: str) -> float:
    """Return the seconds from the command to the end of the first step."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("first step")]
    if not found:
        raise SystemExit(f"The process ended early:\n{done.stderr[-3000:]}")
    return float(found[0].split()[-1]) - start


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of images for the first step; default: 256 JPEGs of shapes, 64×64",
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.width, asked.size, asked.rounds = 8, 8, 1
    if not asked.no_peers:
        peers.require_peers()
    device = common.pick_device(asked.device)
    rates = common.ceilings(device, small=asked.quick)
    common.show_ceilings(rates)
    statements = STATEMENTS | ({} if asked.no_peers else PEER_STATEMENTS)
    scripts = {"ours": OURS} | ({} if asked.no_peers else {"lucidrains": LUCIDRAINS})
    extra: common.Times = {name: [] for name in statements}
    steps: common.Times = {name: [] for name in scripts}
    of_torch: list[float] = []
    with TemporaryDirectory() as folder:
        data = str(
            asked.data
            or common.rows_written(Path(folder) / "images", 112 if asked.quick else 256, 64)
        )
        for turn in range(asked.rounds):
            for name, statement in statements.items():
                torch_took, took = imports(statement)
                of_torch.append(torch_took)
                extra[name].append(took)
            for name, script in scripts.items():
                run = str(Path(folder) / f"{name}-{turn}")
                words = {
                    "width": asked.width,
                    "size": asked.size,
                    "data": data,
                    "run": run,
                    "device": device.type,
                }
                steps[name].append(first_step(script.format(**words)))
    torch_seconds = common.medians({"torch": of_torch})["torch"]
    rows = [("import torch", f"{torch_seconds:.3f}", "1.00×")]
    rows += [
        (f"+ {n}", f"{t:.3f}", f"{t / torch_seconds:.2f}×")
        for n, t in common.medians(extra).items()
    ]
    common.print_table(("imports", "s", "of torch's"), rows)
    ours = common.medians(steps)["ours"]
    rows = [
        (f"first training step, {n}", f"{t:.2f}", f"{t / ours:.2f}×")
        for n, t in common.medians(steps).items()
    ]
    common.print_table(("from the command to the", "s", "as long as ours"), rows)
    return common.finish(
        asked, device, ceilings=rates, torch=of_torch, imports=extra, first_step=steps
    )


if __name__ == "__main__":
    main()
