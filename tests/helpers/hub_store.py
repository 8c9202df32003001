"""What a stand-in for the hub keeps: repositories with commits, branches and large files, and the
rules by which the hub looks at the metadata of a card.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

# fmt: off
LICENSES = frozenset((
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl",
    "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "mpl-2.0", "odc-by", "odbl",
    "openmdw-1.0", "openrail-m", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib",
    "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "gemma", "unknown", "other",
))
# fmt: on
"""The licence names that the hub accepts in a card."""


def git_oid(content: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One file: its bytes, and whether git or the large file storage holds them."""

    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
        return text.format(self.sha256, len(self.content)).encode()

    @property
    def oid(self) -> str:
        return git_oid(self.pointer if self.large else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """The file in a listing."""
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": len(self.content),
            "oid": self.oid,
        }
        if self.large:
            size = len(self.content)
            pointer = len(self.pointer)
            entry["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": pointer}
        return entry


@dataclass
class Repo:
    """One repository: commits by name, and what branches and tags point to."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit(
            "main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, "initial commit"
        )

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a commit's name or its beginning stands for."""
        known = self.branches.get(revision) or self.tags.get(revision)
        if known is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            known = next((oid for oid in self.commits if oid.startswith(revision)), None)
        return known

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        """Put `files` on a branch as its whole content; return the commit's name."""
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        text = f"{self.name} {branch} {len(self.commits)} {message}\n{listing}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of a revision, by path."""
        oid = self.resolve(revision)
        if oid is None:
            raise KeyError(f"{self.name} has no revision {revision}")
        return {path: blob.content for path, blob in self.commits[oid].items()}

    def put(self, path: str, content: bytes | None, branch: str = "main") -> None:
        """Replace a file, or remove it with None, in a commit of its own."""
        files = dict(self.commits[self.branches[branch]])
        files.pop(path, None)
        if content is not None:
            files[path] = Blob(content, large=is_large(content))
        self.commit(branch, files, f"put {path}")


def is_large(sample: bytes, size: int = 0) -> bool:
    """Whether a file goes to the large file storage: binary ones, and text above 10 MB."""
    return b"\0" in sample or sample.startswith(b"\x89PNG") or size > 10_000_000


def card_problems(content: str) -> tuple[list[str], list[str]]:
    """What the hub has to say about a card.

    Returns:
        Errors, for which an upload is refused, and warnings.
    """
    found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", content, re.DOTALL)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"], []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"], []
    errors = [*_license_problems(data.get("license")), *_index_problems(data.get("model-index"))]
    for key in ("tags", "datasets", "metrics"):
        words = data.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            errors.append(f'"{key}" must be an array of strings')
    errors += [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag")
        if not isinstance(data.get(key, ""), str)
    ]
    errors += [
        f'"{name}" is not the name of a model or dataset of the hub'
        for name in _as_list(data.get("base_model")) + _as_list(data.get("datasets"))
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name))
    ]
    return errors, []


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _license_problems(given: Any) -> list[str]:
    unknown = [name for name in _as_list(given) if name not in LICENSES]
    return [f'"license" must be one of [{", ".join(sorted(LICENSES))}]'] if unknown else []


def _index_problems(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    problems = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        if not isinstance(model.get("name"), str):
            problems.append(f'"{at}.name" is required')
        results = model.get("results")
        if not isinstance(results, list):
            problems.append(f'"{at}.results" is required')
            continue
        for j, result in enumerate(results):
            problems += _result_problems(f"{at}.results[{j}]", result)
    return problems


def _result_problems(at: str, result: dict[str, Any]) -> list[str]:
    problems = []
    if not isinstance(result.get("task", {}).get("type"), str):
        problems.append(f'"{at}.task.type" is required')
    dataset = result.get("dataset")
    if dataset is not None:
        problems += [
            f'"{at}.dataset.{key}" is required'
            for key in ("type", "name")
            if not isinstance(dataset.get(key), str)
        ]
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(dataset.get("type", "x"))):
            problems.append(f'"{at}.dataset.type" must be the name of a dataset')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*problems, f'"{at}.metrics" is required']
    return problems + [
        f'"{at}.metrics[{k}].{key}" is required'
        for k, metric in enumerate(metrics)
        for key in ("type", "value")
        if metric.get(key) is None
    ]
