"""A training on a CPU that compiles nothing does not import the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet

diffusion = GaussianDiffusion(Unet(16, (1, 2), blocks_per_level=1), image_size=8)
options = dict(batch_size=2, max_steps=2, optimizer=sys.argv[2], device="cpu", progress=False)
options |= dict(output_dir=sys.argv[1], mixed_precision="no", sample_every=0)
trainer = Trainer(diffusion, Shapes(size=8, n=20), **options)
trainer.train()
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_imports_no_compiler(tmp_path: Path, optimizer: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), optimizer]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == "[]"
