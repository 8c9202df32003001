"""Published sets by their names, from files that torchvision reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import TINY, error_of
from ddpm_lib import GaussianDiffusion, Trainer, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.data import open_dataset
from ddpm_lib.data.torchvision_sets import SETS, set_named, validation_split
from ddpm_lib.training.sources import data_name
from torchvision_files import write_cifar10, write_food101, write_mnist


def test_every_set_is_a_class_of_torchvision_with_these_arguments() -> None:
    import inspect

    from torchvision import datasets

    for name, entry in SETS.items():
        cls = getattr(datasets, entry.cls)
        signature = inspect.signature(cls.__init__)
        takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for arguments in entry.splits.values():
            for argument in (*arguments, *entry.more):
                assert takes_more or argument in signature.parameters, (name, argument)
        assert entry.held_out is None or entry.held_out in entry.splits
        assert entry.size % 8 == 0  # fits the networks of the presets


def test_mnist_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    made = write_mnist(tmp_path)
    for split in ("train", "test"):
        images, labels = made[split]
        data = open_dataset(
            "mnist", image_size=28, channels=1, split=split, data_root=tmp_path, cache="ram"
        )
        batch = data.batch(np.arange(len(data)))
        assert torch.equal(batch["image"][:, 0], torch.from_numpy(images))
        assert torch.equal(batch["class_label"], torch.from_numpy(labels).long())
        assert data.notes[0] == f"torchvision's MNIST, split {split}, from {tmp_path}"
    train = open_dataset("mnist", image_size=28, channels=1, data_root=str(tmp_path))
    assert len(train) == 24
    assert train.class_names == tuple("0123456789")
    bare = open_dataset("mnist", image_size=32, labels="none", data_root=tmp_path)
    assert bare.num_classes is None
    assert bare[0]["image"].shape == (3, 32, 32)


def test_letters_are_turned_upright_and_counted_from_0(tmp_path: Path) -> None:
    made = write_mnist(tmp_path, folder="EMNIST", stem="emnist-letters-{split}")
    images, labels = made["train"]
    raw = tmp_path / "EMNIST" / "raw" / "emnist-letters-train-labels-idx1-ubyte"
    content = bytearray(raw.read_bytes())
    content[8:] = bytes(labels + 1)
    raw.write_bytes(bytes(content))
    data = open_dataset("emnist_letters", image_size=28, channels=1, data_root=tmp_path)
    assert torch.equal(data[3]["image"][0], torch.from_numpy(images[3].T.copy()))
    assert data[3]["class_label"] == 3
    assert data.class_names is not None
    assert data.class_names[:2] == ("a", "b") or data.class_names[:2] == ("A", "B")


def test_cifar10_after_its_digests_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_cifar10(tmp_path, monkeypatch)
    data = open_dataset("cifar10", image_size=32, data_root=tmp_path)
    images = torch.from_numpy(made["train"])
    assert torch.equal(data.batch(np.arange(len(data)))["image"], images)
    assert data.class_names is not None
    assert data.class_names[3] == "class 3"
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    with pytest.raises(FileNotFoundError, match="torchvision's CIFAR10, whose files are damaged"):
        open_dataset("cifar10", image_size=32, data_root=tmp_path)


def test_sets_of_pictures_give_their_classes(tmp_path: Path) -> None:
    classes = write_food101(tmp_path)
    data = open_dataset("food101", image_size=16, data_root=tmp_path, cache="ram")
    assert (len(data), data.class_names) == (16, tuple(classes))
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 8 + [1] * 8
    red = data.batch(np.arange(16))["image"][:, 0].float().mean((1, 2))
    assert (red[:8] < 20).all()
    assert (red[8:] > 100).all()


def test_missing_files_are_one_line_that_names_root_class_and_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError) as error:
        open_dataset("kmnist", image_size=32, data_root=tmp_path)
    text = str(error.value)
    assert "\n" not in text
    for word in ("KMNIST", str(tmp_path), "download=True", "data_root"):
        assert word in text
    said = error_of(capsys, "train", "kmnist", "--data-root", str(tmp_path), "--dry-run")
    assert "--download downloads them" in said
    assert len(said.strip().splitlines()) == 1


def test_a_download_without_network_says_where_to_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_lib.data import torchvision_sets

    monkeypatch.setattr(torchvision_sets, "can_reach", lambda address: False)
    said = error_of(capsys, "prepare", "svhn", "--data-root", str(tmp_path), "--download")
    assert "ufldl.stanford.edu" in said
    assert f"ddpm prepare svhn --data-root {tmp_path} --download" in said


def test_a_download_is_torchvisions_and_done_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    from ddpm_lib.data import torchvision_sets

    asked = []

    def download(self: datasets.MNIST) -> None:
        asked.append(sorted(os.listdir(self.root)))
        write_mnist(Path(self.root))

    monkeypatch.setattr(torchvision_sets, "can_reach", lambda address: True)
    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(FileNotFoundError):
        open_dataset("mnist", image_size=32, data_root=tmp_path / "new")
    assert asked == []
    for _ in range(2):
        data = open_dataset("mnist", image_size=32, data_root=tmp_path / "new", download=True)
        assert len(data) == 24
    assert asked == [[".mnist.lock"]]


def test_what_lies_here_under_the_name_wins_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set_named("mnist") == "mnist"
    assert set_named("CIFAR-10") == "cifar10"
    assert set_named("FashionMNIST") == "fashion_mnist"
    assert set_named("user/mnist") is None
    write_food101(tmp_path)
    (tmp_path / "food-101" / "images").rename(tmp_path / "mnist")
    write_mnist(tmp_path / "files")
    data = open_dataset("mnist", image_size=8)
    assert data.class_names == ("apple_pie", "sushi")
    assert 'torchvision\'s set is "torchvision:mnist"' in " ".join(data.notes)
    for name in ("torchvision:mnist", "mnist"):
        data = open_dataset(name, image_size=28, channels=1, data_root=tmp_path / "files")
        assert len(data) == 24
    with pytest.raises(ValueError, match="Did you mean 'kmnist'"):
        open_dataset("torchvision:knmist", image_size=8)


def test_a_misspelt_name_gets_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm_lib.data.hub.can_reach", lambda address: False)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'fashion_mnist'\?"):
        open_dataset("fasion_mnist", image_size=8)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("mnist", {"split": "tset"}, "Unknown split of mnist 'tset'. Did you mean 'test'"),
        ("mnist", {"labels": "folder"}, "labels='folder' does not fit a set of torchvision"),
        ("shapes", {"download": True}, "download=True does not fit built-in images"),
        ("folder", {"data_root": "x"}, "data_root='x' does not fit a folder of pictures"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, data: str, options: dict[str, object], message: str
) -> None:
    write_mnist(tmp_path / "files")
    write_food101(tmp_path)
    place = str(tmp_path / "food-101" / "images") if data == "folder" else data
    chosen = {"data_root": tmp_path / "files"} if data == "mnist" else {}
    with pytest.raises(ValueError, match=message):
        open_dataset(place, image_size=8, **{**chosen, **options})  # type: ignore[arg-type]


def test_the_test_split_validates_and_nothing_is_held_out_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "files")
    monkeypatch.chdir(tmp_path)
    root = ["--data-root", "files"]
    assert main(["train", "mnist", *root, *TINY, "--output-dir", "run", "--class-conditional"]) == 0
    said = capsys.readouterr().err
    assert "Validation: the 6 images of the split test; all 24 of the split that is trained" in said
    loaded = load_run("run")
    state = loaded.state
    assert state["data"]["source"] == "torchvision:mnist"
    assert state["data"]["images"] == 24
    assert state["training"]["data_root"] == str(tmp_path / "files")
    assert loaded.class_names == tuple("0123456789")
    # The same command from elsewhere goes on, and an evaluation opens the same sets.
    monkeypatch.chdir(tmp_path / "files")
    run = str(tmp_path / "run")
    assert main(["train", "--config", f"{run}/config.yaml", "--max-steps", "6"]) == 0
    assert "Resumed" in capsys.readouterr().err
    assert main(["evaluate", run, "--metrics", "loss_gap", "--no-progress"]) == 0
    for reference in ("train", "mnist", "torchvision:mnist"):
        command = ["evaluate", run, "--metrics", "kid", "--features", "random64", "--num", "6"]
        command += ["--sample-steps", "2", "--no-progress", "--reference", reference]
        assert main(command) == 0, reference


def test_other_splits_and_sets_without_one_hold_out_by_name() -> None:
    assert validation_split("torchvision:cifar10", None) == "test"
    assert validation_split("torchvision:celeba", "train") == "valid"
    assert validation_split("torchvision:cifar10", "test") is None
    assert validation_split("torchvision:eurosat", None) is None
    assert validation_split("some/folder", None) is None
    assert data_name("torchvision:mnist") == data_name("mnist") == "mnist"


def test_sizes_and_channels_are_those_of_the_set_unless_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    command = ["train", "mnist", "--data-root", str(tmp_path), "--dry-run", "--preset", "tiny"]
    assert main(command) == 0
    assert "data: 24 images of 1×32×32, 10 classes" in capsys.readouterr().out
    assert main([*command, "--image-size", "16", "--channels", "3"]) == 0
    assert "data: 24 images of 3×16×16, 10 classes" in capsys.readouterr().out


@pytest.mark.slow
def test_the_trainer_and_other_commands_take_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "files")
    monkeypatch.setenv("DDPM_LIB_DATA", str(tmp_path / "files"))
    model = Unet(dim=8, dim_mults=(1, 2), channels=1, blocks_per_level=1, attention_levels=())
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=20)
    options = {"batch_size": 4, "max_steps": 2, "progress": False, "sample_every": 0}
    trainer = Trainer(diffusion, "mnist", output_dir=str(tmp_path / "run"), device="cpu", **options)
    trainer.train()
    assert len(trainer.dataset) == 24
    assert trainer.held_out is not None
    assert len(trainer.held_out) == 6
    capsys.readouterr()
    assert main(["prepare", "mnist"]) == 0
    out = capsys.readouterr().out
    assert "train         24 images  trained on" in out
    assert "test           6 images  validated on" in out
    assert "ddpm train mnist" in out
    command = ["estimate", "mnist", "--image-size", "8", "--preset", "tiny", "--probe-steps", "0"]
    assert main([*command, "--device", "cpu"]) == 0
    assert "choose" not in capsys.readouterr().err


def test_a_folder_to_validate_on_does_not_mind_where_the_sets_lie(tmp_path: Path) -> None:
    write_mnist(tmp_path / "files")
    write_food101(tmp_path)
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, attention_levels=())
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=20)
    sets = ["mnist", str(tmp_path / "food-101" / "images")]
    for data, val_data, held in ((*sets, 32), (*sets[::-1], 6)):
        trainer = Trainer(
            diffusion,
            data,
            val_data=val_data,
            data_root=str(tmp_path / "files"),
            output_dir=str(tmp_path / data_name(data)),
            batch_size=4,
            max_steps=1,
            device="cpu",
        )
        trainer.prepare()
        assert trainer.held_out is not None
        assert len(trainer.held_out) == held
        trainer.close()
