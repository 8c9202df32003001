"""Pixels of more than 8 bits, bands beyond three, stacks, and sets that hold nothing to learn."""

import dataclasses
import inspect
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_lib.data
from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.data.decode import decode
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.training import TrainingConfig

SIZE = 12


def ramp(low: float, high: float, dtype: str, channels: int = 0) -> np.ndarray:
    """Values from low to high, in an order of its own per channel."""
    n = SIZE * SIZE * max(1, channels)
    values = np.random.default_rng(0).permutation(np.linspace(low, high, n)).astype(dtype)
    return values.reshape((SIZE, SIZE, channels) if channels else (SIZE, SIZE))


def tiff(
    path: Path,
    values: np.ndarray,
    order: str = "<",
    packed: bool = False,
    extra: int = 0,
    photometric: int = 2,
):
    """Write a TIFF file of one strip by hand: Pillow writes no colours of 16 bits."""
    height, width = values.shape[:2]
    bands = values.shape[2] if values.ndim == 3 else 1
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    raw = zlib.compress(raw) if packed else raw
    bits = [values.dtype.itemsize * 8] * bands
    sort = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [
        (256, [width]),
        (257, [height]),
        (258, bits),
        (259, [8 if packed else 1]),
        (262, [photometric]),
        (273, [8]),
        (277, [bands]),
        (278, [height]),
        (279, [len(raw)]),
        *([(338, [0] * extra)] if extra else []),
        (339, [sort] * bands),
    ]
    raw += b"\0" * (len(raw) % 2)
    directory, tail, start = b"", b"", 8 + len(raw)
    after = start + 2 + 12 * len(tags) + 4
    for tag, numbers in tags:
        data = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(data) > 4:
            field, tail = struct.pack(order + "I", after + len(tail)), tail + data
        else:
            field = data.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, 3, len(numbers)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    path.write_bytes(
        head + raw + struct.pack(order + "H", len(tags)) + directory + b"\0" * 4 + tail
    )


def planes(path: Path, values: np.ndarray, packed: bool, photometric: int) -> None:
    """Write a TIFF file of one plane per band."""
    parts = [
        np.ascontiguousarray(band).astype(values.dtype.newbyteorder("<")).tobytes()
        for band in np.moveaxis(values, 2, 0)
    ]
    parts = [zlib.compress(part) for part in parts] if packed else parts
    bands, lengths = len(parts), [len(part) for part in parts]
    raw = b"".join(parts) + b"\0" * (sum(lengths) % 2)
    extra = bands - (1 if photometric == 1 else 3)
    tags = [
        (256, [values.shape[1]]),
        (257, [values.shape[0]]),
        (258, [values.dtype.itemsize * 8] * bands),
        (259, [8 if packed else 1]),
        (262, [photometric]),
        (273, [8 + sum(lengths[:k]) for k in range(bands)]),
        (277, [bands]),
        (278, [values.shape[0]]),
        (279, lengths),
        (284, [2]),
        *([(338, [0] * extra)] if extra else []),
    ]
    directory, tail, after = b"", b"", 8 + len(raw) + 2 + 12 * len(tags) + 4
    for tag, numbers in tags:
        data = struct.pack(f"<{len(numbers)}H", *numbers)
        field = struct.pack("<I", after + len(tail)) if len(data) > 4 else data.ljust(4, b"\0")
        tail += data if len(data) > 4 else b""
        directory += struct.pack("<HHI", tag, 3, len(numbers)) + field
    head = b"II*\0" + struct.pack("<I", 8 + len(raw))
    path.write_bytes(head + raw + struct.pack("<H", len(tags)) + directory + b"\0" * 4 + tail)


def png16(path: Path, values: np.ndarray) -> None:
    height, width, bands = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


WRITERS = {
    "tiff": lambda path, values: tiff(path, values),
    "big-endian tiff": lambda path, values: tiff(path, values, order=">"),
    "packed tiff": lambda path, values: tiff(path, values, packed=True),
    "packed big-endian tiff": lambda path, values: tiff(path, values, order=">", packed=True),
    "png": png16,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("given", [None, (0, 3000)])
def test_colours_of_16_bits_keep_both_bytes(tmp_path, kind, given):
    values = ramp(0, 3000, "uint16", 3)
    WRITERS[kind](tmp_path / "a.tif", values)
    result = decode(str(tmp_path / "a.tif"), make_spec(SIZE, value_range=given))
    white = 65535 if given is None else 3000
    expected = np.round(values.astype(float) * 255 / white).transpose(2, 0, 1)
    assert np.abs(result.pixels - expected).max() <= 0.5
    assert result.found == (values.min(), values.max())


def test_transparency_of_16_bits_is_no_value(tmp_path):
    values = ramp(0, 3000, "uint16", 4)
    values[..., 3] = 65535
    png16(tmp_path / "a.png", values)
    result = decode(str(tmp_path / "a.png"), make_spec(SIZE, channels=4, value_range=(0, 3000)))
    assert (result.pixels[3] == 255).all()
    assert result.found is not None
    assert result.found[1] <= 3000


ARRAYS = {
    "12 bits": ramp(0, 4095, "uint16"),
    "signed": ramp(-1000, 1000, "int16"),
    "32 bits": ramp(-70000, 70000, "int32"),
    "floats": ramp(-1, 1, "float32"),
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("form", ["tif", "npz", "npy", "array"])
def test_one_option_for_the_range_of_every_kind(tmp_path, values, form):
    low, high = float(values.min()), float(values.max())
    stack = np.stack([values, values[::-1], values.T, values[:, ::-1], values.T[::-1]])
    data: object = stack
    if form == "tif":
        data = tmp_path
        for k, page in enumerate(stack):
            tiff(tmp_path / f"{k}.tif", page, photometric=1)
    elif form == "npz":
        data = tmp_path / "a.npz"
        np.savez(data, images=stack)
    elif form == "npy":
        data = tmp_path / "a.npy"
        np.save(data, stack)
    opened = open_dataset(data, image_size=SIZE, channels=1, value_range=(low, high))
    expected = np.round((stack.astype(float) - low) * 255 / (high - low))
    assert np.abs(opened.batch(range(5))["image"].numpy()[:, 0] - expected).max() <= 1
    if form == "tif" and values.dtype == np.uint16:
        notes = " ".join(open_dataset(data, image_size=SIZE).notes)
        assert "0 … 4,095 of 65,535" in notes
        assert "nearly black" in notes
        assert "--value-range 0 4095" in notes
    else:
        with pytest.raises(ValueError, match=r"value_range|look like \[-1, 1\]"):
            open_dataset(data, image_size=SIZE)


def test_what_kind_of_values_is_said(tmp_path):
    tiff(tmp_path / "ct.tif", ARRAYS["signed"], photometric=1)
    with pytest.raises(
        BadImagesError,
        match=r"signed 16-bit pixels \(here -1,000 … 1,000\).*--value-range -1000 1000",
    ):
        open_dataset(tmp_path, image_size=8)


@pytest.mark.parametrize("wrong", [(1, 1), (5, 2), (0,), (0, float("nan")), "0 5", 7, (True, 2)])
def test_a_wrong_range_is_named(wrong):
    with pytest.raises(ValueError, match="value_range must be two numbers"):
        make_spec(8, value_range=wrong)


@pytest.mark.parametrize("form", ["folder", "array"])
def test_a_range_for_8_bits_is_an_error(tmp_path, form):
    values = ramp(0, 255, "uint8", 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"8 bits: leave it out|more than 8 bits. Leave it out|more: leave it out"
    ):
        open_dataset(
            tmp_path if form == "folder" else values[None], image_size=8, value_range=(0, 99)
        )


@pytest.mark.parametrize("bands", [5, 7, 12])
def test_many_bands_are_counted(tmp_path, bands, capsys):
    tiff(tmp_path / "a.tif", ramp(0, 9, "uint16", bands), photometric=1, extra=bands - 1)
    with pytest.raises(
        BadImagesError, match=rf"a TIFF with {bands} bands of 16 bits.*tensor_dataset"
    ):
        open_dataset(tmp_path, image_size=8)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_band_of_near_infrared(tmp_path, dtype):
    values = ramp(0, np.iinfo(dtype).max, dtype, 4)
    tiff(tmp_path / "a.tif", values, extra=1)
    four = open_dataset(tmp_path, image_size=SIZE, channels=4)
    expected = values[..., 3].astype(float) * 255 / np.iinfo(dtype).max
    assert np.abs(four[0]["image"][3].numpy() - expected).max() <= 1
    for fit in (
        "crop",
        "pad",
        "stretch",
    ):  # the band is no transparency, which would weight the colours
        small = open_dataset(tmp_path, image_size=6, channels=4, fit=fit)[0]["image"]
        assert (small[:3] == open_dataset(tmp_path, image_size=6, fit=fit)[0]["image"]).all()
    notes = " ".join(open_dataset(tmp_path, image_size=SIZE).notes)
    assert "left out; channels=4" in notes


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((24, 32, 3), "is one image"),
        ((24, 32, 1), "is one image"),
        ((24, 32, 4), "is one image"),
        ((24, 32), "is one image or a table"),
    ],
)
def test_one_image_is_not_many(tmp_path, shape, words):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    for data in (np.zeros(shape, np.uint8), tmp_path / "a.npy", tmp_path / "a.npz"):
        with pytest.raises(ValueError, match=words):
            open_dataset(data, image_size=8)


@pytest.mark.parametrize("first", [3, 4])
def test_a_few_grey_images_may_be_one(first):
    images = np.random.default_rng(0).integers(0, 255, (first, 24, 32), dtype=np.uint8)
    data = open_dataset(images, image_size=8, channels=1)
    assert len(data) == first
    assert any(f"taken for {first} grey images" in note for note in data.notes)


@pytest.mark.parametrize("shape", [(5, 8, 9), (7, 3, 3), (4, 4, 4), (2, 8, 9)])
def test_grey_arrays_stay_grey_arrays(shape):
    images = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    assert len(open_dataset(images, image_size=4, channels=1)) == shape[0]


@pytest.mark.parametrize(
    ("kind", "colour"), [("TIFF", "L"), ("GIF", "P"), ("PNG", "RGB"), ("WEBP", "RGB")]
)
def test_every_frame_is_an_image_when_asked(tmp_path, kind, colour):
    pages = [
        Image.new("RGB", (SIZE, SIZE), (30 * k, 9, 200 - 30 * k)).convert(colour) for k in range(5)
    ]
    extra = {"lossless": True} if kind == "WEBP" else {}
    pages[0].save(
        tmp_path / f"stack.{kind.lower()}", kind, save_all=True, append_images=pages[1:], **extra
    )
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "one.png")
    first = open_dataset(tmp_path, image_size=SIZE)
    assert len(first) == 2
    assert any('frames="all"' in note for note in first.notes)
    every = open_dataset(tmp_path, image_size=SIZE, frames="all")
    assert list(every.names) == ["one.png", *(f"stack.{kind.lower()}#{k:04d}" for k in range(5))]
    blue = every.batch(range(1, 6))["image"][:, 2].float().mean((1, 2))
    assert (blue.diff().abs() > 3).all()
    assert not any("first frame" in note for note in every.notes)


def drawings(folder: Path, colour: int) -> None:
    for k in range(3):
        picture = np.full((SIZE, SIZE, 4), (colour, colour, colour, 0), np.uint8)
        picture[k : k + 4, 2:9, 3] = 255
        Image.fromarray(picture).save(folder / f"{k}.png")


@pytest.mark.parametrize(
    ("colour", "background", "other"), [(255, "white", "black"), (0, "black", "white")]
)
def test_drawings_in_the_colour_of_the_ground(tmp_path, colour, background, other):
    drawings(tmp_path, colour)
    notes = " ".join(open_dataset(tmp_path, image_size=SIZE, background=background).notes)
    assert "of one colour" in notes
    assert f'background="{other}" (--background {other})' in notes
    assert "of one colour" not in " ".join(
        open_dataset(tmp_path, image_size=SIZE, background=other).notes
    )


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_background_without_effect_is_said(fit):
    images = np.random.default_rng(0).integers(0, 255, (5, 9, 8, 3), dtype=np.uint8)
    notes = " ".join(open_dataset(images, image_size=8, background="black", fit=fit).notes)
    assert ("background has no effect" in notes) == (fit == "crop")
    assert "background" not in " ".join(open_dataset(images, image_size=8, fit=fit).notes)


def test_sets_that_hold_nothing_to_learn():
    one = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
    assert "are the same" in " ".join(open_dataset(np.repeat(one, 5, 0), image_size=8).notes)
    assert "nearly black" in " ".join(
        open_dataset(np.concatenate([one, one[:, ::-1]]) // 16, image_size=8).notes
    )
    assert "looked at" not in " ".join(
        open_dataset(np.concatenate([one, one[:, ::-1]]), image_size=8).notes
    )


def test_a_size_that_enlarges_none_is_proposed(tmp_path):
    Image.fromarray(ramp(0, 255, "uint8", 3)[:10]).save(tmp_path / "a.png")
    assert "at most 10 (height) by 12 (width) enlarges none" in " ".join(
        open_dataset(tmp_path, image_size=64).notes
    )


@pytest.mark.parametrize("given", [None, (0, 4095)])
@pytest.mark.parametrize("greatest", [4095, 65535])
def test_portable_pixmaps_of_16_bits_keep_both_bytes(tmp_path, greatest, given):
    values = np.random.default_rng(0).integers(0, greatest + 1, (8, 8, 3)).astype(np.uint32)
    for name in "ab":
        (tmp_path / f"{name}.ppm").write_bytes(
            b"P6 8 8 %d\n" % greatest + values.astype(">u2").tobytes()
        )
    parts = (values * 65535 / greatest).round()
    expected = (
        (parts / 257).round() if given is None else (parts.clip(0, 4095) * 255 / 4095).round()
    )
    got = (
        open_dataset(tmp_path, image_size=8, value_range=given)[0]["image"]
        .numpy()
        .transpose(1, 2, 0)
    )
    assert np.abs(got.astype(float) - expected).max() <= 1
    (tmp_path / "a.ppm").write_bytes((tmp_path / "b.ppm").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.ppm: .*truncated"):
        open_dataset(tmp_path, image_size=8, value_range=given)


def test_grey_files_where_zero_is_white(tmp_path):
    values = (np.arange(64).reshape(8, 8) * 1028).astype(np.uint16)
    for photometric in "01":
        (tmp_path / photometric).mkdir()
        Image.fromarray(values).save(
            tmp_path / photometric / "a.tif", tiffinfo={262: int(photometric)}
        )
    for given in (None, (0, 4095)):
        white, black = (
            open_dataset(tmp_path / name, image_size=8, channels=1, value_range=given)[0][
                "image"
            ].int()
            for name in "01"
        )
        assert black[0, 0, 0] == 0
        assert (white == 255 - black).all()


@pytest.mark.parametrize("given", [None, (0, 4095)])
@pytest.mark.parametrize("greatest", [4095, 65535])
def test_plain_pixmaps_of_16_bits(tmp_path, greatest, given):
    values = np.random.default_rng(0).integers(0, greatest + 1, (8, 8, 3))
    lines = [" ".join(map(str, row)) + " # a remark" for row in values.reshape(8, -1)]
    for name in "ab":
        (tmp_path / f"{name}.ppm").write_text(
            f"P3\n# another\n8 8\n{greatest}\n" + "\n".join(lines)
        )
    parts = (values * 65535 / greatest).round()
    expected = (
        (parts / 257).round() if given is None else (parts.clip(0, 4095) * 255 / 4095).round()
    )
    got = (
        open_dataset(tmp_path, image_size=8, value_range=given)[0]["image"]
        .numpy()
        .transpose(1, 2, 0)
    )
    assert np.abs(got.astype(float) - expected).max() <= 1
    (tmp_path / "a.ppm").write_text(f"P3 8 8 {greatest}\n" + "\n".join(lines[:5]))
    with pytest.raises(ValueError, match=r"a\.ppm: .*truncated"):
        open_dataset(tmp_path, image_size=8, value_range=given)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("bands", "photometric"), [(3, 1), (4, 1), (3, 2), (4, 2)])
def test_separate_planes_are_read_right_or_refused(tmp_path, bands, photometric, dtype, packed):
    values = ramp(0, np.iinfo(dtype).max, dtype, bands)
    planes(tmp_path / "a.tif", values, packed, photometric)
    colours = photometric == 2 and (packed or (dtype, bands) == ("uint8", 3))
    for channels in (3, 4):
        if not colours or channels == bands == 4:
            words = (
                rf"TIFF with {bands} bands of {np.iinfo(dtype).bits} bits.*cannot be decoded here:"
                r" .*pass arrays"
            )
            with pytest.raises(BadImagesError, match=words):
                open_dataset(tmp_path, image_size=SIZE, channels=channels)
            continue
        pixels = open_dataset(tmp_path, image_size=SIZE, channels=channels)[0]["image"].numpy()
        expected = values[..., :3].astype(float) * 255 / np.iinfo(dtype).max
        assert np.abs(pixels[:3] - expected.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_low_end_is_white_where_zero_is_white(tmp_path, dtype, packed):
    values = (
        np.linspace(-50 if dtype == "float32" else 0, 5000, SIZE * SIZE)
        .astype(dtype)
        .reshape(SIZE, SIZE)
    )
    tiff(tmp_path / "a.tif", values, packed=packed, photometric=0)
    pixels = open_dataset(tmp_path, image_size=SIZE, channels=1, value_range=(100, 4095))[0][
        "image"
    ][0].numpy()
    expected = 255 - np.round((values.astype(float) - 100) * 255 / 3995).clip(0, 255)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[0, 0], pixels[-1, -1]) == (255, 0)


def test_frames_without_effect_are_said(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    notes = open_dataset(tmp_path, image_size=8, frames="all").notes
    assert any('frames="all" changes nothing' in note for note in notes)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1)])
def test_a_range_is_proposed_for_floats(low, high):
    values = np.linspace(low, high, 5 * 64, dtype=np.float32).reshape(5, 8, 8)
    with pytest.raises(ValueError, match=rf"value_range=\({low}, {high}\)"):
        open_dataset(values, image_size=8)
    assert len(open_dataset(values, image_size=8, value_range=(low, high))) == 5


def test_the_limit_of_the_decoder_is_not_called_an_option(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="more than 20,000 pixels, the most that is decoded"):
        open_dataset(tmp_path, image_size=8)
    with pytest.raises(ValueError, match="max_pixels"):
        open_dataset(tmp_path, image_size=8, max_pixels=5_000)


def test_options_that_messages_name_exist_everywhere():
    room = Path(ddpm_lib.data.__file__).parent
    named = set()
    for file in room.glob("*.py"):
        named |= {
            name.replace("-", "_") for name in re.findall(r"\(?--([a-z][a-z-]+)", file.read_text())
        }
    options = set(inspect.signature(open_dataset).parameters)
    fields = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert {"background", "max_pixels", "value_range", "frames", "on_bad_image"} <= options & fields
    assert {"value_range", "max_pixels", "background", "frames"} <= named
    # The size of images belongs to the process, not to its training; the command has a flag for it.
    # Weights to begin with are what somebody means who names a run as data.
    assert named & (options | fields) - {"image_size", "init_from"} <= options & fields


WIDE = {
    "float32": ramp(-1, 1, "float32", 3),
    "float64": ramp(0, 4095, "float64", 3),
    "int16": ramp(-1000, 1000, "int16", 3),
    "uint16": ramp(0, 65535, "uint16", 3),
}


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return {"image": self.items[i], "label": i % 2}


FORMS = {
    "dataset": Items,
    "list": list,
    "pairs": lambda items: [(item, k % 2) for k, item in enumerate(items)],
    "tensor dataset": lambda items: torch.utils.data.TensorDataset(
        torch.stack([torch.as_tensor(i) for i in items])
    ),
}


@pytest.mark.parametrize("values", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("layout", ["hwc", "chw", "tensor"])
@pytest.mark.parametrize("form", FORMS)
def test_a_range_serves_items_of_every_kind(form, layout, values):
    low, high = float(values.min()), float(values.max())
    stack = [values, values[::-1], values[:, ::-1]]
    expected = [
        np.round((v.astype(float) - low) * 255 / (high - low)).transpose(2, 0, 1) for v in stack
    ]
    items = [v.copy() if layout == "hwc" else v.transpose(2, 0, 1).copy() for v in stack]
    items = [torch.from_numpy(v) for v in items] if layout == "tensor" else items
    data = FORMS[form](items)
    for cache in ("auto", "none"):
        opened = open_dataset(
            data, image_size=SIZE, value_range=(low, high), cache=cache, num_workers=0
        )
        assert np.abs(opened.batch(range(3))["image"].numpy() - expected).max() <= 1
    with pytest.raises(TypeError, match=r"value_range=\(.*--value-range"):
        open_dataset(data, image_size=SIZE, num_workers=0)


def test_a_range_that_items_cannot_use_is_an_error():
    def opened(item, **how):
        return open_dataset(
            Items([item] * 3), image_size=SIZE, value_range=(0, 1), num_workers=0, **how
        )

    with pytest.raises(
        ValueError, match=r"Items of Items are uint8 already: value_range .*Leave it out"
    ):
        opened(np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(
        ValueError, match="8 bits per value, and value_range is for pictures of more: leave it out"
    ):
        opened(Image.new("RGB", (SIZE, SIZE)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        opened(np.full((SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(TypeError, match="Items of Items are bool; images must be uint8"):
        opened(torch.zeros(3, SIZE, SIZE, dtype=torch.bool))
    assert opened(torch.ones(3, SIZE, SIZE, dtype=torch.bfloat16))[0]["image"].min() == 255


def test_dark_rows_of_a_table_keep_their_range():
    pa = pytest.importorskip("pyarrow")
    rows = [np.full((SIZE, SIZE), value).tolist() for value in (200, 4000)]
    table = pa.table({"image": pa.array(rows, pa.list_(pa.list_(pa.uint16())))})
    opened = open_dataset(table, image_size=SIZE, channels=1, value_range=(0, 4000))
    assert [int(opened[k]["image"].max()) for k in range(2)] == [13, 255]
