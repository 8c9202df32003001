"""What can go wrong with the hub, each in one line that names the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ddpm_lib.core.errors import HubError
from ddpm_lib.core.text import printable

LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token of {address}/settings/tokens"


@dataclass(frozen=True)
class Errand:
    """What was to be done at the hub, for messages.

    Attributes:
        doing: In two words: "load", "push to".
        repo_id: The repository.
        revision: Of it, None for the default branch.
        writes: Whether it writes, which takes a token that may.
        after: How the user goes on when the remedy is done, such as a command; "" for nothing.
    """

    doing: str
    repo_id: str
    revision: str | None = None
    writes: bool = False
    after: str = ""

    def failed(self, text: str) -> HubError:
        """Return the error for it, with what went wrong in words."""
        after = f" {self.after}" if self.after else ""
        return HubError(f"Could not {self.doing} {printable(self.repo_id)}: {text}{after}")


@contextlib.contextmanager
def one_line(errand: Errand) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into a `HubError` of one line.

    Raises:
        HubError: In its place.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        told = explain(error, errand)
        if told is None:
            raise
        raise told from error


def explain(error: BaseException, errand: Errand) -> HubError | None:
    """Word an exception of huggingface_hub, or of the library under it; None for another one."""
    text = _problem(error, {kind.__name__ for kind in type(error).__mro__}, errand)
    if text is not None:
        return errand.failed(text)
    causes = [cause for cause in (error.__cause__, error.__context__) if cause is not None]
    return next((told for told in (explain(c, errand) for c in causes) if told is not None), None)


def offline_text() -> str:
    """Word that the hub is not to be asked."""
    return "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it."


def unreachable_text() -> str:
    """Word that nobody answers."""
    return (
        f"{_address()} cannot be reached from here. Check the connection and the proxy; nodes of"
        " clusters often have none."
    )


def no_token_text() -> str:
    """Word that there is no token to write with."""
    return f"no token was found. To get one, {_log_in()}."


def _address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _log_in() -> str:
    return LOG_IN.format(address=_address())


def _problem(error: BaseException, kinds: set[str], errand: Errand) -> str | None:
    """Return what went wrong and what helps, None where the hub has nothing to do with it."""
    if "OfflineModeIsEnabled" in kinds:
        return offline_text()
    if "LocalTokenNotFoundError" in kinds:
        return no_token_text()
    if "HFValidationError" in kinds:
        return (
            "that is no name of a repository. Give owner/name, of letters, digits, '-', '_', '.'."
        )
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if "HfHubHTTPError" in kinds and status is not None:
        return _refusal(kinds, int(status), _message(error, response), errand)
    if "XetAuthenticationError" in kinds:  # of hf_xet, which moves large files
        return (
            f"the token does not open the hub's storage ({_flat(error)}). To renew it, {_log_in()}."
        )
    if kinds & {"TimeoutException", "TimeoutError"}:
        return f"{_address()} does not answer in time. Try again later."
    if kinds & {"TransportError", "ConnectionError", "XetDownloadError"}:
        return f"the connection to {_address()} failed ({_flat(error) or 'closed'}). Try again."
    if kinds & {"JSONDecodeError", "FileMetadataError"}:
        return (
            f"what answers at {_address()} is no hub. Check HF_ENDPOINT and the proxy; the log-in"
            " page of a network answers so, too."
        )
    if "ValueError" in kinds and "metadata in README.md" in str(error):
        return f"the hub refuses the card. {_flat(error)}"
    return None


def _message(error: Any, response: Any) -> str:
    said = getattr(error, "server_message", None) or response.headers.get("X-Error-Message") or ""
    return " ".join(printable(said).split())[:200]


def _refusal(kinds: set[str], status: int, message: str, errand: Errand) -> str:
    name, said = printable(errand.repo_id), f" ({message})" if message else ""
    if "GatedRepoError" in kinds:
        return (
            f"it is gated. Ask for access at {_address()}/{name}, then {_log_in()}, of an account"
            " that has it."
        )
    if "RevisionNotFoundError" in kinds:
        return f"it has no revision {printable(errand.revision or 'main')}. Give another one."
    if "EntryNotFoundError" in kinds or "RemoteEntryNotFoundError" in kinds:
        return f"a file is missing there{said}. It is half uploaded, or no model of this library."
    if status == 401 and "invalid" in message.lower() and "RepositoryNotFoundError" not in kinds:
        return f"the token is not valid{said}. Get another one: {_log_in()}."
    if "RepositoryNotFoundError" in kinds or status in (401, 404):
        return (
            f"there is no such repository at {_address()}, or it is private and your token does not"
            f" open it. Check the name; for a private one, {_log_in()}."
        )
    if status == 403:
        what = "may not write there" if errand.writes else "does not open it"
        return f"the token {what}{said}. Take one that does: {_log_in()}."
    if status == 429:
        return f"the hub has had too many requests from here{said}. Wait some minutes."
    if status >= 500:
        return f"the hub has trouble of its own (status {status}){said}. Try again later."
    return f"the hub refuses (status {status}){said or '.'}"


def _flat(error: BaseException) -> str:
    return " ".join(printable(error).split())[:300]
