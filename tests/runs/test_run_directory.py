"""A run directory that somebody else has been in: links, damage, full disks, strange names, moves
and copies.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from checkpoint_tools import newest, rehash
from ddpm_lib import images as pictures
from ddpm_lib import load_run
from ddpm_lib.ablation import ablate
from ddpm_lib.cli import main
from ddpm_lib.core import files
from ddpm_lib.core.text import printable, short
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runs.metrics_file import MetricsFile, write_status
from ddpm_lib.runs.run_status import run_status
from ddpm_lib.runtime.watchdog import Watchdog
from ddpm_lib.training import CheckpointError, ConfigError
from ddpm_lib.training import prepared_run as training
from training_helpers import (
    At,
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

SMALL = {"dim": 4, "dim_mults": (1,)}


def trainer_of(run: Path, **options: object) -> object:
    return tiny_trainer(
        run, tiny_diffusion(**SMALL), **{"max_steps": 4, "save_every": 2, "log_every": 1, **options}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "mine"
    trainer_of(run, callbacks=[StopAt(3)]).train()
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    (tmp_path / "precious").write_text("ten years of work")
    return tmp_path / "precious"


def newest_of_three(run: Path) -> Path:
    return run / "checkpoints" / "step-000000003"


def said(run: Path) -> str:
    return (run / "train.log").read_text()


@pytest.mark.parametrize("name", [".lock", "train.log"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_link_where_we_append_or_empty_is_refused(
    run: Path, precious: Path, name: str, fresh: bool
) -> None:
    place = run.with_name("new") if fresh else run
    place.mkdir(exist_ok=True)
    (place / name).unlink(missing_ok=True)
    (place / name).symlink_to(precious)
    with pytest.raises(
        (ConfigError, OSError),
        match=rf"{name} is a link; a file of the run belongs there.*Move it away",
    ):
        trainer_of(place).train()
    assert precious.read_text() == "ten years of work"


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "metrics.csv",
        "status.json",
        "config.yaml",
        "data.npz",
        "STOP",
        "stuck-rank0.txt",
    ],
)
def test_other_links_are_replaced_or_left_and_never_followed(
    run: Path, precious: Path, name: str
) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    assert trainer_of(run).train().step == 4
    Watchdog(1.0, run)._dump()
    assert precious.read_text() == "ten years of work"


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "train.log", "status.json"])
def test_a_link_that_appears_while_it_trains_is_not_followed(
    run: Path, precious: Path, name: str
) -> None:
    def swap(trainer: object) -> None:
        (run / name).unlink()
        (run / name).symlink_to(precious)

    trainer_of(run, callbacks=[At(4, swap)], max_steps=6).train()
    assert precious.read_text() == "ten years of work"


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "config.yaml",
        "status.json",
        "train.log",
        "metrics.jsonl",
        "data.npz",
        "texts.safetensors",
        "STOP",
    ],
)
def test_a_directory_in_the_place_of_a_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(
        (ConfigError, OSError), match=rf"{name} is a directory; a file of the run belongs there"
    ):
        trainer_of(run).train()
    assert not list(run.glob(".*.tmp"))


def test_temporary_files_are_no_way_out_either(tmp_path: Path, precious: Path) -> None:
    files.beside(tmp_path / "status.json").symlink_to(precious)
    files.write_atomically(tmp_path / "status.json", "{}")
    assert precious.read_text() == "ten years of work"
    assert (tmp_path / "status.json").read_text() == "{}"


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"data": "no/such/path"},
        {"data": 3},
        {"device": "xpu"},
        {"resume": "step-000000007"},
        {"trackers": ("nope",)},
    ],
    ids=["path", "data", "device", "resume", "tracker"],
)
def test_a_failed_start_leaves_no_litter(tmp_path: Path, there: bool, options: dict) -> None:
    if there:
        (tmp_path / "runs").mkdir()
    options = dict(options)
    data = options.pop("data", None)
    with pytest.raises((ValueError, TypeError, OSError)):
        tiny_trainer(
            tmp_path / "runs" / "deep" / "mine", tiny_diffusion(**SMALL), data, **options
        ).train()
    assert list(tmp_path.rglob("*")) == ([tmp_path / "runs"] if there else [])


def test_a_failed_start_of_a_command_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for data in ("pix.npz", "./empty", "empty"):
        assert (
            main(["train", data, "--image-size", "8", "--model.dim", "8", "--device", "cpu"]) == 2
        )
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("before", ["stopped", "failed", "finished", "killed"])
def test_what_a_refused_start_says_of_a_run(run: Path, before: str) -> None:
    """The reason, so that nobody puts it back into the queue for ever; but a finished run stays
    finished.
    """
    if before == "finished":
        trainer_of(run).train()
    elif before == "failed":
        write_status(run, status="failed", step=3, max_steps=4, reason="the disk was full")
    elif before == "killed":
        write_status(run, status="running", step=3, max_steps=4, reason="")
    with pytest.raises((ValueError, OSError)):
        tiny_trainer(run, tiny_diffusion(**SMALL), "no/such/path").train()
    assert run_status(run).word == ("finished" if before == "finished" else "failed")
    assert before == "finished" or "no/such/path" in run_status(run).reason


def test_killed_while_it_opens_its_data_after_a_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed, repaired, started again and killed: the word is "killed", which puts a job back into
    the queue.
    """
    write_status(run, status="failed", step=3, max_steps=4, reason="the disk was full")
    seen = []

    def killed(*args: object) -> None:
        if not seen:
            shutil.copytree(run, tmp_path / "as the kill leaves it")
        seen.append(run_status(tmp_path / "mine").word)
        raise ValueError

    monkeypatch.setattr(training, "open_training_data", killed)
    with pytest.raises(ValueError):
        trainer_of(run).train()
    assert seen == ["running"]
    assert run_status(tmp_path / "as the kill leaves it").word == "killed"
    with pytest.raises(ValueError):
        trainer_of(tmp_path / "new").train()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a.png", "deep/er/a.JPG", "a.npz", "train.parquet"])
def test_a_folder_of_somebody_s_data_is_no_run_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "pics" / name).parent.mkdir(parents=True)
    (tmp_path / "pics" / name).write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match=r"pics is no run and holds data .*Choose another output_dir, such as .*pics-2",
    ):
        trainer_of(tmp_path / "pics")
    with pytest.raises(ConfigError, match="pics is no run and holds data"):
        ablate(
            "shapes",
            {"diffusion.schedule": ["linear"]},
            images=32,
            image_size=8,
            output_dir=tmp_path / "pics",
        )
    assert main(["train", "--output-dir", str(tmp_path / "pics")]) == 2


def test_a_run_and_what_lies_beside_runs_are_no_foreign_data(run: Path) -> None:
    (run / "samples").mkdir()
    Image.new("RGB", (2, 2)).save(run / "samples" / "a.png")
    trainer_of(run)
    trainer_of(run.parent)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"loss": 1}',
        b'{"step": "3"}',
        b'{"step": 1e3}',
        b'{"step": NaN}',
        b"null",
        b"[" * 10**5,
        b'{"step": true}',
        b'{"step": -1}',
        b"\0\0\0",
    ],
    ids=[
        "blank",
        "half",
        "not UTF-8",
        "list",
        "no step",
        "text",
        "float",
        "NaN",
        "null",
        "nested",
        "bool",
        "negative",
        "NUL",
    ],
)
def test_a_damaged_line_costs_that_line_only(run: Path, line: bytes) -> None:
    rows = (run / "metrics.jsonl").read_bytes().splitlines()
    spoilt = b"\n".join([rows[0], line, *rows[1:]]) + b"\n"
    (run / "metrics.jsonl").write_bytes(spoilt)
    assert trainer_of(run).train().step == 4
    assert [row["step"] for row in curve(run)] == [1, 2, 3, 4]
    assert [r.split(",")[0] for r in (run / "metrics.csv").read_text().splitlines()] == [
        "step",
        "1",
        "2",
        "3",
        "4",
    ]
    assert (
        "1 damaged line in metrics.jsonl left out; the file as it was is kept as"
        " metrics.jsonl.damaged." in said(run)
    )
    assert (run / "metrics.jsonl.damaged").read_bytes() == spoilt
    assert trainer_of(run, max_steps=5).train().step == 5
    assert [p.name for p in run.glob("metrics.jsonl.*")] == ["metrics.jsonl.damaged"], "kept once"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-9],
        lambda raw: raw + b"\0" * 40,
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw[:-1],
    ],
    ids=["cut", "NUL tail", "CRLF", "no newline"],
)
def test_what_a_crash_leaves_at_the_end_is_no_damage(
    run: Path, change: Callable[[bytes], bytes]
) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(change(path.read_bytes()))
    trainer_of(run).train()
    assert [row["step"] for row in curve(run)][:2] == [1, 2]
    assert not list(run.glob("metrics.jsonl.*"))


def test_a_run_that_begins_anew_keeps_the_curve_of_the_one_before(run: Path) -> None:
    raw = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    trainer_of(run).train()
    assert (run / "metrics.jsonl.before").read_bytes() == raw
    assert "of the training before is kept as metrics.jsonl.before" in said(run)


def test_a_damaged_line_while_it_trains_does_not_end_it(run: Path) -> None:
    def damage(trainer: object) -> None:
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b"\xff[\n")
        trainer.log({"new column": 1.0})

    trainer_of(run, callbacks=[At(4, damage)], max_steps=5).train()
    assert [row["step"] for row in MetricsFile(run).rows()] == [1, 2, 3, 4, 5]


def test_leftovers_of_the_killed_are_swept_and_nothing_else(run: Path) -> None:
    gone = [
        run / ".metrics.csv.123.tmp",
        run / ".status.json.9.tmp",
        run / "samples" / ".step-000000002.png.77.tmp",
        run / "posthoc" / ".step-000000002.safetensors.5.tmp",
        run / "checkpoints" / ".tmp-step-000000003-44" / "model",
    ]
    kept = [
        run / ".notes.tmp",
        run / "a.123.tmp",
        run / ".hidden",
        run / "samples" / "draw-0001" / ".x.1.tmp",
    ]
    for path in [*gone, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    trainer_of(run, max_steps=3).train()
    assert [p for p in gone if p.exists()] == []
    assert [p for p in kept if not p.exists()] == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After the call no new byte finds room; what a file has already can be overwritten, as on a
    real disk.
    """
    real = os.fsync

    def fill() -> None:
        def fsync(handle: int) -> None:
            if ".tmp" in os.readlink(f"/proc/self/fd/{handle}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


def test_the_word_is_right_when_the_disk_is_full(run: Path, full_disk: Callable[[], None]) -> None:
    trainer = trainer_of(run, callbacks=[At(4, lambda trainer: full_disk())], max_steps=6)
    with pytest.raises(CheckpointError, match="could not be written"):
        trainer.train()
    assert run_status(run).word == "failed"
    assert "could not be written" in run_status(run).reason
    assert not list(run.glob(".*.tmp"))


def test_a_reason_that_is_longer_than_the_room_is_cut(
    tmp_path: Path, full_disk: Callable[[], None]
) -> None:
    write_status(tmp_path, status="running", step=3, max_steps=9, reason="")
    size = (tmp_path / "status.json").stat().st_size
    full_disk()
    write_status(tmp_path, status="failed", step=4, max_steps=9, reason="ä\n" * 3000)
    assert run_status(tmp_path).word == "failed"
    assert run_status(tmp_path).reason.startswith("ä\nä")
    assert (tmp_path / "status.json").stat().st_size == size


def test_pictures_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, path = torch.zeros(3, 4, 4), tmp_path / "a.png"
    pictures.save_image(image, path)
    before = path.read_bytes()

    def full(self: object, file: object, *args: object, **options: object) -> None:
        Path(file).write_bytes(b"")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    for write in (
        lambda: pictures.save_image(image + 1, path),
        lambda: pictures.save_grid(image[None] + 1, path),
        lambda: pictures.save_gif([image, image], tmp_path / "b.gif"),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.PNG", "a.jpg", "a.webp", "a.bmp", "ü" * 120 + ".png"])
def test_pictures_are_of_the_kind_that_their_name_says(tmp_path: Path, name: str) -> None:
    path = pictures.save_image(torch.zeros(3, 4, 4), tmp_path / name)
    assert Image.open(path).format.lower().startswith(path.suffix[1:3].lower())
    with pytest.raises(ValueError, match="names no kind of picture"):
        pictures.save_image(torch.zeros(3, 4, 4), tmp_path / "a.xyz")


@pytest.mark.every(2)
@pytest.mark.parametrize("name", [b"\xfc m", "ünï #1 100%".encode(), b"a\nb", b"-rf"])
def test_run_directories_of_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    run = tmp_path / os.fsdecode(name)
    trainer_of(run, max_steps=2, sample_every=2, sample_count=1, sample_steps=1).train()
    trainer_of(run, max_steps=3).train()
    assert load_run(run).step == 3
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"finished: {printable(run)}\n" in out
    assert out.isascii() or "ünï" in out
    assert str(tmp_path) in said(run)
    assert yaml.safe_load((run / "config.yaml").read_text())["output_dir"] == str(run)


TINY = [
    "--image-size",
    "8",
    "--max-steps",
    "2",
    "--batch-size",
    "4",
    "--model.dim",
    "8",
    "--model.dim-mults",
    "1",
    "--model.blocks-per-level",
    "1",
    "--model.attention-levels",
    "--diffusion.timesteps",
    "20",
    "--sample-every",
    "0",
    "--val-every",
    "1",
    "--val-fraction",
    "0.2",
    "--device",
    "cpu",
    "--mixed-precision",
    "no",
    "--no-progress",
    "--warmup-steps",
    "1",
]


def picture_folder(folder: Path, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for k in range(12):
        Image.new("RGB", (8, 8), (20 * k, first, 0)).save(folder / f"{k}.png")


def test_a_run_that_was_moved_or_copied_is_the_directory_its_config_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture_folder(tmp_path / "pictures")
    assert main(["train", "pictures", *TINY, "--output-dir", "runs/old"]) == 0
    config = yaml.safe_load(Path("runs/old/config.yaml").read_text())
    assert config["data"] == str(tmp_path / "pictures")
    shutil.copytree("runs/old", "runs/copy")
    os.rename("runs/old", "new")
    capsys.readouterr()
    assert main(["train", "--config", "new/config.yaml", "--max-steps", "3"]) == 0
    assert (
        "new/config.yaml lies in the run directory new, so that is meant, and not runs/old"
        in capsys.readouterr().err
    )
    assert not Path("runs/old").exists()
    assert [p.name for p in list_checkpoints(Path("new/checkpoints"))][-1] == "step-000000003"
    monkeypatch.chdir(tmp_path / "new")
    assert main(["train", "--config", "../runs/copy/config.yaml", "--max-steps", "4"]) == 0
    assert [run_status(tmp_path / name).step for name in ("new", "runs/copy")] == [3, 4]
    capsys.readouterr()
    assert main(["train", "--config", "config.yaml", "--output-dir", "../other"]) == 0
    assert "lies in the run directory" not in capsys.readouterr().err
    assert run_status(tmp_path / "other").step == 3


@pytest.mark.slow
def test_the_data_of_a_run_mean_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare word that was a folder where training began is never asked of the hub elsewhere."""
    for name, first in (("pictures", 0), ("held", 9)):
        picture_folder(tmp_path / "a" / name, first)
    monkeypatch.chdir(tmp_path / "a")
    assert main(["train", "pictures", *TINY, "--val-data", "held", "--output-dir", "../r"]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *args, **options: pytest.fail(f"the hub was asked for {args}"),
    )
    assert (
        main(
            [
                "evaluate",
                "r",
                "--metrics",
                "nll",
                "--num",
                "2",
                "--num-levels",
                "2",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert main(["train", "--config", "r/config.yaml", "--max-steps", "3"]) == 0
    assert main(["train", "--config", "r/config.yaml", "--output-dir", "second"]) == 0
    os.rename("a", "b")
    capsys.readouterr()
    assert (
        main(
            [
                "evaluate",
                "r",
                "--metrics",
                "nll",
                "--num",
                "2",
                "--num-levels",
                "2",
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert str(tmp_path / "a" / "pictures") in capsys.readouterr().err
    state = load_run("r").state
    assert state["data"]["source"] == str(tmp_path / "a" / "pictures")
    assert state["training"]["val_data"] == str(tmp_path / "a" / "held")


@pytest.mark.parametrize(
    "name", ["shapes", "toy:ring", "user/data", "torchvision:mnist", "a" * 5000, "nul\0byte"]
)
def test_names_that_are_no_paths_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from ddpm_lib.training.run_config import absolute_source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert absolute_source(name) == name
    assert absolute_source("./shapes") == str(tmp_path / "shapes")
    assert absolute_source("sha*") == str(tmp_path / "sha*")
    assert absolute_source("mnist") == "torchvision:mnist"


def test_relative_data_of_an_older_run_are_those_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the versions that wrote "pictures" for a folder; elsewhere the hub would be asked."""
    from ddpm_lib.training.run_config import in_its_run, started_data

    run = tmp_path / "home" / "runs" / "old"
    run.mkdir(parents=True)
    (run / "status.json").write_text("{}")
    for name in ("pictures", "held"):
        (tmp_path / "home" / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    home = tmp_path / "home"
    said = {"data": "pictures", "val_data": "held", "output_dir": "runs/old"}
    values, _ = in_its_run("../home/runs/old/config.yaml", said)
    assert (values["data"], values["val_data"]) == (str(home / "pictures"), str(home / "held"))
    assert values["output_dir"] == "../home/runs/old"
    for output_dir, data, found in (
        ("runs/old", "pictures", str(home / "pictures")),
        ("./runs/old/", "pictures", str(home / "pictures")),
        ("runs/old", "shapes", "shapes"),
        ("runs/old", "user/data", "user/data"),  # nothing there is called so: a name of the hub
        ("runs/new", "pictures", "pictures"),  # moved: where it was started is not known
        (str(run), "pictures", "pictures"),
        ("../runs/old", "pictures", "pictures"),
        (None, "pictures", "pictures"),
        ("runs/old", "nul\0byte", "nul\0byte"),
    ):
        assert started_data(run, output_dir, data) == found
    (tmp_path / "elsewhere" / "pictures").mkdir()  # here wins, as for any path
    here = str(tmp_path / "elsewhere" / "pictures")
    assert started_data(run, "runs/old", "pictures") == here


STATES = [
    ("images_seen", 10**25),
    ("images_seen", -1),
    ("shards", 0),
    ("shards", 10**12),
    ("shards", 5),
    ("step", float("nan")),
    ("step", "3"),
    ("step", 4),
    ("elapsed_seconds", "x"),
    ("seed", None),
    ("batch_size", 0),
    ("ema_decay", 3),
    ("guard", [1]),
    ("scaler", "x"),
    ("callbacks", [1]),
    ("callbacks", {"MetricLogger": 5}),
    ("versions", None),
    ("training", []),
    ("model", {"class": 3}),
    ("diffusion", {"timesteps": 10**10}),
    ("data", "x"),
    ("elapsed_seconds", float("inf")),
]


GONE = [(name, ...) for name in ("callbacks", "versions", "step", "shards", "model")]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "value"), STATES + GONE, ids=lambda v: "gone" if v is ... else str(v)[:20]
)
def test_a_strange_state_is_passed_over(run: Path, name: str, value: object) -> None:
    path = newest(run) / "state.json"
    state = json.loads(path.read_text())
    if value is ...:
        del state[name]
    else:
        state[name] = value
    path.write_text(json.dumps(state))
    rehash(newest(run))
    trainer_of(run).train()
    assert "Passed over a broken checkpoint: " in said(run)
    assert f"{newest_of_three(run)}/state.json" in said(run)
    assert f"Resumed {run / 'checkpoints' / 'step-000000002'} at step 2" in said(run)
    assert [row["step"] for row in curve(run)] == [1, 2, 3, 4]


@pytest.mark.parametrize("sums", [[1.0], "x" * 10, [None] * 10])
def test_a_part_that_cannot_use_its_state_is_named(run: Path, sums: object) -> None:
    path = newest(run) / "state.json"
    state = json.loads(path.read_text())
    state["callbacks"]["MetricLogger"] = {"sums": sums}
    path.write_text(json.dumps(state))
    rehash(newest(run))
    with pytest.raises(
        CheckpointError,
        match=r"state\.json: the state of MetricLogger cannot be used .*--resume STEP",
    ):
        trainer_of(run).train()
    assert trainer_of(run, resume="2").train().step == 4


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("files_too", [True, False])
def test_a_checkpoint_whose_manifest_lists_too_little_is_passed_over(
    run: Path, name: str, files_too: bool
) -> None:
    folder = newest(run)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if files_too:
        (folder / name).unlink()
    assert trainer_of(run).train().step == 4
    assert (
        f"Passed over a broken checkpoint: {folder.name}: manifest.json does not list {name}"
        in said(run)
    )


@pytest.mark.parametrize("change", [{"dim": 100_000}, {"dim": 4096, "dim_mults": [1, 2, 4, 8]}])
def test_a_huge_network_is_compared_before_it_is_built(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    path = newest(run) / "state.json"
    state = json.loads(path.read_text())
    state["model"]["config"] |= change
    path.write_text(json.dumps(state))
    rehash(newest(run))
    monkeypatch.setattr("ddpm_lib.runs.loading._build", lambda *args: pytest.fail("it was built"))
    with pytest.raises(CheckpointError, match="are of another network"):
        load_run(run)


def test_an_average_that_is_not_finite_is_said(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = newest(run) / "ema.safetensors"
    tensors = load_file(path)
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, path)
    rehash(newest(run))
    trainer_of(run).train()
    assert f"The average {name} in step-000000003 holds NaN" in said(run)


def test_a_newer_checkpoint_is_not_overwritten_by_an_older_version(run: Path) -> None:
    manifest = newest(run) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(
        CheckpointError, match=r"step-000000003 was written by a newer ddpm-lib.*--resume STEP"
    ):
        trainer_of(run).train()
    assert trainer_of(run, resume="2").train().step == 4
    assert (
        (run / "set-aside" / "1" / "checkpoints" / "step-000000003" / "manifest.json")
        .read_text()
        .count('"format": 2')
    )


def test_another_version_of_the_library_is_said(run: Path) -> None:
    path = newest(run) / "state.json"
    state = json.loads(path.read_text())
    state["versions"]["ddpm-lib"] = "99.0"
    path.write_text(json.dumps(state))
    rehash(newest(run))
    trainer_of(run).train()
    assert "Saved by ddpm-lib 99.0, continuing with" in said(run)


def test_a_stop_file_from_before_is_said_and_one_from_the_start_is_obeyed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "STOP").touch()
    trainer_of(run, max_steps=4).train()
    assert "The file STOP was there before this start and is removed" in said(run)
    assert not (run / "STOP").exists()
    real = training.open_training_data

    def stopped(*args: object) -> object:
        (run / "STOP").symlink_to("nowhere")
        return real(*args)

    monkeypatch.setattr(training, "open_training_data", stopped)
    result = trainer_of(run, max_steps=6).train()
    assert (result.status, result.step, result.reason) == ("stopped", 4, "found the file STOP")


@pytest.mark.parametrize(
    "how",
    [
        "2",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("step-000000002", "path", "absolute")
        ),
    ],
)
def test_back_to_an_older_checkpoint_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(run.parent)
    name = {
        "path": "mine/checkpoints/step-000000002",
        "absolute": str(run / "checkpoints" / "step-000000002"),
    }.get(how, how)
    newer = final_tensors(run)
    trainer_of(run, max_steps=5, resume=name, callbacks=[StopAt(4)]).train()
    aside = run / "set-aside" / "1" / "checkpoints"
    assert [p.name for p in aside.iterdir()] == ["step-000000003"]
    assert f"Set aside in {run / 'set-aside' / '1'}: step-000000003." in said(run)
    os.rename(aside.parent, run.parent / "kept")
    assert_same_tensors(final_tensors(run.parent / "kept"), newer)
    assert [row["step"] for row in curve(run)] == [1, 2, 3, 4]
    assert trainer_of(run, max_steps=5, resume=name).train().step == 5
    assert "Going back to step 2 was done before, and step-000000004 comes after it" in said(run)
    assert not (run / "set-aside" / "1").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["resume"] == "auto"
    trainer_of(run.parent / "twin", max_steps=5).train()
    assert_same_tensors(final_tensors(run), final_tensors(run.parent / "twin"))


@pytest.mark.parametrize(
    ("resume", "words"),
    [
        ("1", r"has no checkpoint of step 1\. There are: 2, 3"),
        ("elsewhere/checkpoints/step-000000002", r"--output-dir elsewhere"),
        ("mine/step-000000002", r"is no checkpoint of the run directory"),
        ("autp", r"resume must be auto, never, a step .*Did you mean 'auto'"),
        ("-1", r"resume must be auto"),
        ("step-2", r"resume must be auto"),
    ],
)
def test_where_nobody_can_go_back_to(
    run: Path, monkeypatch: pytest.MonkeyPatch, resume: str, words: str
) -> None:
    monkeypatch.chdir(run.parent)
    before = sorted(p.name for p in run.rglob("*") if p.name not in ("train.log", ".lock"))
    with pytest.raises(ConfigError, match=words):
        trainer_of(run, resume=resume).train()
    assert sorted(p.name for p in run.rglob("*") if p.name not in ("train.log", ".lock")) == before


def test_a_start_that_is_refused_sets_nothing_aside(run: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        tiny_trainer(run, tiny_diffusion(dim=8, dim_mults=(1,)), resume="2").train()
    assert not (run / "set-aside").exists()


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join([*lines, f"val_data: *a{levels - 1}", ""])


@pytest.mark.parametrize(
    "text",
    [bomb(9), bomb(4), "val_data: &a [*a]\n", "max_steps: &a {b: *a}\n"],
    ids=["9", "4", "self", "map"],
)
def test_aliases_that_stand_for_gigabytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert len(capsys.readouterr().err) < 4000


def test_plain_aliases_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("data: shapes\nsave_every: &n 7\nlog_every: *n\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--print-config"]) == 0
    assert "log_every: 7" in capsys.readouterr().out


LARGE = [
    "x" * 10**6,
    ["x"] * 10**6,
    {str(k): k for k in range(10**5)},
    10**9000,
    {1: {2: {3: {4: [5] * 99}}}},
]


@pytest.mark.parametrize("value", LARGE, ids=["text", "list", "map", "number", "nested"])
def test_values_in_messages_are_short(value: object) -> None:
    assert len(short(value)) <= 240
    with pytest.raises(ConfigError) as failure:
        tiny_trainer(Path("unused"), max_hours=value)
    assert len(str(failure.value)) < 500


def test_a_run_that_cannot_be_written_to_says_where_samples_may_go(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.mkdir

    def forbidden(self: Path, *args: object, **options: object) -> None:
        if run in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert (
        main(
            ["sample", str(run), "-n", "1", "--num-steps", "1", "--device", "cpu", "--no-progress"]
        )
        == 2
    )
    assert (
        "samples cannot be written to (Permission denied). Say with --output-dir"
        in capsys.readouterr().err
    )
    (run.parent / "file").write_text("")
    assert main(["sample", str(run), "--output-dir", str(run.parent / "file")]) == 2
    assert "file is no directory. Choose another --output-dir" in capsys.readouterr().err
