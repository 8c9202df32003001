"""What people type and write before they have read anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from command_line import ddpm, error_of, train
from ddpm_lib import GaussianDiffusion, TrainingConfig, Unet, open_dataset
from ddpm_lib.cli import COMMANDS
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions, check_used


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        for i in range(3):
            grey = Image.new("RGB", (8, 8), (40 * i,) * 3)
            grey.save(tmp_path / f"pics/{name}/{i}.png")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("train --data pics", "ddpm train DATA"),
        ("train --train-data-dir pics", "ddpm train DATA"),
        ("train --dataset=pics", "ddpm train DATA"),
        ("estimate --data-dir pics", "ddpm estimate DATA"),
        ("sample --run runs/mine", "ddpm sample RUN"),
        ("sample --model-path runs/mine", "ddpm sample RUN"),
        ("edit runs/mine --images pics", "ddpm edit RUN IMAGES"),
        ("inpaint runs/mine --image pics --mask m.png", "ddpm inpaint RUN IMAGES"),
        ("export runs/mine --out there", "ddpm export RUN OUT"),
    ],
)
def test_words_written_as_flags(line: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, *line.split())
    assert f"is given without a flag: {shown}" in said
    assert "--val-data" not in said


def test_settings_of_an_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, name in (("--model.dim", "model.dim"), ("--learning-rate", "learning_rate")):
        said = error_of(capsys, "ablate", "toy:ring", flag, "8")
        assert f"--set {name}=VALUE for all cells, --vary {name}=A,B to compare" in said


def test_several_folders(capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, "train", "pics/cats", "pics/dogs", "--image-size", 8)
    assert "Give one folder that holds them all" in said
    assert "--image-size A,B" not in said


def test_help_says_what_a_switch_does(capsys: pytest.CaptureFixture[str]) -> None:
    """`--no-progress` beside `Show a progress bar` says the opposite of what it does."""
    for command in COMMANDS:
        ddpm(command, "--help-all")
        lines = capsys.readouterr().out.splitlines()
        for line, after in zip(lines, [*lines[1:], ""]):
            word = line.split()[0] if line.split() else ""
            if line.startswith("  --") and ("--no-" in word or ".no-" in word):
                told = line.split(maxsplit=1)[1:] or [after]
                assert told[0].strip().startswith("Switches off: "), (command, line)


def entries(capsys: pytest.CaptureFixture[str], command: str, flag: str) -> dict[str, str]:
    """Return what the help of a command says of each option, by its last spelling."""
    ddpm(command, flag)
    found: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  -"):
            name = next(word for word in reversed(line.split("  ")[1].split()) if word[0] == "-")
            found[name] = line.strip()
        elif name and line.startswith(" " * 26):
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_sentence_in_parentheses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in entries(capsys, command, "--help").items():
        assert told.count("(") == told.count(")"), f"{name}: {told}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_best_where_a_checkpoint_is_chosen(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = entries(capsys, command, "--help-all").get("--checkpoint")
    assert told is None or ("latest" in told and "best" in told)


def test_help_of_a_student_has_no_defaults_of_a_new_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = entries(capsys, "distill", "--help-all")
    assert "one and a half times" in told["--max-steps"]
    assert "half of the run's" in told["--learning-rate"]
    assert "RUN-distilled" in told["--output-dir"]
    of_a_run = ("--max-steps", "--learning-rate", "--batch-size", "--sample-steps", "--ema-decay")
    assert [name for name in of_a_run if "(default " in told[name]] == []
    assert "(default auto)" in told["--device"]


def test_help_of_inpainting_names_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    told = entries(capsys, "inpaint", "--help")["--sampler"]
    assert "heun" in told
    assert "unipc" not in told


SETTINGS = {
    "bytes of an editor of Windows": b"\xef\xbb\xbfdata: pics\r\nimage_size: 8\r\n",
    "comments": b"# mine\ndata: pics  # these\n\nimage_size: [8, 8]\n",
    "no and yes": b"data: pics\nimage_size: 8\nmixed_precision: no\nchannels_last: yes\n",
    "JSON": b'{"data": "pics", "image_size": 8}',
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_as_people_write_them(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_bytes(SETTINGS[kind])
    assert ddpm("train", "--config", "mine.yaml", "--print-config") == 0
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["data"] == "pics"
    assert read["image_size"][0] == 8
    if kind == "no and yes":
        assert (read["mixed_precision"], read["channels_last"]) == ("no", "yes")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"data: pics\nmax_steps: 10\nmax_steps: 20\n", "'max_steps' stands there twice"),
        (b"data: pics\nmodel:\n  dim: 8\n  dim: 16\n", "'dim' stands there twice"),
        ("data: größe\n".encode("latin-1"), "is no text in UTF-8"),
        ("data: pics\n".encode("utf-16"), "is no text in UTF-8"),
        (b"data: pics\nprogress: maybe\n", "progress"),
    ],
)
def test_settings_that_cannot_be_meant(
    content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_bytes(content)
    assert said in error_of(capsys, "train", "--config", "mine.yaml", "--print-config")


def test_a_run_in_the_place_of_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("data: pics\n")
    said = error_of(capsys, "train", "--config", "mine")
    assert "is a folder. Did you mean mine/config.yaml?" in said
    assert "is a folder" in error_of(capsys, "train", "--config", "pics")
    assert "Did you mean 'mine'?" in error_of(capsys, "train", "--config", "mime")


def test_a_dry_run_refuses_what_the_run_would(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    for place, said in (("file", "is a file"), ("pics/run", "lies in the folder of the images")):
        for dry in ((), ("--dry-run",)):
            words = ("train", "pics", "--image-size", 8, "--output-dir", place, *dry)
            assert said in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pics out", "pics needs no preparing. Next: ddpm train pics"),
        ("shapes", "shapes needs no preparing. Next: ddpm train shapes"),
        ("mnist there", "ddpm prepare mnist --data-root there"),
        ("cifar10 pics out --download", "ddpm prepare cifar10 --data-root out --download"),
    ],
)
def test_what_needs_no_preparing(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(capsys, "prepare", *words.split())


def test_what_needs_no_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run") == 0
    step = "run/checkpoints/step-000000004"
    for source, shown in (
        ("run", "run"),
        (step, step),
        (f"{step}/model.safetensors", step),
    ):
        said = error_of(capsys, "convert", source, "runs/x", "--image-size", 8)
        assert said.endswith(f"is of this library, and needs no conversion: ddpm sample {shown}")


def test_a_pretrained_folder_needs_no_conversion(capsys: pytest.CaptureFixture[str]) -> None:
    GaussianDiffusion(Unet(dim=8, dim_mults=(1,)), image_size=8).save_pretrained("model")
    said = error_of(capsys, "convert", "model", "runs/x", "--image-size", 8)
    assert said.endswith("needs no conversion: ddpm sample model")


@pytest.mark.parametrize(("name", "kind"), [("notes.txt", "text"), ("pics/cats/0.png", "picture")])
@pytest.mark.parametrize("line", ["convert {} runs/x", "train pics --init-from {} --image-size 8"])
def test_what_holds_no_weights(
    line: str, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("to do\n", encoding="utf-8")
    said = error_of(capsys, *line.format(name).split())
    assert f"{name} is a {kind}, no file of weights" in said


NUMBERS = [
    "sample runs/mine --guidance-scale nan",
    "sample runs/mine --low-res-noise nan",
    "edit runs/mine pics --fraction NaN",
    "evaluate runs/mine --guidance-scale nan",
    "train pics --image-size 8 --sample-guidance-scale nan",
    "train pics --image-size 8 --ema-power=nan",
]


@pytest.mark.parametrize("line", NUMBERS)
def test_no_option_is_not_a_number(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "takes a number; got 'nan'" in error_of(capsys, *line.split()).lower()


def test_nor_is_one_of_a_file_or_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("data: pics\nsample_guidance_scale: .nan\n", encoding="utf-8")
    assert "got nan" in error_of(capsys, "train", "--config", "mine.yaml", "--print-config")
    with pytest.raises(ConfigError, match="got nan"):
        TrainingConfig(sample_guidance_scale=float("nan"))
    d = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), num_classes=2), image_size=8, timesteps=4)
    for name in ("guidance_scale", "classifier_scale"):
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be a finite number"):
                d.sample(1, cond={"class_label": 0}, **{name: value})
    with pytest.raises(ValueError, match="must not be negative"):
        d.sample(1, sampler="heun", sampler_options={"s_noise": float("nan")})


def test_toys_are_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert "`ddpm ablate toy:ring` trains on it" in error_of(capsys, "train", "toy:ring")


def test_folders_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run") == 0
    said = error_of(capsys, "edit", tmp_path / "run", "pics")
    assert "There are folders in it: cats, dogs; give one." in said


def test_names_of_formats(capsys: pytest.CaptureFixture[str]) -> None:
    for word, ours in (("numpy", "npz-weights"), ("torch", "torch-export"), ("npz", "npz-weights")):
        said = error_of(capsys, "export", "runs/mine", "out", "--to", word)
        assert f"Did you mean '{ours}'?" in said


def test_steps_of_samples_and_of_likelihoods() -> None:
    with pytest.raises(ConfigError, match="The steps of samples are sample_steps"):
        check_used(EvaluationOptions(metrics="fid", num_steps=2))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_split_that_the_data_are(kind: str, tmp_path: Path) -> None:
    """A script that always asks for the training split can be given that split alone."""
    if kind == "folder":
        (tmp_path / "set").mkdir()
        (tmp_path / "pics").rename(tmp_path / "set/train")
        data, count = "set/train", 6
    else:
        from datasets import Dataset

        pictures = [Image.fromarray(np.full((8, 8, 3), 9 * i, np.uint8)) for i in range(4)]
        Dataset.from_dict({"image": pictures}).to_parquet("train-00000-of-00001.parquet")
        data, count = "train-00000-of-00001.parquet", 4
    assert len(open_dataset(data, image_size=8, split="train")) == count
    with pytest.raises(ValueError, match="test"):
        open_dataset(data, image_size=8, split="test")
