"""Which reader a foreign file gets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusers import pipeline

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.registry import Registry
from ddpm_lib.interop import READERS, Imported, Reader, read_foreign
from ddpm_lib.interop.opening import open_foreign
from ddpm_lib.interop.reading import read_with
from ddpm_lib.training.fine_tuning.weight_sources import of_foreign
from openai_checkpoints import openai_state, randomised
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


def openai_weights() -> dict[str, Any]:
    torch.manual_seed(0)
    return openai_state(randomised(dim=32, dim_mults=(1, 2), attention_levels=(), heads=4))


UNUSABLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": torch.Tensor.to_sparse,
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "without values": lambda tensor: tensor.to("meta"),
    "whole numbers": lambda tensor: (tensor * 100).to(torch.int8),
    "nan": lambda tensor: torch.full_like(tensor, float("nan")),
}


@pytest.mark.filterwarnings("ignore:With groups=32", "ignore:.*quantize", "ignore:Typed")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path, kind):
    weights, name = openai_weights(), "middle_block.0.in_layers.2.weight"
    torch.save(weights | {name: UNUSABLE[kind](weights[name])}, tmp_path / "m.pt")
    # In half precision they are numbers all the same.
    torch.save({k: v.half() for k, v in weights.items()}, tmp_path / "half.pt")
    for read in (lambda path: read_foreign(path, {"image_size": 8}), of_foreign_at_8):
        with pytest.raises(CheckpointError, match=r"middle(_block\.0|\.res1)") as error:
            read(tmp_path / "m.pt")
        assert "\n" not in str(error.value)
        read(tmp_path / "half.pt")
    half = read_foreign(tmp_path / "half.pt", {"image_size": 8}).weights
    assert half is not None
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}


def of_foreign_at_8(path: Path) -> object:
    return of_foreign(path, image_size=(8, 8))


FILES = {
    "openai": ("improved_diffusion/opt000004.pt", {"image_size": 8, "timesteps": 50, "heads": 2}),
    "pytorch-ddpm": ("pytorch_ddpm/ckpt.pt", {}),
    "ddpm-torch": ("tqch/ddpm_2.pt", {"image_size": 8, "timesteps": 40}),
    "lucidrains": ("lucidrains_trainer/model-1.pt", {"image_size": 8}),
}
ODD = (None, "x", -3, 2.5, float("nan"), [1], {"a": 1}, torch.zeros(2), torch.zeros(()))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of entries of nested containers: of many that are alike, the first."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))
    alike = not isinstance(value, dict) or any(
        isinstance(key, int) or "." in str(key) for key in value
    )
    found = []
    for key, inner in entries[:1] if alike else entries:
        found.append((*path, key))
        found += places(inner, (*path, key)) if isinstance(inner, dict | list) else []
    return found


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], by)
    return changed


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("name", FILES)
def test_odd_values_anywhere_are_read_or_refused_in_a_line(shared, tmp_path, name):
    file, given = FILES[name]
    source, target = shared / "fixtures" / "D_checkpoints" / file, tmp_path / Path(file).name
    content = torch.load(source, weights_only=True)  # noqa: TID251
    beside = source.with_name("model000004.pt")
    if name == "openai":
        (tmp_path / beside.name).write_bytes(beside.read_bytes())
    read, said, all_places = 0, dict[tuple[Any, ...], str](), places(content)
    for k, place in enumerate(all_places[:: max(1, len(all_places) // 16)]):
        torch.save(replaced(content, place, ODD[k % len(ODD)]), target)
        try:
            read_foreign(tmp_path / beside.name if name == "openai" else target, given)
            read += 1
        except (CheckpointError, ConfigError) as error:
            said[place] = str(error)
    assert [place for place, text in said.items() if "\n" in text] == []
    assert read + len(said) >= 12


def test_a_damaged_file_of_the_oldest_kind_is_refused_in_a_line(tmp_path):
    file = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    written = file.read_bytes()
    key = re.findall(rb"\d{8,}", written)[-1]
    assert written.count(key) == 2  # where it is used, and in the list of all
    file.write_bytes(written.replace(key, key[:-1] + b"x", 1))
    with pytest.raises(CheckpointError, match=r"is damaged or no file of tensors: [^\n]*$"):
        read_foreign(file)


def test_containers_that_hold_themselves_end(tmp_path):
    content: dict[str, Any] = {"a": [torch.zeros(1)]}
    content["a"].append(content)
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="none of the formats"):
        read_foreign(tmp_path / "m.pt")


def test_folders_that_are_named_like_files_are_passed_over(tmp_path):
    for name in ("old.json", "old.pt", "old.safetensors"):
        (tmp_path / name).mkdir()
    torch.save(openai_weights(), tmp_path / "m.pt")
    assert read_foreign(tmp_path, {"image_size": 8}).format == "openai"


def test_checkpoints_beside_a_finished_pipeline_are_passed_over(tmp_path):
    folder = pipeline(tmp_path / "p")
    later = folder / "checkpoint-500" / "unet"
    later.mkdir(parents=True)
    (later / "config.json").write_text("half written {")
    (later / "diffusion_pytorch_model.safetensors").write_bytes(b"half written")
    assert read_foreign(folder).format == "diffusers"


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_of_many_files_those_that_are_not_used_stay_on_the_disk(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for k in range(8):
        torch.save({"weight": torch.ones(4_000_000)}, tmp_path / f"model{k:06}.pt")
    before = resident()
    content = open_foreign(tmp_path).content
    assert len(content) == 9
    assert resident() - before < 64_000_000
    assert float(content["model000007"]["weight"].sum()) == 4_000_000


def test_home_is_found_before_a_pickle_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.pkl").write_bytes(
        b"\x80\x03ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    )
    with pytest.raises(CheckpointError, match="carries program code"):
        read_foreign("~/net.pkl")
