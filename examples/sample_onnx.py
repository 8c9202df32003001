"""Draw images from an exported model with NumPy and onnxruntime alone: no torch, no ddpm_lib.

    pip install numpy onnxruntime pillow
    ddpm export runs/mine mine-onnx --to onnx
    python sample_onnx.py mine-onnx --num 16 --class-label 3 --guidance-scale 2

DDIM (Song et al. 2021) with classifier-free guidance; for what `ddpm distill` has tuned, jumps to
clean images and back to a cleaner level (Song et al. 2023). `model.json` says all that is not in
the network: the noise levels, what the output means, which conditions there are.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def ddim(folder, x, steps=50, cond=None, guidance_scale=1.0, noise=None):
    """Take Gaussian noise x (n, c, h, w) float32 to images in [-1, 1].

    `noise` draws more of its shape; a network that was tuned for consistency needs it after each
    step but the last.
    """
    about = json.loads((Path(folder) / "model.json").read_text())
    session = onnxruntime.InferenceSession(Path(folder) / about["file"])
    n, channels, last = len(x), about["image_shape"][0], about["timesteps"]
    null = {
        name: np.full((n, *c["shape"]), c["null"], c["dtype"])
        for name, c in about["conditions"].items()
        if c["null"] is not None
    }
    given = null | (cond or {})
    other = {k: null[k] if about["conditions"][k]["guided"] else v for k, v in given.items()}
    visited = [round(last * k / steps) for k in range(steps, -1, -1)]
    for t, s in pairwise(visited):
        alpha, sigma = about["alpha"][t], about["sigma"][t]
        seen = {"x": x * np.float32(about["c_in"][t]), "t": np.full(n, about["t"][t], np.float32)}
        output = session.run(None, seen | given)[0][:, :channels]
        if guidance_scale != 1:
            unguided = session.run(None, seen | other)[0][:, :channels]
            output = unguided + guidance_scale * (output - unguided)
        x0 = about["c_skip"][t] * x + about["c_out"][t] * output
        limit = np.ones(n, np.float32)
        if about["clip"] == "dynamic":
            limit = np.quantile(np.abs(x0).reshape(n, -1), about["clip_ratio"], axis=1)
        if about["clip"] != "none":
            limit = np.maximum(limit, 1).reshape(n, *[1] * (x.ndim - 1))
            x0 = np.clip(x0, -limit, limit) / limit
        eps = (x - alpha * x0) / sigma
        if about["diffusion"]["loss"] == "consistency" and s:
            eps = noise(x.shape, np.float32)
        x = np.float32(about["alpha"][s] * x0 + about["sigma"][s] * eps)
        if "self_cond" in given:  # the network sees its last estimate
            given["self_cond"] = other["self_cond"] = np.float32(x0)
    return x


def grid(images):
    """Tile images (n, c, h, w) in [-1, 1] to a picture (H, W, c), uint8."""
    pixels = ((np.clip(images, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
    columns = math.ceil(len(pixels) ** 0.5)
    blank = np.zeros((-len(pixels) % columns, *pixels.shape[1:]), np.uint8)
    n, h, w, c = np.concatenate([pixels, blank]).shape
    rows = np.concatenate([pixels, blank]).reshape(n // columns, columns, h, w, c)
    return rows.swapaxes(1, 2).reshape(n // columns * h, columns * w, c)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="what `ddpm export RUN FOLDER --to onnx` wrote")
    parser.add_argument("--num", type=int, default=16, help="how many images")
    parser.add_argument("--num-steps", type=int, help="sampling steps; default: 50, tuned: 2")
    parser.add_argument("--class-label", help="name or number of a class")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="samples.png", help="the picture to write")
    options = parser.parse_args()
    about = json.loads((Path(options.folder) / "model.json").read_text())
    cond = {}
    if options.class_label is not None:
        names = about["class_names"] or []
        label = options.class_label
        number = names.index(label) if label in names else int(label)
        cond["class_label"] = np.full(options.num, number, np.int64)
    elif options.guidance_scale != 1:
        parser.error("--guidance-scale strengthens a class. Name one with --class-label.")
    needed = {name for name, c in about["conditions"].items() if not c["may_be_null"]}
    if needed != needed & cond.keys():
        parser.error(f"this network needs {', '.join(sorted(needed - cond.keys()))}")
    shape = (options.num, *about["image_shape"])
    usual = 2 if about["diffusion"]["loss"] == "consistency" else 50
    steps = min(options.num_steps or usual, about["timesteps"])
    noise = np.random.default_rng(options.seed).standard_normal
    x = noise(shape, np.float32)
    images = ddim(options.folder, x, steps, cond, options.guidance_scale, noise)
    Image.fromarray(grid(images).squeeze()).save(options.output)
    print(f"{options.num} images -> {options.output}")


if __name__ == "__main__":
    main()
