"""The stand-in for the hub, spoken to by huggingface_hub itself."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import READ_TOKEN, Hub, hub_server
from hub_store import card_problems

CARD = "---\nlicense: mit\n---\n# A model\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def test_what_is_uploaded_comes_back(hub: Hub, folder: Path, tmp_path: Path):
    api = HfApi()
    assert api.whoami()["name"] == "tester"
    assert str(api.create_repo("tester/mine", private=True)) == f"{hub.endpoint}/tester/mine"
    api.create_repo("tester/mine", exist_ok=True)
    first = api.upload_folder(repo_id="tester/mine", folder_path=folder)
    assert api.model_info("tester/mine").sha == first.oid
    again = api.upload_folder(repo_id="tester/mine", folder_path=folder)
    assert again.oid == first.oid, "nothing has changed"

    (folder / "README.md").write_text(CARD + "changed\n")
    api.create_branch("tester/mine", branch="next")
    api.upload_folder(repo_id="tester/mine", folder_path=folder, revision="next")
    assert {ref.name for ref in api.list_repo_refs("tester/mine").branches} == {"main", "next"}

    for revision, text in (("main", CARD), ("next", CARD + "changed\n"), (first.oid, CARD)):
        got = Path(snapshot_download("tester/mine", revision=revision))
        assert (got / "README.md").read_text() == text
        assert (got / "model.safetensors").read_bytes() == bytes(range(256)) * 40
    assert hub.to_storage_with_token == []


def test_a_renamed_repository_answers_under_its_old_name(hub: Hub, folder: Path):
    hub.add("tester/old", folder)
    hub.rename("tester/old", "tester/new")
    assert HfApi().model_info("tester/old").id == "tester/new"
    assert Path(hf_hub_download("tester/old", "README.md")).read_text() == CARD
    assert Path(hf_hub_download("tester/old", "model.safetensors")).stat().st_size == 256 * 40


def test_each_refusal_is_the_hubs(hub: Hub, folder: Path, monkeypatch):
    hub.add("tester/open", folder)
    hub.add("tester/hidden", folder, private=True)
    hub.add("tester/gated", folder, gated=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("tester/none")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("tester/hidden")
    with pytest.raises(GatedRepoError):
        hf_hub_download("tester/gated", "README.md")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("tester/open", revision="nowhere")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("tester/open", "nothing.json")
    with pytest.raises(HfHubHTTPError, match="write token"):
        HfApi(token=READ_TOKEN).create_branch("tester/open", branch="next")
    hub.fail("GET /api/models/tester/open", 503, times=1)
    with pytest.raises(HfHubHTTPError, match="503"):
        HfApi().model_info("tester/open")
    assert HfApi().model_info("tester/open").id == "tester/open"


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: mine", '"license" must be one of'),
        ("model-index:\n- name: x", "results"),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}", "metrics"),
        ("tags: diffusion", "tags"),
        ("base_model: /some/where", "not the name of a model"),
        ("a: [", "invalid YAML"),
    ],
)
def test_the_metadata_of_cards_is_checked(metadata: str, wrong: str):
    errors, _ = card_problems(f"---\n{metadata}\n---\n")
    assert len(errors) == 1
    assert wrong in errors[0]
    assert card_problems(CARD) == ([], [])


def test_a_wrong_card_is_refused(hub: Hub, folder: Path):
    ModelCard(CARD).validate()
    with pytest.raises(ValueError, match="must be one of"):
        ModelCard("---\nlicense: mine\n---\n").validate()
    (folder / "README.md").write_text("---\nlicense: mine\n---\n")
    hub.add("tester/mine", {})
    with pytest.raises(ValueError, match="Invalid metadata"):
        HfApi().upload_folder(repo_id="tester/mine", folder_path=folder)
    assert hub.repo("tester/mine").files() == {}
