"""Loading from the hub: what is asked for, and what each failure says, in one line."""

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from ddpm_lib import GaussianDiffusion, Unet, load_run, open_dataset
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError, HubError
from ddpm_lib.core.hub.reach import PATIENCE
from hub_server import Hub, hub_server, unreachable_endpoint

load = GaussianDiffusion.from_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A process with averages, in shards."""
    torch.manual_seed(0)
    model, average = (Unet(dim=8, dim_mults=(1,), blocks_per_level=1) for _ in range(2))
    for network in (model, average):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    diffusion = GaussianDiffusion(model, image_size=4, timesteps=10)
    averages = {"ema": average}
    return diffusion.save_pretrained(
        tmp_path_factory.mktemp("m") / "a", averages=averages, max_shard_size="20KB"
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def asked(hub: Hub, name: str) -> list[str]:
    return [line for line in hub.requests if f"/{name}/resolve/" in line and "HEAD" not in line]


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def fails(call, kind=HubError) -> str:
    """The message of a failure: one line."""
    with pytest.raises(kind) as told:
        call()
    assert "\n" not in str(told.value)
    return str(told.value)


def test_only_what_is_needed_is_downloaded_and_once(hub, folder):
    hub.add("tester/a", files(folder) | {"README.md": b"x", "samples/grid.png": b"x" * 10**5})
    found = load("tester/a")
    assert equal(found, load(folder))
    names = {line.rsplit("/", 1)[1] for line in asked(hub, "tester/a")}
    assert names <= {name for name in files(folder) if not name.startswith("model.raw")}
    hub.requests.clear()
    assert equal(Unet.from_pretrained("tester/a"), found.model)
    assert asked(hub, "tester/a") == []
    assert equal(load("tester/a", weights="model"), load(folder, weights="model"))
    assert all("model.raw" in line for line in asked(hub, "tester/a"))


def test_a_revision_is_what_it_was(hub, folder):
    repo = hub.add("tester/a", files(folder))
    first = repo.resolve("main")
    (config,) = (data for name, data in files(folder).items() if name == "config.json")
    repo.put("config.json", config.replace(b'"timesteps": 10', b'"timesteps": 20'))
    assert load("tester/a").timesteps == 20
    assert load("tester/a", revision=first).timesteps == 10
    assert load("tester/a", revision="main").timesteps == 20
    said = fails(lambda: load("tester/a", revision="v9"))
    assert said.startswith("Could not load tester/a: it has no revision v9")


def test_a_folder_of_that_name_wins(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(folder, weights="model").save_pretrained("tester/a")
    assert equal(load("tester/a"), load(folder, weights="model"))
    assert hub.requests == []
    said = fails(lambda: load("tester/a", revision="main"), ConfigError)
    assert said == "tester/a is a folder here, which has no revisions; leave out revision."


def test_a_renamed_repository_is_followed_and_said(hub, folder, caplog):
    hub.add("tester/old", files(folder))
    hub.rename("tester/old", "tester/new")
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        assert equal(load("tester/old"), load(folder))
    assert caplog.messages == ["tester/old is now called tester/new; use that name."]


def test_what_is_not_there_or_closed_is_one_line(hub, folder):
    said = fails(lambda: load("tester/none"))
    assert said.startswith("Could not load tester/none: there is no such repository at http")
    assert said.endswith("There is no folder of that name here either.")
    hub.add("tester/gated", files(folder), gated=True)
    assert "it is gated. Ask for access at" in fails(lambda: load("tester/gated"))
    hub.add("other/private", files(folder), private=True)
    assert "or it is private and your token" in fails(lambda: load("other/private"))
    assert "no name of a repository" in fails(lambda: load("tester/a..b"))
    for name in ("a/b/c", "name", "./x", "/x/y", "~/x", ".x/y"):
        assert "does not exist" in fails(lambda name=name: load(name), CheckpointError)


def test_a_repository_without_a_whole_model_is_one_line(hub, folder):
    whole = files(folder)
    hub.add("tester/half", {k: v for k, v in whole.items() if not k.startswith("model-")})
    assert "is incomplete" in fails(lambda: load("tester/half"), CheckpointError)
    hub.add("tester/none", {"config.json": whole["config.json"]})
    said = fails(lambda: load("tester/none"), CheckpointError)
    assert said.startswith("tester/none is half uploaded: config.json is there, model.safetensors")
    hub.add("tester/card", {"README.md": b"x"})
    said = fails(lambda: load("tester/card"), CheckpointError)
    assert said == "tester/card is no model of ddpm_lib: it has no config.json."
    hub.add("tester/pipe", {"model_index.json": b"{}", "unet/config.json": b"{}"})
    said = fails(lambda: load("tester/pipe"), CheckpointError)
    assert "a pipeline of diffusers. Download it: hf download tester/pipe --local-dir pipe" in said
    assert said.endswith("ddpm convert pipe runs/pipe")
    hub.add("tester/unet", {"config.json": b'{"_class_name": "UNet2DModel"}', "x.bin": b""})
    assert "is a model of diffusers" in fails(lambda: load("tester/unet"), CheckpointError)
    cut = {k: v[:-50] if k == "model-00002-of-00003.safetensors" else v for k, v in whole.items()}
    hub.add("tester/cut", cut)
    said = fails(lambda: load("tester/cut"), CheckpointError)
    assert "model-00002-of-" in said
    assert "is damaged" in said


def test_a_hub_in_trouble_is_one_line_or_the_cache(hub, folder, caplog):
    hub.add("tester/a", files(folder))
    hub.fail("GET /api/models/tester/a", 503, times=1)
    said = fails(lambda: load("tester/a"))
    assert "the hub has trouble of its own (status 503)" in said
    hub.drop("GET /api/models/tester/a", times=1)
    assert "the connection to http" in fails(lambda: load("tester/a"))
    load("tester/a")
    hub.fail("GET /api/models/tester/a", 502, times=1)
    caplog.clear()
    assert equal(load("tester/a"), load(folder))
    assert "is in trouble; tester/a is taken from the cache, commit" in caplog.text
    hub.fail("GET /api/models/tester/a", 502, times=1)
    said = fails(lambda: load("tester/a", weights="model"))
    assert "the cache holds its config.json, but not model.raw.safetensors" in said
    hub.fail("GET /api/models/tester/a", 403, times=1)  # a no is a no
    assert "token" in fails(lambda: load("tester/a"))


def test_a_hub_that_does_not_answer_is_left(hub, folder, monkeypatch):
    monkeypatch.setattr("ddpm_lib.core.hub.client._PATIENCE", 0.2)
    hub.add("tester/a", files(folder))
    hub.slow("GET /api/models/tester/a", 5.0)
    assert "does not answer in time" in fails(lambda: load("tester/a"))


def refused() -> str:
    return unreachable_endpoint()


def no_such_host() -> str:
    return "http://no-such-host.invalid"


@pytest.mark.parametrize("address", [refused, no_such_host])
def test_without_a_network_it_is_one_line_at_once_or_the_cache(
    hub, folder, monkeypatch, caplog, address
):
    hub.add("tester/a", files(folder))
    load("tester/a")
    hub.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", address())
    caplog.clear()
    assert equal(load("tester/a"), load(folder))
    assert "cannot be reached from here; tester/a is taken from the cache, commit" in caplog.text
    said = fails(lambda: load("tester/b"))
    assert said.startswith("Could not load tester/b: it is neither a folder here nor in the cache.")
    assert "cannot be reached from here. Check the connection" in said
    assert hub.requests == []
    assert PATIENCE < 2  # seconds, all that is waited for


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_takes_the_cache_and_asks_nobody(hub, folder, monkeypatch, way):
    repo = hub.add("tester/a", files(folder))
    load("tester/a")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "HF_HUB_OFFLINE")
    monkeypatch.setattr("ddpm_lib.core.hub.client.can_reach", lambda address: pytest.fail(address))
    only = {"local_files_only": True} if way == "local_files_only" else {}
    assert equal(load("tester/a", **only), load(folder))
    assert equal(load("tester/a", revision=repo.resolve("main"), **only), load(folder))
    assert way in fails(lambda: load("tester/b", **only))
    assert way in fails(lambda: load("tester/a", weights="model", **only))
    assert way in fails(lambda: load("tester/a", revision="other", **only))
    assert hub.requests == []


def test_another_cache_and_another_token(hub, folder, tmp_path):
    hub.add("other/private", files(folder), private=True)
    hub.users["hf_theirs"] = ("other", "read")
    found = load("other/private", cache_dir=tmp_path / "elsewhere", token="hf_theirs")
    assert equal(found, load(folder))
    assert (tmp_path / "elsewhere" / "models--other--private").is_dir()
    assert not (tmp_path / "home" / "hub").exists()
    again = load("other/private", cache_dir=tmp_path / "elsewhere", local_files_only=True)
    assert equal(again, found)


def test_load_run_takes_a_repository_but_no_misspelt_path(hub, folder, tmp_path, monkeypatch):
    hub.add("tester/a", files(folder))
    loaded = load_run("tester/a")
    commit = hub.repo("tester/a").resolve("main")
    assert equal(loaded.diffusion, load(folder))
    assert (loaded.weights, loaded.run) == ("ema", Path())
    assert repr(loaded) == f"LoadedRun(tester/a@{commit[:12]}, weights ema)"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tester").mkdir()
    hub.requests.clear()
    assert "tester/a does not exist" in fails(lambda: load_run("tester/a"), CheckpointError)
    assert hub.requests == []


def test_a_dataset_that_is_not_there_is_told_alike(hub):
    said = fails(lambda: open_dataset("tester/none", image_size=8), FileNotFoundError)
    assert said.startswith("'tester/none' is no local path")
    assert "Could not load tester/none: there is no such repository at http" in said


def test_the_command_says_one_line(hub, monkeypatch, capsys):
    """As on a node of a cluster: no network, a name that is no run."""
    monkeypatch.setattr(constants, "ENDPOINT", refused())
    assert main(["sample", "tester/none", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ddpm sample: Could not load tester/none: it is neither a folder here")
