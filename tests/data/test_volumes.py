"""Volumes: NIfTI files and series of DICOM files, as slices and whole, in the units of the scanner
and at their place.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import TINY
from ddpm_lib.cli import main
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.images import preview
from training_helpers import tiny_trainer

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

REAL = Path(nibabel.__file__).parent / "tests" / "data"
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0.1, -20], [0, -0.1, 3, 5], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def scan(
    folder: Path,
    stored: np.ndarray,
    *,
    spacing: float = 2.5,
    names: list[str] | None = None,
    uid: str = "1.2.3",
    **tags: object,
) -> list[Path]:
    """Write a CT of slices (d, h, w), whose file names are in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{hash((k, 1)) % 10_007:05d}.dcm" for k in range(len(stored))]
    written = []
    for k, (name, pixels) in enumerate(zip(names, stored, strict=True)):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k}"
        made = pydicom.Dataset()
        made.file_meta = meta
        made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"{uid}.{k}"
        made.SeriesInstanceUID, made.Modality = uid, "CT"
        made.Rows, made.Columns = pixels.shape
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 0
        made.PixelData = pixels.astype("<u2").tobytes()
        made.PixelSpacing = [0.7, 0.8]
        made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        made.ImagePositionPatient = [-10, -20, 100 + spacing * k]
        made.RescaleSlope, made.RescaleIntercept = 1, -1024
        for tag, value in tags.items():
            if value is None:
                delattr(made, tag)
            else:
                setattr(made, tag, value(k) if callable(value) else value)
        made.save_as(folder / name, enforce_file_format=True)
        written.append(folder / name)
    return written


STORED = RNG.integers(0, 4096, (6, 10, 12)).astype(np.uint16)
USUAL = {"image_size": (10, 12), "channels": 1, "normalize": "affine"}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
def test_slices_of_nifti_are_those_of_the_array(tmp_path, ending, dtype):
    volume = RNG.integers(0, 200, (8, 10, 12)).astype(dtype)
    nifti(tmp_path / "v" / f"a{ending}", volume)
    nifti(tmp_path / "v" / f"b{ending}", volume[::-1].copy())
    for axis, size in ((0, (10, 12)), (1, (8, 12)), (2, (8, 10))):
        data = open_dataset(tmp_path / "v", **{**USUAL, "image_size": size}, slice_axis=axis)
        want = np.moveaxis(volume, axis, 0)
        n = len(want)
        assert (data.stored_values(range(n))[:, 0] == want).all()
        assert data.names[1] == f"a{ending}#0001"
        assert data.normalization.dtype == dtype
        geometry = data.normalization.geometry
        assert np.allclose(geometry["affine"], AFFINE, atol=1e-6)
        assert (geometry["slice_axis"], geometry["space_unit"]) == (axis, "mm")


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_resampled_slices_lie_where_their_volume_does(tmp_path, fit):
    """A slope along each axis in mm is the same slope, at the same places, when it is resampled."""
    volume = np.zeros((9, 16, 24), np.float32)
    places = nibabel.affines.apply_affine(AFFINE, np.moveaxis(np.indices(volume.shape), 0, -1))
    for axis in range(3):
        sides = [side for k, side in enumerate(volume.shape) if k != axis]
        size = tuple(side // 3 | 1 for side in sides) if fit == "stretch" else (5, 5)
        for along in range(3):
            nifti(tmp_path / "v" / "a.nii", places[..., along].astype(np.float32))
            options = {**USUAL, "image_size": size, "fit": fit, "slice_axis": axis}
            data = open_dataset(tmp_path / "v", **options)
            affine = np.array(data.normalization.geometry["affine"])
            index = np.insert(np.moveaxis(np.indices(size), 0, -1), axis, 0, axis=-1)
            want = nibabel.affines.apply_affine(affine, index)[..., along]
            apart = np.abs(data.stored_values([0])[0, 0] - want)
            middle = tuple(side // 2 for side in size)
            assert apart[middle] < 1e-3  # where the filter of the resampling has both sides alike
            assert apart.max() < 1.5  # of voxels of 4 to 9 mm
        spacing = data.normalization.geometry["spacing"]
        assert np.allclose(spacing, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-5)
    options = {**USUAL, "image_size": (10, 12), "fit": "patch", "slice_axis": 0}
    assert np.allclose(
        open_dataset(tmp_path / "v", **options).normalization.geometry["affine"], AFFINE, atol=1e-5
    )


def test_scaled_nifti_has_the_values_that_are_meant(tmp_path):
    image = nibabel.Nifti1Image(RNG.integers(0, 99, (4, 6, 5)).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -7)
    (tmp_path / "v").mkdir()
    nibabel.save(image, tmp_path / "v" / "a.nii")
    meant = nibabel.load(tmp_path / "v" / "a.nii").get_fdata()
    data = open_dataset(tmp_path / "v", **{**USUAL, "image_size": (6, 5)}, slice_axis=0)
    assert data.normalization.dtype == "float32"
    assert np.allclose(data.stored_values(range(4))[:, 0], meant)


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "functional.nii"])
def test_real_volumes(tmp_path, name):
    """The small scans that nibabel brings along: to the last bit of what it reads of them."""
    if not (REAL / name).is_file():
        pytest.skip("this nibabel comes without its test data")
    (tmp_path / "v").mkdir()
    shutil.copy(REAL / name, tmp_path / "v" / name)
    meant = np.asanyarray(nibabel.load(REAL / name).dataobj)
    channels = meant.shape[3] if meant.ndim == 4 else 1
    options = {"image_size": meant.shape[:2], "channels": channels, "normalize": "affine"}
    data = open_dataset(tmp_path / "v", **options, slice_axis=2)
    found = data.stored_values(range(len(data)))
    want = np.moveaxis(meant, 2, 0)
    want = np.moveaxis(want, -1, 1) if meant.ndim == 4 else want[:, None]
    assert np.allclose(found, want, rtol=1e-6)
    back = data.normalization.inverse(data.batch(range(len(data)))["image"])
    span = float(want.max()) - float(want.min())
    assert np.abs(back.astype(float) - want).max() <= (
        0 if found.dtype.kind in "iu" else 1e-6 * span
    )


def test_slices_of_a_volume_stay_on_one_side(tmp_path):
    for k in range(8):
        nifti(tmp_path / "v" / f"{k}.nii", RNG.integers(0, 99, (5, 10, 12)).astype(np.int16))
    data = open_dataset(tmp_path / "v", **USUAL, slice_axis=0)
    train, held = data.split(0.3)
    sides = [{name.split("#")[0] for name in part.names} for part in (train, held)]
    assert not sides[0] & sides[1]
    assert len(train) + len(held) == 40
    assert len(held) % 5 == 0


def test_volumes_of_other_sizes_and_damaged_ones_are_named(tmp_path):
    nifti(tmp_path / "v" / "a.nii", np.zeros((4, 10, 12), np.int16))
    nifti(tmp_path / "v" / "b.nii", np.zeros((10, 12), np.int16))
    (tmp_path / "v" / "c.nii.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "v" / "d.nii.gz").write_bytes(b"\x1f\x8bx")
    with pytest.raises(BadImagesError, match=r"(?s)3 of 7.*b\.nii.*no.* volume.*c\.nii.*d\.nii"):
        open_dataset(tmp_path / "v", **USUAL, slice_axis=0)
    data = open_dataset(tmp_path / "v", **USUAL, slice_axis=0, on_bad_image="skip")
    assert len(data) == 4
    nifti(tmp_path / "v" / "e.nii", np.zeros((4, 10, 12), np.int16), 2 * AFFINE)
    data = open_dataset(tmp_path / "v", **USUAL, slice_axis=0, on_bad_image="skip")
    assert any("differ in the size of their voxels" in note for note in data.notes)


def test_a_series_is_sorted_by_place_and_in_hounsfield_units(tmp_path):
    scan(tmp_path / "ct", STORED)
    data = open_dataset(tmp_path / "ct", **USUAL)
    assert (data.stored_values(range(6))[:, 0] == STORED.astype(np.int32) - 1024).all()
    assert (data.normalization.dtype, data.normalization.unit) == ("int16", "HU")
    geometry = data.normalization.geometry
    assert geometry["spacing"] == [2.5, 0.7, 0.8]
    # Slice 1, row 2, column 3 lies at (-10 + 3·0.8, -20 + 2·0.7, 102.5) mm; RAS turns x and y.
    place = np.array(geometry["affine"]) @ [1, 2, 3, 1]
    assert np.allclose(place, [7.6, 18.6, 102.5, 1])
    backwards = scan(tmp_path / "turned", STORED, spacing=-2.5)
    assert backwards
    turned = open_dataset(tmp_path / "turned", **USUAL)
    assert (turned.stored_values(range(6)) == data.stored_values(range(6))[::-1]).all()


def test_real_dicom_files(tmp_path):
    files = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (files / "CT_small.dcm").is_file():
        pytest.skip("this pydicom comes without its test files")
    (tmp_path / "ct").mkdir()
    shutil.copy(files / "CT_small.dcm", tmp_path / "ct" / "IM0")
    read = pydicom.dcmread(files / "CT_small.dcm")
    data = open_dataset(tmp_path / "ct", image_size=128, channels=1, normalize="affine")
    meant = read.pixel_array.astype(int) * int(read.RescaleSlope) + int(read.RescaleIntercept)
    assert (data.stored_values([0])[0, 0] == meant).all()
    assert data.normalization.unit == "HU"


CASES = {
    "a slice is missing": (
        {"ImagePositionPatient": lambda k: [0, 0, 2.5 * (k + (k > 2))]},
        r"missing or unevenly spaced: 5 mm between .*, 2\.5 mm elsewhere",
    ),
    "two at one place": (
        {"ImagePositionPatient": lambda k: [0, 0, 2.5 * (k // 2)]},
        r"two slices lie at one place",
    ),
    "no places": ({"ImagePositionPatient": None}, r"do not say where they lie"),
    "not parallel": (
        {"ImageOrientationPatient": lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, 1]},
        r"not parallel",
    ),
    "no intercept": (
        {"RescaleIntercept": None, "RescaleSlope": None},
        r"Hounsfield units are lost",
    ),
    "no pixels": ({"PixelData": None}, r"\.dcm: "),
    "cut off": ({"PixelData": lambda k: b"\0" * 20}, r"\.dcm: "),
}


@pytest.mark.parametrize("name", CASES)
def test_series_that_are_no_volumes(tmp_path, name):
    tags, words = CASES[name]
    scan(tmp_path / "all" / "bad", STORED, uid="1.2.9", **tags)
    scan(tmp_path / "all" / "good", STORED)
    with pytest.raises(BadImagesError, match=rf"(?s)1 of 7 .*{words}"):
        open_dataset(tmp_path / "all", **USUAL)
    data = open_dataset(tmp_path / "all", **USUAL, on_bad_image="skip")
    assert list(data.names)[:1] == ["good#0000"]


def test_the_command_names_series_with_gaps_as_python_does(tmp_path, capsys):
    scan(tmp_path / "all" / "bad", STORED, uid="1.2.9")[2].unlink()
    scan(tmp_path / "all" / "good", STORED)
    flags = ["--normalize", "affine", "--channels", "1", *TINY, "--image-size", "10", "12"]
    assert main(["train", str(tmp_path / "all"), *flags, "--output-dir", str(tmp_path / "r")]) == 2
    assert "missing or unevenly spaced" in capsys.readouterr().err
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_slices_of_other_sizes_in_a_series(tmp_path):
    scan(tmp_path / "ct", STORED[:3])
    scan(tmp_path / "ct", STORED[3:, :8], names=["x.dcm", "y.dcm", "z.dcm"])
    with pytest.raises(
        (ValueError, BadImagesError), match=r"differ in size: \[\(8, 12\), \(10, 12\)\]"
    ):
        open_dataset(tmp_path / "ct", **USUAL)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.dcm' is no DICOM file that can be read"):
        open_dataset(tmp_path / "text", **USUAL)


def test_whole_series_are_volumes_with_classes_of_their_folders(tmp_path):
    for k in range(3):
        scan(tmp_path / "ct" / "ab"[k % 2] / f"p{k}", STORED + 2 * k, uid=f"1.2.{k}")
    classes = open_dataset(tmp_path / "ct", **USUAL)
    assert classes.class_names == ("a", "b")
    assert classes.labels.tolist() == [0] * 12 + [1] * 6
    assert open_dataset(tmp_path / "ct", **USUAL, labels="none").class_names is None
    with pytest.raises(ValueError, match="labels='prefix' does not fit DICOM"):
        open_dataset(tmp_path / "ct", **USUAL, labels="prefix")
    with pytest.raises(ValueError, match='labels="folder" needs'):
        open_dataset(tmp_path / "ct" / "a", **USUAL, labels="folder")
    data = open_dataset(tmp_path / "ct", image_size=(6, 10, 12), channels=1, normalize="affine")
    assert len(data) == 3
    assert (data.stored_values([1])[0, 0] == STORED.astype(int) + 4 - 1024).all()


def test_a_command_draws_volumes_in_their_place(tmp_path, capsys):
    """`ddpm train` on slices of NIfTI; samples as NIfTI, NumPy, TIFF and NPZ in type and units."""
    for k in range(4):
        nifti(tmp_path / "v" / f"{k}.nii.gz", RNG.integers(-50, 900, (8, 8, 6)).astype(np.int16))
    run = tmp_path / "run"
    options = [
        "--normalize",
        "affine",
        "--slice-axis",
        "2",
        "--channels",
        "1",
        "--final-samples",
        "0",
    ]
    assert main(["train", str(tmp_path / "v"), *TINY, *options, "--output-dir", str(run)]) == 0
    out = capsys.readouterr()
    assert "normalized (affine): 1 channel of int16" in out.out + out.err
    low, high = json.loads((next((run / "checkpoints").iterdir()) / "state.json").read_text())[
        "data"
    ]["normalization"]["values"][0]

    def drawn(kind: str) -> Path:
        place = tmp_path / kind
        args = ["-n", "2", "--num-steps", "2", "--format", kind, "--output-dir", str(place)]
        assert main(["sample", str(run), *args, "--device", "cpu"]) == 0
        return place

    first = np.load(drawn("npy") / "000000.npy")
    assert (first.dtype, first.shape) == (np.int16, (8, 8))
    assert low <= first.min() <= first.max() <= high
    image = nibabel.load(drawn("nifti") / "000000.nii.gz")
    assert (image.shape, image.get_data_dtype()) == ((8, 8, 1), np.int16)
    assert np.allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (np.asanyarray(image.dataobj)[..., 0] == first).all()
    packed = np.load(drawn("npz") / "samples.npz")["arr_0"]
    assert (packed.dtype, packed.shape) == (np.int16, (2, 8, 8, 1))
    assert (packed[0, ..., 0] == first).all()
    tifffile = pytest.importorskip("tifffile")
    assert (tifffile.imread(drawn("tiff") / "000000.tif") == first).all()
    assert (drawn("grid") / "grid.png").is_file()
    assert main(["train", "--config", str(run / "config.yaml"), "--max-steps", "5"]) == 0


def test_formats_that_cannot_hold_samples(tmp_path, capsys):
    tiny_trainer(tmp_path / "run").train()
    sample = ["sample", str(tmp_path / "run"), "-n", "1", "--num-steps", "1", "--device", "cpu"]
    assert main([*sample, "--format", "nifti"]) == 2
    assert "for runs on volumes that say where they lie" in capsys.readouterr().err
    assert main([*sample, "--format", "npy", "--output-dir", str(tmp_path / "npy")]) == 0
    assert np.load(tmp_path / "npy" / "000000.npy").dtype == np.uint8


def test_commands_refuse_what_measured_values_are_not_for(tmp_path, capsys):
    folder = tmp_path / "v"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((8, 8), np.float32))
    assert main(["train", str(folder), "--image-size", "8", "8", "8", "--dry-run"]) == 2
    assert "three are for volumes of measured values" in capsys.readouterr().err
    assert main(["train", str(folder), "--slice-axis", "1", *TINY, "--dry-run"]) == 2
    assert "--slice-axis 1 is for measured volumes: --normalize affine" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="slice_axis"):
        tiny_trainer(tmp_path / "run", data=str(folder), slice_axis="x")


def test_previews_of_channels_and_volumes():
    import torch

    images = torch.rand(2, 7, 5, 6)
    assert torch.equal(preview(images), images[:, :3])
    assert torch.equal(preview(images[:, :2]), images[:, :1])
    assert preview(images[:, :4]).shape == (2, 4, 5, 6)
    volumes = torch.rand(2, 1, 20, 5, 6)
    tiles = preview(volumes)
    assert tiles.shape == (2, 1, 4 * 5, 4 * 6)
    assert torch.equal(tiles[:, :, :5, :6], volumes[:, :, 0])
    assert torch.equal(tiles[:, :, -5:, -6:], volumes[:, :, 19])
    assert preview(volumes[:, :, :5]).shape == (2, 1, 2 * 5, 3 * 6)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_table_names_volumes_without_their_extension(tmp_path: Path, ending: str) -> None:
    (tmp_path / "v").mkdir()
    for k in range(3):
        nifti(tmp_path / "v" / f"p.{k}{ending}", RNG.integers(0, 900, (4, 4, 4)).astype(np.int16))
    (tmp_path / "people.csv").write_text("id,age\np.2,42\np.0,40\np.1,41\n")
    data = open_dataset(
        tmp_path / "v",
        image_size=(4, 4, 4),
        channels=1,
        normalize="affine",
        conditions=f"age={tmp_path / 'people.csv'}:age",
    )
    assert data.conditions["age"].values.tolist() == [40, 41, 42]
