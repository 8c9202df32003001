"""Pictures in .zip and .tar archives: read in place, equal to the folder they were packed from."""

import io
import json
import os
import pickle  # noqa: TID251
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.cli import main
from ddpm_lib.data import BadImagesError, make_loader, open_dataset
from ddpm_lib.data.archives.archive_files import archive_in
from ddpm_lib.data.archives.archive_tree import ArchiveTree
from ddpm_lib.data.archives.webdataset_samples import key_of
from ddpm_lib.data.survey import survey
from training_helpers import StopAt, assert_same_tensors, final_tensors, tiny_trainer


def png(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    generator = np.random.default_rng(seed)
    shape = (*size, 3) if mode == "RGB" else size
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"{('cat', 'dog', 'ant')[k % 3]}/{k:02d}.png": png(k) for k in range(18)}


def write_folder(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("top", ["", "pets/", "./deep/pets/"])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_an_archive_is_the_folder_it_was_packed_from(tmp_path, suffix, top, cache):
    """Names, labels, pixels and fingerprint are the same, so that a run may go on from either."""
    folder = open_dataset(write_folder(tmp_path / "pets"), image_size=8, cache=cache)
    shuffled = list(FILES.items())
    random.Random(0).shuffle(shuffled)
    packed = pack(tmp_path / f"pets{suffix}", {top + name: data for name, data in shuffled})
    data = open_dataset(packed, image_size=8, cache=cache, num_workers=0)
    assert list(data.names) == list(folder.names)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == folder.labels.tolist()
    assert torch.equal(data.batch(range(18))["image"], folder.batch(range(18))["image"])
    assert data.fingerprint == folder.fingerprint
    assert data.origin.content.tolist() == folder.origin.content.tolist()


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2], ids=str
)
def test_methods_of_packing(tmp_path, method):
    packed = pack(tmp_path / "a.zip", method=method)
    tree = ArchiveTree([packed])
    assert {name: tree.read(name.encode()) for name in FILES} == FILES


def test_a_method_that_is_not_read_is_named(tmp_path):
    packed = pack(tmp_path / "a.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(BadImagesError, match=r"packed by LZMA.*unpack the archive"):
        open_dataset(packed, image_size=8)


def test_a_folder_in_an_archive_and_a_split(tmp_path):
    files = {f"pets/train/{name}": data for name, data in FILES.items()}
    files |= {f"pets/test/{name}": png(99 + k) for k, name in enumerate(FILES)}
    packed = pack(tmp_path / "a.zip", files)
    with pytest.raises(ValueError, match=r"look like splits.*a\.zip/pets/train"):
        open_dataset(packed, image_size=8)
    inside = open_dataset(packed / "pets" / "train", image_size=8)
    by_split = open_dataset(packed, image_size=8, split="train")
    whole = open_dataset(write_folder(tmp_path / "folder"), image_size=8)
    assert inside.fingerprint == by_split.fingerprint == whole.fingerprint
    assert open_dataset(packed, image_size=8, split="test").fingerprint != whole.fingerprint
    with pytest.raises(FileNotFoundError, match=r"holds no folder 'val'.*test, train"):
        open_dataset(packed, image_size=8, split="val")
    with pytest.raises(FileNotFoundError, match=r"holds no folder 'dogs'.*There are: pets"):
        open_dataset(packed / "dogs", image_size=8)


def test_what_systems_put_into_archives_is_left_out(tmp_path):
    junk = {
        "__MACOSX/pets/cat/._00.png": b"\0\5\x16\7",
        "pets/.DS_Store": b"x",
        "pets/Thumbs.db": b"x",
        "pets/cat/._01.png": b"x",
        "pets/cat/@eaDir/00.png/thumb.png": png(1),
        "README.txt": b"x",
    }
    files = {**{f"pets/{name}": data for name, data in FILES.items()}, **junk}
    data = open_dataset(pack(tmp_path / "a.zip", files), image_size=8)
    assert len(data) == 18
    assert data.class_names == ("ant", "cat", "dog")
    assert any("1 × @eaDir" in note for note in data.notes)


def test_samples_of_a_run_in_an_archive_are_no_data(tmp_path):
    files = {"run/config.yaml": b"", "run/checkpoints/step/model": b"", "run/samples/1.png": png(1)}
    data = open_dataset(pack(tmp_path / "a.tar", {**FILES, **files}), image_size=8)
    assert len(data) == 18
    assert any("run directories" in note for note in data.notes)


def test_encrypted_archives_are_named(tmp_path):
    packed = pack(tmp_path / "a.zip")
    raw = bytearray(packed.read_bytes())

    def lock(count: int) -> None:  # bit 0 of the flags in the central directory says "encrypted"
        at = 0
        for _ in range(count):
            at = raw.index(b"PK\x01\x02", at) + 1
            raw[at + 7] |= 1
        packed.write_bytes(bytes(raw))

    lock(2)
    with pytest.raises(BadImagesError, match=r"2 of 18.*\n.*encrypted.*password"):
        open_dataset(packed, image_size=8)
    assert len(open_dataset(packed, image_size=8, on_bad_image="skip")) == 16
    lock(18)
    with pytest.raises(ValueError, match=r"a\.zip' is encrypted.*7z x"):
        open_dataset(packed, image_size=8)


def test_a_damaged_member_is_named_and_may_be_skipped(tmp_path):
    packed = pack(tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    raw = packed.read_bytes()
    at = raw.index(FILES["dog/01.png"])
    packed.write_bytes(raw[: at + 60] + b"????" + raw[at + 64 :])
    with pytest.raises(BadImagesError, match=r"dog/01\.png: damaged in the archive.*checksum"):
        open_dataset(packed, image_size=8)
    assert len(open_dataset(packed, image_size=8, on_bad_image="skip")) == 17


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("keep", [0, 300, 0.5, 0.9])
def test_an_archive_that_was_not_copied_whole_is_named(tmp_path, suffix, keep):
    packed = pack(tmp_path / f"a{suffix}")
    raw = packed.read_bytes()
    if suffix == ".tar":
        raw = raw.rstrip(b"\0")
    packed.write_bytes(raw[: keep if isinstance(keep, int) else int(len(raw) * keep)])
    with pytest.raises(ValueError, match=rf"a{suffix}' is damaged or no {suffix} archive"):
        open_dataset(packed, image_size=8)


def test_a_tar_without_its_end_mark_is_read_with_a_note(tmp_path):
    packed = pack(tmp_path / "a.tar")
    with tarfile.open(packed) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    packed.write_bytes(packed.read_bytes()[:end])
    data = open_dataset(packed, image_size=8)
    assert len(data) == 18
    assert any("no end mark" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_name_the_way(tmp_path, mode):
    with tarfile.open(tmp_path / f"a.tar.{mode}", f"w:{mode}"):
        pass
    with pytest.raises(ValueError, match=r"Decompress it to a plain \.tar.*tar -xf"):
        open_dataset(tmp_path / f"a.tar.{mode}", image_size=8)
    os.rename(tmp_path / f"a.tar.{mode}", tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"is compressed .*plain \.tar is read in place"):
        open_dataset(tmp_path / "a.tar", image_size=8)


def test_links_and_holes_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("a.png", tarfile.REGTYPE, ""),
            ("hard.png", tarfile.LNKTYPE, "a.png"),
            ("x/soft.png", tarfile.SYMTYPE, "../a.png"),
            ("lost.png", tarfile.SYMTYPE, "nowhere.png"),
            ("fifo.png", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(FILES["cat/00.png"]) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(FILES["cat/00.png"]))
    with pytest.raises(BadImagesError, match=r"1 of 4 .*\n  lost\.png: a link to a file"):
        open_dataset(tmp_path / "a.tar", image_size=8)
    data = open_dataset(tmp_path / "a.tar", image_size=8, on_bad_image="skip")
    pixels = data.batch(range(3))["image"]
    assert list(data.names) == ["a.png", "hard.png", "x/soft.png"]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_the_later_of_two_members_counts_as_when_unpacked(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for seed in (1, 2):
            info = tarfile.TarInfo("a.png")
            info.size = len(png(seed))
            archive.addfile(info, io.BytesIO(png(seed)))
    tree = ArchiveTree([tmp_path / "a.tar"])
    assert tree.read(b"a.png") == png(2)
    assert any("holds 1 files twice" in note for note in tree.notes)


def test_names_that_lead_out_of_an_archive_stay_in_it(tmp_path):
    packed = pack(tmp_path / "a.tar", {"/etc/a.png": png(1), "../../b.png": png(2)})
    assert list(open_dataset(packed, image_size=8).names) == ["b.png", "etc/a.png"]


def test_names_of_windows_and_of_old_programs(tmp_path):
    packed = pack(tmp_path / "a.zip", {"Bär/a.png": png(1), "Kuh/b.png": png(2)})
    raw = packed.read_bytes()
    names = ["Bär/a.png", "Kuh/b.png"]
    assert list(open_dataset(packed, image_size=8).names) == names
    at = 0
    for _ in names:  # as if the name were not said to be UTF-8
        at = raw.index(b"PK\x01\x02", at) + 1
        raw = raw[: at + 8] + bytes([raw[at + 8] & ~8]) + raw[at + 9 :]
    packed.write_bytes(raw)
    assert list(open_dataset(packed, image_size=8).names) == names
    raw = raw.replace("Bär/a".encode(), "Bär\\a".encode()).replace(b"Kuh/b", b"Kuh\\b")
    packed.write_bytes(raw)
    assert list(open_dataset(packed, image_size=8).names) == names


def test_a_table_in_an_archive_gives_labels(tmp_path):
    files = {f"pets/{k}.png": png(k) for k in range(6)}
    table = "\n".join(["file_name,kind", *(f"{k}.png,{'ab'[k % 2]}" for k in range(6))])
    packed = pack(tmp_path / "a.zip", {**files, "pets/metadata.csv": table.encode()})
    data = open_dataset(packed, image_size=8, label_column="kind")
    assert data.class_names == ("a", "b")
    assert data.labels.tolist() == [0, 1] * 3
    with pytest.raises(ValueError, match=r"'sort'.*kind"):
        open_dataset(packed, image_size=8, label_column="sort")


def shards(root: Path, count: int = 3, each: int = 4, **more: dict[str, bytes]) -> list[Path]:
    root.mkdir(exist_ok=True)
    made = []
    for k in range(count):
        files = {}
        for i in range(k * each, (k + 1) * each):
            files[f"{i:06d}.jpg"] = png(i)
            files[f"{i:06d}.cls"] = f"{i % 3}".encode()
            files[f"{i:06d}.json"] = json.dumps({"kind": "xyz"[i % 3], "id": i}).encode()
        made.append(pack(root / f"shard-{k:04d}.tar", files))
    return made


def test_samples_of_webdataset(tmp_path):
    """The key is the name up to its first dot; .cls and the keys of .json are columns of labels."""
    made = shards(tmp_path / "wds")
    one = open_dataset(made[1], image_size=8)
    assert list(one.names) == [f"{i:06d}.jpg" for i in range(4, 8)]
    assert one.labels.tolist() == [1, 2, 0, 1]
    whole = open_dataset(tmp_path / "wds", image_size=8)
    assert list(whole.names) == [f"{i:06d}.jpg" for i in range(12)]
    assert whole.labels.tolist() == [i % 3 for i in range(12)]
    assert any("3 archives are read as one set" in note for note in whole.notes)
    pattern = open_dataset(f"{tmp_path}/wds/shard-000[01].tar", image_size=8, label_column="kind")
    assert pattern.class_names == ("x", "y", "z")
    assert len(pattern) == 8
    assert open_dataset(tmp_path / "wds", image_size=8, labels="none").class_names is None
    with pytest.raises(ValueError, match=r"'colour'.*kind"):
        open_dataset(made[0], image_size=8, label_column="colour")


def test_several_pictures_of_a_sample_must_be_told_apart(tmp_path):
    files = {}
    for i in range(4):
        files |= {f"{i}.jpg": png(i), f"{i}.depth.png": png(50 + i), f"{i}.cls": b"1"}
    packed = pack(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=r"several pictures each: .*image_column=.jpg"):
        open_dataset(packed, image_size=8)
    data = open_dataset(packed, image_size=8, image_column="depth.png")
    assert list(data.names) == [f"{i}.depth.png" for i in range(4)]
    with pytest.raises(ValueError, match=r"No sample has a picture 'webp'"):
        open_dataset(packed, image_size=8, image_column="webp")


def test_a_damaged_label_and_a_missing_one(tmp_path):
    files = {f"{i}.jpg": png(i) for i in range(4)} | {
        f"{i}.json": b'{"label": 1}' for i in range(4)
    }
    packed = pack(tmp_path / "a.tar", {**files, "2.json": b"{"})
    with pytest.raises(ValueError, match=r"2\.json in the archive is no JSON"):
        open_dataset(packed, image_size=8)
    assert len(open_dataset(packed, image_size=8, labels="none")) == 4
    del files["3.json"]
    data = open_dataset(pack(tmp_path / "b.tar", files), image_size=8)
    assert data.class_names is None
    assert any("1 of 4 images have no label" in note for note in data.notes)


def test_shards_of_splits_are_not_mixed(tmp_path):
    for name in ("train-000", "train-001", "val-000"):
        pack(tmp_path / f"{name}.tar", {f"{name}/{k}.png": png(k) for k in range(3)})
    with pytest.raises(ValueError, match=r"several splits: train, val.*--split train"):
        open_dataset(tmp_path, image_size=8)
    assert len(open_dataset(tmp_path, image_size=8, split="train", labels="none")) == 6


def test_shards_with_the_same_names_keep_theirs_in_front(tmp_path):
    for name in ("a", "b"):
        pack(tmp_path / f"{name}.zip", {f"{k}.png": png(k) for k in range(2)})
    data = open_dataset(tmp_path, image_size=8, labels="none")
    assert list(data.names) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_each_worker_opens_the_archive_for_itself(tmp_path, suffix):
    """Workers that shared a handle would read at each other's places."""
    packed = pack(tmp_path / f"a{suffix}")
    data = open_dataset(packed, image_size=8, cache="none", num_workers=0)
    want = data.batch(range(18))["image"]  # the parent holds an open handle when it forks
    rows = [list(range(k, k + 3)) for k in range(0, 18, 3)] * 5
    got = [batch["image"] for batch in make_loader(data, rows, num_workers=2)]
    for chosen, images in zip(rows, got, strict=True):
        assert torch.equal(images, want[chosen])


def test_handles_do_not_cross_a_fork_nor_a_pickle(tmp_path):
    tree = ArchiveTree([pack(tmp_path / "a.tar")])
    tree.read(b"cat/00.png")
    mine = dict(tree._files)
    assert mine
    child = os.fork()
    if child == 0:
        tree.read(b"cat/00.png")
        moved = os.lseek(next(iter(mine.values())), 0, os.SEEK_CUR)
        os._exit(0 if tree._owner == os.getpid() and moved == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tree._files == mine
    again = pickle.loads(pickle.dumps(tree))
    assert again._files is None
    assert again.read(b"dog/01.png") == FILES["dog/01.png"]


def test_many_shards_keep_few_files_open(tmp_path):
    for k in range(40):
        pack(tmp_path / f"{k:02d}.tar", {f"{k:02d}.png": png(k)})
    tree = ArchiveTree(sorted(tmp_path.glob("*.tar")))
    for k in range(40):
        assert tree.read(b"%02d.png" % k) == png(k)
    assert len(tree._files) == 32


def test_an_archive_that_changes_is_not_read_by_old_places(tmp_path):
    packed = pack(tmp_path / "a.tar")
    data = open_dataset(packed, image_size=8, cache="none", num_workers=0, verify=False)
    store = data._store.source.tree
    store._files.clear()
    pack(packed, {**FILES, "aaa/00.png": png(77)})
    with pytest.raises(BadImagesError, match=r"a\.tar has changed since it was opened"):
        data[0]


def test_frames_and_bad_pictures_in_an_archive(tmp_path):
    stack = io.BytesIO()
    pages = [Image.open(io.BytesIO(png(k))) for k in range(3)]
    pages[0].save(stack, "TIFF", save_all=True, append_images=pages[1:])
    files = {"a.tif": stack.getvalue(), "b.png": png(9), "c.png": b""}
    packed = pack(tmp_path / "a.zip", files)
    with pytest.raises(BadImagesError, match=r"c\.png: empty"):
        open_dataset(packed, image_size=8)
    data = open_dataset(packed, image_size=8, frames="all", on_bad_image="skip")
    assert list(data.names) == ["a.tif#0000", "a.tif#0001", "a.tif#0002", "b.png"]


def test_archives_without_pictures_say_what_they_hold(tmp_path):
    packed = pack(tmp_path / "a.zip", {"x/scan.dcm": b"x", "notes.txt": b"x"})
    with pytest.raises(FileNotFoundError, match=r"The archive '.*a\.zip' holds no pictures.*DICOM"):
        open_dataset(packed, image_size=8)
    with pytest.raises(FileNotFoundError, match=r"holds no files"):
        open_dataset(pack(tmp_path / "b.tar", {}), image_size=8)
    nested = pack(tmp_path / "c.zip", {"inner.zip": packed.read_bytes()})
    with pytest.raises(FileNotFoundError, match=r"1 × \.zip"):
        open_dataset(nested, image_size=8)


def test_paths_into_archives(tmp_path):
    packed = pack(tmp_path / "a.zip")
    assert archive_in(packed) == (packed, "")
    assert archive_in(packed / "cat" / "x") == (packed, "cat/x")
    assert archive_in(tmp_path / "cat") is None
    assert archive_in(tmp_path / "lost.zip" / "cat") is None
    assert key_of(b"a.b/c.d.png") == (b"a.b/c", b"d.png")
    assert key_of(b"x") == (b"x", b"")


def test_audit_plan_and_evaluate_take_archives(tmp_path, capsys, monkeypatch):
    """What a command says of an archive is what it says of the folder that was packed."""
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "pets.zip")
    write_folder(tmp_path / "pets")
    said = {}
    for name in ("pets", "pets.zip"):
        assert main(["audit", name, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        said["audit", name] = {key: found[key] for key in ("images", "findings", "classes")}
        score = ["--reference", "pets", "--features", "pixels", "--metrics", "kid"]
        assert main(["evaluate", name, *score, "--device", "cpu"]) == 0
        said["evaluate", name] = capsys.readouterr().out.split("\n")[2].split()[1:]
        looked = survey(name)
        said["plan", name] = (looked.images, looked.class_names, looked.shape)
    for command in ("audit", "evaluate", "plan"):
        assert said[command, "pets"] == said[command, "pets.zip"]


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_run_goes_on_exactly_from_an_archive_of_its_folder(tmp_path, cache):
    """Stopped on the folder, continued on the .zip: every tensor as without either."""
    folder, packed = write_folder(tmp_path / "pets"), pack(tmp_path / "pets.zip")
    options = {"cache": cache, "num_workers": 0}
    tiny_trainer(tmp_path / "whole", data=str(folder), **options).train()
    tiny_trainer(tmp_path / "cut", data=str(folder), callbacks=[StopAt(3)], **options).train()
    tiny_trainer(tmp_path / "cut", data=str(packed), **options).train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
