"""The features that the metrics of one evaluation share, and the statistics of reference sets,
remembered between evaluations.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_aside
from ddpm_lib.core.spelling import option
from ddpm_lib.core.tensor_files import load_tensors, save_tensors
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.image_sets import ImageSet
from ddpm_lib.metrics import FEATURES, Moments, Statistics, read_statistics, save_statistics
from ddpm_lib.runtime.processes import Processes, own_share

if TYPE_CHECKING:
    from accelerate import PartialState


logger = logging.getLogger("ddpm_lib")


@dataclass(frozen=True)
class Need:
    """What a metric asks for before anything is extracted.

    Attributes:
        which: samples, reference, train or held_out.
        features: "extractor/layer".
        only_statistics: Whether mean and covariance are enough.
        optional: Whether the metric can do without, where weights or images are missing.
    """

    which: str
    features: str
    only_statistics: bool = False
    optional: bool = False


def layer_of(features: str) -> str:
    """Turn a name of `FEATURES` such as inception2048 into "extractor/layer"."""
    return "/".join(FEATURES[features])


@dataclass(frozen=True)
class ReferenceStats:
    """Statistics of the reference from a file.

    Attributes:
        name: The reference's word in names of scores.
        layers: By "extractor/layer".
    """

    name: str
    layers: dict[str, Statistics]


@dataclass
class FeatureStore:
    """Features and statistics by set and layer.

    Attributes:
        engine: Extracts them.
        sets: By role: samples, reference, train, held_out, where there are such.
        given: Statistics from a file, which stand for the reference.
    """

    engine: Engine
    sets: dict[str, ImageSet]
    given: ReferenceStats | None = None
    _features: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _statistics: dict[tuple[str, str], Statistics] = field(default_factory=dict)

    @property
    def state(self) -> PartialState:
        """Accelerate's object that knows the ranks."""
        return self.engine.state

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.sets["samples"].n

    def with_samples(self, samples: ImageSet) -> FeatureStore:
        """Take other samples and keep what is known of the other sets."""
        others = {images.fingerprint for which, images in self.sets.items() if which != "samples"}
        for table in (self._features, self._statistics):
            for key in [key for key in table if key[0] not in others]:
                del table[key]
        self.sets = {**self.sets, "samples": samples}
        return self

    def word(self, which: str) -> str:
        """Return the set's word in names of scores."""
        return self.given.name if which == "reference" and self.given else self.sets[which].name

    def has(self, which: str, layer: str) -> bool:
        """Say whether features of a set were extracted."""
        return which in self.sets and (self.sets[which].fingerprint, layer) in self._features

    def give(self, which: str, layer: str, features: Tensor) -> None:
        """Take features of a set that are known already, (n, d)."""
        self._features[self.sets[which].fingerprint, layer] = features

    def prepare(self, needs: Iterable[Need]) -> None:
        """Extract what the metrics need: each set once, all layers of all extractors in one
        pass.
        """
        wanted: dict[str, dict[str, dict[str, None]]] = {}
        for need in needs:
            self._check(need)
            if need.which not in self.sets or (need.only_statistics and self._given(need)):
                continue
            images = self.sets[need.which]
            if need.features.startswith(("pixels/", "values/")):
                self._check_units(need)
            if need.features == "pixels/pixels":
                self._check_size(need.which)
            key = images.fingerprint, need.features
            if key in self._features or (
                need.only_statistics and self._remembered(images, need.features)
            ):
                continue
            loaded = self._load(images, need.features)
            if loaded is not None:
                self._features[key] = loaded
                continue
            extractor, layer = need.features.split("/")
            wanted.setdefault(images.fingerprint, {}).setdefault(extractor, {})[layer] = None
        by_key = {images.fingerprint: images for images in reversed(self.sets.values())}
        for fingerprint, layers in wanted.items():
            images = by_key[fingerprint]
            found = self.engine.features(images, {k: sorted(v) for k, v in layers.items()})
            for name, features in found.items():
                self._features[fingerprint, name] = features
                self._save(images, name, features)

    def _given(self, need: Need) -> bool:
        return (
            need.which == "reference"
            and self.given is not None
            and need.features in self.given.layers
        )

    def _check(self, need: Need) -> None:
        if need.which in self.sets or need.optional or (need.only_statistics and self._given(need)):
            return
        if need.which == "reference" and self.given is not None:
            if need.only_statistics:
                held = ", ".join(self.given.layers)
                raise ConfigError(
                    f"{self.given.name} holds statistics of {held}, not of {need.features}."
                )
            raise ConfigError(
                f"{self.given.name} is a file of statistics, enough for fid and sfid only; kid, pr,"
                " dc and memorisation compare single images. Name the images with reference="
                " (--reference PATH)."
            )
        raise ConfigError(
            f"There are no {need.which} images. Name them with reference= (--reference PATH)."
        )

    def _check_units(self, need: Need) -> None:
        """Refuse to compare values with pictures, and normalized values of several ranges."""
        ours, other = (self.sets[name].normalization for name in ("samples", need.which))
        if (ours is None) != (other is None):
            values, pictures = (
                self.sets[name].name
                for name in (("samples", need.which) if other is None else (need.which, "samples"))
            )
            raise ConfigError(
                f"{values} are measured values and {pictures} pictures, which have no unit in"
                f" common. Open both with {option('normalize', 'affine')}."
            )
        if need.features.startswith("values/") or ours is None or other is None:
            return
        one, two = ours.to_json(), other.to_json()
        if any(one[name] != two[name] for name in ("values", "levels")):
            raise ConfigError(
                f"Pixels of samples and {self.sets[need.which].name} are normalized by different"
                f" ranges, so that they cannot be compared. Use {option('metrics', 'values')},"
                " which compares them in units, or open both with one normalization."
            )

    def _check_size(self, which: str) -> None:
        """Refuse to compare pixels of images of different sizes."""
        sizes = {name: self.sets[name].shape for name in (which, "samples")}
        if None not in sizes.values() and len(set(sizes.values())) > 1:
            words = " and ".join(
                f"{name} of {'×'.join(map(str, shape or ()))}" for name, shape in sizes.items()
            )
            raise ConfigError(
                f"Pixels of images of one size can be compared; got {words}. Say at which size:"
                " image_size= (--image-size 64), or leave memorisation and"
                f" {option('features', 'pixels')} out."
            )

    def features(self, which: str, layer: str) -> Tensor:
        """Return float32 (n, d) on the CPU."""
        return self._features[self.sets[which].fingerprint, layer]

    def statistics(self, which: str, layer: str) -> Statistics:
        """Return mean and covariance; sums are taken on all ranks in float64 and merged."""
        if which == "reference" and self.given is not None and layer in self.given.layers:
            return self.given.layers[layer]
        images = self.sets[which]
        key = images.fingerprint, layer
        if key not in self._statistics:
            self._statistics[key] = self._merged(self._features[key])
            if images.cached and self.state.is_main_process:
                self._remember(images, layer, self._statistics[key])
        return self._statistics[key]

    def _merged(self, features: Tensor) -> Statistics:
        ranks = self.state.num_processes
        # Statistics do not depend on the number of processes beyond the last digits: float64,
        # merged in the order of the rows.
        own = own_share(len(features), self.state.process_index, ranks)
        moments = Moments(features.shape[1]).update(features[own.start : own.stop])
        if ranks == 1:
            return moments.statistics()
        gather = Processes.of(self.state).gather
        dtype = torch.float32 if self.state.device.type == "mps" else torch.float64
        here: dict[str, Any] = {"device": self.state.device, "dtype": dtype}
        counts = gather(torch.tensor([moments.n], device=self.state.device)).tolist()
        means = gather(moments.mean.to(**here)[None])
        scatters = gather(moments.scatter.to(**here)[None])
        whole = Moments(features.shape[1])
        for n, mean, scatter in zip(counts, means, scatters):
            part = Moments(features.shape[1])
            part.n, part.mean, part.scatter = n, mean.cpu().double(), scatter.cpu().double()
            whole.merge(part)
        return whole.statistics()

    def _path(self, images: ImageSet, layer: str, suffix: str) -> Path:
        extractor = layer.split("/")[0]
        text = json.dumps([images.fingerprint, images.n, layer, self.engine.digest(extractor)])
        return (
            cache_folder()
            / "references"
            / (hashlib.blake2b(text.encode(), digest_size=12).hexdigest() + suffix)
        )

    def _remembered(self, images: ImageSet, layer: str) -> bool:
        key = images.fingerprint, layer
        path = self._path(images, layer, ".npz") if images.cached else None
        if key not in self._statistics and path is not None and self._all_see(path):
            self._statistics[key] = read_statistics(path)[0]
        return key in self._statistics

    def _remember(self, images: ImageSet, layer: str, statistics: Statistics) -> None:
        about = {"features": layer, "images": images.name, "fingerprint": images.fingerprint}
        path = self._path(images, layer, ".npz")
        _quietly(path, lambda: save_statistics(path, statistics, **about))

    def _load(self, images: ImageSet, layer: str) -> Tensor | None:
        path = self._path(images, layer, ".safetensors") if images.cached else None
        if path is None or not self._all_see(path):
            return None
        return load_tensors(path)["features"]

    def _save(self, images: ImageSet, layer: str, features: Tensor) -> None:
        if images.cached and self.state.is_main_process:
            path = self._path(images, layer, ".safetensors")
            _quietly(path, lambda: _save_features(path, features))

    def _all_see(self, path: Path) -> bool:
        """Say whether every rank sees a file, so that all take the same way."""
        seen = path.is_file()
        return all(Processes.of(self.state).all_objects(seen))


Bank = FeatureStore
"""The store's name where metrics find it: `task.bank`."""


def _quietly(path: Path, write: Callable[[], object]) -> None:
    """Write what can be made again; a disk that refuses costs time later, not this evaluation."""
    try:
        write()
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s); it will be computed again next time.", path, error
        )


def _save_features(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: save_tensors(aside, {"features": features}))
