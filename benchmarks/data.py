"""Reading images: decoded per second and worker, and what epochs after the first cost.

    python benchmarks/data.py --data path/to/images --size 64 --output data.json

Streams a folder through our loader and through denoising-diffusion-pytorch's dataset with torch's
DataLoader, at several numbers of workers; then opens it into RAM, where the first epoch is the
decoding and later ones only copy. At last JPEGs are decoded by Pillow and by torchvision: whether
they come out the same, and how fast each is alone, behind the checks of the header that any file
needs, and down to the size asked for.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

import common
import peers


def index_batches(count: int, batch: int) -> list[list[int]]:
    return [list(range(i, min(i + batch, count))) for i in range(0, count, batch)]


def passes(data: Any, count: int, batch: int, workers: int) -> float:
    """Return the seconds of one pass after the first batch, so that starting the workers is not
    counted.
    """
    from ddpm_lib.data import make_loader

    loader = make_loader(data, index_batches(count, batch), num_workers=workers)
    try:
        next(loader)
        start, seen = time.perf_counter(), 0
        for found in loader:
            seen += len(found["image"])
        return (time.perf_counter() - start) / seen
    finally:
        loader.close()


def peer_passes(folder: Path, size: int, count: int, batch: int, workers: int) -> float:
    """The same with denoising-diffusion-pytorch's dataset, as its Trainer sets it up."""
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset

    data = torch.utils.data.Subset(
        Dataset(str(folder), size, augment_horizontal_flip=True, convert_image_to="RGB"),
        range(count),
    )
    batches: Iterator[Any] = iter(
        torch.utils.data.DataLoader(data, batch_size=batch, num_workers=workers)
    )
    next(batches)
    start, seen = time.perf_counter(), 0
    for images in batches:
        seen += len(images)
    return (time.perf_counter() - start) / seen


def streaming(asked: argparse.Namespace, folder: Path) -> tuple[common.Times, int]:
    """Measure seconds per image of streamed folders, and return the number of images too."""
    from ddpm_lib import open_dataset

    data = open_dataset(folder, image_size=asked.size, labels="none", cache="none", verify=False)
    count = min(len(data), asked.count)
    runs: dict[str, Callable[[], object]] = {}
    for workers in asked.workers:
        runs[f"ours, {workers} workers"] = lambda w=workers: passes(data, count, asked.batch, w)
        if not asked.no_peers:
            runs[f"lucidrains, {workers} workers"] = lambda w=workers: peer_passes(
                folder, asked.size, count, asked.batch, w
            )
    # The passes keep the time themselves.
    return common.interleave(
        runs, asked.rounds, warm_up=0, timer=lambda call, _: float(call())
    ), count  # type: ignore[arg-type]


def cached(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure opening into RAM, and passes after it; count the pictures decoded in those."""
    from ddpm_lib import open_dataset
    from ddpm_lib.data import decode

    start = time.perf_counter()
    data = open_dataset(
        folder, image_size=asked.size, labels="none", cache="ram", num_workers=max(asked.workers)
    )
    opened = time.perf_counter() - start
    with patch.object(decode, "fit_picture", wraps=decode.fit_picture) as decoded:
        seconds = [passes(data, len(data), asked.batch, 0) for _ in range(asked.rounds)]
    return {
        "images": len(data),
        "seconds_to_open": opened,
        "images_per_second_opening": len(data) / opened,
        "images_per_second_later": 1 / statistics.median(seconds),
        "decoded_later": decoded.call_count,
        "mib": len(data) * 3 * asked.size**2 / 2**20,
    }


def jpegs_in(place: Path, count: int) -> list[bytes]:
    """Return encoded JPEGs of a folder, spread over it, or the first ones of a parquet file."""
    if place.is_file():
        import pyarrow.parquet as pq

        table = pq.read_table(place).slice(0, count)
        column = next(name for name in table.column_names if name in ("img", "image"))
        found = [cell["bytes"] for cell in table[column].to_pylist()]
    else:
        files = sorted(f for f in place.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
        found = [f.read_bytes() for f in files[:: max(1, len(files) // count)][:count]]
    return [data for data in found if data.startswith(b"\xff\xd8")]


def decoders(asked: argparse.Namespace, jpegs: list[bytes]) -> dict[str, float]:
    """Compare Pillow and torchvision on the same JPEGs; rates in images per second."""
    import numpy as np
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    from ddpm_lib.data.decode import decode_bytes
    from ddpm_lib.data.decode_spec import DecodeSpec

    spec = DecodeSpec((asked.size, asked.size))

    def by_pillow(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def by_torchvision(data: bytes) -> torch.Tensor:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(raw, mode=ImageReadMode.RGB)

    def checked(data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.size[0] * picture.size[1] > spec.max_pixels or picture.mode == "CMYK":
                raise ValueError("needs Pillow")
            picture.getexif()
        return by_torchvision(data)

    def fitted(data: bytes) -> torch.Tensor:
        image = functional.resize(checked(data), [asked.size], antialias=True)
        return functional.center_crop(image, [asked.size, asked.size])

    def rate(decode: Callable[[bytes], object]) -> float:
        seconds = []
        for _ in range(asked.rounds):
            start = time.perf_counter()
            for data in jpegs:
                decode(data)
            seconds.append(time.perf_counter() - start)
        return len(jpegs) / statistics.median(seconds)

    same = [
        np.array_equal(by_pillow(data), by_torchvision(data).permute(1, 2, 0).numpy())
        for data in jpegs
    ]
    return {
        "images": len(jpegs),
        "equal": sum(same),
        "pillow": rate(by_pillow),
        "torchvision": rate(by_torchvision),
        "torchvision behind the header": rate(checked),
        "to size, ours": rate(lambda data: decode_bytes(data, spec)),
        "to size, torchvision": rate(fitted),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder of images; default: JPEGs of the built-in shapes, 384×384"
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=400, help="images per streamed pass")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--jpegs", type=Path, help="folder or parquet file for the decoders; default: --data"
    )
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.size, asked.batch, asked.count, asked.workers, asked.rounds = 16, 4, 12, [0, 1], 1
    if not asked.no_peers:
        peers.require_peers()
    rates = common.ceilings("cpu", small=asked.quick)
    common.show_ceilings(rates)
    with TemporaryDirectory() as temporary:
        made = (12, 32) if asked.quick else (asked.count, 384)
        folder = asked.data or common.rows_written(Path(temporary), *made)
        jpegs = jpegs_in(asked.jpegs or folder, asked.count)
        compared = decoders(asked, jpegs) if jpegs else {}
        times, count = streaming(asked, folder)
        ram = cached(asked, folder)
    rows, found = [], {}
    for name, middle in common.medians(times).items():
        workers = int(name.split()[-2])
        found[name] = {
            "images_per_second": 1 / middle,
            "per_worker": 1 / middle / max(1, workers),
            "seconds": times[name],
        }
        rows.append((name, f"{1 / middle:,.0f}", f"{1 / middle / max(1, workers):,.0f}"))
    common.print_table(
        (f"streamed, {count} images to {asked.size}×{asked.size}", "images/s", "per worker"), rows
    )
    ram_rows = [
        (
            "opening, the only decoding",
            f"{ram['images_per_second_opening']:,.0f}",
            f"{ram['images']:.0f}",
            "",
        )
    ]
    moved = ram["images_per_second_later"] * 3 * asked.size**2 / 2**30
    ram["share_of_copy_limit"] = moved / rates["copy"]
    share = f"{ram['share_of_copy_limit']:.0%}"
    ram_rows.append(
        (
            "later epochs",
            f"{ram['images_per_second_later']:,.0f}",
            f"{ram['decoded_later']:.0f}",
            share,
        )
    )
    head = (
        f"in RAM, {ram['images']:.0f} images ({ram['mib']:.1f} MiB)",
        "images/s",
        "decoded",
        "of copy limit",
    )
    common.print_table(head, ram_rows)
    if compared:
        shown = [(name, f"{value:,.0f}") for name, value in compared.items() if name != "images"]
        common.print_table((f"{compared['images']:.0f} JPEGs decoded", "images/s"), shown)
    return common.finish(asked, "cpu", ceilings=rates, streamed=found, ram=ram, decoders=compared)


if __name__ == "__main__":
    main()
