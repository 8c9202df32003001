"""What goes wrong in a first hour: each answer fits on a screen, and every command that it proposes can be run, harmlessly.

The commands are taken out of the messages as they stand and run in the folder where they were given. Trainings are cut to two
steps of a narrow network; nothing else is changed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.cli import COMMANDS, main
from test_shell_lines import less_work

LINES, WIDTH = 30, 400
"""A screen; a line that names many choices may wrap."""


class Case(NamedTuple):
    """A command line, its exit code, and words of the answer."""

    line: str
    code: int
    said: str


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
    Case("train broken --image-size 16", 2, r"1 of 3 images cannot be used(?s:.*)--on-bad-image skip"),
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
    Case("sample runs/mine --checkpoint best", 2, r"keep_best"),
    Case("sample runs/mine --class-label star", 2, r"without classes"),
    Case("sample runs/mine --guidance-scale 3", 2, r"--class-conditional"),
    Case("sample runs/mine --sampler ddpmm", 2, r"Did you mean"),
    Case("sample runs/mine --image-size 64", 2, r"image-size"),
    Case("sample runs/mine --num 2", 0, r"seed"),
    Case("sample runs/mine --device cuda", 2, r"cuda"),
    Case("train pics --image-size 16 --max-steps 2 --output-dir runs/mine --model.dropout 0.3", 2, r"--output-dir"),
    Case("train plain --image-size 16 --max-steps 2 --output-dir runs/mine", 2, r"other data"),
    Case("train pics --image-size 16 --max-steps 2 --output-dir runs/mine", 0, r"nothing (is|was) to do|nothing to do"),
    Case("train pics --image-size 16 --output-dir pics", 2, r"output_dir|--output-dir"),
    Case("status runs/mine", 0, r"finished"),
    Case("status", 0, r"mine"),
    Case("compare runs/min", 2, r"Did you mean runs/mine"),
    Case("evaluate runs/mine --metrics nll --num 200 --num-levels 2", 0, r"bits/dim"),
    Case("evaluate runs/mine --metrics fidd", 2, r"Did you mean 'fid'"),
    Case("evaluate runs/mine --features inceptoin2048", 2, r"Did you mean 'inception2048'"),
    Case("ema runs/mine", 2, r"posthoc"),
    Case("prepare sysu empty out", 2, r"empty|SYSU|sysu"),
]  # fmt: skip


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
        np.savez("float.npz", images=np.random.default_rng(0).random((20, 16, 16, 3), dtype=np.float32))
        Path("typo.yaml").write_text("data: pics\nmax_step: 3\n")
        Path("bad.yaml").write_text("data: [pics\n")
        Path("scalar.yaml").write_text("data: pics\nimage_size: 16\n")
        assert run(f"train pics {QUICK} --output-dir runs/mine")[0] == 0
        yield root


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
    code, said = run(case.line)
    assert (code, re.search(case.said, said) is not None) == (case.code, True), said
    assert "Traceback" not in said
    if code:
        lines = said.splitlines()
        assert len(lines) <= LINES, said
        assert max(map(len, lines)) <= max(WIDTH, 1600 if "Known:" in said or "Choices:" in said else 0), said
        assert set(Path("runs").iterdir()) == folders, "a failed start left a directory"
    for line in proposals(said):
        if "path/to" in line:  # the user's own, whatever they are called
            assert run(f"{line} --help")[0] == 0, line
            continue
        proposed, answer = run(line)
        assert proposed in (0, 1), f"{case.line} proposes\n{line}\n{answer}"
        assert "Traceback" not in answer
    assert {name: pictures_below(name) for name in before} == before
