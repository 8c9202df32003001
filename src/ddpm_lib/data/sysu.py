"""Lay out the SYSU-Shape dataset for training and evaluation: one command from the clone to folders
that can be used.

The dataset (L. Lin, X. Wang, W. Yang, J. Lai, TPAMI 2014) has five classes of photos with the
outline of the object. Each class has `images/`, `annotations/` (.mat) and `contours/`; the latter
are edge maps under the photos' names and are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.paths import fresh
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.dataset import BadImagesError, Source
from ddpm_lib.data.dataset_html import summary_html
from ddpm_lib.data.decode import FORMATS, UPSCALED, Decoded, ImageError, decode
from ddpm_lib.data.decode_spec import DecodeSpec, make_spec
from ddpm_lib.data.decoding import decode_all
from ddpm_lib.data.names import PackedNames
from ddpm_lib.data.split import hold_out
from ddpm_lib.data.sysu_tiles import largest_outline, masked_tile, window_tile
from ddpm_lib.runtime.limits import available_cpus, local_world_size

Mode = Literal["masked", "fit", "stretch"]
ADDRESS = "https://github.com/bearpaw/sysu-shape-dataset"
CLASSES = ("airplane", "bicycle", "boat", "car", "motorbike")
_ALIKE = 0.965
_SETTINGS_FILE = "splits.json"


@dataclass
class SysuSummary:
    """What `prepare_sysu` wrote: counts per class, groups of near-duplicates kept on one side,
    clear lines, the folder.
    """

    out: Path
    train: dict[str, int]
    eval: dict[str, int]
    duplicates: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return sum(self.train.values())

    @property
    def num_eval(self) -> int:
        """Number of held-out images."""
        return sum(self.eval.values())

    _repr_html_ = summary_html


class SysuSource(Source):
    """Photos of the classes below `root`, with their objects masked, cropped, or as they are.

    Args:
        root: The clone.
        mode: See `prepare_sysu`.

    Raises:
        FileNotFoundError: If the folder, a class, or all photos are missing.
    """

    def __init__(self, root: Path, mode: str) -> None:
        self.root, self.mode = root, mode
        self.notes: list[str] = []
        classes = _class_folders(root)
        names, labels = [], []
        for label, name in enumerate(classes):
            photos = sorted(p.name for p in (root / name / "images").iterdir() if _is_photo(p))
            if not photos:
                raise FileNotFoundError(
                    f"{root / name / 'images'} holds no photos. Clone the dataset again."
                )
            names += [os.fsencode(f"{name}/{photo}") for photo in photos]
            labels += [label] * len(photos)
        self.names = PackedNames(names)
        self.labels = np.array(labels, dtype=np.int64)
        self.class_names = tuple(classes)

    def photo(self, row: int) -> Path:
        """Return the path of one photo."""
        label, name = os.fsdecode(self.names.raw(row)).split("/", 1)
        return self.root / label / "images" / name

    def stem(self, row: int) -> str:
        """Return the name under which an image is written: class, "_", the photo's name without its
        suffix.
        """
        label, name = os.fsdecode(self.names.raw(row)).split("/", 1)
        return f"{label}_{Path(name).stem}"

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Make one image; raises `ImageError` or OSError."""
        path = self.photo(row)
        if self.mode == "stretch":
            return decode(str(path), spec)
        annotation = path.parent.parent / "annotations" / f"{path.stem}.mat"
        outline = largest_outline(annotation)
        with Image.open(path, formats=FORMATS) as picture:
            try:
                picture.load()
            except Exception as error:
                raise ImageError(str(error) or type(error).__name__) from None
            rgb = picture.convert("RGB")
        tile, scale = (masked_tile if self.mode == "masked" else window_tile)(rgb, outline, spec)
        pixels = np.asarray(tile.convert(spec.mode))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return Decoded(np.ascontiguousarray(pixels), UPSCALED if scale > 1 else 0, *rgb.size)

    def sizes(self) -> np.ndarray:
        """Return file sizes in bytes, int64 (n,)."""
        return np.array(
            [self.photo(row).stat().st_size for row in range(len(self))], dtype=np.int64
        )


def prepare_sysu(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | Sequence[int] = 64,
    mode: Mode = "masked",
    val_fraction: float = 0.185,
    seed: int = 0,
    num_workers: int | None = None,
    log: Callable[[str], None] | None = None,
) -> SysuSummary:
    """Write `train_data`, `eval_data` and `normalized_eval_data` from a clone of the SYSU-Shape
    dataset.

    * `train_data/<class>/<class>_<name>.png`: the training images at `size`.
    * `eval_data/<class>/<class>_<name>.jpg`: the held-out photos, untouched.
    * `normalized_eval_data/<class>_<name>.png`: the held-out images made as the training ones.
    * `splits.json`: settings, counts and names.

    The split is by a hash of each name, class by class; identical and nearly identical photos stay
    on one side. Running it again with the same settings changes nothing.

    Args:
        src: The clone (with airplane/, bicycle/, boat/, car/, motorbike/).
        out: The folder to make.
        size: Side in pixels, or (height, width).
        mode: "masked": the object along its outline, centred on white; "fit": a window around the
            object, inside the photo; "stretch": the whole photo squashed to the frame, as in
            published runs.
        val_fraction: Fraction held out, in (0, 1); 0.185 gives about 1,257 and 284.
        seed: Another seed, another split.
        num_workers: Processes; default: the CPUs this process may use.
        log: Is given progress and notes.

    Returns:
        Counts and notes.

    Raises:
        FileNotFoundError: If the clone or a class is missing.
        FileExistsError: If `out` holds something else, or was made with other settings (they are
            named).
        BadImagesError: If photos or annotations cannot be used, all of them named.
        ValueError: If an option is out of range.
    """
    if mode not in get_args(Mode):
        raise ValueError(unknown_name("mode", mode, get_args(Mode)))
    if not 0 < val_fraction < 1:
        raise ValueError(f"{option('val_fraction')} must lie in (0, 1); got {val_fraction!r}.")
    spec = make_spec(size, 3, "stretch")
    source, out = SysuSource(Path(src).expanduser(), mode), Path(out).expanduser()
    settings: dict[str, Any] = {
        "size": list(spec.image_size),
        "mode": mode,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    settings["photos"] = _digest(source)
    done = _already(out, settings)
    if done is not None:
        if log is not None:
            log(
                f"{out} is complete already: {done.num_train:,} training and {done.num_eval:,}"
                " held-out images"
            )
        return done
    workers = (
        num_workers if num_workers is not None else max(1, available_cpus() // local_world_size())
    )
    scan = decode_all(source, spec, keep=True, num_workers=workers, log=log)
    if scan.bad:
        bad = [(source.names[row], why) for row, why in sorted(scan.bad.items())]
        raise BadImagesError(
            bad, len(source), "Clone the dataset again, or remove these photos from it."
        )
    assert scan.images is not None
    groups = alike(_thumbnails(source, workers, log))
    held = hold_out(source.names, source.labels, groups, round(val_fraction * len(source)), seed)
    summary = SysuSummary(
        out, _count(source, ~held), _count(source, held), _duplicates(source, groups)
    )
    summary.notes = _notes(source, scan.flags, summary, scan.seconds)
    _write(source, scan.images, held, summary, settings)
    for note in summary.notes if log is not None else ():
        log(note)  # type: ignore[misc]
    return summary


def alike(thumbnails: np.ndarray) -> np.ndarray:
    """Number the groups of nearly identical photos, int64 (n,): those whose 16×16 grey thumbnails
    correlate by 0.965 or more.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    groups = np.arange(len(flat))
    for i, j in np.argwhere(np.triu(flat @ flat.T, 1) >= _ALIKE):
        groups[groups == groups[j]] = groups[i]
    return groups


class _Thumbnails(Source):
    """The whole photos, for the search of duplicates."""

    def __init__(self, source: SysuSource) -> None:
        self.source, self.names, self.notes = source, source.names, []

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        return decode(str(self.source.photo(row)), spec)

    def sizes(self) -> np.ndarray:
        return self.source.sizes()


def _thumbnails(source: SysuSource, workers: int, log: Callable[[str], None] | None) -> np.ndarray:
    scan = decode_all(
        _Thumbnails(source), make_spec(16, 1, "stretch"), keep=True, num_workers=workers, log=log
    )
    assert scan.images is not None
    return scan.images


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".png") and not path.name.startswith(".")


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        way = f"git clone {ADDRESS}"
        raise FileNotFoundError(f"{lost(root)} To get the dataset: {way}")
    found = sorted(
        p.name for p in root.iterdir() if (p / "images").is_dir() and (p / "annotations").is_dir()
    )
    if not found:
        inner = [p for p in root.iterdir() if p.is_dir() and (p / "airplane" / "images").is_dir()]
        hint = f" Did you mean {str(inner[0])!r}?" if inner else ""
        raise FileNotFoundError(
            f"{str(root)!r} does not look like SYSU-Shape: no sub-folder has images/ and"
            f" annotations/.{hint}"
        )
    missing = [name for name in CLASSES if name not in found]
    if missing and len(missing) < len(CLASSES):
        raise FileNotFoundError(
            f"{str(root)!r} lacks images/ or annotations/ of {', '.join(missing)}. Clone the"
            " dataset again."
        )
    return found


def _digest(source: SysuSource) -> str:
    digest = hashlib.blake2b(source.sizes().tobytes(), digest_size=16)
    for row in range(len(source)):
        digest.update(source.names.raw(row) + b"\0")
    return digest.hexdigest()


def _count(source: SysuSource, chosen: np.ndarray) -> dict[str, int]:
    assert source.labels is not None
    assert source.class_names is not None
    return {
        name: int((source.labels[chosen] == k).sum()) for k, name in enumerate(source.class_names)
    }


def _duplicates(source: SysuSource, groups: np.ndarray) -> list[list[str]]:
    numbers, counts = np.unique(groups, return_counts=True)
    return [
        [source.names[int(row)] for row in np.flatnonzero(groups == k)] for k in numbers[counts > 1]
    ]


def _notes(
    source: SysuSource, flags: np.ndarray, summary: SysuSummary, seconds: float
) -> list[str]:
    notes = [
        f"{summary.num_train:,} training and {summary.num_eval:,} held-out images of"
        f" {len(summary.train)} classes ({seconds:.1f} s)"
    ]
    enlarged = int((flags & UPSCALED > 0).sum())
    if enlarged:
        notes.append(f"{enlarged:,} objects are smaller than the tile: enlarged (blurred)")
    if summary.duplicates:
        same = "; ".join(" = ".join(group) for group in summary.duplicates)
        notes.append(f"nearly identical photos kept on one side: {same}")
    return notes


def _already(out: Path, settings: dict[str, Any]) -> SysuSummary | None:
    """Return the summary if `out` was made with these settings and is complete; refuse anything
    else that is not empty.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    file = out / _SETTINGS_FILE
    try:
        saved = json.loads(file.read_text())
        before, summary = saved["settings"], saved["summary"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{str(out)!r} is not empty and was not made by this command. "
            f"Choose another folder, such as {str(fresh(out))!r}."
        ) from None
    wrong = [
        f"{k}: {before.get(k)!r} there, {v!r} now"
        for k, v in settings.items()
        if before.get(k) != v
    ]
    if wrong:
        raise FileExistsError(
            f"{str(out)!r} was made with other settings ({'; '.join(wrong)}). "
            f"Choose another folder, such as {str(fresh(out))!r}, or remove that one."
        )
    result = SysuSummary(
        out, summary["train"], summary["eval"], summary["duplicates"], summary["notes"]
    )
    wanted = {
        "train_data": result.num_train,
        "eval_data": result.num_eval,
        "normalized_eval_data": result.num_eval,
    }
    for name, count in wanted.items():
        there = sum(path.is_file() for path in (out / name).rglob("*"))
        if there != count:
            raise FileExistsError(
                f"{str(out / name)!r} holds {there:,} of {count:,} files. Remove {str(out)!r} and"
                " run again."
            )
    return result


def _write(
    source: SysuSource,
    images: np.ndarray,
    held: np.ndarray,
    summary: SysuSummary,
    settings: dict[str, Any],
) -> None:
    """Write everything under a temporary name, then rename: `out` is complete or not there."""
    out = summary.out
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        names: dict[str, list[str]] = {"train": [], "eval": []}
        for row in range(len(source)):
            path, stem = source.photo(row), source.stem(row)
            label = path.parent.parent.name
            tile = Image.fromarray(images[row].transpose(1, 2, 0))
            if held[row]:
                names["eval"].append(source.names[row])
                targets = [work / "normalized_eval_data" / f"{stem}.png"]
                photo = work / "eval_data" / label / f"{stem}{path.suffix}"
                photo.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, photo)
            else:
                names["train"].append(source.names[row])
                targets = [work / "train_data" / label / f"{stem}.png"]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
                tile.save(target)
        told = {k: v for k, v in asdict(summary).items() if k != "out"}
        text = json.dumps({"format": 1, "settings": settings, "summary": told, **names}, indent=1)
        (work / _SETTINGS_FILE).write_text(text)
        out.parent.mkdir(parents=True, exist_ok=True)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
