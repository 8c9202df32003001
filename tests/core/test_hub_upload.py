"""Uploading a folder: what arrives, and one line for whatever goes wrong."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from ddpm_lib.core.errors import ConfigError, HubError
from ddpm_lib.core.hub import upload
from ddpm_lib.core.hub.failures import Errand
from ddpm_lib.core.hub.upload import Uploaded, upload_folder
from hub_server import READ_TOKEN, Hub, hub_server, unreachable_endpoint

AFTER = "Nothing was changed here; to try again: ddpm push runs/x tester/mine"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40,
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


@pytest.fixture
def folder(tmp_path) -> Path:
    return fill(tmp_path / "folder", FILES)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def push(folder: Path, repo_id: str = "tester/mine", **options) -> Uploaded:
    revision = options.pop("revision", None)
    errand = Errand("push to", repo_id, revision, writes=True, after=AFTER)
    return upload_folder(folder, errand, **options)


@pytest.mark.parametrize("name", ["tester/mine", "mine"])
def test_a_folder_is_there_as_it_was(hub: Hub, folder: Path, name: str):
    done = push(folder, name, message="first")
    assert done.repo_id == "tester/mine"
    assert done.url == f"{hub.endpoint}/tester/mine"
    assert dict(done.files) == {name: len(content) for name, content in FILES.items()}
    there = hub.repo("tester/mine").files()
    assert {name: there[name] for name in FILES} == FILES
    assert hub.repo("tester/mine").messages == ["initial commit", "first"]
    assert not done.private
    assert hub.to_storage_with_token == []


def test_what_an_earlier_upload_left_of_weights_goes(hub: Hub, folder: Path, tmp_path: Path):
    shards = {f"model-0000{i}-of-00002.safetensors": b"\0" for i in (1, 2)}
    index = {"model.safetensors.index.json": b"{}", "uncertainty.safetensors": b"\0"}
    others = {"notes.txt": b"mine", "lora.safetensors": b"\0 another's"}
    hub.add("tester/mine", shards | index | others)
    push(folder)
    assert hub.repo("tester/mine").files() == FILES | others


def test_a_branch_is_made_and_main_stays(hub: Hub, folder: Path):
    hub.add("tester/mine", {"notes.txt": b"mine"})
    done = push(folder, revision="step-40")
    assert done.url.endswith("/tester/mine/tree/step-40")
    assert hub.repo("tester/mine").files() == {"notes.txt": b"mine"}
    assert hub.repo("tester/mine").files("step-40") == FILES | {"notes.txt": b"mine"}
    push(folder, revision="step-40")


def test_a_private_model_never_lands_in_a_public_repository(hub: Hub, folder: Path):
    assert push(folder, "tester/new", private=True).private
    assert hub.repo("tester/new").private
    hub.add("tester/mine", {"notes.txt": b"mine"})
    with pytest.raises(ConfigError, match=r"exists and is public, so nothing was uploaded"):
        push(folder, private=True)
    assert hub.repo("tester/mine").files() == {"notes.txt": b"mine"}


def test_a_renamed_repository_is_found_under_its_new_name(hub: Hub, folder: Path, caplog):
    hub.add("tester/mine", {})
    hub.rename("tester/mine", "tester/better")
    done = push(folder)
    assert [r.message for r in caplog.records if r.name == "ddpm_lib"] == [
        "tester/mine is now called tester/better; use that name."
    ]
    assert "POST /api/repos/create" not in hub.requests, "the old name is not taken anew"
    assert done.repo_id == "tester/better"
    assert done.url == f"{hub.endpoint}/tester/better"
    assert hub.repo("tester/better").files() == FILES


Break = Callable[[Hub, pytest.MonkeyPatch], object]
FAULTS: dict[str, tuple[Break, str]] = {
    "no token": (
        lambda hub, patch: patch.setenv("HF_TOKEN", ""),
        r"no token was found\. To get one, run `hf auth login`, or set HF_TOKEN",
    ),
    "a wrong token": (
        lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"),
        r"the token is not valid",
    ),
    "a token that reads": (
        lambda hub, patch: patch.setenv("HF_TOKEN", READ_TOKEN),
        r"the token may not write there \(you must use a write token.*hf auth login",
    ),
    "offline": (
        lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True),
        r"HF_HUB_OFFLINE is set, so the hub is not asked\. Unset it\.",
    ),
    "nobody answers": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", unreachable_endpoint()),
        r"cannot be reached from here\. Check the connection and the proxy",
    ),
    "no such address": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", "http://nowhere.invalid"),
        r"http://nowhere\.invalid cannot be reached from here",
    ),
    "500 at the start": (
        lambda hub, patch: hub.fail("GET /api/models/tester/mine", 500),
        r"the hub has trouble of its own \(status 500\)\. Try again later",
    ),
    "503 at the files": (
        lambda hub, patch: hub.fail("preupload", 503, message="maintenance"),
        r"the hub has trouble of its own \(status 503\) \(maintenance\)",
    ),
    "502 at the weights": (lambda hub, patch: hub.fail("PUT /storage", 502), r"status 502"),
    "a log-in page": (
        lambda hub, patch: hub.pretend(".*", b"<html>Accept our terms</html>"),
        r"what answers at .* is no hub",
    ),
    "too many requests": (
        lambda hub, patch: hub.fail("GET /api/models", 429),
        r"too many requests",
    ),
    "no room": (
        lambda hub, patch: hub.fail("POST .*/commit/", 403, message="storage limit reached"),
        r"may not write there \(storage limit reached\)",
    ),
    "no commit": (
        lambda hub, patch: hub.drop("POST .*/commit/"),
        r"the connection to http.* failed",
    ),
    "no commit in time": (
        lambda hub, patch: (
            patch.setitem(upload.SECONDS, "read", 0.2),
            hub.slow("POST .*/commit/", 0.6),
        ),
        r"does not answer in time",
    ),
    "storage that does not answer": (  # large files go through hf_xet where it is installed
        lambda hub, patch: patch.setattr(constants, "HF_HUB_DISABLE_XET", False),
        r"the connection to .* failed \(Network error",
    ),
    "a card that is refused": (
        lambda hub, patch: hub.fail("validate-yaml", 400),
        r"the hub refuses the card\. Invalid metadata in README\.md",
    ),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_and_loses_nothing(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    hub.add("tester/mine", {"notes.txt": b"mine"})
    before = dict(hub.repo("tester/mine").commits)
    break_it, words = FAULTS[fault]
    if fault == "storage that does not answer":
        pytest.importorskip("hf_xet")
    break_it(hub, monkeypatch)
    hurried = SimpleNamespace(sleep=lambda seconds: None)  # between retries
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
    with pytest.raises(HubError, match=words) as caught:
        push(folder)
    line = str(caught.value)
    assert line.startswith("Could not push to tester/mine: ")
    assert line.endswith(AFTER)
    assert "\n" not in line
    assert "hf_" not in line.replace("hf auth", ""), "no token is shown"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert hub.repo("tester/mine").commits == before, "nothing half uploaded is visible"


@pytest.mark.parametrize("name", ["a/b/c", "tester/", "tester/mine!", "-mine", "", "tester/a b"])
def test_a_wrong_name_is_refused_before_anybody_is_asked(hub: Hub, folder: Path, name: str):
    with pytest.raises(HubError, match=r"Give owner/name"):
        push(folder, name)
    assert hub.requests == []


def test_another_owner(hub: Hub, folder: Path):
    with pytest.raises(HubError, match=r"namespace \"somebody\""):
        push(folder, "somebody/mine")


def test_a_commit_without_a_message_is_refused(hub: Hub, folder: Path):
    with pytest.raises(ConfigError, match="message"):
        push(folder, message=" ")
    assert hub.requests == []


def test_the_session_of_huggingface_hub_is_given_back_as_it_was(hub: Hub, folder: Path):
    from huggingface_hub import get_session

    before = get_session().timeout
    push(folder)
    assert get_session().timeout == before


@pytest.mark.parametrize("fault", ["offline", "nobody answers", "no such address", "no token"])
def test_no_retries_where_nobody_can_be_asked(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    FAULTS[fault][0](hub, monkeypatch)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(HubError):
        push(folder)
    assert slept == []
    assert hub.requests == []
