"""Uploading a process to the hub from Python, without a run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_lib.core.hub import MAX_SHARD_SIZE
from ddpm_lib.nn.pretrained import Averages
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.pretrained import save_pretrained

if TYPE_CHECKING:
    from ddpm_lib.core.hub.upload import Uploaded


def push_to_hub(
    self: TrainableProcess,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    message: str = "Upload a model",
    averages: Averages | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Uploaded:
    """Upload the process and its network to the hub, from which `from_pretrained` loads them.

    With it goes a short card. `Trainer.push_to_hub` and `ddpm push` write one with the training,
    the scores and the limits. In a program of several processes, call it on one.

    Args:
        repo_id: The repository, "owner/name", or "name" for one of your own; made if there is none.
        private: Nobody else may see it.
        revision: A branch to upload to, made if there is none; default: the repository's main one.
        license: The hub's name of a licence, such as "mit"; default: none, and the card says so.
        message: Of the commit.
        averages: As for `save_pretrained`.
        max_shard_size: As for `save_pretrained`.

    Returns:
        What was uploaded, and where it is.

    Raises:
        ConfigError: If the class of the network is not registered, or private was asked for and the
            repository is public.
        HubError: If the hub refuses or cannot be reached; nothing half-uploaded is visible there.
    """
    import tempfile
    from pathlib import Path

    from ddpm_lib.core.hub.failures import Errand
    from ddpm_lib.core.hub.upload import check_ready, upload_folder
    from ddpm_lib.process.model_card import simple_card

    errand = Errand("push to", repo_id, revision, writes=True, after="Then call it again.")
    errand = check_ready(errand)
    with tempfile.TemporaryDirectory(prefix="ddpm-push-") as place:
        folder = Path(place, "model")
        save_pretrained(self, folder, averages=averages, max_shard_size=max_shard_size)
        card = simple_card(self, errand.repo_id, license, revision)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return upload_folder(folder, errand, private=private, message=message)
