"""Whether a change of the code changes any number: small runs, hashed before and after.

    python tests/golden/bitwise.py record before.json      # on the commit before
    python tests/golden/bitwise.py record after.json       # on the commit after, same machine
    python tests/golden/bitwise.py compare before.json after.json

Floating-point results differ between processors, so no recorded file is part of the repository.
Only public names and commands are used, so that one version of this script serves both commits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.cli import main as ddpm
from ddpm_lib.images import save_image

CLOCKS = {"seconds", "images_per_second", "elapsed_seconds", "versions", "hardware", "created"}
"""Fields whose values differ from run to run, or from machine to machine."""
COMMANDS = [
    "train",
    "estimate",
    "sample",
    "edit",
    "inpaint",
    "status",
    "ablate",
    "ema",
    "evaluate",
    "compare",
    "weights",
    "prepare",
    "push",
]
SAMPLERS = [
    "ddpm",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_2s",
    "unipc",
    "deis",
    "heun",
    "euler",
]
SMALL: dict[str, Any] = {
    "max_steps": 8,
    "batch_size": 6,
    "warmup_steps": 2,
    "save_every": 4,
    "log_every": 2,
    "val_every": 4,
    "val_fraction": 0.2,
    "sample_every": 4,
    "sample_count": 2,
    "sample_steps": 2,
    "progress": False,
    "device": "cpu",
    "mixed_precision": "no",
    "horizontal_flip": True,
    "keep_last": 10,
    "num_workers": 0,
}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "classes": (
        {"num_classes": 6, "class_drop_prob": 0.5, "out_channels": 6},
        {"variance": "learned_range", "time_sampler": "loss_aware"},
        {"accumulation_steps": 3, "ema_decay": (0.9, 0.99), "keep_best": "val_loss"},
    ),
    "self-conditioning": (
        {"self_condition": True, "low_res_factor": 2},
        {
            "learn_uncertainty": True,
            "offset_noise": 0.1,
            "immiscible": True,
            "input_perturbation": 0.1,
        },
        {"posthoc_ema": (0.1,), "posthoc_every": 4, "save_async": True},
    ),
    "bf16": ({}, {"parametrization": "eps", "schedule": "linear"}, {"mixed_precision": "bf16"}),
    "vlb": (
        {"out_channels": 6},
        {"variance": "learned_range", "loss": "vlb"},
        {"optimizer": "adamw", "weight_decay": 0.1, "max_grad_norm": 0.1},
    ),
}
"""Options of the network, the process and the training."""


def main(args: list[str]) -> int:
    """Record the numbers of this commit, or compare two records."""
    if len(args) == 2 and args[0] == "record":
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            found = record(Path(folder))
        Path(args[1]).write_text(json.dumps(found, indent=1, sort_keys=True))
        print(f"{len(found)} records in {args[1]}.")
        return 0
    if len(args) == 3 and args[0] == "compare":
        before, after = (json.loads(Path(name).read_text()) for name in args[1:])
        lines = list(differences("", before, after))
        print("\n".join(lines) or f"All {len(before)} records are equal.")
        return int(any(not line.startswith("added") for line in lines))
    print(__doc__, file=sys.stderr)
    return 2


def record(folder: Path) -> dict[str, Any]:
    """Return everything that must not change, by name."""
    os.environ["COLUMNS"] = "80"
    found: dict[str, Any] = {}
    pictures = folder / "pictures"
    for i in range(40):
        item = Shapes(size=8, n=40)[i]
        save_image(item["image"], pictures / f"{int(item['class_label'])}" / f"{i:03d}.png")
    for name, options in RUNS.items():
        run = folder / name
        diffusion = train(run, pictures, *options)
        found |= {f"{name}/{key}": value for key, value in files_of(run).items()}
        found |= {f"{name}/{key}": value for key, value in draws_of(diffusion, name).items()}
    for name in ("plain", "classes"):
        found[f"{name}/evaluate"] = evaluate(folder / name)
        found[f"{name}/sample"] = sample(folder / name, folder / f"{name}-drawn")
    found |= {f"two/{key}": value for key, value in two_processes(pictures, folder / "two").items()}
    for command in COMMANDS:
        found[f"help/{command}"] = said([command, "--help"])
        if "--help-all" in found[f"help/{command}"]:
            found[f"help-all/{command}"] = said([command, "--help-all"])
    text = json.dumps(found).replace(str(folder), "FOLDER")
    result: dict[str, Any] = json.loads(text)
    return result


def train(
    run: Path,
    pictures: Path,
    network: dict[str, Any],
    process: dict[str, Any],
    training: dict[str, Any],
) -> GaussianDiffusion:
    """Train a small network, stopped once in the middle and resumed."""
    for steps in (3, 8):
        torch.manual_seed(0)
        model = Unet(
            **{"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1, "dropout": 0.1} | network
        )
        diffusion = GaussianDiffusion(model, image_size=8, timesteps=20, **process)
        options = {**SMALL, **training, "max_steps": steps, "output_dir": str(run)}
        trainer = Trainer(diffusion, str(pictures), **options)
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.train()
    return diffusion


def files_of(run: Path) -> dict[str, Any]:
    """Return what a run left: tensors hashed, states and curves without what clocks say."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix in (".safetensors", ".png", ".npz"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "state.json":
            found[name] = timeless(json.loads(path.read_text()), run)
        elif path.name == "metrics.jsonl":
            found[name] = [
                timeless(json.loads(line), run) for line in path.read_text().splitlines()
            ]
        elif path.name == "config.yaml":
            found[name] = path.read_text().replace(str(run), "RUN")
        elif path.is_file():
            found[name] = "there"
    return found


def draws_of(diffusion: GaussianDiffusion, name: str) -> dict[str, Any]:
    """Return hashes of everything that a process draws or scores."""
    cond: dict[str, Any] = {"class_label": [0, 1, 2]} if name == "classes" else {}
    images = torch.stack([Shapes(size=8, n=40)[i]["image"] for i in range(3)])
    if name == "self-conditioning":
        cond["low_res"] = images[:, :, ::2, ::2]
    scale: dict[str, Any] = (
        {"guidance_scale": 2.0, "guidance_rescale": 0.5} if name == "classes" else {}
    )
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    quiet: dict[str, Any] = {"cond": cond, "progress": False}
    found = {
        f"sample {sampler}": digest(
            diffusion.sample(3, sampler=sampler, num_steps=5, **scale, **quiet)
        )
        for sampler in SAMPLERS
    }
    found["sample default"] = digest(diffusion.sample(3, seed=1, batch_size=2, **quiet))
    found["trajectory"] = digest(*diffusion.sample(3, num_steps=4, return_trajectory=3, **quiet))
    found["float64"] = digest(
        diffusion.sample(x_T=torch.ones(3, 3, 8, 8, dtype=torch.float64), num_steps=3, **quiet)
    )
    if cond.keys() <= {"class_label"}:
        found["classifier"] = digest(
            diffusion.sample(
                3, num_steps=4, classifier=lambda x, t: -x.square().flatten(1).sum(1), **quiet
            )
        )
    found["edit"] = digest(diffusion.edit(images, 0.5, num_steps=8, **scale, **quiet))
    found["inpaint"] = digest(
        diffusion.inpaint(images, mask, num_steps=8, jump_length=2, num_resamples=2, **quiet)
    )
    noise = diffusion.encode(images, 5, **quiet)
    found["encode"] = digest(noise)
    found["decode"] = digest(diffusion.decode(noise, 5, **quiet))
    for method in ("noise", "ddim"):
        found[f"interpolate {method}"] = digest(
            diffusion.interpolate(images, images.flip(0), method=method, num_steps=5, **quiet)
        )
    bound = diffusion.bits_per_dim(images, cond=cond)
    few = diffusion.bits_per_dim(images, cond=cond, num_levels=4, num_steps=10, seed=3)
    flow = diffusion.flow_bits_per_dim(images, cond=cond, tolerance=1e-3)
    for key, bits in {"bound": bound, "bound few": few, "flow": flow}.items():
        found[key] = digest(bits.total, bits.prior, bits.terms)
    found |= losses_of(diffusion, images, cond)
    return found


def losses_of(diffusion: GaussianDiffusion, images: Tensor, cond: dict[str, Any]) -> dict[str, Any]:
    """Return hashes of losses and gradients in both modes, with what is drawn and with what is
    given.
    """
    tensors = {key: torch.as_tensor(value) for key, value in cond.items()}
    found = {}
    for mode in (True, False):
        torch.manual_seed(3)
        diffusion.train(mode).zero_grad()
        loss = diffusion(images, tensors, reduction="none")
        loss.sum().backward()
        gradients = [p.grad for p in diffusion.parameters() if p.grad is not None]
        found[f"loss {'train' if mode else 'eval'}"] = digest(loss, *gradients)
    given = diffusion(images, tensors, t=torch.tensor([1, 7, 20]), noise=torch.ones(3, 3, 8, 8))
    found["loss given"] = digest(given)
    return found


def evaluate(run: Path) -> dict[str, Any]:
    """Return the scores that `ddpm evaluate` writes."""
    said(
        f"evaluate {run} --metrics nll,flow_nll,kid,pr,memorisation,loss_gap,gap --features pixels"
        " --num 16 --sample-steps 3 --num-levels 3 --tolerance 1e-2 --no-progress"
        " --device cpu".split()
    )
    (path,) = (run / "evaluations").glob("eval-*.json")
    found: dict[str, Any] = timeless(json.loads(path.read_text()), run)
    del found["samples"]["fingerprint"]  # of the checkpoint's files, one of which holds a clock
    return found


def sample(run: Path, out: Path) -> dict[str, str]:
    """Return hashes of what `ddpm sample` writes."""
    said(
        f"sample {run} --num 6 --format all --num-steps 3 --output-dir {out} --no-progress"
        " --device cpu".split()
    )
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        path.name: (
            path.read_text().replace(str(out), "OUT").replace(str(run), "RUN")
            if path.suffix == ".yaml"
            else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in files
    }


def two_processes(pictures: Path, run: Path) -> dict[str, Any]:
    """Return what two processes leave that train on pictures on disk."""
    words = (
        f"-m torch.distributed.run --standalone --nproc_per_node 2 -m ddpm_lib.cli train {pictures}"
        " --image-size 8 --preset tiny --model.dim 8 --model.dim-mults 1,2"
        " --model.attention-levels 1 --batch-size 6 --max-steps 6 --save-every 3 --val-every 3"
        " --val-fraction 0.2 --sample-every 0 --device cpu --mixed-precision no"
        f" --class-conditional --no-progress --output-dir {run}"
    ).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"Two processes ended with {done.returncode}:\n{done.stderr}")
    return files_of(run)


def said(words: list[str]) -> str:
    """Return what a command prints, or end where it fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = ddpm(words)
        except SystemExit as end:
            code = int(end.code or 0)
    if code:
        raise SystemExit(f"ddpm {' '.join(words)} ended with {code}:\n{errors.getvalue()}")
    return out.getvalue()


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors, bit for bit."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def timeless(value: Any, run: Path) -> Any:
    """Leave out what clocks and machines say, and put RUN in the place of the directory."""
    if isinstance(value, dict):
        return {k: timeless(v, run) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, list):
        return [timeless(v, run) for v in value]
    return value.replace(str(run), "RUN") if isinstance(value, str) else value


def differences(where: str, before: Any, after: Any) -> Any:
    """Yield a line per difference; those that only add begin with "added"."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            at = f"{where}/{key}" if where else key
            if key not in before:
                yield f"added {at}"
            elif key not in after:
                yield f"gone {at}"
            else:
                yield from differences(at, before[key], after[key])
    elif before != after:
        yield f"changed {where}: {str(before)[:200]} -> {str(after)[:200]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
