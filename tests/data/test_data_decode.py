"""Odd and broken picture files: each has one defined outcome."""

import io
import os
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.data.decode import (
    CMYK,
    COMPOSITED,
    FIRST_FRAME,
    ROTATED,
    SCALED_16BIT,
    UPSCALED,
    ImageError,
    decode,
    decode_bytes,
    fit_array,
    fit_picture,
)
from ddpm_lib.data.decode_spec import make_spec

RED = (200, 30, 20)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def mean(decoded) -> np.ndarray:
    return decoded.pixels.reshape(decoded.pixels.shape[0], -1).mean(1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [8, (6, 10)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_gives_the_asked_shape(mode, size, fit, channels):
    spec = make_spec(size, channels, fit)
    picture = Image.new(mode, (20, 13))
    result = fit_picture(picture, spec)
    assert result.pixels.shape == spec.shape
    assert result.pixels.dtype == np.uint8
    assert (result.width, result.height) == (20, 13)


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    array = np.zeros((10, 30, 3), dtype=np.uint8)
    array[:, 10:20] = RED
    result = fit_picture(Image.fromarray(array), make_spec(10))
    assert (result.pixels == np.array(RED, np.uint8)[:, None, None]).all()
    squashed = fit_picture(Image.fromarray(array), make_spec(10, fit="stretch"))
    assert mean(squashed)[0] == pytest.approx(RED[0] / 3, abs=8)


def test_pad_shows_everything_on_the_background():
    result = fit_picture(
        Image.new("RGB", (40, 20), RED), make_spec(16, fit="pad", background=(1, 2, 3))
    )
    assert result.pixels[:, 0, 0].tolist() == [1, 2, 3]
    assert result.pixels[:, 8, 0].tolist() == list(RED)
    assert (result.pixels[0] == 200).sum() == 8 * 16


def test_right_size_is_untouched():
    picture = noise(16, 16)
    result = fit_picture(picture, make_spec(16))
    assert (result.pixels == np.asarray(picture).transpose(2, 0, 1)).all()


def test_jpeg_shortcut_stays_close_to_the_full_decode():
    smooth = noise(12, 16).resize((640, 480), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    fast = decode_bytes(data, make_spec(64)).pixels.astype(int)
    full = fit_picture(Image.open(io.BytesIO(data)).convert("RGB"), make_spec(64)).pixels.astype(
        int
    )
    assert np.abs(fast - full).mean() < 1


def test_16_bits_are_scaled_not_clipped():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        result = decode_bytes(encoded(Image.fromarray(ramp), kind), make_spec(16))
        assert (result.pixels[0] == np.arange(256).reshape(16, 16)).all()
        assert result.flags & SCALED_16BIT


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_float_tiff_is_refused(value):
    data = encoded(Image.fromarray(np.full((4, 4), value, dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match="floating-point"):
        decode_bytes(data, make_spec(4))


def test_32_bit_integers_are_refused():
    with pytest.raises(ImageError, match="32-bit"):
        decode_bytes(
            encoded(Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "TIFF"), make_spec(4)
        )


def test_cmyk_jpeg_with_and_without_adobe_marker():
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    adobe = encoded(white, "JPEG")
    result = decode_bytes(adobe, make_spec(16))
    assert result.flags & CMYK
    assert mean(result).min() > 250
    start = adobe.index(b"Adobe") - 4
    length = int.from_bytes(adobe[start + 2 : start + 4], "big")
    plain = adobe[:start] + adobe[start + 2 + length :]
    assert mean(decode_bytes(plain, make_spec(16))).max() < 5, (
        "without the marker, 255 means full ink"
    )


def test_transparency_is_laid_on_the_background():
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    assert mean(fit_picture(clear, make_spec(8))).tolist() == [255] * 3
    assert mean(fit_picture(clear, make_spec(8, background="#102030"))).tolist() == [16, 32, 48]
    assert fit_picture(clear, make_spec(8)).flags & COMPOSITED
    assert mean(fit_picture(clear, make_spec(8, 4)))[3] == 0
    assert mean(fit_picture(Image.new("LA", (8, 8), (0, 0)), make_spec(8, 1))).tolist() == [255]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, 0, 0, 0])
    data = encoded(palette, "PNG", transparency=0)
    assert mean(decode_bytes(data, make_spec(8))).tolist() == [255] * 3
    assert mean(decode_bytes(encoded(palette, "PNG"), make_spec(8))).tolist() == list(RED)


def test_one_bit_and_grey():
    assert mean(fit_picture(Image.new("1", (8, 8), 1), make_spec(8))).tolist() == [255] * 3
    assert mean(fit_picture(Image.new("RGB", (8, 8), RED), make_spec(8, 1)))[0] == pytest.approx(
        80, abs=3
    )


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_first_frame_of_many(kind, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    result = decode_bytes(data, make_spec(8))
    assert result.flags & FIRST_FRAME
    assert mean(result).tolist() == list(RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    array = np.zeros((64, 96, 3), dtype=np.uint8)
    array[:32, :48] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(array), "JPEG", exif=exif, quality=95)
    result = decode_bytes(data, make_spec((64, 64), fit="stretch"))
    quadrant = np.add.reduceat(
        np.add.reduceat(result.pixels[0].astype(int), [0, 32], 0), [0, 32], 1
    )
    where = tuple(int(v) for v in np.unravel_index(quadrant.argmax(), (2, 2)))
    assert (
        where
        == {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
            orientation
        ]
    )
    assert bool(result.flags & ROTATED) == (orientation > 1)
    assert (result.width, result.height) == ((64, 96) if orientation > 4 else (96, 64))


def test_bomb_and_max_pixels():
    bomb = encoded(Image.new("1", (12000, 12000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="max_pixels"):
            decode_bytes(bomb, make_spec(8))
    with pytest.raises(ImageError, match="max_pixels"):
        decode_bytes(encoded(noise(20, 20), "PNG"), make_spec(8, max_pixels=399))
    assert decode_bytes(
        encoded(noise(20, 20), "PNG"), make_spec(8, max_pixels=400)
    ).pixels.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello there", "text file"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns='x'>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
        (b"\0" * 100, "zero bytes"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"8BPS\0\1", "Photoshop"),
        (bytes(range(1, 200)), "not a picture"),
    ],
)
def test_what_is_no_picture_is_named(data, words):
    with pytest.raises(ImageError, match=words):
        decode_bytes(data, make_spec(8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_files_are_refused(kind):
    data = encoded(noise(64, 64), kind)
    assert decode_bytes(data, make_spec(64)).pixels.shape == (3, 64, 64)
    with pytest.raises(ImageError):
        decode_bytes(data[: len(data) // 2], make_spec(64))


def test_small_pictures_are_enlarged_and_flagged():
    result = fit_picture(Image.new("RGB", (1, 1), RED), make_spec(8))
    assert result.flags & UPSCALED
    assert mean(result).tolist() == list(RED)
    assert fit_picture(Image.new("RGB", (8, 5000), RED), make_spec(8)).flags & UPSCALED == 0


def test_arrays():
    spec = make_spec(8)
    assert fit_array(np.zeros((16, 16), np.uint8), spec).pixels.shape == (3, 8, 8)
    assert fit_array(np.zeros((4, 16, 16), np.uint8), spec).pixels.shape == (3, 8, 8)
    with pytest.raises(ImageError, match="float32"):
        fit_array(np.zeros((8, 8, 3), np.float32), spec)
    with pytest.raises(ImageError, match="shape"):
        fit_array(np.zeros((8, 8, 5), np.uint8), spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 2}, "channels"),
        ({"fit": "crpo"}, "crop"),
        ({"background": "whiite"}, "colour"),
        ({"background": 300}, "background"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (4, 4, 4)}, "image_size"),
        ({"image_size": 4.0}, "image_size"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make_spec(**{"image_size": 8, **options})


def bad_folder(folder: Path) -> Path:
    """A folder with two good files and one of every bad kind."""
    folder.mkdir()
    noise(16, 16, 1).save(folder / "good1.png")
    noise(20, 30, 2).save(folder / "good2.JPG", "JPEG")
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not found")
    (folder / "short.jpeg").write_bytes(encoded(noise(64, 64), "JPEG")[:900])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "floats.tif").write_bytes(
        encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    )
    for name in ("Thumbs.db", ".hidden.png", "._good1.png", "notes.txt"):
        (folder / name).write_bytes(b"junk")
    (folder / ".ipynb_checkpoints").mkdir()
    noise(8, 8).save(folder / ".ipynb_checkpoints" / "good1-checkpoint.png")
    return folder


def test_all_bad_files_are_named_at_once(tmp_path):
    folder = bad_folder(tmp_path / "mixed")
    with pytest.raises(BadImagesError) as caught:
        open_dataset(folder, image_size=8)
    reasons = dict(caught.value.bad)
    assert set(reasons) == {
        "zero.png",
        "text.jpg",
        "short.jpeg",
        "dangling.png",
        "loop.png",
        "pipe.jpg",
        "floats.tif",
    }
    assert "7 of 9" in str(caught.value)
    assert 'on_bad_image="skip"' in str(caught.value)
    assert "named pipe" in reasons["pipe.jpg"]
    assert "does not exist" in reasons["dangling.png"]
    assert "leads to itself" in reasons["loop.png"]


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_bad_files_are_skipped_counted_and_logged(tmp_path, cache):
    lines = []
    data = open_dataset(
        bad_folder(tmp_path / "x"), image_size=8, on_bad_image="skip", cache=cache, log=lines.append
    )
    assert list(data.names) == ["good1.png", "good2.JPG"]
    assert data.batch([0, 1])["image"].shape == (2, 3, 8, 8)
    assert any("skipped 7 of 9" in line for line in lines)
    assert data.notes == [line for line in lines if line in data.notes]


def test_only_twenty_are_shown():
    error = BadImagesError([(f"{k}.png", "empty") for k in range(25)], 30)
    assert str(error).count("empty") == 20
    assert "5 more" in str(error)
    assert len(error.bad) == 25


def test_socket_named_like_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        with pytest.raises(BadImagesError, match="socket"):
            open_dataset(tmp_path, image_size=8)


def test_a_pipe_put_in_place_later_does_not_block(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    data = open_dataset(tmp_path, image_size=8, cache="none")
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImagesError, match=r"a\.png.*regular"):
        data[0]


def test_deleted_later_is_named(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    data = open_dataset(tmp_path, image_size=8, cache="none")
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadImagesError, match=r"a\.png: missing"):
        data[0]


def test_decode_reads_paths(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    assert decode(str(tmp_path / "a.png"), make_spec(8)).pixels.shape == (3, 8, 8)
