"""The audit finds what was planted, names nothing else, and writes a list that training takes."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

import ddpm_lib
from ddpm_lib import Shapes, open_dataset
from ddpm_lib.cli import main
from ddpm_lib.cli.audit import list_proposed
from ddpm_lib.data.auditing import KINDS, Audit, audit
from ddpm_lib.data.auditing.alignment import fine
from ddpm_lib.data.auditing.audit_findings import Finding
from ddpm_lib.data.auditing.audited_parts import splits_of
from ddpm_lib.data.auditing.copies import LEAST_DETAIL, _plausible
from ddpm_lib.data.auditing.descriptors import WHOLE, placed
from ddpm_lib.data.auditing.picture_measures import border_box, octave_powers, repeats
from ddpm_lib.data.auditing.rules import crop_losses
from ddpm_lib.data.auditing.value_findings import apart

WIDTH, HEIGHT = 72, 56


def photo(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with about as much in each octave of frequency, as those of the world have."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    shape = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    common = rng.normal(size=(height, width))
    channels = []
    for _ in range(3):
        noise = np.fft.rfft2(0.8 * common + 0.6 * rng.normal(size=(height, width)))
        values = np.fft.irfft2(noise * shape, s=(height, width))
        channels.append((values - values.mean()) / values.std() * 45 + 125)
    return Image.fromarray(np.clip(np.stack(channels, 2), 0, 255).astype(np.uint8))


def saved_again(picture: Image.Image) -> Image.Image:
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=60)
    return Image.open(io.BytesIO(raw.getvalue())).convert("RGB")


def bordered(picture: Image.Image) -> Image.Image:
    frame = Image.new("RGB", (picture.width + 16, picture.height + 16), "white")
    frame.paste(picture, (8, 8))
    return frame


def noisy(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture) + np.random.default_rng(0).normal(0, 5, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


COPIES = {
    "exact": lambda p: p.copy(),
    "saved_again": saved_again,
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cut": lambda p: p.crop((6, 3, 68, 51)),
    "scaled": lambda p: p.resize((144, 112), Image.Resampling.BICUBIC),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.25),
    "bordered": bordered,
    "turned": lambda p: p.rotate(3, Image.Resampling.BICUBIC).crop((3, 3, 69, 53)),
    "noisy": noisy,
    "grey": lambda p: p.convert("L").convert("RGB"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit") / "photos"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for k in range(60):
        photo(k).save(root / "ab"[k % 2] / f"{k:02d}.png")
    for k, (name, change) in enumerate(COPIES.items()):
        change(photo(k)).save(root / "ab"[k % 2] / f"copy_{name}.png")
    Image.new("RGB", (40, 40), (9, 200, 30)).save(root / "a" / "constant.png")
    photo(100).filter(ImageFilter.GaussianBlur(3)).save(root / "a" / "blurred.png")
    large = photo(101).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)
    large.save(root / "a" / "enlarged.png")
    large = photo(102).resize((3 * WIDTH, 3 * HEIGHT), Image.Resampling.NEAREST)
    large.save(root / "a" / "repeated.png")
    frame = Image.new("RGB", (120, 120), "white")
    frame.paste(photo(103), (20, 30))
    frame.save(root / "a" / "framed.png")
    photo(104, 160, 40).save(root / "a" / "wide.png")
    photo(105).convert("L").save(root / "a" / "without_colour.png")
    (root / "a" / "broken.png").write_bytes((root / "a" / "00.png").read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def found(folder: Path) -> Audit:
    return audit(folder, image_size=64, num_workers=0)


def test_copies_of_ten_kinds_are_found_and_nothing_else(found: Audit) -> None:
    names = {name: row for row, name in enumerate(found.names)}
    pairs = {
        tuple(
            sorted((names[f"{'ab'[k % 2]}/{k:02d}.png"], names[f"{'ab'[k % 2]}/copy_{kind}.png"]))
        )
        for k, kind in enumerate(COPIES)
    }
    groups = {tuple(sorted(group)) for kind in ("exact", "near") for group in found[kind].groups}
    assert groups == pairs
    assert found.names_of("exact") == ["a/copy_exact.png"]
    assert found.search.alarms <= 1
    made = sum(made for made, _ in found.search.probes.values())
    seen = sum(seen for _, seen in found.search.probes.values())
    assert made > 50
    assert seen >= 0.95 * made


def test_of_copies_the_better_one_stays(found: Audit) -> None:
    dropped = set(found.names_of("near"))
    assert {"b/copy_grey.png", "a/copy_noisy.png", "b/copy_saved_again.png"} <= dropped
    # Four times the pixels, and no more in them.
    assert "a/copy_scaled.png" in dropped
    assert "a/04.png" not in dropped


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("unreadable", ["a/broken.png"]),
        ("constant", ["a/constant.png"]),
        ("blurry", ["a/blurred.png"]),
        ("border", ["a/framed.png"]),
        ("grey", ["a/without_colour.png", "b/copy_grey.png"]),
        ("conflicts", []),
    ],
)
def test_faults_are_found_and_nothing_else(found: Audit, kind: str, names: list[str]) -> None:
    assert found.names_of(kind) == names


def test_enlarged_ones_are_found(found: Audit) -> None:
    enlarged = set(found.names_of("enlarged"))
    assert {"a/enlarged.png", "a/repeated.png"} <= enlarged
    assert enlarged <= {"a/enlarged.png", "a/repeated.png", "a/copy_scaled.png"}
    row = list(found.names).index("a/repeated.png")
    assert "3 times" in found["enlarged"].why[row]


def test_sizes_crops_and_values(found: Audit) -> None:
    names = list(found.names)
    assert found.crop.each[names.index("a/wide.png")] == pytest.approx(0.75)
    assert found.crop.worst[0] == names.index("a/wide.png")
    assert "a/wide.png" in found.names_of("small")
    assert found.widths.most == 3 * WIDTH
    assert [(one.name, one.images) for one in found.classes][1] == ("b", 35)
    assert 0.3 < found.colours.sigma < 0.5
    text = str(found)
    for finding in found.found():
        assert finding.title in text
    assert set(found.findings) == set(KINDS)
    json.dumps(found.to_dict())
    assert "<table" in found._repr_html_()


def test_crop_losses_are_those_of_the_areas() -> None:
    sizes = np.array([[100, 100], [200, 100], [100, 400], [0, 5]])
    assert crop_losses(sizes, (1, 1)).tolist() == pytest.approx([0, 0.5, 0.75, 0])
    assert crop_losses(sizes, (32, 64))[1] == pytest.approx(0)


def test_sigma_is_that_of_the_values() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    values = images / 127.5 - 1
    colours = audit(images, num_workers=0).colours
    assert colours.mean == pytest.approx((images / 255).mean((0, 1, 2)).tolist(), abs=1e-5)
    spread = np.sqrt(np.square(values - values.mean((0, 1, 2))).mean())
    assert colours.sigma == pytest.approx(spread, rel=1e-5)
    assert colours.root == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-5)
    assert (colours.least, colours.most) == (images.min(), images.max())


def test_measures_of_single_pictures() -> None:
    whole = photo(0)
    first, second, third = octave_powers(whole.convert("L"))
    assert 0.3 < first / second < 3
    assert 0.3 < second / third < 3
    blurred = octave_powers(whole.filter(ImageFilter.GaussianBlur(2)).convert("L"))
    assert blurred[0] / blurred[2] < 0.05
    box = border_box(bordered(whole))
    assert box == pytest.approx((8 / 88, 8 / 72, 80 / 88, 64 / 72), abs=0.03)
    assert repeats(np.asarray(whole)) == 1
    assert repeats(np.asarray(whole.resize((WIDTH * 4, HEIGHT * 4), Image.Resampling.NEAREST))) == 4


def test_groups_of_an_open_set_are_those_of_its_list(tmp_path: Path) -> None:
    """What training keeps on one side of its split, an audit does too, however it is given."""
    names = [f"{k:02d}.png" for k in range(12)]
    (tmp_path / "set").mkdir()
    for k, name in enumerate(names):
        photo(k).save(tmp_path / "set" / name)
    keep = tmp_path / "keep.txt"
    keep.write_text("\n".join(f"{name}\tgroup={k // 3}" for k, name in enumerate(names)))
    opened = open_dataset(tmp_path / "set", image_size=16, files=keep)
    for found in (audit(tmp_path / "set", files=keep), audit(opened)):
        same = found.near[:, None] == found.near[None]
        assert (same == (np.arange(12)[:, None] // 3 == np.arange(12) // 3)).all()


def test_what_means_nothing_for_an_open_set_is_refused() -> None:
    """And labels that are not to be looked at are not."""
    shapes = Shapes(size=16, n=12)
    wrong: tuple[tuple[str, Any], ...] = (
        ("split", "test"),
        ("labels", "folder"),
        ("label_column", "kind"),
        ("frames", "all"),
        ("normalize", "affine"),
        ("slice_axis", 1),
    )
    for name, value in wrong:
        given: dict[str, Any] = {name: value}
        for data in (shapes, "shapes"):
            with pytest.raises(ValueError, match=rf"{name}='?{value}'? does not fit"):
                audit(data, **given)
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"val_fraction must lie in \[0, 1\)"):
            audit(shapes, val_fraction=share)
    assert audit(shapes).classes
    assert not audit(shapes, labels="none").classes


def test_a_list_leaves_out_and_groups(found: Audit, folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    kept = found.save_list(keep)
    text = keep.read_bytes()
    assert found.save_list(keep) == kept
    assert keep.read_bytes() == text
    opened = open_dataset(folder, image_size=16, files=keep)
    assert len(opened) == kept == len(found) - len(found.left_out())
    assert opened.groups is None
    assert not set(opened.names) & {"a/constant.png", "a/copy_exact.png", "a/broken.png"}
    found.save_list(keep, drop=["unreadable"])
    grouped = open_dataset(folder, image_size=16, files=keep)
    assert grouped.groups is not None
    counts = np.bincount(grouped.groups)
    assert (counts == 2).sum() == len(COPIES)
    for seed in range(6):
        train, held = grouped.split(0.2, seed)
        assert train.groups is not None
        assert held.groups is not None
        assert not set(train.groups.tolist()) & set(held.groups.tolist())
    with pytest.raises(ValueError, match="Did you mean 'blurry'"):
        found.save_list(keep, drop=["blury"])


class Items(torch.utils.data.Dataset[Any]):
    """Items as many Datasets have them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[k]).permute(2, 0, 1), k % 2


def source(kind: str, images: np.ndarray, folder: Path) -> Any:
    labels = np.arange(len(images)) % 2
    if kind == "npz":
        np.savez(folder / "a.npz", images=images, labels=labels)
        return folder / "a.npz"
    if kind == "dataset":
        return Items(images)
    if kind == "opened":
        return open_dataset(images, image_size=(HEIGHT, WIDTH))
    if kind == "pictures":
        return [Image.fromarray(image) for image in images]
    if kind == "hf":
        from datasets import Dataset

        pictures = [Image.fromarray(image) for image in images]
        return Dataset.from_dict({"image": pictures, "label": labels})
    return (images, labels)


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["arrays", "npz", "dataset", "opened", "pictures", "hf"])
def test_every_source_can_be_looked_at(kind: str, tmp_path: Path) -> None:
    images = np.stack([np.asarray(photo(k)) for k in range(16)])
    images = np.concatenate([images, images[3:4], images[5:6, :, ::-1]])
    found = audit(source(kind, images, tmp_path), num_workers=2)
    assert found.names_of("exact") == ["000016"]
    assert found.names_of("near") == ["000017"]
    found.save_list(tmp_path / "keep.txt")
    if kind != "opened":
        opened = open_dataset(
            source(kind, images, tmp_path), image_size=8, files=tmp_path / "keep.txt"
        )
        assert list(opened.names) == [f"{k:06d}" for k in range(16)]


@pytest.mark.parametrize("how", ["splits", "val_data"])
def test_copies_of_held_out_images_are_found(how: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part, first in (("train", 0), ("test", 30)):
        (root / part).mkdir(parents=True)
        for k in range(first, first + 20):
            photo(k).save(root / part / f"{k}.png")
    photo(33).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "train" / "leak.png")
    assert splits_of(root) == ["train", "test"]
    if how == "splits":
        found = audit(root, num_workers=0)
        assert found.command.endswith("--split train")
    else:
        found = audit(root / "train", val_data=root / "test", num_workers=0)
    assert found.names_of("leaks") == ["leak.png"]
    (other,) = found.leak_of[found["leaks"].rows[0]]
    assert other[1].endswith(": 33.png")
    assert set(found.left_out()) == {int(found["leaks"].rows[0])}


def test_sets_of_one_colour_of_one_image_and_of_copies_alone() -> None:
    image = np.asarray(photo(0))
    assert len(audit(np.zeros((20, 8, 8, 3), np.uint8), num_workers=0)["constant"]) == 20
    assert audit(image[None], num_workers=0).found() == []
    same = audit(np.repeat(image[None], 12, 0), num_workers=0)
    assert same.names_of("exact") == [f"{k:06d}" for k in range(1, 12)]


def test_the_command_prints_writes_and_refuses(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["audit", str(folder), "--image-size", "64", "--num-workers", "0"]
    assert main([*words, "--write-list", "keep.txt"]) == 0
    out = capsys.readouterr().out
    assert "near-copies" in out
    assert "a/constant.png" in out
    assert f"ddpm train {folder} --image-size 64 --files keep.txt" in out
    page = (tmp_path / "audit.html").read_text()
    assert "Near-copies" in page
    assert page.count("<img") > 20
    first = (tmp_path / "keep.txt").read_bytes()
    assert main([*words, "--write-list", "keep.txt", "--output", "none", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"]["constant"]["names"] == ["a/constant.png"]
    assert (tmp_path / "keep.txt").read_bytes() == first
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*words, "--write-list", "mine.txt"]) == 2
    assert "no list that an audit wrote" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert main([*words, "--output", "mine.txt"]) == 2
    assert main([*words, "--drop", "blury"]) == 2
    assert "Did you mean 'blurry'" in capsys.readouterr().err


class Left:
    """An audit of ten images, by what each kind of finding would leave out."""

    command = "pics"

    def __init__(self, **rows: set[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 10

    def left_out(self, drop: Sequence[str]) -> set[int]:
        return set().union(*(self.rows.get(kind, set()) for kind in drop))

    def __getitem__(self, kind: str) -> Finding:
        title = {"near": "near-copies", "constant": "of one colour"}.get(kind, kind)
        return Finding(kind, title, np.array(sorted(self.rows.get(kind, ()))), {}, "")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"exact": {1}}, ["without 1 of them (exact, near, leaks), for ddpm train pics"]),
        ({"near": {1}, "leaks": set(range(10))}, ["--drop exact,near writes a list without 1"]),
        ({"exact": {1}, "near": set(range(9))}, ["--drop exact writes a list without 1"]),
        ({"near": set(range(9))}, [("would leave 1 of 10 images", "'near-copies'. The set is")]),
        ({"constant": set(range(10))}, [("would leave 0 of 10", "'of one colour'. --drop names")]),
        ({}, []),
    ],
)
def test_a_list_is_proposed_that_leaves_images(
    rows: dict[str, set[int]], said: list[str | tuple[str, ...]]
) -> None:
    found: Any = Left(**rows)
    lines = list_proposed(found, ["exact", "near", "leaks", *("constant",) * ("constant" in rows)])
    assert len(lines) == len(said)
    for parts, line in zip(said, lines):
        assert all(part in line for part in ([parts] if isinstance(parts, str) else parts))


def test_it_is_a_public_name() -> None:
    assert ddpm_lib.audit is audit


def values_folder(root: Path) -> Path:
    """Write 60 images of two channels of values, and among them what an audit is to find."""
    draw = np.random.default_rng(3)
    smooth = draw.standard_normal((60, 2, 6, 6)).repeat(4, 2).repeat(4, 3)
    images = (280 + 10 * smooth + draw.standard_normal((60, 2, 24, 24))).astype(np.float32)
    root.mkdir()
    for k, one in enumerate(images):
        np.save(root / f"{k:02d}.npy", one)
    np.save(root / "exact.npy", images[3])
    np.save(root / "turned.npy", images[7][..., ::-1])
    other = images[9].copy()
    other[0, 0, 0] += 1e-3
    np.save(root / "nearly.npy", other)  # alike in 8 bits, not in its values
    np.save(root / "flat.npy", np.full((2, 24, 24), 280, np.float32))
    other[0, 0, 0] = np.nan
    np.save(root / "hole.npy", other)
    return root


def test_measured_values_are_audited(tmp_path: Path) -> None:
    """In their units, without being told that they are; copies are those of values, and the look of
    pictures is not asked for. The list is that of a training.
    """
    folder = values_folder(tmp_path / "a")
    found = audit(str(folder), num_workers=0)
    assert found.names_of("exact") == ["exact.npy"]
    assert sorted(found.names_of("near")) == ["nearly.npy", "turned.npy"]
    assert (found.names_of("constant"), found.names_of("unreadable")) == (
        ["flat.npy"],
        ["hole.npy"],
    )
    assert found.values is not None
    good = [
        np.load(folder / f"{found.names[k]}") for k in range(65) if "hole" not in found.names[k]
    ]
    for k, channel in enumerate(found.values.channels):
        every = np.stack(good)[:, k].astype(np.float64)
        assert (channel.low, channel.high) == (every.min(), every.max())
        assert (channel.mean, channel.std) == pytest.approx((every.mean(), every.std()), rel=1e-6)
    assert found["blurry"].said == "not asked of measured values"
    assert found.command.endswith("a --normalize affine --channels 2")
    assert "channel 1" in str(found)
    kept = found.save_list(tmp_path / "keep.txt")
    options = {"image_size": 24, "channels": 2, "normalize": "affine"}
    assert len(open_dataset(folder, **options, files=str(tmp_path / "keep.txt"))) == kept == 60
    again = audit(str(folder), files=str(tmp_path / "keep.txt"), num_workers=0)
    assert (len(again), again.found()) == (60, [])


def test_an_open_set_of_values_and_volumes(tmp_path: Path) -> None:
    """Slices of one volume are alike and no copies of each other; whole volumes are no pictures."""
    draw = np.random.default_rng(4)
    base = draw.standard_normal((6, 1, 8, 8)).repeat(4, 2).repeat(4, 3)
    volumes = (100 * (base + 0.02 * draw.standard_normal((6, 5, 32, 32)))).astype(np.int16)
    for k, one in enumerate(volumes):
        np.save(tmp_path / f"{k}.npy", one)
    found = audit(str(tmp_path), normalize="affine", channels=1, slice_axis=0, num_workers=0)
    assert (len(found), len(found["near"]), len(found["leaks"])) == (30, 0, 0)
    opened = open_dataset(volumes[:, 0], image_size=32, channels=1, normalize="affine")
    assert audit(opened).values.stored == "int16"  # type: ignore[union-attr]
    whole = open_dataset(volumes[:, None], image_size=(5, 32, 32), channels=1, normalize="affine")
    with pytest.raises(ValueError, match=r"this set holds entries of shape \(1, 5, 32, 32\)"):
        audit(whole)


def test_values_that_cannot_be_audited(tmp_path: Path) -> None:
    """The thing, what was got, and what would be right."""
    folder = values_folder(tmp_path / "a")
    for options, told in (
        ({"channels": 3}, "pass channels=2"),
        ({"normalize": "afine"}, "affine"),
        ({"slice_axis": 7}, "must be 0, 1 or 2"),
    ):
        with pytest.raises(ValueError, match=told):
            audit(str(folder), **options, num_workers=0)


def at_sea(seed: int) -> Image.Image:
    """A ship whose outline is always the same, in waves of its own."""
    waves = np.random.default_rng(seed).normal(size=(32, 32))
    for axis in (0, 1):
        waves = np.apply_along_axis(np.convolve, axis, waves, np.array([0.25, 0.5, 0.25]), "same")
    values = 128 + 18 * waves / waves.std()
    values[3:13, 4:13], values[13:17, 4:28] = 250, 0
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def test_an_outline_in_common_makes_no_copies() -> None:
    """Details agree as a whole, as the outline has most of them, and not from cell to cell."""
    others = [at_sea(k) for k in range(4)]
    made = [saved_again(others[0]), others[0].convert("L").point(lambda v: int(0.8 * v))]
    pictures = [*others, *(copy.convert("RGB") for copy in made)]
    small = torch.from_numpy(np.stack([np.asarray(one).transpose(2, 0, 1) for one in pictures]))
    first, second = torch.tensor([0, 1, 2, 0, 0]), torch.tensor([1, 2, 3, 4, 5])
    starts, none = placed(WHOLE, False, 5), torch.zeros(6, 64, 64, dtype=torch.uint8)
    agreed = fine(small, none, first, second, starts, LEAST_DETAIL)
    assert (agreed.detail > LEAST_DETAIL + 0.05).all()
    assert (agreed.whole > 0.88).all()
    assert (agreed.cells[:3] < 0.65).all()
    assert (agreed.cells[3:] > 0.8).all()
    assert _plausible(agreed).tolist() == [False, False, False, True, True]


def test_another_colour_asks_for_more_agreement() -> None:
    """Of grey versions all cells agree; of what is merely alike in another colour they do not."""
    small = torch.from_numpy(np.stack([np.asarray(photo(7, 32, 32)).transpose(2, 0, 1)] * 2).copy())
    small[1] = small[1].float().mean(0).to(torch.uint8)
    row, none = torch.tensor([0]), torch.zeros(2, 64, 64, dtype=torch.uint8)
    agreed = fine(small, none, row, row + 1, placed(WHOLE, False, 1), LEAST_DETAIL)
    assert float(agreed.hue) > 0.06
    assert _plausible(agreed).tolist() == [True]
    less = dataclasses.replace(agreed, cells=agreed.cells * 0 + 0.8)
    assert _plausible(less).tolist() == [False]
    assert _plausible(dataclasses.replace(less, hue=less.hue * 0 + 0.05)).tolist() == [True]


def test_slices_of_two_parts_are_of_different_volumes() -> None:
    """Of the volumes that a list leaves, the first may be the fiftieth."""

    class Slices(list[int]):
        @property
        def groups(self) -> np.ndarray:
            return np.array(self)

    sources: Any = [Slices([50, 50]), Slices([48, 49])]
    pairs: Any = SimpleNamespace(first=np.array([0, 0, 1]), second=np.array([1, 2, 3]))
    assert apart(pairs, sources).tolist() == [False, True, True]


def test_a_small_spread_beside_a_large_offset_is_measured() -> None:
    values = 1e9 + np.random.default_rng(0).standard_normal((24, 2, 16, 16))
    values[::2] += 3
    found = audit(values, normalize="affine", channels=2, num_workers=0).values
    assert found is not None
    for k, one in enumerate(found.channels):
        assert one.mean == pytest.approx(values[:, k].mean(), abs=1e-3)
        assert one.std == pytest.approx(values[:, k].std(), rel=1e-3)
    notes = open_dataset(values, image_size=16, channels=2, normalize="affine").notes
    assert not [note for note in notes if "small part of their range" in note]
    values[0, 0, 0, 0] += 1000
    notes = open_dataset(values, image_size=16, channels=2, normalize="affine").notes
    one = values[:, 0]
    spread = 2 * one.std() / (one.max() - one.min())
    assert [note for note in notes if f"a standard deviation of {spread:.2g} in [-1, 1]" in note]
