"""Files of measured values, read and written: .npy, .npz, TIFF, PNG, NIfTI."""

from __future__ import annotations

import gzip
import importlib.util
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ddpm_lib.core.files import write_aside
from ddpm_lib.data.columns import IMAGE_NAMES
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.measurements.normalization import Normalization
from ddpm_lib.data.values import is_wide_colour, tiff_bands, wide_colours

SUFFIXES = frozenset((b".npy", b".npz", b".tif", b".tiff", b".png", b".nii", b".gz"))
"""Ends of names of files that are read; of .gz only .nii.gz."""
VOLUMES = "pip install 'ddpm-lib[volumes]'"
ARRAYS = "pip install 'ddpm-lib[arrays]'"


@dataclass(frozen=True)
class Values:
    """What a file holds: values, their unit, and where they lie."""

    array: np.ndarray
    unit: str | None = None
    geometry: dict[str, Any] = field(default_factory=dict)


def ending_of(name: bytes) -> str:
    """Return the end of a file's name that says what it holds.

    >>> ending_of(b"a/scan.nii.gz"), ending_of(b"B.TIF")
    ('.nii.gz', '.tif')
    """
    base = name.rpartition(b"/")[2].lower().decode("utf-8", "replace")
    return ".nii.gz" if base.endswith(".nii.gz") else f".{base.rpartition('.')[2]}"


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def read_values(file: IO[bytes], ending: str) -> Values:
    """Read one open file.

    Args:
        file: It, open for reading in binary.
        ending: What it is, see `ending_of`.

    Raises:
        ImageError: If it is damaged or needs a package that is not installed.
        OSError: If it cannot be read.
    """
    reader = _READERS.get(ending)
    if reader is None:
        raise ImageError(f"{ending} is not read for measured values")
    try:
        return reader(file)
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise ImageError(_words(error)) from None
    except Exception as error:  # readers of other packages may raise anything of damaged files
        raise ImageError(_words(error)) from None


def _npy(file: IO[bytes]) -> Values:
    return Values(np.asarray(np.load(io.BytesIO(file.read()), allow_pickle=False)))


def _npz(file: IO[bytes]) -> Values:
    try:
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as archive:
            names = archive.files
            usual = next((name for name in IMAGE_NAMES if name in names), None)
            image = names[0] if usual is None and len(names) == 1 else usual
            if image is None:
                raise ImageError(
                    f"it has no array of a usual name (image, arr_0), but {', '.join(names[:8])}"
                )
            return Values(np.asarray(archive[image]))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ImageError(_words(error)) from None


def _tiff(file: IO[bytes]) -> Values:
    if is_installed("tifffile"):
        import tifffile

        with tifffile.TiffFile(io.BytesIO(file.read())) as opened:
            return Values(np.asarray(opened.asarray()))
    described = tiff_bands(file)
    file.seek(0)
    try:
        return _picture(file)
    except ImageError as error:
        what = f"{described.partition(',')[0]}: " if described else ""
        raise ImageError(f"{what}{error}; tifffile reads it: {ARRAYS}") from None


def _picture(file: IO[bytes]) -> Values:
    raw = file.read()

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(raw), formats=("PNG", "TIFF"))

    with opened() as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ImageError("it has several pages, of which Pillow would give the first")
        if is_wide_colour(picture):
            wide = wide_colours(picture, opened)
            if wide is None:
                raise ImageError("only the high bytes of its 16-bit colours can be read")
            return Values(wide)
        bands = getattr(picture, "tag_v2", {}).get(277, len(picture.getbands()))
        if picture.mode in ("P", "1") or bands != len(picture.getbands()):
            raise ImageError(f"its mode {picture.mode} with {bands} bands holds no measured values")
        array = np.asarray(picture)
    return Values(array.astype(np.uint16) if picture.mode.startswith("I;16") else array)


def _nifti(file: IO[bytes]) -> Values:
    return _of_nifti(file.read())


def _packed_nifti(file: IO[bytes]) -> Values:
    return _of_nifti(gzip.decompress(file.read()))


def _of_nifti(raw: bytes) -> Values:
    if not is_installed("nibabel"):
        raise ImageError(f"NIfTI is read through nibabel: {VOLUMES}")
    import nibabel

    second = raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # a header of 540 bytes
    made: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = made.from_bytes(raw)
    array = np.asanyarray(image.dataobj)
    slope, offset = image.dataobj.slope, image.dataobj.inter
    if (slope, offset) != (1, 0) and image.get_data_dtype().itemsize <= 2:
        array = array.astype(np.float32)  # scaled values of 16 bits need no more
    geometry = {
        "format": "nifti",
        "affine": np.asarray(image.affine, dtype=np.float64).tolist(),
        "spacing": [float(size) for size in image.header.get_zooms()[:3]],
        "space_unit": image.header.get_xyzt_units()[0],
    }
    return Values(array, None, geometry)


_READERS: dict[str, Callable[[IO[bytes]], Values]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".tif": _tiff,
    ".tiff": _tiff,
    ".png": _picture,
    ".nii": _nifti,
    ".nii.gz": _packed_nifti,
}


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def why_not(kind: str, normalization: Normalization | None) -> str | None:
    """Say why samples cannot be written to a kind of files, as the rest of a sentence; None where
    they can.

    Args:
        kind: "npy", "tiff" or "nifti".
        normalization: Of the run.
    """
    if kind == "nifti" and (normalization is None or not normalization.geometry.get("affine")):
        return (
            "is for runs on volumes that say where they lie (NIfTI, DICOM), and this one was"
            " trained on other data. Take --format npy."
        )
    for wanted, package, way in (("tiff", "tifffile", ARRAYS), ("nifti", "nibabel", VOLUMES)):
        if kind == wanted and not is_installed(package):
            return f"is written through {package}: {way}."
    return None


def save_values(array: np.ndarray, path: Path, normalization: Normalization | None) -> Path:
    """Write one image (c, *spatial) in its type and units.

    Args:
        array: The values.
        path: A file .npy, .tif or .nii.gz.
        normalization: Of the run, which knows unit and geometry.

    Raises:
        OSError: If the disk refuses.
    """
    shown = array[0] if len(array) == 1 else array
    kind = ending_of(path.name.encode())
    if kind == ".npy":
        raw = io.BytesIO()
        np.save(raw, shown)
        data = raw.getvalue()
    elif kind == ".tif":
        import tifffile

        raw = io.BytesIO()
        tifffile.imwrite(raw, shown, photometric="minisblack", metadata=_described(normalization))
        data = raw.getvalue()
    else:
        data = _as_nifti(array, normalization)
    write_aside(path, lambda aside: _write(aside, data), durable=False)
    return path


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _described(normalization: Normalization | None) -> dict[str, Any]:
    unit = None if normalization is None else normalization.unit
    return {} if unit is None else {"unit": unit}


def _as_nifti(array: np.ndarray, normalization: Normalization | None) -> bytes:
    """Return a .nii.gz: a volume, or a slice as a volume of one voxel along its axis."""
    import nibabel

    geometry = {} if normalization is None else normalization.geometry
    values = np.moveaxis(array, 0, -1)
    axis = geometry.get("slice_axis")
    if values.ndim == 3 and axis is not None:
        values = np.expand_dims(values, int(axis))
    values = values[..., 0] if values.shape[-1] == 1 else values
    image = nibabel.Nifti1Image(values, np.asarray(geometry["affine"]), dtype=values.dtype)
    if geometry.get("space_unit") not in (None, "unknown"):
        image.header.set_xyzt_units(geometry["space_unit"])
    return gzip.compress(image.to_bytes(), mtime=0)
