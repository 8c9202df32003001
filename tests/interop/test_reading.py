"""Which reader a foreign file gets."""

from __future__ import annotations

import pytest
import torch

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.registry import Registry
from ddpm_lib.interop import READERS, Imported, Reader
from ddpm_lib.interop.opening import open_foreign
from ddpm_lib.interop.reading import read_with
from published_networks import PublishedNetwork


def reader(name: str, key: str, options: tuple[str, ...] = ()) -> Reader:
    def read(opened, given):
        return Imported(
            source=opened.path,
            format=name,
            network="Unet",
            network_config=dict(given),
            process=None,
            weights=opened.content,
        )

    return Reader(name, f"files with {key}", lambda opened: key in opened.content, read, options)


@pytest.fixture
def readers() -> Registry[Reader]:
    table = (reader("one", "a", ("image_size", "heads")), reader("two", "b"))
    return Registry("format", {r.name: r for r in table})


def write(path, *keys):
    torch.save({key: torch.zeros(1) for key in keys}, path)
    return path


def test_the_one_that_recognises_it_reads_it(readers, tmp_path):
    assert read_with(readers, write(tmp_path / "x", "a")).format == "one"
    assert read_with(readers, write(tmp_path / "y", "b"), {}, "two").format == "two"


def test_none_and_several_are_errors_that_say_what_there_is(readers, tmp_path):
    with pytest.raises(CheckpointError, match=r"none of the formats .*one \(files with a\); two"):
        read_with(readers, write(tmp_path / "x", "c"))
    both = write(tmp_path / "y", "a", "b")
    with pytest.raises(CheckpointError, match=r"could be of the formats one and two\. Say which"):
        read_with(readers, both)
    assert read_with(readers, both, format="two").format == "two"
    with pytest.raises(CheckpointError, match="is not of the format two"):
        read_with(readers, write(tmp_path / "z", "a"), format="two")


def test_what_is_given_is_checked_by_name_and_type(readers, tmp_path):
    file = write(tmp_path / "x", "a")
    read = read_with(readers, file, {"image_size": 32, "heads": None})
    assert read.network_config == {"image_size": (32, 32)}
    with pytest.raises(ConfigError, match=r"'schedule'.*Known: heads, image_size"):
        read_with(readers, file, {"schedule": "linear"})
    with pytest.raises(ConfigError, match="heads must be a whole number"):
        read_with(readers, file, {"heads": "many"})
    with pytest.raises(ConfigError, match="takes no options"):
        read_with(readers, write(tmp_path / "y", "b"), {"heads": 1})


def recognising(path) -> list[str]:
    opened = open_foreign(path)
    return [r.name for r in READERS.values() if r.recognises(opened)]


@pytest.mark.parametrize("keys", [(), ("conv.weight",), ("model", "ema", "step")])
def test_what_is_nobodys_is_recognised_by_nobody(tmp_path, keys):
    assert recognising(write(tmp_path / "x.pt", *keys)) == []


def test_every_published_file_has_one_format(shared, tmp_path):
    found = {}
    for file in sorted((shared / "fixtures" / "D_unets").glob("*.json")):
        if not file.stem.startswith("diffusers"):  # recognised by the config.json beside
            state = PublishedNetwork(file.parent, file.stem).state
            torch.save(state, tmp_path / "x.pt")
            found[file.stem] = recognising(tmp_path / "x.pt")
    checkpoints = shared / "fixtures" / "D_checkpoints"
    for pattern in ("*/*.pt", "*/*.pth", "diffusers/*"):
        for path in checkpoints.glob(pattern):
            if not path.name.startswith(("opt", "expected")):
                found[str(path.relative_to(checkpoints))] = recognising(path)
    assert len(found) > 20
    assert {name: formats for name, formats in found.items() if len(formats) != 1} == {}
