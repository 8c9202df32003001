"""Kinds of data that are not read here, and the way from each to something that is."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

_RANGE = (
    "value_range (--value-range), the values of black and white, or as measured values with"
    ' normalize="affine" (--normalize affine)'
)
_ARRAY = f"and pass slices.npy with {_RANGE}"
_VALUES = 'As values in their units they are read with normalize="affine" (--normalize affine). '
_PNG = "Convert them to PNG or JPEG first"

_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        _VALUES + "Or stack the slices with pydicom: "
        "files = sorted(pathlib.Path({folder}).rglob('*{suffix}')); "
        "numpy.save('slices.npy', numpy.stack([pydicom.pixels.apply_rescale(d.pixel_array, d) "
        "for d in map(pydicom.dcmread, files)])); " + _ARRAY,
    ),
    (
        "NIfTI",
        (".nii", ".nii.gz"),
        _VALUES + "Or save the slices with nibabel: numpy.save('slices.npy', "
        "numpy.moveaxis(nibabel.load({file}).get_fdata(dtype='float32'), 2, 0)); " + _ARRAY,
    ),
    (
        "a medical volume",
        (".nrrd", ".mha", ".mhd"),
        "Save the slices with SimpleITK: numpy.save('slices.npy', "
        "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage({file}))); " + _ARRAY,
    ),
    (
        "HDF5",
        (".h5", ".hdf5", ".hdf", ".he5"),
        (
            _VALUES + "Or in Python, pass the array in it: h5py.File({file})['NAME'], or save it:"
            " numpy.save('images.npy', ...[:])"
        ),
    ),
    (
        "MATLAB",
        (".mat",),
        "Save the array in it: numpy.save('images.npy', scipy.io.loadmat({file})['NAME'])",
    ),
    (
        "LMDB",
        (".mdb", ".lmdb"),
        (
            "In Python, pass a torch Dataset that reads it (lmdb.open) and gives PIL pictures, or"
            " write the pictures to a folder"
        ),
    ),
    (
        "TFRecord",
        (".tfrecord", ".tfrecords"),
        (
            "Write the pictures in it to a folder (tensorflow.data.TFRecordDataset), or to .npz as"
            " uint8 arrays"
        ),
    ),
    (
        "video",
        (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"),
        "Write the frames: ffmpeg -i {file} frame_%06d.png",
    ),
    (
        "HEIC or AVIF",
        (".heic", ".heif", ".avif"),
        (
            "Convert HEIC and AVIF first: pillow_heif.register_heif_opener() lets Pillow open and"
            " save them as PNG"
        ),
    ),
    (
        "JPEG 2000",
        (".jp2", ".j2k", ".jpx"),
        "Convert them first: PIL.Image.open(file).save(name + '.png') reads them",
    ),
    ("JPEG XL", (".jxl",), "Convert them first: djxl file.jxl file.png"),
    ("SVG", (".svg",), "Convert SVG first by drawing it: rsvg-convert -o file.png file.svg"),
    (
        "camera RAW",
        (".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng"),
        "Convert RAW first: rawpy.imread(file).postprocess() gives uint8 arrays to save as PNG",
    ),
    ("Photoshop", (".psd",), _PNG),
    (
        "OpenEXR",
        (".exr",),
        f"Read them with OpenEXR or imageio, save .npy, and pass it with {_RANGE}",
    ),
    (
        "HDR, Analyze or ENVI",
        (".hdr",),
        f"Read them with imageio, nibabel or spectral, save .npy, and pass it with {_RANGE}",
    ),
    (
        "FITS",
        (".fits", ".fit", ".fts"),
        (
            "Save the array with astropy: numpy.save('images.npy',"
            " astropy.io.fits.getdata({file})), of shape (n, h, w); and pass it with " + _RANGE
        ),
    ),
    ("Zarr", (".zarr",), _VALUES + "Or in Python, pass the array in it: zarr.open({file})['NAME']"),
    (
        "ffcv",
        (".beton",),
        "In Python, pass a torch Dataset that reads it and gives uint8 arrays or PIL pictures",
    ),
    (
        "tensors",
        (".safetensors",),
        (
            "Save them as arrays: numpy.savez('images.npz', **safetensors.numpy.load_file({file})),"
            " uint8 (n, h, w, c)"
        ),
    ),
    (
        "CIFAR batches",
        ("data_batch_1", "test_batch", "batches.meta"),
        (
            "torchvision reads them: pass cifar10 or cifar100, with the folder above theirs as"
            " data_root (--data-root)"
        ),
    ),
    ("documents", (".pdf", ".eps", ".ico"), _PNG),
    ("archives", (".zip", ".tar"), "Pictures in them are read in place: pass {file}"),
    (
        "an archive",
        (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"),
        (
            "It is compressed as a whole, so that nothing in it can be read alone. Decompress it to"
            " a plain .tar, which is read in place, or unpack it, and pass the folder: tar -xf"
            " {file}"
        ),
    ),
    ("an archive", (".7z", ".rar"), "Unpack it (7z x {file}), and pass the folder"),
    ("a compressed file", (".gz", ".bz2", ".xz", ".zst"), "Unpack it, and pass what it holds"),
    (
        "JSON",
        (".json", ".jsonl"),
        "Pass the folder of the pictures; a table beside them (metadata.jsonl) gives labels",
    ),
    (
        "a table",
        (".csv", ".tsv"),
        "Pass the folder of the pictures; a table beside them (metadata.csv) gives labels",
    ),
    ("a spreadsheet", (".xlsx", ".xls", ".ods"), "Save it as .csv with a column of file names"),
    (
        "pickled Python objects",
        (".pkl", ".pickle", ".pt", ".pth", ".ckpt"),
        (
            "They are never loaded (they can run code): save the images as uint8 arrays,"
            " numpy.savez('images.npz', images=...)"
        ),
    ),
    (
        "Arrow",
        (".arrow", ".feather"),
        "In Python, pass datasets.Dataset.from_file({file}), or the folder that save_to_disk wrote",
    ),
    (
        "microscopy or slides",
        (".czi", ".lif", ".nd2", ".svs", ".ndpi", ".mrxs", ".oib", ".lsm"),
        "Export tiles or planes as TIFF or PNG (Fiji, bioio, openslide)",
    ),
    (
        "idx",
        ("-ubyte", "-ubyte.gz"),
        "torchvision reads them: pass mnist, with the folder that holds MNIST/raw as data_root"
        " (--data-root); or fashion_mnist, kmnist, emnist",
    ),
)

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""The usual end of the name of a TFRecord file: train-00000-of-00010, without an extension."""

_FOLDERS = (".zarr", ".lmdb")
"""Ends of the names of folders that are one set of data."""

SUFFIXES = tuple(suffix for _, suffixes, _ in _KINDS for suffix in suffixes)


def way(path: Path, where: str = "file") -> str | None:
    """Name the kind of a file by its name or first bytes, and the way from it to data that is read
    here.

    Args:
        path: The file, or one of a folder.
        where: "file" if it is the data, "folder" if it stands for a folder of its like.

    Returns:
        "It is DICOM. Stack …", or None where no way is known.
    """
    inside = [above for above in path.parents if above.suffix.lower() in _FOLDERS]
    path = inside[-1] if inside else path
    name = path.name.lower()
    matching = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    suffix = max(matching, key=len, default=None)
    if suffix is None and _SHARD.search(name):
        suffix = ".tfrecord"
    if suffix is None:
        suffix = _by_content(path)
    if suffix is None:
        return None
    kind, _, text = next(entry for entry in _KINDS if suffix in entry[1])
    shown = str(path)
    quoted = (
        shlex.quote(shown) if "-xf" in text or "ffmpeg" in text or "7z" in text else repr(shown)
    )
    folder = path.parent
    text = (
        text.replace("{file}", quoted)
        .replace("{folder}", repr(str(folder)))
        .replace("{suffix}", suffix if name.endswith(suffix) else "")
    )
    return f"{'It is' if where == 'file' else 'They are'} {kind}. {text}."


def _by_content(path: Path) -> str | None:
    """Know a file without extension by its first bytes."""
    try:
        with open(
            path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))
        ) as file:
            head = file.read(132)
    except OSError:
        return None
    if head[128:132] == b"DICM":
        return ".dcm"
    if head.startswith(b"\x89HDF\r\n"):
        return ".h5"
    return None


LISTED = "a folder or an archive (.zip, .tar) of pictures, .npz, .npy, .parquet or .csv"
