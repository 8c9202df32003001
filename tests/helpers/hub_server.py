"""A stand-in for the Hugging Face hub: the calls that huggingface_hub makes for models, on this
machine, with every failure on request.

    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path)              # this process, with a token and an empty cache
        subprocess.run(..., env=os.environ | hub.environment(tmp_path))      # or another one

`hub.fail`, `hub.slow` and `hub.drop` make calls go wrong; `hub.rename` moves a repository;
`hub.repo(name)` is what it holds, and `hub.requests` what was asked.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import Blob, Repo, card_problems, git_oid, is_large

WRITE_TOKEN = "hf_standinwritetoken"
READ_TOKEN = "hf_standinreadtoken"


@dataclass
class Fault:
    """What is to go wrong with calls whose "METHOD /path" matches `pattern`, and how often."""

    pattern: str
    status: int | None = None  # None: the connection is closed without a word
    code: str = ""
    message: str = ""
    seconds: float = 0.0  # an answer that comes late
    times: int | None = None
    body: bytes | None = None  # what is answered instead


@dataclass
class Answer(Exception):
    """An answer that ends the handling of a call."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str = "", message: str = "") -> Answer:
    """The hub's way of saying no."""
    headers = {k: v for k, v in (("X-Error-Code", code), ("X-Error-Message", message)) if v}
    return Answer(status, {"error": message or code}, headers)


class Hub:
    """The hub's state: who may do what, the repositories, large files, and what shall go wrong."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.users = {WRITE_TOKEN: ("tester", "write"), READ_TOKEN: ("tester", "read")}
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.to_storage_with_token: list[str] = []

    def repo(self, name: str) -> Repo:
        return self.repos[self.renamed.get(name, name)]

    def add(self, name: str, files: dict[str, bytes] | Path, **options: Any) -> Repo:
        """A repository with these files, or those of a folder, on `main`."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos[name] = Repo(name, **options)
        blobs = {path: Blob(data, is_large(data, len(data))) for path, data in files.items()}
        self.large |= {blob.sha256: blob.content for blob in blobs.values() if blob.large}
        repo.commit("main", blobs, "add files")
        return repo

    def rename(self, old: str, new: str) -> None:
        """Move a repository; its old name answers with a redirection from now on."""
        repo = self.repos.pop(old)
        repo.name = new
        self.repos[new] = repo
        self.renamed[old] = new

    def fail(
        self, pattern: str, status: int, code: str = "", message: str = "", times: int | None = None
    ) -> None:
        """Answer matching calls, such as r"POST .*/commit/", with an error."""
        self.faults.append(Fault(pattern, status, code, message, times=times))

    def drop(self, pattern: str, times: int | None = None) -> None:
        """Close the connection of matching calls without an answer."""
        self.faults.append(Fault(pattern, times=times))

    def pretend(self, pattern: str, body: bytes) -> None:
        """Answer matching calls with something else, as the log-in page of a network does."""
        self.faults.append(Fault(pattern, 200, body=body))

    def slow(self, pattern: str, seconds: float) -> None:
        """Answer matching calls late."""
        self.faults.append(Fault(pattern, status=0, seconds=seconds))

    def fault(self, call: str) -> Fault | None:
        for fault in self.faults:
            if re.search(fault.pattern, call) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Environment variables for another process: this hub, a cache of its own, a token."""
        found = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": token or ""}
        found |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        found |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
        found |= {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": token or "",
        }
        return found | {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "*"}

    def use(self, monkeypatch: Any, home: Path, token: str | None = WRITE_TOKEN) -> None:
        """Make this process talk to this hub, with an empty cache in `home`."""
        import datasets.config  # before the environment names this hub, which it would keep
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session

        for key, value in self.environment(home, token).items():
            monkeypatch.setenv(key, value)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()  # a client remembers proxies and connections


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("HubHandler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unreachable_endpoint() -> str:
    """An address at which nobody answers: the connection is refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/(?P<name>.+?)(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/api/models/(?P<name>.+?)/refs", "refs"),
        ("GET", r"/api/models/(?P<name>.+?)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", r"/api/models/(?P<name>.+?)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", r"/api/models/(?P<name>.+?)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<name>.+?)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<name>.+?)/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", r"/(?P<name>.+?)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", r"/storage/verify", "lfs_verify"),
        ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "store"),
        ("GET|HEAD", r"/storage/(?P<oid>[0-9a-f]{64})", "stored"),
        ("GET|HEAD", r"/(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_call()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_call(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.content = self._read_chunks()
        path = urlsplit(self.path).path
        call = f"{self.command} {unquote(path)}"
        self.hub.requests.append(call)
        fault = self.hub.fault(call)
        if fault and fault.status is None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            if fault and fault.seconds:
                time.sleep(fault.seconds)
            elif fault and fault.body is not None:
                raise Answer(200, fault.body, {"Content-Type": "text/html"})
            elif fault:
                raise refusal(fault.status or 500, fault.code, fault.message)
            raise self._route(path)
        except Answer as answer:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(answer)

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str) -> Answer:
        best: tuple[str, dict[str, str]] | None = None
        for methods, pattern, name in self.routes:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split("|"):
                parts = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                if parts.get("name", "").count("/") <= 1:
                    best = name, parts
        if best is None:
            return refusal(404, message=f"the stand-in does not know {self.command} {path}")
        answer: Answer = getattr(self, best[0])(**best[1])
        return answer

    def _send(self, answer: Answer) -> None:
        body = answer.body
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(data)), "Content-Type": "application/json"}
        for key, value in (headers | answer.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- who asks, and for what

    def _user(self) -> tuple[str, str] | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.hub.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise refusal(401, message="Invalid credentials in Authorization header")
        return user

    def _writer(self, name: str) -> Repo:
        user = self._user()
        if user is None:
            raise refusal(401, "RepoNotFound", "Invalid username or password.")
        repo = self._repo(name)
        if user[1] != "write" or repo.name.split("/")[0] != user[0]:
            raise refusal(403, message="you must use a write token to upload to this repository")
        return repo

    def _repo(self, name: str) -> Repo:
        if name in self.hub.renamed:
            new = self.hub.renamed[name]
            raise Answer(307, None, {"Location": self.path.replace(name, new, 1)})
        repo, user = self.hub.repos.get(name), self._user()
        hidden = repo is not None and repo.private and (user or ("",))[0] != name.split("/")[0]
        if repo is None or hidden:
            raise refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return repo

    def _revision(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # ---- calls

    def whoami(self) -> Answer:
        user = self._user()
        if user is None:
            return refusal(401, message="Invalid username or password.")
        role = {"auth": {"accessToken": {"displayName": "tests", "role": user[1]}}}
        return Answer(200, {"type": "user", "name": user[0], "orgs": [], **role})

    def create(self) -> Answer:
        user, given = self._user(), json.loads(self.content)
        if user is None:
            return refusal(401, message="Invalid username or password.")
        owner = given.get("organization") or user[0]
        if user[1] != "write" or owner != user[0]:
            text = f'You don\'t have the rights to create a model under the namespace "{owner}"'
            return refusal(403, message=text)
        name = f"{owner}/{given['name']}"
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repos or name in self.hub.renamed:
            return Answer(409, answer | {"error": "You already created this model repo"})
        self.hub.repos[name] = Repo(name, private=given.get("visibility") == "private")
        return Answer(200, answer)

    def validate(self) -> Answer:
        errors, warnings = card_problems(json.loads(self.content)["content"])
        said = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        return Answer(400 if errors else 200, said)

    def info(self, name: str, revision: str = "main") -> Answer:
        repo = self._repo(name)
        oid = self._revision(repo, revision)
        files = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        gated = "auto" if repo.gated else False
        said = {"id": repo.name, "modelId": repo.name, "sha": oid, "siblings": files}
        return Answer(200, said | {"private": repo.private, "gated": gated, "tags": []})

    def refs(self, name: str) -> Answer:
        repo = self._repo(name)

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            at = f"refs/{kind}/"
            return [{"name": k, "ref": at + k, "targetCommit": v} for k, v in refs.items()]

        found = {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags)}
        return Answer(200, found | {"converts": []})

    def tree(self, name: str, revision: str, path: str = "") -> Answer:
        repo = self._repo(name)
        files = repo.commits[self._revision(repo, revision)]
        start = f"{path}/" if path else ""
        below = {p: blob for p, blob in files.items() if p.startswith(start)}
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true":
            return Answer(200, [blob.entry(p) for p, blob in sorted(below.items())])
        here = {p: blob for p, blob in below.items() if "/" not in p[len(start) :]}
        folders = {start + p[len(start) :].split("/")[0] for p in below.keys() - here.keys()}
        listed = [{"type": "directory", "path": p, "oid": git_oid(p.encode())} for p in folders]
        return Answer(200, listed + [blob.entry(p) for p, blob in sorted(here.items())])

    def paths_info(self, name: str, revision: str) -> Answer:
        repo = self._repo(name)
        files = repo.commits[self._revision(repo, revision)]
        asked = json.loads(self.content)["paths"]
        return Answer(200, [files[path].entry(path) for path in asked if path in files])

    def preupload(self, name: str, revision: str) -> Answer:
        repo = self._writer(name)
        there = repo.commits[self._revision(repo, revision)]
        files = []
        for given in json.loads(self.content)["files"]:
            sample, path = base64.b64decode(given["sample"]), given["path"]
            large = path.endswith(".safetensors") or is_large(sample, given["size"])
            mode = {"path": path, "uploadMode": "lfs" if large else "regular"}
            oid = {"oid": there[path].etag} if path in there else {}
            files.append(mode | {"shouldIgnore": False} | oid)
        return Answer(200, {"files": files})

    def branch(self, name: str, branch: str) -> Answer:
        repo, given = self._writer(name), json.loads(self.content or b"{}")
        if branch in repo.branches:
            return refusal(409, message=f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = self._revision(repo, given.get("startingPoint", "main"))
        return Answer(201, {})

    def commit(self, name: str, revision: str) -> Answer:
        repo = self._writer(name)
        files, message = dict(repo.commits[self._revision(repo, revision)]), ""
        for line in self.content.splitlines():
            item = json.loads(line)
            value, key = item["value"], item["key"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return refusal(400, message=f"{value['path']} was never uploaded")
                files[value["path"]] = Blob(self.hub.large[value["oid"]], large=True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
        oid = repo.commit(revision, files, message)
        url = f"{self.hub.endpoint}/{repo.name}/commit/{oid}"
        return Answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    # ---- large files

    def lfs_batch(self, name: str) -> Answer:
        self._writer(name)
        objects = []
        for given in json.loads(self.content)["objects"]:
            entry = {"oid": given["oid"], "size": given["size"]}
            if given["oid"] not in self.hub.large:
                upload = {"href": f"{self.storage}/storage/{given['oid']}", "header": {}}
                verify = {"href": f"{self.hub.endpoint}/storage/verify", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return Answer(200, {"transfer": "basic", "objects": objects})

    @property
    def storage(self) -> str:
        """The hub's storage is another host, to which no token may go."""
        return self.hub.endpoint.replace("127.0.0.1", "localhost")

    def _note_token(self) -> None:
        if self.headers.get("Authorization"):
            self.hub.to_storage_with_token.append(self.path)

    def store(self, oid: str) -> Answer:
        self._note_token()
        if Blob(self.content).sha256 != oid:
            return refusal(400, message="what arrived is not what was announced")
        self.hub.large[oid] = self.content
        return Answer(200)

    def lfs_verify(self) -> Answer:
        given = json.loads(self.content)
        there = self.hub.large.get(given["oid"])
        complete = there is not None and len(there) == given["size"]
        return Answer(200) if complete else refusal(404, message="not there")

    def stored(self, oid: str) -> Answer:
        self._note_token()
        return self._bytes(self.hub.large[oid], {"ETag": f'"{oid}"'})

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        repo = self._repo(name)
        if repo.gated:
            status = 403 if self._user() else 401
            return refusal(status, "GatedRepo", f"Access to model {name} is restricted")
        oid = self._revision(repo, revision)
        headers = {"X-Repo-Commit": oid}
        blob = repo.commits[oid].get(path)
        if blob is None:
            missing = refusal(404, "EntryNotFound", "Entry not found")
            return Answer(404, missing.body, missing.headers | headers)
        if not blob.large:
            return self._bytes(blob.content, headers | {"ETag": f'"{blob.etag}"'})
        self.hub.large.setdefault(blob.sha256, blob.content)
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        return Answer(
            302, None, headers | linked | {"Location": f"{self.storage}/storage/{blob.etag}"}
        )

    def _bytes(self, content: bytes, headers: dict[str, str]) -> Answer:
        headers = headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return Answer(200, content, headers)
        start, stop = int(found[1]), int(found[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
        return Answer(206, content[start : stop + 1], headers)
