"""Sentence encoders by name and by folder: a tiny random BERT in the format of a published one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Shapes, load_run, open_dataset
from ddpm_lib.cli import main
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data.condition_words import portable_words, read_words
from ddpm_lib.nn import register_text_encoder, text_encoders
from ddpm_lib.nn.text_encoders import encode_texts
from tiny_bert import WORDS, write_model, write_tokenizer
from training_helpers import tiny_diffusion, tiny_trainer


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a tokenizer of transformers, one layer of eight numbers."""
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    write_tokenizer(folder)
    write_model(folder, seed=0)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_of_transformers_gives_means_over_words(bert: Path, cache: Path) -> None:
    import transformers

    texts = ["a red ring", "a blue star", "circle"]
    found = encode_texts(texts, str(bert))
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(bert)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-5)


def test_vectors_are_kept_until_the_folder_changes(
    bert: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder, texts = tmp_path / "mine", ["a red ring", "a star"]
    shutil.copytree(bert, folder)
    first = encode_texts(texts, str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(text_encoders, "_named", lambda name: pytest.fail("encoded again"))
        np.testing.assert_array_equal(encode_texts(texts, str(folder)), first)
    write_model(folder, seed=1)
    assert np.abs(encode_texts(texts, str(folder)) - first).max() > 1e-3


def pictures(folder: Path, n: int = 12) -> Path:
    from PIL import Image

    data = Shapes(size=8, n=n)
    folder.mkdir()
    for i in range(n):
        Image.fromarray(data[i]["image"].permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    rows = [f"{i:02d}.png,a {WORDS[1 + i % 3]} {WORDS[4 + i % 3]}" for i in range(n)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    return folder


def test_a_run_is_trained_continued_and_drawn_by_words(
    bert: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = pictures(tmp_path / "images")
    monkeypatch.chdir(bert.parent)
    command = ["train", str(images), "--condition", f"caption=:text,encoder={bert.name}"]
    command += ["--image-size", "8", "--model.dim", "8", "--model.dim-mults", "1", "2"]
    command += [
        "--batch-size",
        "4",
        "--val-every",
        "0",
        "--sample-every",
        "0",
        "--device",
        "cpu",
        "--no-report",
    ]
    command += ["--num-workers", "0", "--output-dir", str(tmp_path / "run"), "--max-steps"]
    assert main([*command, "2"]) == 0
    monkeypatch.chdir(tmp_path)  # the folder's name alone would lead nowhere
    assert (
        main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--max-steps", "3"]) == 0
    )
    run = load_run(tmp_path / "run")
    entry = run.diffusion.model.config["conditions"]["caption"]
    assert (entry["encoder"], entry["size"]) == (str(bert), 8)
    for text in ("a red ring", "a blue star"):
        sample = [
            "sample",
            str(tmp_path / "run"),
            "--num",
            "2",
            "--num-steps",
            "2",
            "--device",
            "cpu",
        ]
        assert (
            main([*sample, "--cond", f"caption={text}", "--output-dir", str(tmp_path / text)]) == 0
        )
        assert len(list((tmp_path / text).glob("*.png"))) >= 1
    capsys.readouterr()


def test_what_cannot_be_loaded_is_said_with_a_remedy(
    bert: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name, words in (
        (str(tmp_path / "nowhere"), r"There is no folder '.*nowhere' with a text encoder"),
        ("nobody/has-this", r"cannot load 'nobody/has-this': .*Without internet, name a folder"),
        (str(tmp_path / "empty"), r"cannot load '.*empty'"),
    ):
        with pytest.raises(ConfigError, match=words):
            encode_texts(["a", "b"], name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddpm-lib\[text\]', or hand one in"):
        encode_texts(["a red ring", "b"], str(bert))


def test_words_of_a_condition_keep_the_folder(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)
    written = f"caption=:text,encoder={bert.name},drop=0.2"
    assert read_words(written).options["encoder"] == str(bert)
    assert portable_words(written) == f"caption=:text,encoder={bert},drop=0.2"
    register_text_encoder(bert.name, lambda texts: [[len(text)] for text in texts])
    monkeypatch.setitem(
        text_encoders._HANDED_IN, bert.name, text_encoders._HANDED_IN.pop(bert.name)
    )
    assert read_words(written).options["encoder"] == bert.name, "what is handed in wins"


def test_the_same_texts_go_on_where_the_last_digits_differ(tmp_path: Path) -> None:
    """Vectors are other ones on another processor; the texts are what a run was trained on."""
    images, shift = pictures(tmp_path / "images"), [0.0]

    def encoder(texts: list[str]) -> Any:
        return np.array([[len(text), text.count("e")] for text in texts]) * (1 + shift[0])

    register_text_encoder("shifting", encoder)

    def opened() -> Any:
        return open_dataset(images, image_size=8, conditions="caption=:text,encoder=shifting")

    first = opened()
    process = tiny_diffusion(conditions=first.condition_table)
    tiny_trainer(tmp_path / "run", process, first, max_steps=2, val_every=0).train()
    shift[0] = 1e-6
    again = opened()
    assert not np.array_equal(
        again.conditions["caption"].values, first.conditions["caption"].values
    )
    process = tiny_diffusion(conditions=again.condition_table)
    trainer = tiny_trainer(tmp_path / "run", process, again, max_steps=3, val_every=0)
    trainer.train()
    assert trainer.step == 3
    table = images / "metadata.csv"
    table.write_text(table.read_text().replace("a red", "a green", 1))
    with pytest.raises(ConfigError, match="the condition 'caption' has other values now"):
        tiny_trainer(tmp_path / "run", process, opened(), max_steps=4, val_every=0).prepare()
    half = first.subset(range(6))
    assert half.conditions["caption"].digest() != first.conditions["caption"].digest()
