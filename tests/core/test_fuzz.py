"""Mutated images, configs and checkpoints: only documented exceptions come out, whatever goes
in.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from checkpoint_tools import rehash
from ddpm_lib.cli import options
from ddpm_lib.cli.train import TrainCommand
from ddpm_lib.data.decode import ImageError, decode_bytes
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.training import CheckpointError, ConfigError, load_run
from training_helpers import tiny_diffusion, tiny_trainer

pytestmark = pytest.mark.slow


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip bits, overwrite, cut, double or insert, a few times."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(max(1, len(out)))
        kind = draw.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << draw.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del out[at : at + draw.randint(1, 64)]
        elif kind == 3:
            out[at:at] = out[at : at + draw.randint(1, 64)]
        elif kind == 4:
            out[at:at] = draw.randbytes(draw.randint(1, 16))
        else:
            size = draw.choice((2, 4))
            out[at : at + size] = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 65535)).to_bytes(
                4, "big"
            )[-size:]
    return bytes(out)


def seeds() -> list[bytes]:
    """Small pictures of every format and of the surprising modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    image, made = Image.fromarray(pixels), []
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    kinds = [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", frames),
        ("PPM", {}),
        ("PNG", frames),
    ]
    kinds += [
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
    ]
    for kind, how in kinds:
        out = io.BytesIO()
        image.save(out, kind, **how)
        made.append(out.getvalue())
    for mode, kind in (
        ("P", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "TIFF"),
        ("I;16", "PNG"),
    ):
        out = io.BytesIO()
        image.convert("I" if mode == "I;16" else mode).convert(mode).save(out, kind)
        made.append(out.getvalue())
    return made


def test_ten_thousand_mutated_images() -> None:
    draw, spec, pictures = random.Random(0), make_spec(16, max_pixels=1_000_000), seeds()
    good, refused, said = 0, 0, set()
    for k in range(10_000):
        data = mutated(pictures[k % len(pictures)], draw)
        try:
            result = decode_bytes(data, spec)
        except ImageError as error:
            refused += 1
            said.add(str(error))
        else:
            good += 1
            assert result.pixels.shape == (3, 16, 16)
            assert result.pixels.dtype == np.uint8
    print(f"{good} decoded, {refused} refused with a reason")
    assert good > 500
    assert refused > 2000
    assert all(text and "\n" not in text for text in said)


STRANGE = (
    "",
    "x",
    -1,
    0,
    1.5,
    True,
    None,
    [],
    {},
    [1, "a"],
    {"a": 1},
    10**30,
    "1e-4",
    float("nan"),
    float("inf"),
    "../..",
    "\0",
)


def mutated_tree(value: object, draw: random.Random) -> object:
    """Change, rename, drop or add something somewhere in JSON-like data."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        value = dict(value)
        kind = draw.random()
        if kind < 0.7:
            value[key] = mutated_tree(value[key], draw)
        elif kind < 0.8:
            value[key + draw.choice("sx_")] = value.pop(key)
        elif kind < 0.9:
            del value[key]
        else:
            value[draw.choice(("x", "seed", "dim", ""))] = draw.choice(STRANGE)
        return value
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], mutated_tree(value[at], draw), *value[at + 1 :]]
    return draw.choice(STRANGE)


def test_three_thousand_mutated_configs(tmp_path: Path) -> None:
    """Half of them as trees, half as text."""
    draw, file = random.Random(0), tmp_path / "c.yaml"
    tree = yaml.safe_load(options.dump(TrainCommand()))
    for name in ("config", "print_config", "dry_run"):
        tree.pop(name)
    text, good, refused, said = yaml.safe_dump(tree).encode(), 0, 0, set()
    small = yaml.safe_dump({k: tree[k] for k in list(tree)[:12]}).encode()
    for k in range(3000):
        changed = mutated_tree(tree, draw)
        data = (
            yaml.safe_dump(changed).encode() if k % 2 else mutated(small if k % 4 else text, draw)
        )
        file.write_bytes(data)
        try:
            options.from_mapping(
                TrainCommand, options.read_config(str(file)), TrainCommand(), "c.yaml"
            )
            good += 1
        except ConfigError as error:
            refused += 1
            said.add(str(error))
    print(f"{good} accepted, {refused} refused with a reason")
    assert refused > 1000
    assert "" not in said


def test_two_thousand_mutated_checkpoints(tmp_path: Path) -> None:
    """Manifest and state, as bytes and as trees; for the state the hashes are made to fit."""
    draw, run = random.Random(0), tmp_path / "run"
    tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=1).train()
    folder = list_checkpoints(run / "checkpoints")[-1]
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    good, refused, said = 0, 0, set()
    for k in range(2000):
        name = ("manifest.json", "state.json")[k % 2]
        whole = (kept / name).read_bytes()
        if k % 4 < 2:
            data = mutated(whole, draw)
        else:
            data = json.dumps(mutated_tree(json.loads(whole), draw)).encode()
        (folder / name).write_bytes(data)
        if name == "state.json":
            rehash(folder)
        try:
            load_run(run)
            good += 1
        except (CheckpointError, ConfigError) as error:
            refused += 1
            said.add(str(error))
        for changed in ("manifest.json", "state.json"):
            shutil.copy(kept / changed, folder / changed)
    print(f"{good} loaded, {refused} refused with a reason")
    assert refused > 1000
    assert "" not in said
