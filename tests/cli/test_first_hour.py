"""What goes wrong in a first hour: each answer fits on a screen, and every command that it proposes
can be run, harmlessly.

The commands are taken out of the messages as they stand and run in the folder where they were
given; what is to be put into the line, or called instead, is put in and called. Trainings are cut
to two steps of a narrow network; nothing else is changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from ddpm_lib import GaussianDiffusion, Trainer, Unet, evaluate, load_run, open_dataset
from ddpm_lib.cli import COMMANDS, main
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.training import CheckpointError
from less_work import less_work
from sysu_clone import clone

LINES, WIDTH = 30, 400
"""A screen; a line that names many choices may wrap."""


class Case(NamedTuple):
    """A command line, its exit code, words of the answer, an option that cures it, what is
    given.
    """

    line: str
    code: int
    said: str
    cure: str = ""
    given: str = ""


SAMPLE = GaussianDiffusion.sample
QUICK = "--image-size 16 --max-steps 2"
CASES = [
    # data
    Case(f"train ./pix {QUICK}", 2, r"'\./pix' does not exist. Did you mean 'pics'"),
    Case(f"train {QUICK}", 2, r"on which data\?"),
    Case(f"train {QUICK} pics", 0, r"reached max_steps"),
    Case("train --trackers tensorboard --image-size 16 pics --dry-run", 0, r"data: 40 images"),
    Case("train nosuch/hubname --image-size 16", 2, r"is no local path"),
    Case("train empty", 2, r"holds no (files|pictures)"),
    Case("train texts", 2, r"holds no pictures"),
    Case("train pics/ring/0.png", 2, r"one picture"),
    Case("train photos.zip", 2, r"archive|Unpack"),
    Case("train one --image-size 16 --max-steps 2", 0, r"one image only"),
    Case("train pics --image-size 30", 2, r"divisible by"),
    Case("train pics --image-size 0", 2, r"image_size|image-size"),
    Case("train pics --max-steps 0", 2, r"max_steps must be at least 1; got 0"),
    Case("train pics --batch-size 0", 2, r"batch_size must be at least 1"),
    Case("train pics --learning-rate -1", 2, r"learning_rate must be a positive"),
    Case(
        "train broken --image-size 16", 2, r"1 of 3 images cannot be used(?s:.*)--on-bad-image skip"
    ),
    Case("train broken --image-size 16 --on-bad-image skip --max-steps 2", 0, r"skipped 1 of 3"),
    Case("train float.npz --image-size 16", 2, r"must be uint8"),
    Case("train splits --image-size 16", 2, r"train"),
    Case("train plain --class-conditional --image-size 16", 2, r"needs labels"),
    Case(f"train pics {QUICK} --output-dir runs/classes", 0, r"--class-conditional"),
    Case("train pics --label-column kind", 2, r"no table"),
    # names
    Case("trian pics", 2, r"Did you mean 'train'"),
    Case("train pics --preset smal", 2, r"Did you mean 'small'"),
    Case("train pics --max-step 10", 2, r"--max-steps"),
    Case("train pics --lr 1e-4", 2, r"--learning-rate"),
    Case("train pics --epochs 3", 2, r"--max-steps"),
    Case("train pics --num-epochs 3", 2, r"--max-steps"),
    Case("train pics --resolution 32", 2, r"--image-size"),
    Case("train pics --sample-sampler ddmi", 2, r"Did you mean 'ddim'"),
    Case("train pics --device cuda:1", 2, r"cuda|GPU"),
    Case("train pics --device gpu", 2, r"Did you mean 'cuda'"),
    Case("train --config missing.yaml", 2, r"does not exist"),
    Case("train --config typo.yaml", 2, r"did you mean 'max_steps'"),
    Case("train --config bad.yaml", 2, r"not valid YAML"),
    Case("train --config scalar.yaml --dry-run", 0, r"data: 40 images"),
    Case("train pics --trackers wandbb", 2, r"Did you mean 'wandb'|Unknown tracker"),
    # runs
    Case("sample runs/min", 2, r"Did you mean runs/mine"),
    Case("sample pics", 2, r"no run directory"),
    Case("evaluate runs/min", 2, r"Did you mean runs/mine"),
    Case("sample runs/mine --num 0", 2, r"num must be at least 1"),
    Case("sample runs/mine --checkpoint 999", 2, r"There are: step-0"),
    Case("sample runs/mine --checkpoint best", 0, r"step-0"),
    Case("sample runs/few --checkpoint best", 2, r"without --keep-best"),
    Case("sample runs/mine --class-label star", 2, r"without classes"),
    Case("sample runs/mine --guidance-scale 3", 2, r"--class-conditional"),
    Case("sample runs/mine --sampler ddpmm", 2, r"Did you mean"),
    Case("sample runs/mine --image-size 64", 2, r"image-size"),
    Case("sample runs/mine --num 2", 0, r"seed"),
    Case("sample runs/mine --device cuda", 2, r"cuda"),
    Case(
        "train pics --image-size 16 --max-steps 2 --output-dir runs/mine --model.dropout 0.3",
        2,
        r"--output-dir",
    ),
    Case("train plain --image-size 16 --max-steps 2 --output-dir runs/mine", 2, r"other data"),
    Case(
        "train pics --image-size 16 --max-steps 2 --output-dir runs/mine",
        0,
        r"nothing (is|was) to do|nothing to do",
    ),
    Case("train pics --image-size 16 --output-dir pics", 2, r"output_dir|--output-dir"),
    Case("status runs/mine", 0, r"finished"),
    Case("status", 0, r"mine"),
    Case("compare runs/min", 2, r"Did you mean runs/mine"),
    Case("evaluate runs/mine --metrics nll --num 200 --num-levels 2", 0, r"bits/dim"),
    Case("evaluate runs/mine --metrics fidd", 2, r"Did you mean 'fid'"),
    Case("evaluate runs/mine --features inceptoin2048", 2, r"Did you mean 'inception2048'"),
    Case("ema runs/mine", 2, r"posthoc"),
    Case("prepare sysu empty out", 2, r"empty|SYSU|sysu"),
    # more data
    Case("train some/pix --image-size 16", 2, r"cannot be reached from here", given="no hub"),
    Case("train heic", 2, r"found 1 × \.heic(?s:.*)Convert HEIC"),
    Case(
        "train pics --dry-run",
        0,
        r"enlarged \(blurred\); an image size of at most 18 \(height\) by 20",
    ),
    Case(
        "train tables --image-size 16 --dry-run",
        2,
        r"'tables' holds several splits: test, train",
        cure="--split train",
    ),
    Case(
        "train sysu --image-size 16",
        2,
        r"raw SYSU-Shape(?s:.*)train on the folder sysu-64/train_data",
    ),
    Case("prepare sysu nowhere out", 2, r"'nowhere' does not exist.*git clone https://"),
    Case("prepare sysu sysu pics", 2, r"'pics' is not empty.*such as 'pics-2'"),
    Case("train splits/train --image-size 16 --dry-run", 0, r"run directory: runs/splits-train"),
    Case("estimate ./pix", 2, r"'\./pix' does not exist. Did you mean 'pics'"),
    Case(
        "inpaint runs/mine pics/ring/0.png mask.png --num-steps 2 --num-resamples 1",
        2,
        r"got also 'mask.png'",
        cure="--mask mask.png",
    ),
    Case(
        "inpaint runs/mine pics/ring/0.png --mask mask.png --num-steps 2",
        2,
        r"Use --jump-length 1",
        cure="--num-resamples 1",
    ),
    # more names
    Case(
        "sample runs/mine --num-steps 2000", 2, r"must be in 1 … 1000.*got 2000", given="all steps"
    ),
    Case(
        "sample runs/named --class-label stra",
        2,
        r"Did you mean 'star'",
        cure="--class-label star",
        given="classes",
    ),
    Case(
        "train pics --image-size 16 --trackers tensorboard",
        2,
        r"pip install tensorboard",
        given="no tensorboard",
    ),
    Case(
        "ablate toy:ring --vary model.dim=8,16", 2, r"pip install matplotlib", given="no matplotlib"
    ),
    # more runs
    Case(
        "sample runs/young", 2, r"is being trained.*the first comes at step 50", given="a young run"
    ),
    Case(
        "evaluate runs/young",
        2,
        r"is being trained.*the first comes at step 50",
        given="a young run",
    ),
    Case(
        "train pics --image-size 16 --output-dir runs/young",
        2,
        r"choose another --output-dir, such as runs/young-2",
        given="a young run",
        cure="--output-dir runs/young-2",
    ),
    Case(
        f"train pics {QUICK} --output-dir runs/mine --diffusion.schedule linear",
        2,
        r"'cosine' in the checkpoint, 'linear' now(?s:.*)--output-dir, such as runs/mine-2",
    ),
    Case(
        f"train pics {QUICK} --output-dir runs/mine --model.dim-mults 1,2",
        2,
        r"dim_mults: \[1, 2, 2, 2\] in.*\[1, 2\] now(?s:.*)--output-dir, such as runs/mine-2",
    ),
    Case(
        f"train pics {QUICK} --output-dir runs/mine",
        2,
        r"1 image added: ring/new\.png(?s:.*)Set --override .*--output-dir, such as runs/mine-2",
        given="a new picture",
    ),
    Case(
        f"train pics {QUICK} --output-dir runs/mine --val-every 0", 0, r"stay out of the training"
    ),
    Case(
        "train pics --image-size 16 --output-dir afile", 2, r"afile is a file\..*such as afile-2\."
    ),
    Case(
        "train pics --image-size 16 --output-dir afile/run",
        2,
        r"such as afile-2/run: afile is no folder",
    ),
    Case(
        "train pics --image-size 16 --output-dir /proc/run",
        2,
        r"another --output-dir, such as runs/run\.",
    ),
    Case(
        "train pics --image-size 16 --output-dir runs/full",
        2,
        r"not one fits.*--output-dir on a larger disk",
        given="no space",
    ),
    Case(
        "train pics --image-size 16 --output-dir runs/rate --learning-rate 50",
        2,
        r"no checkpoint yet\. Lower --learning-rate \(50 now\), lower --max-grad-norm \(1 now\)",
        cure="--learning-rate 0.001",
    ),
    Case(
        "train pics --image-size 16 --output-dir runs/cut",
        130,
        r"go on to the end .*ddpm train --config",
        given="Ctrl-C",
    ),
    Case(
        "train pics --image-size 16 --output-dir runs/cut",
        143,
        r"found the file STOP",
        given="a STOP",
    ),
    Case("status runs/killed", 0, r"killed(?s:.*)the same command continues it", given="a kill"),
    Case(
        "evaluate runs/mine --metrics fid --num 8",
        2,
        r"ddpm weights fetch inception(?s:.*)SHA-256",
        given="no weights",
        cure="--features random64",
    ),
]


@contextlib.contextmanager
def no_hub(patch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    patch.setenv("no_proxy", "127.0.0.1")
    yield


@contextlib.contextmanager
def missing(patch: pytest.MonkeyPatch, package: str) -> Iterator[None]:
    patch.setitem(sys.modules, package, None)
    yield


@contextlib.contextmanager
def all_steps(patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setattr(GaussianDiffusion, "sample", SAMPLE)
    yield


@contextlib.contextmanager
def classes(patch: pytest.MonkeyPatch) -> Iterator[None]:
    assert run(f"train pics {QUICK} --class-conditional --output-dir runs/named")[0] == 0
    yield


@contextlib.contextmanager
def young_run(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that is being trained and has saved nothing."""
    run = Path("runs/young")
    lock = RunLock(run)
    lock.acquire()
    words = {"status": "running", "step": 0, "max_steps": 100, "save_every": 50}
    (run / "status.json").write_text(json.dumps(words))
    yield
    lock.release()
    shutil.rmtree(run)


@contextlib.contextmanager
def new_picture(patch: pytest.MonkeyPatch) -> Iterator[None]:
    picture(Path("pics/ring/new.png"), 999)
    try:
        yield
    finally:
        Path("pics/ring/new.png").unlink()


@contextlib.contextmanager
def no_space(patch: pytest.MonkeyPatch) -> Iterator[None]:
    full = SimpleNamespace(total=10**6, used=10**6, free=10**4)
    patch.setattr(shutil, "disk_usage", lambda path: full)
    yield


@contextlib.contextmanager
def after_a_step(patch: pytest.MonkeyPatch, done: Callable[[Any], object]) -> Iterator[None]:
    """Let something happen after the first step of the training, and never again."""
    step = Trainer._optimizer_step

    def then(self: Trainer, *args: Any) -> None:
        step(self, *args)
        patch.setattr(Trainer, "_optimizer_step", step)
        done(self)

    patch.setattr(Trainer, "_optimizer_step", then)
    yield


@contextlib.contextmanager
def kill(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What SIGKILL leaves of a run: a word that is no longer true, and a name in an open lock."""
    run = Path("runs/killed")
    shutil.copytree("runs/mine", run)
    words = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**words, "status": "running"}))
    (run / ".lock").write_text("process 999999 on another")
    yield


@contextlib.contextmanager
def no_weights(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither the published weights nor a way to them."""
    patch.setenv("TORCH_HOME", "cache/torch")
    patch.delenv("DDPM_LIB_INCEPTION_WEIGHTS", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        patch.setenv(name, "http://127.0.0.1:9")
    yield


GIVEN: dict[str, Callable[[pytest.MonkeyPatch], contextlib.AbstractContextManager[None]]] = {
    "": lambda patch: contextlib.nullcontext(),
    "no hub": no_hub,
    "no tensorboard": lambda patch: missing(patch, "tensorboard"),
    "no matplotlib": lambda patch: missing(patch, "matplotlib"),
    "all steps": all_steps,
    "classes": classes,
    "a young run": young_run,
    "a new picture": new_picture,
    "no space": no_space,
    "Ctrl-C": lambda patch: after_a_step(patch, lambda _: os.kill(os.getpid(), signal.SIGINT)),
    "a STOP": lambda patch: after_a_step(patch, lambda run: (run.output_dir / "STOP").touch()),
    "a kill": kill,
    "no weights": no_weights,
}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (20, 18), tuple(int(v) for v in rng.integers(0, 256, 3)))
    image.paste((int(rng.integers(256)), 90, 40), (2, 3, 12, 11))
    image.save(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a newcomer's: pictures, and everything that is usually got wrong."""
    root = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(root):
        patch.setenv("DDPM_LIB_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        less_work(patch)
        for k in range(40):
            picture(Path(f"pics/{('ring', 'star')[k % 2]}/{k}.png"), k)
            picture(Path(f"plain/{k}.png"), 100 + k)
            picture(Path(f"splits/{('train', 'test')[k % 2]}/{k}.png"), k)
        picture(Path("one/0.png"), 7)
        for k in range(3):
            picture(Path(f"broken/{k}.png"), k)
        Path("broken/1.png").write_bytes(b"no picture")
        Path("empty").mkdir()
        Path("texts").mkdir()
        Path("texts/notes.txt").write_text("words")
        Path("photos.zip").write_bytes(b"PK\3\4")
        np.savez(
            "float.npz", images=np.random.default_rng(0).random((20, 16, 16, 3), dtype=np.float32)
        )
        Path("typo.yaml").write_text("data: pics\nmax_step: 3\n")
        Path("bad.yaml").write_text("data: [pics\n")
        Path("scalar.yaml").write_text("data: pics\nimage_size: 16\n")
        Path("heic").mkdir()
        Path("heic/photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        Path("afile").write_text("words")
        Image.new("L", (20, 18), 255).save("mask.png")
        clone(Path("sysu"), n=4)
        write_tables(Path("tables"))
        assert run(f"train pics {QUICK} --output-dir runs/mine")[0] == 0
        assert run(f"train pics {QUICK} --output-dir runs/few --keep-best none")[0] == 0
        yield root


def write_tables(folder: Path) -> None:
    """One table per split, as the hub's datasets have them."""
    rows = [{"bytes": Path(f"plain/{k}.png").read_bytes(), "path": None} for k in range(8)]
    folder.mkdir()
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table({"image": rows}), folder / f"{split}.parquet")


def cured(line: str, cure: str) -> str:
    """Put an option into a line, in the place of the same option or of a word too many."""
    (command, *words), (option, *value) = shlex.split(line), shlex.split(cure)
    if option in words:
        at = words.index(option)
        del words[at : at + 1 + len(value)]
    return shlex.join([command, *(word for word in words if word not in value), option, *value])


def run(line: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(shlex.split(line))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue()


def proposals(said: str) -> list[str]:
    """The command lines in a text: behind `ddpm`, up to the end of the line or of the quotation."""
    found = re.findall(r"`ddpm ([^`\n]+)`", said)
    found += re.findall(r"(?:^|  )ddpm ([^`\n]+)$", said, re.MULTILINE)
    found += re.findall(r": ddpm ([^`\n]+?)\.?$", said, re.MULTILINE)
    return [line for line in dict.fromkeys(found) if line.split()[0] in COMMANDS]


def pictures_below(folder: str) -> set[str]:
    return {str(path) for path in Path(folder).rglob("*")}


@pytest.mark.every(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_an_answer_fits_on_a_screen_and_its_commands_work(
    case: Case, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DDPM_LIB_CACHE", str(desk / "cache"))
    less_work(monkeypatch)
    before = {name: pictures_below(name) for name in ("pics", "plain", "one")}
    folders = set(Path("runs").iterdir())
    try:
        with GIVEN[case.given](monkeypatch):
            proof(case)
    finally:
        for made in set(Path("runs").iterdir()) - folders:
            shutil.rmtree(made)
    assert {name: pictures_below(name) for name in before} == before


def proof(case: Case) -> None:
    """Run a line, its proposals and its cure."""
    folders = set(Path("runs").iterdir())
    code, said = run(case.line)
    assert (code, re.search(case.said, said) is not None) == (case.code, True), said
    assert "Traceback" not in said
    if code:
        lines = said.splitlines()
        assert len(lines) <= LINES, said
        assert max(map(len, lines)) <= max(
            WIDTH, 1600 if "Known:" in said or "Choices:" in said else 0
        ), said
        began = "Training " in said
        assert began or set(Path("runs").iterdir()) == folders, "a failed start left a directory"
    for line in proposals(said):
        if "path/to" in line:  # the user's own, whatever they are called
            assert run(f"{line} --help")[0] == 0, line
            continue
        proposed, answer = run(line)
        assert proposed in (0, 1), f"{case.line} proposes\n{line}\n{answer}"
        assert "Traceback" not in answer
    if case.cure:
        option, *value = shlex.split(case.cure)
        assert option in said or value[0] in said, said
        line = cured(case.line, case.cure)
        healed, answer = run(line)
        assert healed == 0, f"{case.line} is to be cured by\n{line}\n{answer}"


class Call(NamedTuple):
    """An expression, the words of the error that it earns, and one that these words lead to."""

    line: str
    said: str
    cure: str


CALLS = [
    # other libraries' habits
    Call(
        "GaussianDiffusion(net, 16)",
        r"takes model in order.*image_size=",
        "GaussianDiffusion(net, image_size=16)",
    ),
    Call(
        "GaussianDiffusion(net, image_size=16, sampling_timesteps=50)",
        r"diffusion\.sample\(num_steps=50\)",
        "diffusion.sample(1, num_steps=2)",
    ),
    Call(
        "GaussianDiffusion(net, image_size=16, objective='pred_v')",
        r"Did you mean 'parametrization'",
        "GaussianDiffusion(net, image_size=16, parametrization='v')",
    ),
    Call(
        "GaussianDiffusion(net, image_size=16, schedule='cosin')",
        r"Did you mean 'cosine'",
        "GaussianDiffusion(net, image_size=16, schedule='cosine')",
    ),
    Call("Unet(8, flash_attn=True)", r"leave it out", "Unet(8)"),
    Call(
        "Unet(8, learned_variance=True)",
        r"variance='learned_range'.*out_channels=…\) of twice",
        "GaussianDiffusion(Unet(8, out_channels=6), image_size=16, variance='learned_range')",
    ),
    Call(
        "diffusion.sample(batch_size=4)",
        r"batch_size=4.*sample\(4\) draws 4",
        "diffusion.sample(4, num_steps=2)",
    ),
    Call(
        "named.sample(2, classes=[0, 1])",
        r"Did you mean 'cond'",
        "named.sample(2, cond={'class_label': [0, 1]}, num_steps=2)",
    ),
    Call(
        "diffusion.sample(2, sampler='ddmi')",
        r"Did you mean 'ddim'",
        "diffusion.sample(2, sampler='ddim', num_steps=2)",
    ),
    Call(
        "diffusion.sample(1, num_steps=2000)",
        r"1 … 1000.*got 2000",
        "diffusion.sample(1, num_steps=2)",
    ),
    Call(
        "diffusion.sample(1, guidance_scale=3.0, num_steps=2)",
        r"num_classes=….*leave guidance_scale at 1",
        "diffusion.sample(1, num_steps=2)",
    ),
    Call(
        "named.sample(1, cond={'class_label': 'stra'})",
        r"Unknown class 'stra'. Did you mean 'star'",
        "named.sample(1, cond={'class_label': 'star'}, num_steps=2)",
    ),
    Call(
        "named.sample(1, cond={'label': 'star'})",
        r"Did you mean 'class_label'",
        "named.sample(1, cond={'class_label': 'star'}, num_steps=2)",
    ),
    # batches
    Call(
        "diffusion(images.permute(0, 2, 3, 1))",
        r"shape \(b, 3, 16, 16\).*got \(2, 16, 16, 3\)",
        "diffusion(images)",
    ),
    Call("diffusion(images * 2 - 1)", r"\[0, 1\]", "diffusion(images)"),
    Call(
        "diffusion({'images': images})",
        r"field 'image'; got 'images'",
        "diffusion({'image': images})",
    ),
    # training
    Call(
        "Trainer(diffusion, 'pics', train_lr=1e-4)",
        r"did you mean 'learning_rate'",
        "Trainer(diffusion, 'pics', learning_rate=1e-4)",
    ),
    Call(
        "Trainer(diffusion, 'pics', train_num_steps=2)",
        r"did you mean 'max_steps'",
        "Trainer(diffusion, 'pics', max_steps=2)",
    ),
    Call(
        "Trainer(diffusion, 'pics', batch_sizes=2)",
        r"did you mean 'batch_size'",
        "Trainer(diffusion, 'pics', batch_size=2)",
    ),
    Call(
        "Trainer(diffusion, 'pics', epochs=2)",
        r"max_steps: epochs × images / batch_size\)\.",
        "Trainer(diffusion, 'pics', max_steps=2)",
    ),
    Call(
        "Trainer(diffusion, 'pics', batch_size='large')",
        r"a whole number or 'auto'; got 'large'",
        "Trainer(diffusion, 'pics', batch_size='auto')",
    ),
    Call(
        "Trainer(diffusion, 'pics', optimizer=torch.optim.SGD(net.parameters()))",
        r"the class SGD.*'adamw', 'adam' or 'muon'",
        "Trainer(diffusion, 'pics', optimizer='adamw')",
    ),
    Call(
        "Trainer('pics', diffusion)",
        r"got 'pics'.*Trainer\(diffusion, data\)",
        "Trainer(diffusion, 'pics')",
    ),
    Call(
        "Trainer(net, 'pics')",
        r"Wrap the network: GaussianDiffusion\(",
        "Trainer(GaussianDiffusion(net, image_size=16), 'pics')",
    ),
    Call(
        "Trainer(diffusion, 'pics', output_dir='pics')",
        r"another output_dir, such as pics-2",
        "Trainer(diffusion, 'pics', output_dir='pics-2')",
    ),
    Call(
        "Trainer(diffusion, 'pics', output_dir='afile').train()",
        r"another output_dir, such as afile-2",
        "Trainer(diffusion, 'pics', output_dir='afile-2')",
    ),
    # data, runs
    Call(
        "open_dataset('./pix', image_size=16)",
        r"Did you mean 'pics'",
        "open_dataset('pics', image_size=16)",
    ),
    Call(
        "open_dataset('pics', size=16)",
        r"Did you mean 'image_size'",
        "open_dataset('pics', image_size=16)",
    ),
    Call(
        "open_dataset('broken', image_size=16)",
        r'on_bad_image="skip"',
        "open_dataset('broken', image_size=16, on_bad_image='skip')",
    ),
    Call(
        "open_dataset('tables', image_size=16)",
        r"Pass split='train'",
        "open_dataset('tables', image_size=16, split='train')",
    ),
    Call("load_run('runs/min')", r"Did you mean runs/mine", "load_run('runs/mine')"),
    Call("load_run('pics')", r"there are: .*runs/mine", "load_run('runs/mine')"),
    Call(
        "load_run('runs/mine', checkpoint=999)",
        r"no checkpoint '999'. There are: step-000000004",
        "load_run('runs/mine', checkpoint=4)",
    ),
    Call(
        "load_run('runs/mine', checkpoint=None)",
        r"a step or a name.*got None",
        "load_run('runs/mine', checkpoint='latest')",
    ),
    Call(
        "load_run('runs/mine', step=4)",
        r"Unknown argument of load_run 'step'.*checkpoint",
        "load_run('runs/mine', checkpoint=4)",
    ),
    Call(
        "evaluate('runs/mine', metric='fid')",
        r"did you mean 'metrics'",
        "evaluate('runs/mine', metrics='loss_gap')",
    ),
    Call(
        "evaluate('runs/mine', metrics='gapp')",
        r"Did you mean 'gap'",
        "evaluate('runs/mine', metrics='gap')",
    ),
    Call(
        "evaluate('runs/mine', metrics='gap', checkpoint=999)",
        r"There are: step-000000004",
        "evaluate('runs/mine', metrics='gap', checkpoint=4)",
    ),
]


@pytest.fixture(scope="module")
def names(desk: Path) -> dict[str, Any]:
    net = Unet(dim=8, dim_mults=(1, 2), attention_levels=())
    labelled = Unet(dim=8, dim_mults=(1, 2), attention_levels=(), num_classes=2)
    named = GaussianDiffusion(labelled, image_size=16)
    named.class_names = ("ring", "star")
    return {
        "net": net,
        "diffusion": GaussianDiffusion(net, image_size=16),
        "named": named,
        "images": torch.rand(2, 3, 16, 16),
        "torch": torch,
        "Unet": Unet,
        "GaussianDiffusion": GaussianDiffusion,
        "Trainer": Trainer,
        "open_dataset": open_dataset,
        "load_run": load_run,
        "evaluate": evaluate,
    }


@pytest.mark.every(3)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.line)
def test_an_error_in_python_leads_to_a_call_that_works(
    call: Call, names: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(GaussianDiffusion, "sample", SAMPLE)
    before = {name: pictures_below(name) for name in ("pics", "runs")}
    with pytest.raises((TypeError, ValueError, OSError, CheckpointError)) as caught:
        eval(call.line, dict(names))
    said = str(caught.value)
    assert re.search(call.said, said), said
    assert len(said) <= (1200 if "Known:" in said or "Choices:" in said else WIDTH), said
    assert {name: pictures_below(name) for name in before} == before
    eval(call.cure, dict(names))
    assert pictures_below("pics") == before["pics"]
