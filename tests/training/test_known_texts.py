"""Texts that were encoded once need no encoder again: in the cache, with a run, in a folder."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import DRAW, TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Shapes, Trainer, load_run, open_dataset
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation import evaluate
from ddpm_lib.nn import text_cache, text_encoders
from ddpm_lib.nn.text_encoders import encode_texts
from ddpm_lib.nn.text_vectors import TextVectors, known_texts, text_keys
from ddpm_lib.runs.publishing.pushing import Publication, write_publication
from ddpm_lib.runs.stored_texts import FILE, read_texts

NAME = "somebody/words"
TEXTS = ["a red ring", "a blue star", "a green circle", "a red star"]


class Encoder:
    """A model of sentence-transformers as far as it is used, which notes what it is asked."""

    asked: ClassVar[list[list[str]]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([[t.count(c) + 0.1 * len(t) for c in "abdeg"] for t in texts], np.float32)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """An encoder by its name, and an empty cache of texts; what it was asked for."""
    monkeypatch.setattr(text_cache, "cache_folder", lambda: tmp_path / "cache")
    fake = SimpleNamespace(SentenceTransformer=Encoder)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    Encoder.asked = []
    return Encoder.asked


def without(monkeypatch: pytest.MonkeyPatch, where: Path) -> None:
    """Take encoder and cache away."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr(text_cache, "cache_folder", lambda: where / "another_cache")


def pictures(folder: Path, texts: list[str], n: int = 12, first: int = 0) -> Path:
    data = Shapes(size=8, n=first + n)
    folder.mkdir()
    rows = ["file_name,text"]
    for i in range(n):
        name = f"{folder.name}{i:02d}.png"
        Image.fromarray(data[first + i]["image"].permute(1, 2, 0).numpy()).save(folder / name)
        rows.append(f"{name},{texts[i % len(texts)]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def command(images: Path, run: Path, steps: int = 4, *more: object) -> list[object]:
    words = ["train", images, *TINY, "--condition", f"caption=:text,encoder={NAME}"]
    words += ["--no-class-conditional", "--learning-rate", 0.01, "--no-report"]
    words += ["--val-every", 0, "--sample-every", 0]
    return [*words, "--output-dir", run, "--max-steps", steps, *more]


def test_each_text_is_encoded_once(encoder: list[list[str]]) -> None:
    first = encode_texts([TEXTS[0], TEXTS[1], TEXTS[0]], NAME)
    assert encoder == [TEXTS[:2]]
    assert np.array_equal(first[0], first[2])
    more = encode_texts([*TEXTS[::-1], TEXTS[0]], NAME)
    assert encoder[1:] == [[TEXTS[3], TEXTS[2]]], "what is known is not asked for again"
    assert np.array_equal(more[[3, 2, 4]], first)
    assert np.array_equal(encode_texts([TEXTS[2]], NAME)[0], more[1])
    assert len(encoder) == 2
    other = encode_texts([TEXTS[0]], "another/name")
    assert len(encoder) == 3, "the vectors of another encoder are others"
    assert np.array_equal(other[0], first[0])


def test_the_cache_of_an_earlier_version_serves(
    encoder: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept a list of texts as a whole."""
    key = hashlib.blake2b(json.dumps([NAME, [], *TEXTS]).encode(), digest_size=16).hexdigest()
    whole = np.arange(20, dtype=np.float32).reshape(4, 5)
    (tmp_path / "cache" / "texts").mkdir(parents=True)
    np.save(tmp_path / "cache" / "texts" / f"{key}.npy", whole)
    assert np.array_equal(encode_texts(TEXTS, NAME), whole)
    assert encoder == []
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert np.array_equal(encode_texts(TEXTS, NAME), whole)


def test_a_damaged_cache_is_made_anew_and_small_files_become_one(
    encoder: list[list[str]], tmp_path: Path
) -> None:
    first = encode_texts(TEXTS, NAME)
    (file,) = (tmp_path / "cache" / "texts").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert np.array_equal(encode_texts(TEXTS, NAME), first)
    assert encoder == [TEXTS, TEXTS]
    for k in range(text_cache._MOST_FILES + 3):
        encode_texts([f"text {k}"], NAME)
    assert len(list(file.parent.glob("*.npz"))) < 8
    asked = len(encoder)
    assert np.array_equal(encode_texts(TEXTS, NAME), first)
    encode_texts([f"text {k}" for k in range(text_cache._MOST_FILES + 3)], NAME)
    assert len(encoder) == asked


def test_vectors_are_named_by_text_and_encoder() -> None:
    keys = text_keys(["a", "b", None], "folder/minilm/")
    assert np.array_equal(keys[:2], text_keys(["a", "b"], "/elsewhere/minilm"))
    assert not keys[2].any()
    assert not np.array_equal(keys[0], text_keys(["a"], "other")[0])
    known = TextVectors.none().with_more(keys, np.float32([[1, 2], [3, 4], [5, 6]]))
    assert len(known) == 2
    assert known.with_more(keys, np.zeros((3, 2), np.float32)) is known, "what is there stays"
    assert known.rows_of(keys).tolist() == [0, 1, -1]
    with known_texts([known]):
        assert np.array_equal(encode_texts(["b", "a"], "minilm"), np.float32([[3, 4], [1, 2]]))


def test_a_run_needs_its_encoder_for_new_texts_alone(
    encoder: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Drawn, redrawn, scored, loaded, saved, exported and continued without it."""
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    assert ddpm(*command(images, run)) == 0
    for steps in (4, 6):
        assert ddpm(*command(images, tmp_path / "twin", steps)) == 0
    kept = read_texts(run)["caption"]
    assert len(kept) == len(TEXTS)
    assert all(text.encode() not in (run / FILE).read_bytes() for text in TEXTS)
    said = ["--cond", f"caption={TEXTS[1]}", *DRAW]
    draw = ["sample", run, *said, "--num", 2, "--format", "npz", "--output-dir"]
    assert ddpm(*draw, tmp_path / "with") == 0
    process = load_run(run).diffusion
    wanted = process.sample(2, cond={"caption": TEXTS[1]}, num_steps=2, progress=False)
    process.save_pretrained(tmp_path / "folder")
    without(monkeypatch, tmp_path)
    assert ddpm(*draw, tmp_path / "without") == 0
    drawn = [np.load(tmp_path / k / "samples.npz")["arr_0"] for k in ("with", "without")]
    assert np.array_equal(*drawn)
    again = load_run(run).diffusion
    both = GaussianDiffusion.from_pretrained(tmp_path / "folder")
    for one in (again, both, load_run(tmp_path / "folder").diffusion):
        found = one.sample(2, cond={"caption": TEXTS[1]}, num_steps=2, progress=False)
        assert torch.equal(found, wanted)
    assert ddpm("edit", run, images / "images00.png", *said, "--output-dir", tmp_path / "e") == 0
    assert ddpm("export", run, tmp_path / "out", "--to", "safetensors") == 0
    exported = GaussianDiffusion.from_pretrained(tmp_path / "out")
    assert exported.conditioners["caption"].known.rows_of(kept.keys).tolist() == [0, 1, 2, 3]
    look = tmp_path / "look"
    assert ddpm("push", run, "me/mine", "--dry-run", look) == 0
    pushed = GaussianDiffusion.from_pretrained(look)
    assert np.array_equal(pushed.conditioners["caption"].known.vectors, kept.vectors)
    scored = evaluate(run, metrics="nll", num=2, data="train")
    assert np.isfinite(scored.scores[0].value)
    assert ddpm(*command(images, run, 6)) == 0
    one, twin = (
        load_run(where, weights="model").diffusion.model.state_dict()
        for where in (run, tmp_path / "twin")
    )
    assert all(torch.equal(one[name], twin[name]) for name in twin), "bit for bit"
    capsys.readouterr()
    said = error_of(capsys, "sample", run, *DRAW, "--cond", "caption=a purple ring")
    assert "'a purple ring': none of the 4 texts that this run knows the vectors of" in said
    assert f"the text encoder '{NAME}' is needed" in said
    assert "pip install 'ddpm-lib[text]', or in Python hand one in" in said
    for one in (again, both):
        with pytest.raises(ConfigError, match=r"'a purple ring' and 1 more: none of the 4 texts"):
            one.sample(cond={"caption": [TEXTS[0], "a purple ring", "b"]}, num_steps=2)


def test_a_run_grows_by_new_texts(
    encoder: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    more = pictures(tmp_path / "more", ["a purple ring", TEXTS[0]], first=20)
    last = pictures(tmp_path / "last", ["a brown ring"], first=40)
    assert ddpm(*command(images, run)) == 0
    asked = len(encoder)
    assert ddpm(*command(images, run, 6, "--add-data", more)) == 0
    assert encoder[asked:] == [["a purple ring"]], "only what is new"
    assert len(read_texts(run)["caption"]) == 5
    without(monkeypatch, tmp_path)
    assert ddpm(*command(images, run, 7, "--add-data", more)) == 0
    assert load_run(run).step == 7
    found = load_run(run).diffusion
    found.sample(1, cond={"caption": "a purple ring"}, num_steps=2, progress=False)
    capsys.readouterr()
    said = error_of(capsys, *command(images, run, 8, "--add-data", more, "--add-data", last))
    assert "'a brown ring': none of the 5 texts" in said
    assert f"the text encoder '{NAME}' is needed" in said


def test_a_run_of_an_earlier_version_goes_on(
    encoder: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no file of vectors; the cache has its list as a whole, or the encoder is there."""
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    assert ddpm(*command(images, run)) == 0
    (run / FILE).unlink()
    assert load_run(run).step == 4
    without(monkeypatch, tmp_path)
    assert load_run(run).step == 4
    texts = [TEXTS[i % 4] for i in range(12)]
    key = hashlib.blake2b(json.dumps([NAME, [], *texts]).encode(), digest_size=16).hexdigest()
    place = tmp_path / "another_cache" / "texts" / f"{key}.npy"
    place.parent.mkdir(parents=True)
    np.save(place, Encoder(NAME).encode(texts))
    assert ddpm(*command(images, run, 5)) == 0
    place.unlink()
    assert ddpm(*command(images, run, 6)) == 0, "from its own file, written meanwhile"
    assert len(read_texts(run)["caption"]) == 4


def test_a_damaged_file_is_left_out_and_written_anew(
    encoder: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    assert ddpm(*command(images, run)) == 0
    whole = (run / FILE).read_bytes()
    for bad in (whole[:50], b""):
        (run / FILE).write_bytes(bad)
        process = load_run(run).diffusion
        assert f"{FILE} cannot be read" in caplog.text
        process.sample(1, cond={"caption": TEXTS[0]}, num_steps=2, progress=False)
        caplog.clear()
    assert ddpm(*command(images, run, 5)) == 0
    assert (run / FILE).read_bytes() == whole
    folder = load_run(run).diffusion.save_pretrained(tmp_path / "folder")
    (folder / FILE).write_bytes(whole[:50])
    with pytest.raises(Exception, match="texts"):
        GaussianDiffusion.from_pretrained(folder)


def test_an_encoder_in_a_folder_that_is_gone(
    encoder: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on, although its relative path leads nowhere any more."""
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    words = [
        "caption=:text,encoder=minilm" if str(word).startswith("caption=") else word
        for word in command(images, run)
    ]
    assert ddpm(*words) == 0
    without(monkeypatch, tmp_path)
    (tmp_path / "minilm").rename(tmp_path / "gone")
    assert ddpm(*words[:-1], 5) == 0
    assert load_run(run).step == 5


def test_python_goes_on_without_the_encoder(
    encoder: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    assert ddpm(*command(images, run)) == 0
    without(monkeypatch, tmp_path)
    loaded = load_run(run, weights="model")
    options: dict[str, Any] = {**loaded.state["training"], "max_steps": 5, "output_dir": run}
    trainer = Trainer(loaded.diffusion, str(images), **options)
    trainer.train()
    assert trainer.step == 5
    images_again = trainer.sample(2, cond={"caption": TEXTS[:2]}, num_steps=2)
    assert images_again.shape[0] == 2


def test_missing_texts_have_no_vector(encoder: list[list[str]], tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", ["a red ring", "", "a star"])
    words = f"caption=:text,encoder={NAME},missing=null"
    data = open_dataset(images, image_size=8, conditions=words)
    values = data.conditions["caption"]
    assert values.texts is not None
    assert values.texts.any(1).tolist() == [True, False, True] * 4
    assert np.isnan(values.values[1]).all()
    half = data.subset(np.array([1, 2])).conditions["caption"]
    assert np.array_equal(half.texts, values.texts[[1, 2]])


def test_a_reference_needs_no_texts(encoder: list[list[str]], tmp_path: Path) -> None:
    """Samples are compared with pictures, whose conditions nobody knows."""
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    assert ddpm(*command(images, run)) == 0
    others = pictures(tmp_path / "others", TEXTS, first=20)
    (others / "metadata.csv").unlink()
    how: dict[str, Any] = {"features": "pixels", "num": 6, "sample_steps": 2, "sampler": "ddim"}
    found = evaluate(run, metrics="kid", reference=str(others), references=False, **how)
    assert np.isfinite(found.scores[0].value)


def with_folder(images: Path, run: Path, place: Path) -> list[object]:
    """The command with an encoder in a folder."""
    words = f"caption=:text,encoder={place}"
    made = command(images, run)
    return [words if str(word).startswith("caption=") else word for word in made]


def texts_in(folder: Path) -> str:
    """All that files for others hold, weights too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in files)


@pytest.mark.parametrize(
    "way", ["process", "network", "npz-weights", "onnx", "torch-export", "safetensors", "push"]
)
def test_folders_for_others_hold_no_place_of_an_encoder(
    encoder: list[list[str]], tmp_path: Path, way: str
) -> None:
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    place, out = tmp_path / "private" / "minilm", tmp_path / "out"
    place.mkdir(parents=True)
    assert ddpm(*with_folder(images, run, place)) == 0
    loaded = load_run(run)
    if way == "process":
        loaded.diffusion.save_pretrained(out)
    elif way == "network":
        loaded.diffusion.model.save_pretrained(out)
    elif way == "push":
        write_publication(run, out, Publication(repo_id="me/rings"))
    else:
        assert ddpm("export", run, out, "--to", way) == 0
    told = texts_in(out)
    assert str(tmp_path) not in told
    assert "minilm" in told
    # The run itself stays where it is, and knows where its encoder is.
    assert loaded.diffusion.model.config["conditions"]["caption"]["encoder"] == str(place)


def test_a_folder_finds_its_encoder_by_name(
    encoder: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the working directory, or handed in; else the error says how, and known texts need
    none.
    """
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    place, here = tmp_path / "private" / "minilm", tmp_path / "here"
    place.mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    assert ddpm(*with_folder(images, run, place)) == 0
    folder = load_run(run).diffusion.save_pretrained(tmp_path / "folder")
    process = GaussianDiffusion.from_pretrained(folder)
    known = process.sample(1, cond={"caption": TEXTS[0]}, num_steps=2, seed=0, progress=False)
    again = load_run(run).diffusion.sample(
        1, cond={"caption": TEXTS[0]}, num_steps=2, seed=0, progress=False
    )
    assert torch.equal(known, again)

    def draw() -> torch.Tensor:
        new = {"caption": "a purple ring"}
        return process.sample(1, cond=new, num_steps=2, seed=0, progress=False)

    with pytest.raises(ConfigError) as error:
        draw()
    assert "a folder 'minilm' in" in str(error.value)
    assert "register_text_encoder('minilm', function)" in str(error.value)
    said = error_of(capsys, "sample", folder, *DRAW, "--cond", "caption=a purple ring")
    assert "in Python hand one in: register_text_encoder('minilm'" in said
    with monkeypatch.context() as patched:
        patched.setitem(text_encoders._HANDED_IN, "minilm", Encoder("mine").encode)
        handed = draw()
    (here / "minilm").symlink_to(place)
    assert torch.equal(draw(), handed)


def test_a_training_that_begins_with_such_a_folder_keeps_its_condition(
    encoder: list[list[str]], tmp_path: Path
) -> None:
    images, run = pictures(tmp_path / "images", TEXTS), tmp_path / "run"
    place = tmp_path / "private" / "minilm"
    place.mkdir(parents=True)
    assert ddpm(*with_folder(images, run, place)) == 0
    folder = load_run(run).diffusion.save_pretrained(tmp_path / "folder")
    other = tmp_path / "other"
    assert ddpm(*with_folder(images, other, place), "--init-from", folder) == 0
    log = (other / "train.log").read_text(encoding="utf-8")
    assert "The condition caption" not in log
    data = open_dataset(images, image_size=8, conditions=f"caption=:text,encoder={place}")
    process = GaussianDiffusion.from_pretrained(folder)
    options: dict[str, Any] = {"max_steps": 1, "batch_size": 4, "sample_every": 0, "device": "cpu"}
    Trainer(process, data, output_dir=tmp_path / "third", val_every=0, **options).train()
