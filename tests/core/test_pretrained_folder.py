"""The format of pretrained folders: whole or not at all, and read strictly."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import load_state_dict_from_file, split_torch_state_dict_into_shards

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub import folder as folders
from ddpm_lib.core.hub.folder import arranged, open_folder, save_folder
from ddpm_lib.core.hub.folder_config import CONFIG, FolderConfig

# As long as the names in DINO's checkpoints.
DINO = "backbone.encoder.layer.{}.attention.attention.qkv_projection.parametrizations.original{}"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What a killed process wrote is there without: only a machine that dies needs it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def dino_like(value: float = 0.0, layers: int = 12) -> dict[str, torch.Tensor]:
    """Tensors of 256 kB, named as those of a large vision transformer are."""
    tensors = {}
    for layer in range(layers):
        for part in range(2):
            tensors[DINO.format(layer, part)] = torch.full((256, 256), value + layer + part / 10)
    return tensors


def config(class_name: str = "Unet", **weights: str) -> FolderConfig:
    return FolderConfig(
        model={"class": class_name, "config": {}}, weights=weights or {"model": "model"}
    )


def save(path: Path, value: float, size: int | str = "5GB", layers: int = 12) -> Path:
    tensors = dino_like(value, layers)
    return save_folder(path, config(f"Net{value:g}"), {"model": tensors}, size)


def content(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    opened = open_folder(path)
    return opened.config.model["class"], opened.tensors("model")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


@pytest.mark.parametrize("size", ["1MB", 300_000, 1, "5GB"])
def test_shards_are_those_of_the_hubs_tools(tmp_path, size):
    tensors = dino_like()
    save(tmp_path / "m", 0.0, size)
    assert same(content(tmp_path / "m")[1], tensors)
    plan = split_torch_state_dict_into_shards(
        tensors, max_shard_size=size, filename_pattern="model{suffix}.safetensors"
    )
    files = {p.name for p in (tmp_path / "m").iterdir()}
    extra = {CONFIG} | ({"model.safetensors.index.json"} if plan.is_sharded else set())
    assert files == set(plan.filename_to_tensors) | extra
    assert plan.is_sharded == (size != "5GB")
    if plan.is_sharded:
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert index == {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    for name, keys in plan.filename_to_tensors.items():  # others read them, too
        theirs = load_state_dict_from_file(tmp_path / "m" / name)
        assert same(theirs, {key: tensors[key] for key in keys})


def test_every_dtype_shape_and_tie_survives(tmp_path):
    kinds = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"]
    tensors = {k: torch.arange(6).reshape(2, 3).to(getattr(torch, k)) for k in kinds}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    tensors["view"] = torch.arange(24.0).reshape(4, 6).t()[1:4]
    tensors["tied"] = tensors["float32"]
    for size in ("5GB", 24):
        save_folder(tmp_path / "m", config(), {"model": tensors}, size)
        assert same(content(tmp_path / "m")[1], tensors)
    save_folder(tmp_path / "none", config(), {"model": {}})
    assert content(tmp_path / "none")[1] == {}


def test_files_are_readable_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "m", 0.0, "1MB")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()} == {0o640}


@pytest.mark.parametrize("size", ["1 GiB", "", "five", 0, -1, True, 1.5, None, "0MB", "5 GB x"])
def test_sizes_that_are_none_are_refused(tmp_path, size):
    with pytest.raises(ConfigError, match="max_shard_size must be a number of bytes"):
        save_folder(tmp_path / "m", config(), {"model": {}}, size)
    assert not (tmp_path / "m").exists()


def test_names_of_weights():
    one, two, three = ({"w": torch.zeros(1)} for _ in range(3))
    stems, groups = arranged({"ema": one, "ema:0.999": one, "ema:0.05": two, "model": three})
    assert stems == {
        "ema": "model",
        "ema:0.999": "model",
        "ema:0.05": "model.ema-0.05",
        "model": "model.raw",
    }
    assert groups == {"model": one, "model.ema-0.05": two, "model.raw": three}
    described = config(**stems)
    assert described.choose(None, "x") == ("ema", "model")
    assert described.choose("ema:0.9990", "x") == ("ema:0.999", "model")
    with pytest.raises(ConfigError, match=r"x holds no weights 'ema:0.5'. It holds: 'ema', 'ema:0"):
        described.choose("ema:0.5", "x")
    for wrong in ("best", "ema:", "ema:../x", "Model", "", 3):
        with pytest.raises(ConfigError, match="Weights are called"):
            arranged({wrong: one})
    with pytest.raises(ConfigError, match="at least one"):
        arranged({})


def test_an_older_folder_is_replaced_and_the_rest_of_it_stays(tmp_path):
    path = save(tmp_path / "m", 1.0, "1MB")
    (path / "README.md").write_text("mine")
    (path / "samples").mkdir()
    save(path, 2.0)
    assert sorted(p.name for p in path.iterdir()) == [
        "README.md",
        CONFIG,
        "model.safetensors",
        "samples",
    ]
    name, tensors = content(path)
    assert name == "Net2"
    assert same(tensors, dino_like(2.0))
    save(path, 3.0, "1MB")
    assert content(path)[0] == "Net3"
    assert not (path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"notes.txt": "x"}, "is no pretrained folder and holds notes.txt"),
        ({CONFIG: '{"architectures": ["Bert"]}'}, "is a model of transformers or timm and holds"),
        ({"model_index.json": "{}"}, "is a pipeline of diffusers and holds"),
        ({CONFIG: "{", "model.safetensors": "x"}, "is no pretrained folder and holds config.json"),
        (
            {"config.yaml": "x", "checkpoints/step-000000001/manifest.json": "{}"},
            "holds checkpoints",
        ),
    ],
)
def test_what_is_not_ours_is_not_replaced(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        save(tmp_path / "m", 1.0)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {Path(n).parts[0] for n in files}


def test_a_fresh_repository_may_be_saved_into(tmp_path):
    (tmp_path / "m" / ".git").mkdir(parents=True)
    (tmp_path / "m" / "README.md").write_text("mine")
    save(tmp_path / "m", 1.0)
    assert content(tmp_path / "m")[0] == "Net1"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is no folder"):
        save(tmp_path / "file", 1.0)


# --- killed in the middle ----------------------------------------------------------------------

EVENTS = [(os, "replace"), (os, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "write_text")]
EVENTS += [(folders, "flush"), (folders, "write_shards"), (shutil, "rmtree")]


def die_at(event: int, work) -> bool:
    """Run `work` in a forked process that ends, as if killed, before its n-th change of the disk.

    Returns whether it was killed, rather than done before.
    """
    child = os.fork()
    if child == 0:
        left = [event]

        def before(function):
            def wrapped(*args, **kwargs):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return function(*args, **kwargs)

            return wrapped

        for owner, name in EVENTS:
            setattr(owner, name, before(getattr(owner, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("before", "after"), [("5GB", "300KB"), ("300KB", "5GB"), ("300KB", "600KB")]
)
def test_killed_at_any_change_of_the_disk_it_is_what_it_was_or_what_was_to_be(
    tmp_path, before, after
):
    seen, event = set(), 0
    while True:
        path = save(tmp_path / f"m{event}", 1.0, before, layers=2)
        (path / "README.md").write_text("mine")
        killed = die_at(event, lambda path=path: save(path, 2.0, after, layers=3))
        name, tensors = content(path)
        layers = {"Net1": 2, "Net2": 3}[name]
        assert same(tensors, dino_like(float(name[3:]), layers))
        seen.add(name)
        save(path, 3.0, after, layers=1)  # nothing of the killed one stays
        assert content(path)[0] == "Net3"
        files = open_folder(path).files("model")
        index = {"model.safetensors.index.json"} if len(files) > 1 else set()
        there = {p.name for p in path.iterdir()}
        assert there == {CONFIG, "README.md", *index, *(p.name for p in files)}
        if not killed:
            break
        event += 1
    assert seen == {"Net1", "Net2"}
    assert event > 15


def test_killed_on_the_first_save_there_is_nothing_or_all(tmp_path):
    seen, event, killed = set(), 0, True
    while killed:
        path = tmp_path / "m"
        killed = die_at(event, lambda path=path: save(path, 1.0, "300KB", layers=2))
        seen.add(path.exists())
        if path.exists():
            assert same(content(path)[1], dino_like(1.0, 2))
        save(path, 2.0)
        assert [p.name for p in tmp_path.iterdir()] == ["m"]
        shutil.rmtree(path)
        event += 1
    assert seen == {True, False}


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    path = save(tmp_path / "m", 0.0, "300KB", layers=4)
    draw = random.Random(0)
    for _ in range(25):
        child = os.fork()
        if child == 0:
            for value in range(1, 1000):
                save(path, float(value), draw.choice([300_000, 10**9]), layers=1 + value % 4)
            os._exit(0)
        time.sleep(draw.uniform(0.005, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        name, tensors = content(path)
        value = int(name[3:])
        assert same(tensors, dino_like(float(value), 1 + value % 4 if value else 4))


def test_a_folder_that_is_replaced_while_it_is_read_says_so(tmp_path):
    path = save(tmp_path / "m", 1.0)
    opened = open_folder(path)
    save(path, 2.0)
    with pytest.raises(CheckpointError, match=r"was replaced while it was read\. Load it again"):
        opened.tensors("model")


# --- damaged -------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_dtype(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"', 1))


def other_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[256,256]", b"[256,257]", 1))


def huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def remove(path: Path) -> None:
    path.unlink()


def of_another_shard(path: Path) -> None:
    shutil.copy(path.with_name("model-00001-of-00006.safetensors"), path)


@pytest.mark.parametrize(
    "harm",
    [cut, lengthen, empty, other_dtype, other_shape, huge_header, remove, of_another_shard],
    ids=lambda f: f.__name__,
)
def test_a_damaged_shard_is_named(tmp_path, harm):
    path = save(tmp_path / "m", 0.0, 500_000, layers=3)
    name = "model-00002-of-00006.safetensors"
    harm(path / name)
    with pytest.raises(CheckpointError, match=name) as told:
        content(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("../secret.safetensors", "refused: it names '../secret.safetensors'"),
        ("/etc/passwd", "refused: it names '/etc/passwd'"),
        ("sub/model.safetensors", "refused: it names 'sub/"),
        ("..\\x.safetensors", "refused: it names"),
        (".hidden.safetensors", "refused: it names"),
        ("model.bin", "refused: it names 'model.bin'"),
        (7, "refused: it names 7"),
        (None, "refused: it names None"),
    ],
)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, place, says):
    path = save(tmp_path / "m", 0.0, 500_000, layers=1)
    index = path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][next(iter(values["weight_map"]))] = place
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is ") as told:
        content(path)
    assert says in str(told.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', "\xff", "[" * 10**5])
def test_a_damaged_index_is_named(tmp_path, text):
    path = save(tmp_path / "m", 0.0, 500_000, layers=1)
    (path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        content(path)


GOOD = config().to_json()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"format": 2, "version": "9.1"},
            r"is of format 2 \(written by ddpm-lib 9.1\); this version",
        ),
        ({"format": "1"}, "format must be a whole number"),
        ({"format": True}, "format must be a whole number"),
        ({"model": {"class": "Unet"}}, "model must be a class with its arguments"),
        ({"model": None}, "model must be a class"),
        ({"diffusion": []}, "diffusion must be arguments"),
        ({"class_names": "abc"}, "class_names must be a list of names"),
        ({"class_names": [1, 2]}, "class_names must be a list of names"),
        ({"weights": {}}, "weights must be names"),
        ({"weights": {"ema": "model.ema"}}, "weights must be names"),
        ({"weights": {"model": "model", "ema": "../../x"}}, "weights must be names"),
        ({"weights": {"model": "model", "best": "model.best"}}, "weights must be names"),
        ({"library_name": "diffusers"}, "library_name 'diffusers'"),
        (
            {"library_name": "x", "_class_name": "UNet2DModel"},
            "is a model of diffusers. To make",
        ),
        ({"library_name": None, "model_type": "bert"}, "is a model of transformers"),
        ("weights", "has no entry 'weights'"),
        ("model", "has no entry 'model'"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, values, says):
    path = save(tmp_path / "m", 0.0, layers=1)
    wrong = dict(GOOD)
    if isinstance(values, str):
        del wrong[values]
    else:
        wrong |= values
    (path / CONFIG).write_text(json.dumps(wrong))
    with pytest.raises(CheckpointError, match=says) as told:
        open_folder(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff\xfe", '{"a": ' * 10**5])
def test_a_config_that_is_no_json_object_is_named(tmp_path, text):
    path = save(tmp_path / "m", 0.0, layers=1)
    (path / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|is damaged)"):
        open_folder(path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "is no pretrained folder: it has no config.json"),
        ({"model.safetensors": b""}, "holds model.safetensors but no config.json"),
        ({"model_index.json": b"{}"}, "is a pipeline of diffusers. To make"),
        ({"unet.txt": b"", "diffusion_pytorch_model.bin": b""}, "is a model of diffusers"),
        ({"pytorch_model.bin": b""}, "is a model of transformers or diffusers"),
        ({"checkpoints/x": b""}, r"ddpm_lib\.load_run\(.*\)\.diffusion loads it"),
        ({"manifest.json": b"{}"}, r"ddpm_lib\.load_run\(.*\)\.diffusion loads it"),
    ],
)
def test_other_folders_are_told_from_ours(tmp_path, files, says):
    path = tmp_path / "m"
    path.mkdir()
    for name, data in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        open_folder(path)


def test_files_and_nothing_are_told(tmp_path):
    (tmp_path / "model-100.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"is a pickle, .* ddpm convert "):
        open_folder(tmp_path / "model-100.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_folder(tmp_path / "none")
