"""Measured values: read as they are, normalised for training, and back in their units."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.data import BadImagesError, make_loader, open_dataset
from ddpm_lib.data.measurements.normalization import Curve, Normalization, fit
from ddpm_lib.images import to_model_range, to_unit_range
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_trainer

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 60_000, (30, 5, 8, 8)).astype(np.uint16)
WHOLE_TYPES = ("int8", "uint16", "int32", "uint32", "int64")
KELVIN = (280 + 10 * RNG.standard_normal((30, 8, 8))).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))


def fitted(values: np.ndarray, kind: str) -> Normalization:
    rows = np.arange(len(values))
    blocks = (rows[k : k + 7] for k in range(0, len(rows), 7))
    return fit(kind, values.dtype.name, lambda some: values[some], blocks, values[:, 0].size)[0]


def folder_of(root: Path, values: np.ndarray) -> Path:
    root.mkdir()
    for k, one in enumerate(values):
        np.save(root / f"{k:03d}.npy", one)
    return root


# what is mapped to what

DISTRIBUTIONS = {
    "even": lambda n: RNG.integers(0, 65_536, n),
    "a camera of 12 bits": lambda n: RNG.normal(1500, 200, n).clip(0, 4095),
    "mostly zero": lambda n: np.where(RNG.random(n) < 0.7, 0, RNG.integers(0, 65_536, n)),
    "a long tail": lambda n: np.minimum(100 * np.exp(2 * RNG.standard_normal(n)), 65_535),
    "two values": lambda n: RNG.choice([17, 40_000], n),
    "few, and one of 65535": lambda n: np.append(RNG.integers(3, 6, n - 1), 65_535),
}


@pytest.mark.parametrize("kind", ["affine", "quantile"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_16_bits_come_back_exactly(kind, name):
    """All values between the lowest and the highest of the data, through float32 in [-1, 1]."""
    data = DISTRIBUTIONS[name](4000).astype(np.uint16).reshape(10, 1, 20, 20)
    normalization = fitted(data, kind)
    every = np.arange(int(data.min()), int(data.max()) + 1).astype(np.uint16)[None, None, None]
    forward = torch.from_numpy(normalization.forward(every))
    assert forward.dtype == torch.float32
    back = normalization.inverse(to_unit_range(to_model_range(forward)))
    assert back.dtype == np.uint16
    assert (back == every).all()


@pytest.mark.parametrize("kind", ["affine", "quantile"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float16", "float64"])
def test_other_types_come_back_in_theirs(kind, dtype):
    wide = 100 * RNG.standard_normal((6, 2, 9, 9))
    data = wide.clip(-120, 120).astype(dtype) if dtype != "uint8" else abs(wide).astype(dtype)
    normalization = fitted(data, kind)
    back = normalization.inverse(normalization.forward(data))
    assert back.dtype == dtype
    span = float(data.max()) - float(data.min())
    # The rest is what float32 cannot hold of the range, and of half precision its last digit.
    assert np.abs(back.astype(float) - data).max() <= (
        0 if dtype[-1] == "8" else 2e-6 * span + 0.1 * (dtype == "float16")
    )


def test_affine_maps_the_range_of_each_channel():
    data = np.stack([KELVIN, 5 * KELVIN - 3], 1)
    normalization = fitted(data, "affine")
    forward = normalization.forward(data)
    assert forward.min((0, 2, 3)).tolist() == [0, 0]
    assert forward.max((0, 2, 3)).tolist() == [1, 1]
    assert normalization.low == (float(data[:, 0].min()), float(data[:, 1].min()))
    middle = (data[:, 0].astype(float) - data[:, 0].min()) / (data[:, 0].max() - data[:, 0].min())
    assert np.abs(forward[:, 0] - middle).max() < 1e-6


def test_quantile_spreads_values_evenly():
    """Of F·15/16 + linear/16 the share below u lies between u and 16/15·u: at most 1/16 away."""
    data = np.exp(RNG.standard_normal((40, 1, 30, 30)))
    forward = fitted(data, "quantile").forward(data).ravel()
    assert stats.kstest(forward, "uniform").statistic < 1 / 16 + 0.005
    straight = fitted(data, "affine").forward(data).ravel()
    assert stats.kstest(straight, "uniform").statistic > 0.8


def test_values_outside_what_was_fitted_become_the_nearer_end():
    normalization = fitted(KELVIN[:, None], "affine")
    low, high = normalization.low[0], normalization.high[0]
    found = normalization.forward(np.array([[[[low - 9, high + 9]]]]))
    assert found.ravel().tolist() == [0, 1]
    assert normalization.inverse(np.array([[[[-3.0, 7.0]]]])).ravel().tolist() == [
        np.float32(low),
        np.float32(high),
    ]


@pytest.mark.parametrize("kind", ["affine", "quantile"])
def test_a_constant_channel_stays_constant(kind):
    data = np.concatenate([BANDS[:, :1], np.full_like(BANDS[:, :1], 7)], 1)
    rows = [np.arange(len(data))]
    normalization, notes = fit(kind, "uint16", lambda some: data[some], rows, data[:, 0].size)
    back = normalization.inverse(np.random.default_rng(0).random((3, 2, 4, 4)))
    assert (back[:, 1] == 7).all()
    assert any("channels of one value" in note and "1 (7)" in note for note in notes)


def test_a_narrow_range_is_said():
    data = BANDS[:, :1] // 60
    data[0, 0, 0, 0] = 60_000
    notes = fit("affine", "uint16", lambda some: data[some], [np.arange(30)], data.size)[1]
    assert any(
        "small part of their range" in note and "--normalize quantile" in note for note in notes
    )


@pytest.mark.parametrize("kind", ["affine", "quantile"])
def test_json_keeps_a_normalization_to_the_bit(kind):
    made = fitted(BANDS, kind)
    again = Normalization.from_json(json.loads(json.dumps(made.to_json())), "x")
    assert (again.forward(BANDS) == made.forward(BANDS)).all()
    assert (again.kind, again.dtype, again.low) == (made.kind, made.dtype, made.low)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "cubic"},
        {"dtype": "object"},
        {"values": [[1.0, 0.0]], "levels": [[0.0, 1.0]]},
        {"values": [[0.0, float("nan")]], "levels": [[0.0, 1.0]]},
        {"values": [[0.0, 1.0]], "levels": [[0.0]]},
        {"values": []},
        {"geometry": "here"},
    ],
)
def test_a_damaged_normalization_is_no_normalization(change):
    saved = fitted(KELVIN[:, None], "affine").to_json()
    with pytest.raises(ValueError, match=r"run-7: the normalization is damaged.*lose their units"):
        Normalization.from_json({**saved, **change}, "run-7")
    with pytest.raises(ValueError, match="damaged"):
        Normalization.from_json("x", "run-7")


def test_wrong_channels_are_named():
    normalization = fitted(BANDS, "affine")
    with pytest.raises(ValueError, match=r"of 5 channels; got an array of shape \(2, 3, 8, 8\)"):
        normalization.inverse(np.zeros((2, 3, 8, 8)))
    curve_ = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    other = Normalization("affine", "float64", (curve_,) * 5)
    with pytest.raises(ValueError, match=r"5 channels of float64; the data has 5 of uint16"):
        open_dataset(BANDS, image_size=8, channels=5, normalize=other)


# where values come from


def as_npy(root: Path) -> Path:
    np.save(root / "a.npy", BANDS)
    return root / "a.npy"


def as_npy_channels_last(root: Path) -> Path:
    np.save(root / "a.npy", np.moveaxis(BANDS, 1, -1))
    return root / "a.npy"


def as_npz(root: Path) -> Path:
    np.savez(root / "a.npz", images=BANDS)
    return root / "a.npz"


def as_folder(root: Path) -> Path:
    return folder_of(root / "a", BANDS)


def as_folder_of_npz(root: Path) -> Path:
    (root / "a").mkdir()
    for k, one in enumerate(BANDS):
        np.savez_compressed(root / "a" / f"{k:03d}.npz", image=np.moveaxis(one, 0, -1))
    return root / "a"


def as_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for k, one in enumerate(BANDS):
            raw = io.BytesIO()
            np.save(raw, one)
            archive.writestr(f"top/{k:03d}.npy", raw.getvalue())
    return root / "a.zip"


def as_tiff(root: Path) -> Path:
    tifffile = pytest.importorskip("tifffile")
    (root / "a").mkdir()
    for k, one in enumerate(BANDS):
        planar = "separate" if k % 2 else "contig"
        shown = one if k % 2 else np.moveaxis(one, 0, -1)
        tifffile.imwrite(
            root / "a" / f"{k:03d}.tif", shown, planarconfig=planar, photometric="minisblack"
        )
    return root / "a"


def as_hdf5(root: Path) -> str:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "a.h5", "w") as file:
        file["deep/images"] = BANDS
        file["deep/other"] = BANDS[:3]
    return f"{root}/a.h5:deep/images"


def as_zarr(root: Path) -> str:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(root / "a.zarr"), mode="w")
    made = group.create_array("images", shape=BANDS.shape, dtype="uint16", chunks=(7, 5, 8, 8))
    made[:] = BANDS
    return f"{root}/a.zarr"


WRITERS = [
    as_npy,
    as_npy_channels_last,
    as_npz,
    as_folder,
    as_folder_of_npz,
    as_zip,
    as_tiff,
    as_hdf5,
    as_zarr,
]


@pytest.mark.every(3)
@pytest.mark.parametrize("write", WRITERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("cache", ["ram", "none", "disk"])
def test_every_kind_of_data_gives_its_values(tmp_path, write, cache):
    """To the bit, in their type; streamed through two workers, which open files for themselves."""
    data = open_dataset(
        write(tmp_path), image_size=8, channels=5, normalize="affine", cache=cache, num_workers=0
    )
    assert (data.stored_values(range(30)) == BANDS).all()
    assert data.normalization.dtype == "uint16"
    rows = [list(range(k, k + 5)) for k in range(0, 30, 5)]
    want = data.normalization.forward(BANDS)
    for chosen, batch in zip(rows, make_loader(data, rows, num_workers=2), strict=True):
        assert (batch["image"].numpy() == want[chosen]).all()
        assert batch["image"].dtype == torch.float32
        assert (data.normalization.inverse(batch["image"]) == BANDS[chosen]).all()


def test_arrays_of_one_file_are_told_apart_on_the_disk(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["two"] = KELVIN, KELVIN + 1
    options = {"image_size": 8, "channels": 1, "normalize": "affine", "cache": "disk"}
    for k, name in enumerate(["one", "two", "one"]):
        data = open_dataset(f"{tmp_path}/a.h5:{name}", **options)
        assert (data.stored_values(range(30))[:, 0] == KELVIN + k % 2).all()
    with pytest.raises(ValueError, match=r"transform or patches"):
        open_dataset(f"{tmp_path}/a.h5:one", **options, fit="patch")


def test_pictures_of_16_bits_are_values(tmp_path):
    from PIL import Image

    for k, one in enumerate(BANDS[:, 0]):
        Image.fromarray(one).save(tmp_path / f"{k:03d}.png")
    data = open_dataset(tmp_path, image_size=8, channels=1, normalize="affine")
    assert (data.stored_values(range(30)) == BANDS[:, :1]).all()


def test_float_tiff_without_tifffile(tmp_path, monkeypatch):
    from PIL import Image

    from ddpm_lib.data.measurements import value_files

    monkeypatch.setattr(value_files, "is_installed", lambda name: name != "tifffile")
    for k, one in enumerate(KELVIN):
        Image.fromarray(one).save(tmp_path / f"{k:03d}.tif")
    data = open_dataset(tmp_path, image_size=8, channels=1, normalize="affine")
    assert (data.stored_values(range(30))[:, 0] == KELVIN).all()
    pages = [Image.fromarray(one) for one in KELVIN[:3]]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImagesError, match=r"stack\.tif: .*several pages.*tifffile"):
        open_dataset(tmp_path, image_size=8, channels=1, normalize="affine")


def test_classes_come_along(tmp_path):
    for k, one in enumerate(KELVIN[:9]):
        place = tmp_path / "a" / "xyz"[k % 3] / f"{k}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, one)
    data = open_dataset(tmp_path / "a", image_size=8, channels=1, normalize="affine")
    assert data.class_names == ("x", "y", "z")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["kind"] = KELVIN, np.arange(30) % 4
        file["label"] = [b"wet", b"dry", b"wet"] * 10
    options = {"image_size": 8, "channels": 1, "normalize": "affine"}
    assert open_dataset(tmp_path / "a.h5", **options).class_names == ("dry", "wet")
    assert open_dataset(tmp_path / "a.h5", **options, label_column="kind").num_classes == 4
    assert open_dataset(tmp_path / "a.h5", **options, labels="none").class_names is None
    np.savez(tmp_path / "b.npz", images=KELVIN, label=np.arange(30) % 2)
    assert open_dataset(tmp_path / "b.npz", **options).num_classes == 2


def test_values_are_resampled_within_the_range_of_their_image():
    wide = (1000 + 50 * RNG.standard_normal((4, 24, 30))).astype(np.float64) + 1e6
    data = open_dataset(wide, image_size=12, channels=1, normalize="affine")
    found = data.stored_values(range(4))[:, 0]
    for one, other in zip(found, wide, strict=True):
        assert other.min() <= one.min() <= one.max() <= other.max()
    # An antialiased filter of twice the size keeps the mean of what it sees: the central square.
    assert np.abs(found.mean((1, 2)) - wide[:, :, 3:27].mean((1, 2))).max() < 3
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32) * 2, (2, 24, 24))
    made = open_dataset(ramp, image_size=12, channels=1, normalize="affine").stored_values([0])
    assert np.abs(made[0, 0, 0, 2:10] - (4 * np.arange(2, 10) + 1)).max() < 1e-3


def test_patches_are_parts_drawn_by_name():
    values = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    options = {"image_size": (8, 12), "channels": 1, "normalize": "affine", "fit": "patch"}
    data = open_dataset(values, **options)
    assert data.drawn
    assert (data.normalization.low, data.normalization.high) == ((0.0,), (3999.0,))
    for draw in range(5):
        first = data.batch([0, 1], [draw, draw])["image"]
        assert torch.equal(first, data.batch([0, 1], [draw, draw])["image"])
        patch = np.rint(data.normalization.inverse(first)[1, 0])
        top, left = divmod(int(patch[0, 0]) - 2000, 50)
        assert (patch == values[1, top : top + 8, left : left + 12]).all()
    starts = {float(data.batch([0], [draw])["image"][0, 0, 0, 0]) for draw in range(20)}
    assert len(starts) > 15
    still = data.steady()
    assert torch.equal(still[0]["image"], still[0]["image"])
    again = open_dataset(values, **options)
    assert again.fingerprint == data.fingerprint


# what cannot be


def bad(match, error=ValueError, data=KELVIN, **options):
    usual = {"image_size": 8, "channels": 1, "normalize": "affine"}
    with pytest.raises(error, match=match):
        open_dataset(data, **usual | options)


def test_options_that_do_not_fit():
    bad(r"normalize must be|normalize 'cubic'|'cubic'.*affine, quantile", normalize="cubic")
    bad(r"fit=\"pad\" fills a border with a colour.*fit=\"patch\"", fit="pad")
    bad(r"channels must be a whole number from 1; got 0", channels=0)
    bad(r"three sizes; got \(8, 8, 8, 8\)", image_size=(8, 8, 8, 8))
    bad(r"value_range=\(0, 1\) does not fit measured values.*range is found", value_range=(0, 1))
    bad(r"transform.*does not fit measured values", transform=lambda picture: picture)
    bad(r"frames='all' does not fit measured values.*slice_axis=0", frames="all")
    bad(r"slice_axis must be 0, 1 or 2", slice_axis=3)
    bad(r"slice_axis is for folders of volumes", slice_axis=0)
    bad(r"slice_axis=1 is for measured volumes: normalize=\"affine\"", normalize=None, slice_axis=1)
    bad(r"fit=\"patch\" is for measured values", normalize=None, fit="patch")
    bad(r"normalize is for measured values: arrays.*got list", data=[1, 2])
    bad(r"channels must be 1 .*Measured values have any number", normalize=None, channels=5)


def test_values_that_cannot_be_learned(tmp_path):
    holes = KELVIN.copy()
    holes[3, 2, 2:4] = np.nan
    holes[5, 0, 0] = np.inf
    bad(
        r"2 of 30 images.*\n.*000003: 2 of 64 values are NaN.*\n.*000005: 1 of 64",
        BadImagesError,
        holes,
    )
    left = open_dataset(holes, image_size=8, channels=1, normalize="affine", on_bad_image="skip")
    assert len(left) == 28
    bad(r"has 5 or 8 channels .* not 3: pass channels=5", BadImagesError, BANDS, channels=3)
    bad(r"type complex64.*real numbers", data=KELVIN.astype(np.complex64))
    bad(r"type bool", data=KELVIN > 280)
    bad(r"smaller than the patches \(16×16\)", BadImagesError, fit="patch", image_size=16)
    bad(r"has the shape \(8, 8\); a stack of images is", data=KELVIN[0])
    bad(
        r"not that of an image of 2 dimensions.*slice_axis takes slices",
        BadImagesError,
        data=np.zeros((9, 6, 7, 8, 8)),
    )
    bad(r"values are more than max_pixels \(10\)", BadImagesError, max_pixels=10)
    root = folder_of(tmp_path / "a", KELVIN)
    np.save(root / "100.npy", KELVIN[0].astype(np.float64))
    np.save(root / "101.npy", KELVIN[:2])
    (root / "102.npy").write_bytes(b"x")
    bad(
        r"(?s)3 of 33.*100\.npy: its values are float64, those of the first image float32"
        r".*101\.npy: its shape \(2, 8, 8\).*102\.npy",
        BadImagesError,
        root,
    )


def test_files_that_are_no_values(tmp_path):
    (tmp_path / "empty").mkdir()
    bad(r"holds no measured values", data=tmp_path / "empty")
    (tmp_path / "a.txt").write_text("x")
    bad(
        r"a\.txt' is no set of measured values.*normalize out for pictures", data=tmp_path / "a.txt"
    )
    bad(r"does not exist", FileNotFoundError, tmp_path / "lost")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0")
    bad(r"a\.npy|EOF|magic", (ValueError, EOFError), tmp_path / "a.npy")
    h5py = pytest.importorskip("h5py")
    (tmp_path / "bad.h5").write_bytes(b"x")
    bad(r"bad\.h5' cannot be opened by h5py.*copied whole", data=tmp_path / "bad.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/one"], file["deep/two"], file["flat"] = KELVIN, KELVIN, [1, 2]
    bad(r"holds several arrays.*Name one behind a colon: .*a\.h5:deep/one", data=tmp_path / "a.h5")
    bad(r"no array 'deep/tow'\. Did you mean 'deep/two'", data=f"{tmp_path}/a.h5:deep/tow")
    bad(r"no array 'kind' \(label_column\)", data=f"{tmp_path}/a.h5:deep/one", label_column="kind")


def test_readers_that_are_not_installed_are_named(tmp_path, monkeypatch):
    from ddpm_lib.data.measurements import array_stores, dicom_series, value_files

    for module in (array_stores, dicom_series, value_files):
        monkeypatch.setattr(module, "is_installed", lambda name: False)
    (tmp_path / "a.h5").write_bytes(b"x")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "a.nii").write_bytes(b"x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.dcm").write_bytes(b"x")
    bad(r"read through h5py: pip install 'ddpm-lib\[arrays\]'", data=tmp_path / "a.h5")
    bad(r"read through zarr: pip install 'ddpm-lib\[arrays\]'", data=tmp_path / "a.zarr")
    bad(r"NIfTI is read through nibabel: pip install 'ddpm-lib\[volumes\]'", data=tmp_path / "n")
    bad(r"read through pydicom: pip install 'ddpm-lib\[volumes\]'", data=tmp_path / "d")


# runs


def measured_diffusion(channels: int = 5, **options) -> GaussianDiffusion:
    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, channels=channels, **options)
    size = (8,) * network.dims
    return GaussianDiffusion(network, image_size=size, timesteps=50)


@pytest.fixture
def bands(tmp_path) -> str:
    return str(folder_of(tmp_path / "bands", BANDS))


def trained(run: Path, data, diffusion=None, **options):
    diffusion = diffusion or measured_diffusion()
    return tiny_trainer(run, diffusion, data, **{"normalize": "quantile"} | options)


def test_a_run_keeps_its_normalization(tmp_path, bands):
    """In its checkpoints and in pretrained folders; fitted on what is trained on alone."""
    trainer = trained(tmp_path / "run", bands, val_every=3, val_fraction=0.3)
    trainer.train()
    names = list(trainer.dataset.names)
    rows = [int(name[:3]) for name in names]
    assert len(rows) == 21
    own = fitted(BANDS[rows], "quantile")
    assert trainer.diffusion.normalization.to_json() == own.to_json()
    assert trainer.held_out.normalization.to_json() == own.to_json()
    loaded = load_run(tmp_path / "run").diffusion
    assert loaded.normalization.to_json() == own.to_json()
    samples = loaded.normalization.inverse(loaded.sample(3, num_steps=2, seed=0))
    assert samples.dtype == np.uint16
    assert samples.shape == (3, 5, 8, 8)
    assert (samples <= BANDS[rows].max((0, 2, 3))[:, None, None]).all()
    assert (samples >= BANDS[rows].min((0, 2, 3))[:, None, None]).all()
    loaded.save_pretrained(tmp_path / "folder")
    again = GaussianDiffusion.from_pretrained(tmp_path / "folder")
    assert again.normalization.to_json() == own.to_json()
    assert measured_diffusion().normalization is None


@pytest.mark.parametrize("options", [{}, {"fit": "patch"}], ids=["crop", "patch"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options):
    wide = RNG.integers(0, 60_000, (20, 5, 12, 14)).astype(np.uint16)
    data = str(folder_of(tmp_path / "bands", wide))
    settings = {**options, "val_every": 2, "num_workers": 0}
    trained(tmp_path / "whole", data, **settings).train()
    trained(tmp_path / "cut", data, callbacks=[StopAt(3)], **settings).train()
    trained(tmp_path / "cut", data, **settings).train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


def test_a_run_goes_on_in_its_own_range(tmp_path, bands):
    trained(tmp_path / "run", bands).train()
    with pytest.raises(ConfigError, match=r"learns measured values with normalize=\"quantile\""):
        trained(tmp_path / "run", bands, normalize="affine", max_steps=8).train()
    with pytest.raises((ConfigError, ValueError), match=r"quantile|channels"):
        trained(tmp_path / "run", bands, normalize=None, max_steps=8).train()


@pytest.mark.parametrize("change", ["lost", "damaged"])
def test_lost_units_are_an_error(tmp_path, bands, change):
    from ddpm_lib.runs.measured_runs import run_normalization
    from ddpm_lib.runs.state import RunState

    trained(tmp_path / "run", bands).train()
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    values = json.loads((checkpoint / "state.json").read_text())
    if change == "lost":
        del values["data"]["normalization"]
    else:
        values["data"]["normalization"]["levels"][2][1] = 7.0
    state = RunState.from_json(values, checkpoint)
    with pytest.raises(CheckpointError, match="units"):
        run_normalization(state, checkpoint)


def test_pictures_are_not_drawn_anew_by_a_run_on_values(tmp_path, bands, capsys):
    """A picture has no units: edit, inpaint and restore say how it is done in Python."""
    from PIL import Image

    from ddpm_lib.cli import main

    trained(tmp_path / "run", bands, max_steps=1).train()
    picture = str(tmp_path / "a.png")
    Image.new("L", (8, 8)).save(picture)
    for word, more in (
        ("edit", []),
        ("inpaint", ["--mask", picture]),
        ("restore", ["--operator", "blur:1"]),
    ):
        assert main([word, str(tmp_path / "run"), picture, *more, "--device", "cpu"]) == 2
        told = capsys.readouterr().err
        assert "learns measured values (5 × uint16)" in told
        assert f"normalization.inverse(diffusion.{word}(images, …))" in told


def test_validation_data_are_in_the_range_of_training(tmp_path, bands):
    other = str(folder_of(tmp_path / "held", BANDS[:12] + 5000))
    trainer = trained(tmp_path / "run", bands, val_data=other, val_every=3)
    trainer.train()
    assert trainer.held_out.normalization.to_json() == fitted(BANDS, "quantile").to_json()
    floats = str(folder_of(tmp_path / "floats", BANDS[:12].astype(np.float32)))
    with pytest.raises(ValueError, match=r"5 channels of uint16; the data has 5 of float32"):
        trained(tmp_path / "b", bands, val_data=floats, val_every=3).train()
    with pytest.raises(ConfigError, match=r"holds pictures, and the training data measured"):
        tiny_trainer(
            tmp_path / "c",
            measured_diffusion(3),
            open_dataset(BANDS[:, :3], image_size=8, channels=3, normalize="affine"),
            val_data=open_dataset(np.zeros((12, 8, 8, 3), np.uint8), image_size=8),
            val_every=3,
        ).train()


WIDE = RNG.integers(0, 60_000, (30, 5, 12, 14)).astype(np.uint16)


@pytest.mark.parametrize(
    "options",
    [{}, {"cache": "none"}, {"fit": "patch"}, {"fit": "stretch"}],
    ids=["ram", "streamed", "patch", "stretch"],
)
@pytest.mark.parametrize("kind", ["affine", "quantile"])
def test_an_open_set_is_learned_as_its_path(tmp_path, kind, options):
    """Its map was fitted on the images that are held out as well; that of the run is not."""
    where = str(folder_of(tmp_path / "bands", WIDE))
    usual = {"val_every": 3, "val_fraction": 0.3, "num_workers": 0}
    by_path = trained(tmp_path / "a", where, normalize=kind, **usual, **options)
    data = open_dataset(where, image_size=8, channels=5, normalize=kind, num_workers=0, **options)
    before = data.normalization.to_json()
    lines: list[str] = []
    opened = trained(tmp_path / "b", data, normalize=None, **usual)
    opened.say = lines.append
    for trainer in (by_path, opened):
        trainer.prepare()
    own = by_path.diffusion.normalization.to_json()
    assert own != before == data.normalization.to_json()
    for found in (opened.diffusion, opened.dataset, opened.held_out):
        assert found.normalization.to_json() == own
    rows, draws = np.arange(9), np.arange(9)
    for name in ("dataset", "held_out"):
        one, other = (getattr(trainer, name).batch(rows, draws) for trainer in (by_path, opened))
        assert torch.equal(one["image"], other["image"])
    assert sum("range of the 21 that it trains on" in line for line in lines) == 1


def test_parts_of_an_open_set_are_normalized_by_the_part_that_is_trained_on(tmp_path):
    whole = open_dataset(BANDS, image_size=8, channels=5, normalize="affine")
    train, held_out = whole.split(0.3)
    trainer = trained(tmp_path / "a", train, val_data=held_out, normalize=None, val_every=3)
    trainer.prepare()
    own = fitted(BANDS[train.rows], "affine").to_json()
    assert trainer.dataset.normalization.to_json() == own != whole.normalization.to_json()
    assert trainer.held_out.normalization.to_json() == own
    again = trained(tmp_path / "b", whole, normalize=None, val_every=0)  # of all that it has
    again.prepare()
    assert again.dataset.normalization.to_json() == whole.normalization.to_json()


def test_a_normalization_that_is_handed_over_is_the_runs(tmp_path):
    """Also where images are held out; a run goes on with no other one."""
    given = Normalization("affine", "uint16", (Curve(np.array([0.0, 65535]), np.arange(2.0)),) * 5)
    options = {"image_size": 8, "channels": 5}
    data = open_dataset(BANDS, normalize=given, **options)
    usual = {"normalize": None, "val_every": 3, "val_fraction": 0.3}
    trainer = trained(tmp_path / "run", data, **usual)
    trainer.train()
    assert trainer.diffusion.normalization.to_json()["values"] == given.to_json()["values"]
    assert trainer.held_out.normalization is trainer.dataset.normalization
    other = open_dataset(BANDS, normalize=fitted(BANDS, "affine"), **options)
    with pytest.raises(ConfigError, match=r"another normalization than this run has learned with"):
        trained(tmp_path / "run", other, **usual, max_steps=8).prepare()
    even = open_dataset(BANDS, normalize="quantile", **options)
    with pytest.raises(ConfigError, match=r"learns measured values with normalize=\"affine\""):
        trained(tmp_path / "run", even, **usual, max_steps=8).prepare()
    for same in (data, open_dataset(BANDS, normalize="affine", **options)):
        again = trained(tmp_path / "run", same, **usual, max_steps=8)
        again.prepare()
        assert again.step == 6
        assert again.diffusion.normalization.to_json()["values"] == given.to_json()["values"]


def test_a_student_learns_in_the_range_of_its_teacher(tmp_path):
    """What the teacher's network has learned means nothing in another one."""
    teacher = measured_diffusion()
    teacher.normalization = fitted(BANDS, "affine")
    student = teacher.for_consistency()
    trainer = trained(tmp_path / "run", BANDS[:12] // 2, diffusion=student, normalize="affine")
    trainer.prepare()
    assert student.normalization.to_json() == teacher.normalization.to_json()
    assert trainer.dataset.batch([0])["image"].max() <= 0.5
    with pytest.raises(ConfigError, match=r"learns measured values with normalize=\"affine\""):
        trained(tmp_path / "b", BANDS[:12], diffusion=teacher.for_consistency()).prepare()


def test_volumes_are_learned_in_three_dimensions(tmp_path):
    volumes = RNG.integers(0, 4096, (10, 8, 10, 12)).astype(np.int16)
    data = str(folder_of(tmp_path / "volumes", volumes))
    run = tmp_path / "run"
    tiny_trainer(
        run, measured_diffusion(1, dims=3), data, normalize="affine", fit="patch", sample_every=6
    ).train()
    loaded = load_run(run).diffusion
    found = loaded.normalization.inverse(loaded.sample(2, num_steps=2, seed=0))
    assert found.shape == (2, 1, 8, 8, 8)
    assert found.dtype == np.int16
    assert (run / "samples" / "step-000000006.png").is_file()
    with pytest.raises(BadImagesError, match=r"volumes are not resampled: cut parts out with"):
        tiny_trainer(
            tmp_path / "b", measured_diffusion(1, dims=3), data, normalize="affine"
        ).train()


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        *((name, kind) for name in WHOLE_TYPES for kind in ("affine", "quantile")),
        ("float64", "affine"),
    ],
)
def test_the_ends_of_each_type_come_back(dtype: str, kind: str) -> None:
    """The highest whole number of 64 bits is none of float64, and the span of float64 infinite."""
    ends = np.finfo(dtype) if dtype == "float64" else np.iinfo(dtype)
    values = np.zeros((4, 1, 4, 4), dtype)
    values[0], values[1] = ends.min, ends.max
    with np.errstate(all="ignore"):  # the deviation of such values is none
        made = fitted(values, kind)
    back = made.inverse(made.forward(values))
    assert back.dtype == dtype
    assert np.isfinite(back.astype(np.float64)).all()
    assert float(back[0].max()) == float(ends.min)
    assert float(back[1].min()) == pytest.approx(float(ends.max), rel=1e-12)
