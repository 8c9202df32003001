"""Series of DICOM files as volumes: slices in order of place, in the units of the scanner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.folder_walk import is_left_out
from ddpm_lib.data.measurements.value_files import VOLUMES, Values, is_installed
from ddpm_lib.data.measurements.value_source import ValueSource
from ddpm_lib.data.names import PackedNames

_ENDINGS = (".dcm", ".dicom", ".ima")
_UNEVEN = 0.01
"""Share by which distances of neighbouring slices may differ: positions are rounded in files."""


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files below a folder: by their names, and those without an extension by
    their first bytes.
    """
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if is_left_out(os.fsencode(path.relative_to(folder).as_posix())) is not None:
            continue
        if path.suffix.lower() in _ENDINGS or (_bare(path) and _has_mark(path)):
            found.append(path)
    return found


def _bare(path: Path) -> bool:
    return not path.suffix or path.suffix[1:].isdigit()


def _has_mark(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


class DicomSeries(ValueSource):
    """Series of DICOM files below a folder, a volume each: (slices, rows, columns).

    Slices are sorted by their place along the normal of their planes (Image Position and Image
    Orientation, DICOM PS3.3 C.7.6.2), whatever the files are called. Stored values become values of
    the scanner (Rescale Slope and Intercept, C.11.1); where those are whole numbers of 16 bits, as
    Hounsfield units are, they stay so.

    Args:
        folder: The folder.
        files: The files, see `dicom_files`.
        labels: "auto" and "folder": the first folder of a series' place is its class; "none".

    Raises:
        ValueError: If pydicom is not installed, or a header cannot be read.
    """

    def __init__(self, folder: Path, files: Sequence[Path], labels: str = "auto") -> None:
        if not is_installed("pydicom"):
            raise ValueError(f"{str(folder)!r} holds DICOM, read through pydicom: {VOLUMES}.")
        import pydicom

        self.root, self.notes = folder, []
        series: dict[str, list[tuple[Path, Any]]] = {}
        for path in files:
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
            except Exception as error:  # pydicom raises many kinds for damaged files
                words = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{str(path)!r} is no DICOM file that can be read: {words}"
                ) from None
            if "Rows" not in header:
                continue  # a directory file, a report
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, header))
        if not series:
            raise ValueError(f"{str(folder)!r} holds DICOM files, but none with pixels.")
        self._series = [self._sorted(parts) for parts in series.values()]
        order = sorted(range(len(self._series)), key=lambda k: self._series[k][0][0][0].as_posix())
        self._series = [self._series[k] for k in order]
        self.names = PackedNames(os.fsencode(self._name(k)) for k in range(len(self._series)))
        self._label(labels)

    def _sorted(
        self, parts: list[tuple[Path, Any]]
    ) -> tuple[list[tuple[Path, Any]], str | None, dict[str, Any]]:
        """Return a series in order, what is wrong with it, and where it lies."""
        parts = sorted(parts, key=lambda part: part[0].as_posix())
        first = parts[0][1]
        if first.get("Modality") == "CT" and "RescaleIntercept" not in first:
            return parts, "a CT without RescaleIntercept: its Hounsfield units are lost", {}
        if len(parts) == 1:
            return parts, None, _geometry(parts, None)
        problem = _unlike([header for _, header in parts])
        if problem is not None:
            return parts, problem, {}
        turn = [float(v) for v in first.ImageOrientationPatient]
        normal = np.cross(turn[:3], turn[3:])
        places = np.array([[float(v) for v in h.ImagePositionPatient] for _, h in parts])
        along = places @ normal
        order = np.argsort(along, kind="stable")
        parts = [parts[k] for k in order]
        steps = np.diff(along[order])
        step = float(np.median(steps))
        problem = _uneven([path.name for path, _ in parts], steps, step)
        return parts, problem, _geometry(parts, normal * step)

    def _name(self, k: int) -> str:
        """Return the folder of a series, or its first file where a folder holds several."""
        parts = self._series[k][0]
        parent = parts[0][0].parent
        alone = sum(other[0][0][0].parent == parent for other in self._series) == 1
        place = parent if alone else parts[0][0]
        name = place.relative_to(self.root).as_posix()
        return name if name != "." else "series"

    def _label(self, how: str) -> None:
        tops = [name.split("/")[0] for name in self.names]
        inside = all("/" in name for name in self.names) and len(set(tops)) > 1
        if how == "folder" and not inside:
            raise ValueError(
                f'labels="folder" needs every series in a folder of its class below'
                f' {str(self.root)!r}. Move them, or use labels="none" (--labels none).'
            )
        if inside and how != "none":
            self.class_names = tuple(sorted(set(tops)))
            self.labels = np.array([self.class_names.index(top) for top in tops], dtype=np.int64)

    def values(self, row: int) -> Values:
        """Read one series as a volume (slices, rows, columns); raises `ImageError` or OSError."""
        parts, problem, geometry = self._series[row]
        if problem is not None:
            raise ImageError(problem)
        import pydicom
        from pydicom.pixels import apply_rescale

        slices = []
        for path, _ in parts:
            try:
                read = pydicom.dcmread(path)
                pixels = read.pixel_array
                if "RescaleSlope" in read:
                    pixels = apply_rescale(pixels, read)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise ImageError(f"{path.name}: {error}") from None
            except Exception as error:  # pydicom raises many kinds for damaged files
                words = " ".join(str(error).split())[:200]
                raise ImageError(f"{path.name}: {words}") from None
            if pixels.ndim == 3 and len(parts) == 1 and int(read.get("SamplesPerPixel", 1)) == 1:
                return Values(_narrowed(pixels), _unit(read), geometry)
            if pixels.ndim != 2:
                raise ImageError(
                    f"{path.name} holds pixels of shape {pixels.shape}, not one value each"
                )
            slices.append(pixels)
        return Values(_narrowed(np.stack(slices)), _unit(parts[0][1]), geometry)

    def sizes(self) -> np.ndarray:
        """Return the sizes of each series' files, together."""
        return np.array(
            [sum(path.stat().st_size for path, _ in parts) for parts, _, _ in self._series],
            dtype=np.int64,
        )

    def where(self) -> str:
        """Return the folder."""
        return os.path.realpath(self.root)

    def mtimes(self) -> np.ndarray:
        """Return the latest time of change of each series' files, in ns."""
        return np.array(
            [max(path.stat().st_mtime_ns for path, _ in parts) for parts, _, _ in self._series],
            dtype=np.int64,
        )


def _unlike(headers: Sequence[Any]) -> str | None:
    """Say why slices make no volume, or None."""
    sizes = {(int(header.Rows), int(header.Columns)) for header in headers}
    if len(sizes) > 1:
        return f"its slices differ in size: {sorted(sizes)[:3]}"
    needed = ("ImagePositionPatient", "ImageOrientationPatient")
    if any(name not in header for header in headers for name in needed):
        return (
            "its slices do not say where they lie (no ImagePositionPatient), so that their order is"
            " not known: save the volume as .npy or NIfTI in the right order"
        )
    turns = np.array([[float(v) for v in header.ImageOrientationPatient] for header in headers])
    if np.abs(turns - turns[0]).max() > 1e-3:
        return "its slices are not parallel (several scans in one series?)"
    return None


def _uneven(names: Sequence[str], steps: np.ndarray, step: float) -> str | None:
    """Say which slices of a sorted series lie at one place, or too far apart; None: none do."""
    if (steps < 1e-4).any():
        k = int(np.argmax(steps < 1e-4))
        return (
            f"two slices lie at one place: {names[k]} and {names[k + 1]} (several scans or times in"
            " one series?)"
        )
    if np.abs(steps - step).max() > _UNEVEN * step:
        k = int(np.argmax(np.abs(steps - step)))
        return (
            f"slices are missing or unevenly spaced: {steps[k]:.4g} mm between {names[k]} and"
            f" {names[k + 1]}, {step:.4g} mm elsewhere"
        )
    return None


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Return floats that are whole numbers of 16 bits as such."""
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return values
    whole = (values == np.rint(values)).all() and values.min() >= -(2**15)
    return values.astype(np.int16) if whole and values.max() < 2**15 else values.astype(np.float32)


def _unit(header: Any) -> str | None:
    said = str(header.get("RescaleType", "") or "").strip()
    if said and said != "US":  # "unspecified"
        return said
    return "HU" if header.get("Modality") == "CT" else None


def _geometry(parts: Sequence[tuple[Path, Any]], step: np.ndarray | None) -> dict[str, Any]:
    """Return the affine map from (slice, row, column) to mm, x to the patient's right as in NIfTI
    (RAS); empty where the files do not say.
    """
    first = parts[0][1]
    if "PixelSpacing" not in first or "ImagePositionPatient" not in first:
        return {}
    if "ImageOrientationPatient" not in first:
        return {}
    turn = np.array([float(v) for v in first.ImageOrientationPatient])
    if step is None:
        thick = float(first.get("SpacingBetweenSlices", first.get("SliceThickness", 1)) or 1)
        step = np.cross(turn[:3], turn[3:]) * thick
    down, right = (float(v) for v in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, turn[3:] * down, turn[:3] * right
    affine[:3, 3] = [float(v) for v in first.ImagePositionPatient]
    affine[:2] *= -1  # DICOM's x and y point to the left and to the back
    return {
        "format": "dicom",
        "affine": affine.tolist(),
        "spacing": [float(np.linalg.norm(step)), down, right],
        "space_unit": "mm",
    }
