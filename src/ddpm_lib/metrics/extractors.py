"""From images to features, by name: published networks through the libraries that carry them, and
small ones without weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core.foreign import read_tensors
from ddpm_lib.core.registry import Registry
from ddpm_lib.metrics.feature_extractor import Extractor
from ddpm_lib.metrics.hed_vgg import STAGES, HedVgg, needs_reader
from ddpm_lib.metrics.value_statistics import Values
from ddpm_lib.metrics.weights import (
    WEIGHTS,
    MissingWeightsError,
    get_weights,
    hub_folder,
    missing_weights,
    sha256_of,
)


def to_rgb(images: Tensor) -> Tensor:
    """Bring uint8 images (n, c, h, w) to three channels as PIL's convert("RGB") does: grey is
    repeated, alpha is dropped.

    Raises:
        ValueError: For data that is no picture.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"Features are taken of uint8 pictures (n, 1 | 3 | 4, h, w); got {images.dtype}"
            f" {tuple(images.shape)}. Metrics of pictures do not apply to other data."
        )
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


class RandomProjection(Extractor):
    """Fixed random projections of the image averaged to 8×8: features in microseconds, without
    weights, for tests and trials.

    Not a measure of what people see; useful to try a pipeline, and blind to nothing that 8×8 pixels
    show.
    """

    def __init__(self, layers: Sequence[str], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(20150512)
        sizes = {"64": 64, "spatial": 49, "logits": 10}
        self._maps = {
            k: (torch.randn(192, n, generator=generator) / 192**0.5).to(device)
            for k, n in sizes.items()
        }
        self._layers = tuple(layers)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        small = F.adaptive_avg_pool2d(images.float() / 255.0, 8).flatten(1)
        scale = {"logits": 8.0}
        return {k: small @ self._maps[k] * scale.get(k, 1.0) for k in self._layers}


class Pixels(Extractor):
    """The image itself, averaged to at most 32×32, in [0, 1]: the pixel space of the memorisation
    metric. Volumes are averaged to at most 16×16×16. Besides RGB the call takes uint8 or, of
    measured values, float in [0, 1] of any number of channels, (n, c, *spatial).
    """

    def __init__(self, layers: Sequence[str], device: torch.device) -> None:
        self._layers = tuple(layers)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        x = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        sides = x.shape[2:]
        most = 16 if len(sides) == 3 else 32
        if max(sides) > most:
            smaller = [min(most, side) for side in sides]
            pools: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
            x = pools[len(sides) - 1](x, smaller)
        return {k: x.flatten(1) for k in self._layers}


class Inception(Extractor):
    """Inception-v3 of the FID paper through torch-fidelity, with TensorFlow's resizing.

    Layers: 64, 192, 768, 2048, logits (without bias, as the inception score uses them) and spatial
    (the first 7 channels of mixed_6/conv, 17×17, of Nash et al. 2021's sFID). The network runs in
    channels_last, the faster layout.
    """

    def __init__(
        self, layers: Sequence[str], device: torch.device, path: str | Path | None = None
    ) -> None:
        file = get_weights("inception", path)
        check_tensors(file, "inception")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._layers = tuple(layers)
        wanted = ["logits_unbiased" if k == "logits" else k for k in layers if k != "spatial"]
        # The order in which the network reaches them; with nothing but spatial asked for, the 768
        # that follow it cost least.
        order = ("64", "192", "768", "2048", "logits_unbiased")
        self._wanted = [k for k in order if k in wanted] or ["768"]
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", self._wanted, feature_extractor_weights_path=str(file)
        )
        self._network = network.to(device, memory_format=torch.channels_last)
        self._network.eval()
        self._spatial: Tensor | None = None
        if "spatial" in layers:
            self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Position by position, in the order of ADM's published statistics.
        self._spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1).float()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        with torch.inference_mode():
            found = dict(zip(self._wanted, self._network(images)))
        if self._spatial is not None:
            found["spatial"], self._spatial = self._spatial, None
        if "logits_unbiased" in found:
            found["logits"] = found.pop("logits_unbiased")
        return {k: found[k].clone() for k in self._layers}


class PytorchFid(Extractor):
    """The same network as pytorch-fid runs it, with PyTorch's bilinear resizing: a cross-check,
    apart by a percent.
    """

    def __init__(
        self, layers: Sequence[str], device: torch.device, path: str | Path | None = None
    ) -> None:
        file = get_weights("inception", path)
        check_tensors(file, "inception")
        import pytorch_fid.inception as peer

        state = read_tensors(file)
        self._layers = tuple(sorted(layers, key=int))
        with _replaced(peer, "load_state_dict_from_url", lambda *_, **__: state):
            network = peer.InceptionV3(
                [peer.InceptionV3.BLOCK_INDEX_BY_DIM[int(k)] for k in self._layers]
            )
        self._network = network.to(device, memory_format=torch.channels_last)
        self._network.eval()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        with torch.inference_mode():
            maps = self._network(images.float() / 255.0)
        return {
            k: F.adaptive_avg_pool2d(x, 1).flatten(1).clone() for k, x in zip(self._layers, maps)
        }


class DinoV2(Extractor):
    """DINOv2 ViT-L/14 as torch-fidelity runs it, for FD-DINOv2 (Stein et al. 2023).

    The network's code is its authors', which lies in torch.hub's cache.
    """

    def __init__(
        self, layers: Sequence[str], device: torch.device, path: str | Path | None = None
    ) -> None:
        code, file = dinov2_code(), get_weights("dinov2", path)
        check_tensors(file, "dinov2")
        import torch_fidelity.feature_extractor_dinov2 as peer

        model = torch.hub.load(str(code), "dinov2_vitl14", source="local", pretrained=False)
        model.load_state_dict(read_tensors(file))
        self._layers = tuple(layers)
        with _replaced(
            torch.hub, "load", lambda *_, **__: model
        ):  # torch-fidelity would fetch both anew
            self._network = peer.FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
        self._network.to(device)
        self._network.eval()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer."""
        with torch.inference_mode():
            (found,) = self._network(images)
        return {k: found.clone() for k in self._layers}


def dinov2_code() -> Path:
    """Return the folder of DINOv2's code in torch.hub's cache.

    Raises:
        MissingWeightsError: If it is not there, saying what to bring.
    """
    folder = hub_folder().parent
    found = next(
        (
            p
            for p in sorted(folder.glob("facebookresearch_dinov2_*"))
            if (p / "hubconf.py").is_file()
        ),
        None,
    )
    if found is None:
        raise MissingWeightsError(
            "The code of DINOv2 is not here. Unpack"
            " https://github.com/facebookresearch/dinov2/archive/main.zip as"
            f" {folder}/facebookresearch_dinov2_main.\n{missing_weights(WEIGHTS['dinov2'])}"
        )
    return found


def check_tensors(file: Path, name: str) -> None:
    """Refuse a file of weights that is neither the published one nor holds tensors only.

    The libraries unpickle without restraint: what the safe unpickler takes cannot run code there
    either.
    """
    if sha256_of(file) != WEIGHTS[name].sha256:
        read_tensors(file)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


Build = Callable[..., Extractor]
EXTRACTORS: Registry[Build] = Registry(
    "extractor",
    {
        "inception": Inception,
        "pytorchfid": PytorchFid,
        "dinov2": DinoV2,
        "hedvgg": HedVgg,
        "random": RandomProjection,
        "pixels": Pixels,
        "values": Values,
    },
)

FEATURES: Registry[tuple[str, str]] = Registry(
    "features",
    {
        **{f"inception{d}": ("inception", str(d)) for d in (2048, 768, 192, 64)},
        **{f"pytorchfid{d}": ("pytorchfid", str(d)) for d in (2048, 768, 192, 64)},
        "dinov2": ("dinov2", "dinov2"),
        **{f"hedvgg{d}": ("hedvgg", d) for d in reversed(STAGES)},
        "random64": ("random", "64"),
        "pixels": ("pixels", "pixels"),
    },
)
"""Name in scores → (extractor, layer)."""

_WEIGHTS = {
    "inception": "inception",
    "pytorchfid": "inception",
    "dinov2": "dinov2",
    "hedvgg": "hedvgg",
}

SPATIAL = {"inception": "spatial", "random": "spatial"}
LOGITS = {"inception": "logits", "random": "logits"}


def make_extractor(
    name: str, layers: Sequence[str], device: torch.device | str, path: str | Path | None = None
) -> Extractor:
    """Build an extractor that returns these layers.

    Args:
        name: Of `EXTRACTORS`.
        layers: Names of its layers.
        device: Where to run it.
        path: A file of Inception weights; those of others are named by environment variables
            ($DDPM_LIB_DINOV2_WEIGHTS, $DDPM_LIB_HEDVGG_WEIGHTS).

    Raises:
        MissingWeightsError: If its weights cannot be had.
    """
    build, where = EXTRACTORS[name], torch.device(device)
    return build(layers, where, _for(name, path)) if name in _WEIGHTS else build(layers, where)


def weights_digest(name: str, path: str | Path | None = None) -> str:
    """Return what tells an extractor's features from those of another: the digest of its weights,
    or its name.

    Raises:
        MissingWeightsError: If its weights cannot be had.
    """
    EXTRACTORS[name]
    if name == "dinov2":
        dinov2_code()
    if name == "hedvgg":
        needs_reader()
    return sha256_of(get_weights(_WEIGHTS[name], _for(name, path))) if name in _WEIGHTS else name


def _for(name: str, path: str | Path | None) -> str | Path | None:
    return path if _WEIGHTS[name] == "inception" else None
