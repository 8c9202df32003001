"""The same images, the same weights, the same numbers as torch-fidelity and pytorch-fid find; and
where weights are looked for.

No published weights are here: networks with random weights are written in the published format.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Shapes, evaluate
from ddpm_lib.cli import main
from ddpm_lib.metrics import (
    WEIGHTS,
    MissingWeightsError,
    fetch_weights,
    find_weights,
    get_weights,
    make_extractor,
)
from ddpm_lib.metrics import weights as module
from inception_weights import write_inception


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twelve and sixteen pictures of 32×24, some grey, some with an alpha channel."""
    from PIL import Image

    root = tmp_path_factory.mktemp("parity")
    for name, n, seed in (("a", 12, 1), ("b", 16, 2)):
        (root / name).mkdir()
        images = (
            Shapes(size=32, n=n, seed=seed)
            .batch(np.arange(n))["image"]
            .permute(0, 2, 3, 1)
            .numpy()[:, 4:28]
        )
        for i, image in enumerate(
            images // 2 if name == "b" else images
        ):  # apart, else a kernel distance is all rounding
            Image.fromarray(image).convert(("RGB", "L", "RGBA")[i % 3]).save(
                root / name / f"{i:02d}.png"
            )
    return root / "a", root / "b"


@pytest.mark.slow
def test_equal_to_both_published_tools(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import calculate_metrics

    a, b = (str(folder) for folder in folders)
    home = tmp_path / "torch"
    weights = write_inception(home / "hub" / "checkpoints" / WEIGHTS["inception"].filenames[1])
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    found = evaluate(
        a,
        metrics="fid,is,kid,pr,sfid",
        reference=b,
        features="inception2048,inception64,pytorchfid2048",
        feature_weights=str(weights),
        device="cpu",
        progress=False,
        batch_size=5,
    )
    asked = {
        "input1": a,
        "input2": b,
        "cuda": False,
        "verbose": False,
        "save_cpu_ram": True,
        "batch_size": 4,
        "kid_subset_size": 12,
        "feature_extractor": "inception-v3-compat",
        "feature_extractor_weights_path": str(weights),
    }
    peer = calculate_metrics(isc=True, fid=True, kid=True, prc=True, **asked)
    same = {
        "fid_inception2048_b_12": "frechet_inception_distance",
        "is_inception_12": "inception_score_mean",
        "kid_inception2048_b_12": "kernel_inception_distance_mean",
        "precision_k3_inception2048_b_12": "precision",
        "recall_k3_inception2048_b_12": "recall",
    }
    for ours, theirs in same.items():
        assert found[ours] == pytest.approx(peer[theirs], rel=1e-4), ours
    assert peer["inception_score_mean"] > 1.001
    small = calculate_metrics(fid=True, feature_layer_fid="64", **asked)
    assert found["fid_inception64_b_12"] == pytest.approx(
        small["frechet_inception_distance"], rel=1e-4
    )
    command = [
        sys.executable,
        "-m",
        "pytorch_fid",
        a,
        b,
        "--device",
        "cpu",
        "--num-workers",
        "0",
        "--batch-size",
        "6",
    ]
    environment = {**os.environ, "TORCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    assert told.returncode == 0, told.stderr[-2000:]
    assert found["fid_pytorchfid2048_b_12"] == pytest.approx(
        float(told.stdout.split("FID:")[1]), rel=1e-4
    )
    assert found["sfid_inception_b_12"] > 0


def test_their_reader_is_theirs(tmp_path: Path) -> None:
    """Transparent, turned, grey and palette pictures, sub-folders: the pixels that both tools hand
    to their networks.
    """
    from PIL import Image
    from pytorch_fid.fid_score import IMAGE_EXTENSIONS, ImagePathDataset
    from torch_fidelity.utils import prepare_input_from_id

    from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
    from ddpm_lib.evaluation.pictures import open_pictures

    images = Shapes(size=8, n=8).batch(np.arange(8))["image"].permute(0, 2, 3, 1).numpy()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        if i % 4 == 0:
            picture.putalpha(Image.fromarray(image[..., 1]))
        picture = (
            picture.convert("P") if i % 4 == 1 else picture.convert("L") if i % 4 == 2 else picture
        )
        picture.save(tmp_path / f"{i:02d}.png", **({"exif": exif} if i % 4 == 3 else {}))
    (tmp_path / "deep").mkdir()
    picture.save(tmp_path / "deep" / "x.png")
    options = EvaluationOptions(reader="torch-fidelity", progress=False)
    opened = open_pictures(str(tmp_path), None, options)
    found = opened.read(range(opened.n))
    theirs = prepare_input_from_id(1, input1=str(tmp_path), verbose=False)
    assert torch.equal(found, torch.stack([theirs[i] for i in range(len(theirs))]))
    files = sorted(f for e in IMAGE_EXTENSIONS for f in tmp_path.glob(f"*.{e}"))
    peer = ImagePathDataset(files)
    assert torch.equal(
        found,
        torch.stack(
            [torch.from_numpy(np.array(peer[i])).permute(2, 0, 1) for i in range(len(peer))]
        ),
    )
    ours = open_pictures(str(tmp_path), None, EvaluationOptions(progress=False))
    assert ours.n == opened.n + 1
    assert not torch.equal(ours.read(range(opened.n)), found)


@pytest.mark.slow
def test_features_of_a_batch_are_those_of_its_images_and_of_the_layers_asked_for(
    tmp_path: Path,
) -> None:
    weights = write_inception(tmp_path / "w.pth")
    images = torch.from_numpy(
        np.stack([np.full((3, 20, 20), 40 * k, dtype=np.uint8) for k in range(3)])
    )
    whole = make_extractor("inception", ["64", "spatial", "logits"], "cpu", weights)(images)
    assert {k: v.shape[1] for k, v in whole.items()} == {
        "64": 64,
        "spatial": 7 * 17 * 17,
        "logits": 1008,
    }
    alone = make_extractor("inception", ["spatial"], "cpu", weights)(images[1:2])
    assert torch.allclose(alone["spatial"][0], whole["spatial"][1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An empty home, and a published file of eleven bytes."""
    content = b"the weights"
    entry = WEIGHTS["inception"]
    small = module.Weights(
        "inception",
        entry.filenames,
        ("http://127.0.0.1:9/none",),
        hashlib.sha256(content).hexdigest(),
        len(content),
        entry.variable,
        entry.used_by,
    )
    monkeypatch.setattr(WEIGHTS, "_entries", {"inception": small})
    for name in ("TORCH_HOME", "DDPM_LIB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("DDPM_LIB_OFFLINE", "HF_HUB_OFFLINE", entry.variable):
        monkeypatch.delenv(name, raising=False)
    return {
        "hub": tmp_path / "TORCH_HOME" / "hub" / "checkpoints",
        "own": tmp_path / "DDPM_LIB_CACHE" / "weights",
        "file": tmp_path / "file.pth",
    }


def put(path: Path, content: bytes = b"the weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_weights_are_looked_for_in_order(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = WEIGHTS["inception"]
    assert find_weights("inception") is None
    last = put(places["own"] / entry.filenames[0])
    assert find_weights("inception") == last
    for name in reversed(entry.filenames):  # pytorch-fid's name, then torch-fidelity's
        file = put(places["hub"] / name)
        assert find_weights("inception") == file
    named = put(places["file"], b"my own")
    monkeypatch.setenv(entry.variable, str(named))
    assert get_weights("inception") == named
    assert get_weights("inception", last) == last
    with pytest.raises(MissingWeightsError, match="does not exist"):
        get_weights("inception", places["file"].with_name("other"))
    monkeypatch.delenv(entry.variable)
    put(places["hub"] / entry.filenames[0], b"half of")
    with pytest.raises(ValueError, match=r"is not the published file: SHA-256 .* Delete it"):
        get_weights("inception")


def test_without_internet_the_error_says_what_to_bring(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = WEIGHTS["inception"]
    for forbidden in ("DDPM_LIB_OFFLINE", None):
        if forbidden:
            monkeypatch.setenv(forbidden, "1")
        else:
            monkeypatch.delenv("DDPM_LIB_OFFLINE")
        with pytest.raises(MissingWeightsError) as error:
            get_weights("inception")
        for word in (
            entry.filenames[0],
            entry.urls[0],
            entry.sha256,
            "ddpm weights fetch",
            str(places["hub"]),
        ):
            assert word in str(error.value)
    assert main(["weights", "fetch"]) == 1
    assert entry.sha256 in capsys.readouterr().err
    assert main(["weights", "verify"]) == 1
    assert main(["weights", "list"]) == 0
    assert "not here" in capsys.readouterr().out
    put(places["hub"] / entry.filenames[0])
    assert main(["weights", "verify"]) == 0
    assert "the published file" in capsys.readouterr().out
    assert main(["weights", "verify", "--path", str(put(places["file"], b"other"))]) == 1
    assert "expected" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"the weights", b"the wrongs!", b"far too many bytes"])
def test_downloads_are_checked_before_they_are_kept(
    places: dict[str, Path], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)
    with monkeypatch.context() as before:
        before.setenv("http_proxy", "http://127.0.0.1:9")
        with pytest.raises(OSError, match="refused"):  # urllib keeps this proxy for ever
            urllib.request.urlopen("http://example.invalid", timeout=5)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = WEIGHTS["inception"]
    url = f"http://127.0.0.1:{server.server_port}/file"
    monkeypatch.setattr(
        WEIGHTS, "_entries", {"inception": module.Weights(**{**entry.__dict__, "urls": (url,)})}
    )
    try:
        if content == b"the weights":
            assert get_weights("inception") == places["hub"] / entry.filenames[0]
            assert find_weights("inception") is not None
        else:
            with pytest.raises(
                (ValueError, OSError), match=r"SHA-256|sends more than the 11 bytes"
            ):
                fetch_weights("inception", places["file"])
            assert not places["file"].exists()
            assert list(places["file"].parent.glob("*.part")) == []
    finally:
        server.shutdown()
        server.server_close()


def test_files_that_hold_code_are_refused(places: dict[str, Path]) -> None:
    torch.save({"x": os.getcwd}, places["file"])
    with pytest.raises(ValueError, match="holds Python objects, which are never loaded"):
        make_extractor("inception", ["64"], "cpu", places["file"])


def test_dinov2_says_what_it_needs_and_runs_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the code in torch.hub's cache: one linear layer of the mean colour that
    torch-fidelity hands over.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")
    with pytest.raises(
        MissingWeightsError,
        match=r"(?s)facebookresearch_dinov2_main.*dinov2_vitl14_pretrain.pth .*SHA-256",
    ):
        make_extractor("dinov2", ["dinov2"], "cpu")
    code = (
        "import torch\ndependencies = []\nclass Net(torch.nn.Module):\n    def __init__(self):\n   "
        "     super().__init__()\n        self.head = torch.nn.Linear(3, 2)\n    def forward(self,"
        " x):\n        return self.head(x.mean((2, 3)))\ndef dinov2_vitl14(pretrained=True):\n   "
        " assert not pretrained\n    return Net()\n"
    )
    put(tmp_path / "hub" / "facebookresearch_dinov2_main" / "hubconf.py", code.encode())
    weight, bias = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([0.0, 1.0])
    torch.save({"head.weight": weight, "head.bias": bias}, tmp_path / "own.pth")
    monkeypatch.setenv(WEIGHTS["dinov2"].variable, str(tmp_path / "own.pth"))
    got = make_extractor("dinov2", ["dinov2"], "cpu")(
        torch.full((1, 3, 20, 20), 51, dtype=torch.uint8)
    )["dinov2"]
    red, green = (0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224  # ImageNet's normalisation
    assert got[0].tolist() == pytest.approx([red, 2 * green + 1], rel=1e-4)
