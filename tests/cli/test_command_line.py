"""The words of a command line: their order, their spelling, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

from command_line import ddpm, error_of, train
from ddpm_lib import TrainingConfig
from ddpm_lib.cli import COMMANDS, arguments, main, values
from ddpm_lib.cli import options as cli_options
from ddpm_lib.cli.ablate import AblateCommand
from ddpm_lib.cli.ablate import read as read_ablate
from ddpm_lib.cli.audit import AuditCommand
from ddpm_lib.cli.best import BestCommand
from ddpm_lib.cli.compare import CompareCommand
from ddpm_lib.cli.completion import CompletionCommand
from ddpm_lib.cli.convert import ConvertCommand
from ddpm_lib.cli.demo import DemoCommand
from ddpm_lib.cli.distill import DistillCommand
from ddpm_lib.cli.docs import DocsCommand
from ddpm_lib.cli.doctor import DoctorCommand
from ddpm_lib.cli.edit import EditCommand
from ddpm_lib.cli.ema import EmaCommand
from ddpm_lib.cli.estimate import EstimateCommand
from ddpm_lib.cli.evaluate import EvaluateCommand
from ddpm_lib.cli.export import ExportCommand
from ddpm_lib.cli.inpaint import InpaintCommand
from ddpm_lib.cli.plan import PlanCommand
from ddpm_lib.cli.prepare import PrepareCommand
from ddpm_lib.cli.push import PushCommand
from ddpm_lib.cli.report import ReportCommand
from ddpm_lib.cli.restore import RestoreCommand
from ddpm_lib.cli.run_settings import layered
from ddpm_lib.cli.sample import SampleCommand
from ddpm_lib.cli.slurm import SlurmCommand
from ddpm_lib.cli.status import StatusCommand
from ddpm_lib.cli.train import TrainCommand
from ddpm_lib.cli.tune import TuneCommand
from ddpm_lib.cli.watch import WatchCommand
from ddpm_lib.cli.weights import WeightsCommand
from ddpm_lib.core import peers_names
from ddpm_lib.core.registry import nearest
from ddpm_lib.training.callbacks.rows import TrainingRows

CLASSES = {
    "train": TrainCommand,
    "estimate": EstimateCommand,
    "sample": SampleCommand,
    "edit": EditCommand,
    "inpaint": InpaintCommand,
    "restore": RestoreCommand,
    "plan": PlanCommand,
    "evaluate": EvaluateCommand,
    "export": ExportCommand,
    "convert": ConvertCommand,
    "compare": CompareCommand,
    "ema": EmaCommand,
    "push": PushCommand,
    "weights": WeightsCommand,
    "prepare": PrepareCommand,
    "audit": AuditCommand,
    "distill": DistillCommand,
    "ablate": AblateCommand,
    "tune": TuneCommand,
    "status": StatusCommand,
    "watch": WatchCommand,
    "report": ReportCommand,
    "doctor": DoctorCommand,
    "best": BestCommand,
    "slurm": SlurmCommand,
    "completion": CompletionCommand,
    "docs": DocsCommand,
    "demo": DemoCommand,
}

# Per command: its positional words in their order, and groups of words that belong together.
LINES: dict[str, tuple[list[str], list[list[str]]]] = {
    "train": (
        ["pics"],
        [
            ["--image-size", "48", "64"],
            ["--ema-decay", "0.9", "0.99"],
            ["--model.dim-mults", "1", "2", "2"],
            ["--trackers", "tensorboard", "wandb"],
            ["--posthoc-ema", "0.05", "0.1"],
            ["--adam-betas", "0.8", "0.9"],
            ["--model.attention-levels", "1", "2"],
            ["--diffusion.schedule-options", "s", "0.01"],
            ["--freeze", "down,middle"],
            ["--stop-when", "overfitting", "copying"],
            ["--compile"],
            ["--class-conditional"],
            ["--no-progress"],
            ["--batch-size", "auto"],
            ["--max-grad-norm", "none"],
            ["--seed=3"],
            ["--value-range", "0", "4095"],
            ["--condition", "age=meta.csv:age"],
            ["--add-data", "more"],
            ["--add-condition", "age=more.csv:age"],
            ["--val-data", "held"],
            ["--val-condition", "age=held.csv:age"],
        ],
    ),
    "plan": (
        ["pics"],
        [["--hours", "2"], ["--for", "likelihood"], ["--image-size", "32"], ["--output", "-"]],
    ),
    "estimate": (
        ["pics"],
        [["--image-size", "32"], ["--ema-decay", "0.9"], ["--json"], ["--probe-steps", "2"]],
    ),
    "distill": (
        ["runs/mine"],
        [["--steps", "1,2"], ["--max-steps", "100"], ["--stages", "2"], ["--no-progress"]],
    ),
    "ablate": (
        ["toy:ring"],
        [
            ["--seeds", "0", "1"],
            ["--vary", "a=1,2"],
            ["--vary", "b=x"],
            ["--set", "c=[1,2]"],
            ["--images", "512"],
        ],
    ),
    "sample": (
        ["runs/mine"],
        [
            ["--sampler-options", "order=3", "s=1"],
            ["--guidance-interval", "0.1", "0.9"],
            ["-n", "3"],
            ["--compile"],
            ["--spacing-options", "rho=5"],
            ["--class-label", "star"],
            ["--first-index", "4"],
            ["--cond", "age=0.3"],
            ["--cond-guidance", "age=3"],
            ["--sweep", "age"],
        ],
    ),
    "edit": (
        ["runs/mine", "pics"],
        [["--sampler-options", "s_churn=1"], ["--guidance-interval", "0", "0.5"]],
    ),
    "inpaint": (
        ["runs/mine", "pics"],
        [["--mask", "m.png"], ["--spacing-options", "rho=5"], ["--no-progress"]],
    ),
    "restore": (
        ["runs/mine", "a.png", "pics"],
        [["--operator", "blur:2"], ["--method-options", "data_std=1"], ["--simulate"]],
    ),
    "evaluate": (["runs/mine"], [["--metrics", "fid,kid"], ["--num", "20"], ["--compile"]]),
    "compare": (["runs/a", "runs/b"], []),
    "audit": (
        ["pics"],
        [
            ["--image-size", "48", "64"],
            ["--drop", "duplicates,blurry"],
            ["--write-list", "keep.txt"],
            ["--value-range", "0", "4095"],
            ["--json"],
        ],
    ),
    "export": (["runs/mine", "out"], [["--to", "onnx"], ["--weights", "model"]]),
    "convert": (
        ["model.pt", "runs/theirs"],
        [
            ["--image-size", "48", "64"],
            ["--schedule-options", "s", "0.01"],
            ["--flags", "--image_size 64 --learn_sigma True"],
            ["--from", "openai"],
        ],
    ),
    "ema": (["runs/mine"], [["--sigma-rel", "0.05", "0.1"], ["--step", "100"]]),
    "push": (["runs/mine", "me/mine"], [["--license", "mit"], ["--private"]]),
    "weights": (["fetch", "dinov2"], [["--output", "x"]]),
    "status": (["runs/mine"], [["--word"], ["--json"]]),
    "watch": (["runs/mine"], [["--once"], ["--metric", "loss,epoch"], ["--interval", "3"]]),
    "doctor": ([], [["--json"], ["--output-dir", "x"]]),
    "best": (["runs/mine"], [["--json"]]),
    "tune": (["runs/mine"], [["--calls", "8"], ["--samplers", "ddim,heun"], ["--undo"]]),
    "completion": (["zsh"], [["--install"]]),
    "docs": (["symptoms"], [["--path"]]),
    "demo": (["runs/mine"], [["--port", "8000"], ["--host", "0.0.0.0"]]),
    "slurm": (["run.yaml"], [["--gpus", "4"], ["--hours", "2.5"], ["--partition", "a100"]]),
    "prepare": (
        ["sysu", "src", "out"],
        [["--size", "32"], ["--mode", "fit"], ["--num-workers", "0"]],
    ),
}


def parsed(name: str, args: list[str]) -> Any:
    cls = CLASSES[name]
    if name in ("train", "estimate"):
        return layered(args, cls, f"ddpm {name}", "")
    if name == "ablate":
        return read_ablate(args)
    return cli_options.parse(cls, args, default_of(cls), f"ddpm {name}", "")


def default_of(cls: type) -> Any:
    fields = [f for f in dataclasses.fields(cls) if f.default_factory is dataclasses.MISSING]
    return cls(**{f.name: tyro.MISSING for f in fields if f.default is dataclasses.MISSING})


def options_of(cls: type) -> list[arguments.Option]:
    return arguments.options_of(cls, default_of(cls))


def in_some_order(draw: random.Random, words: list[str], groups: list[list[str]]) -> list[str]:
    """Spread the positional words, in their order, between the groups in any order; `--vary` keeps
    its order too.
    """
    groups = sorted(groups, key=lambda _: draw.random())
    repeated = iter(sorted(g for g in groups if g[0] == "--vary"))
    parts = [next(repeated) if g[0] == "--vary" else g for g in groups]
    for place, word in zip(
        sorted(draw.choices(range(len(parts) + 1), k=len(words)), reverse=True), reversed(words)
    ):
        parts.insert(place, [word])
    return [word for part in parts for word in part]


@pytest.mark.every(3)
@pytest.mark.parametrize("name", LINES)
def test_the_order_of_the_words_makes_no_difference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, groups = LINES[name]
    first = parsed(name, [*words, *(word for group in groups for word in group)])
    draw = random.Random(name)
    for _ in range(20):
        line = in_some_order(draw, words, groups)
        assert parsed(name, line) == first, line


def test_the_table_holds_every_list_option() -> None:
    """The property above walks all options that take several words."""
    for name, cls in CLASSES.items():
        lists = {o.flag for o in options_of(cls) if values.is_list(o.annotation)}
        lists -= {"--runs"}
        walked = {word for _, groups in LINES.values() for group in groups for word in group}
        assert lists <= walked, (name, lists - walked)


@pytest.mark.parametrize(
    "words",
    [
        ["--image-size", "48,64"],
        ["--image-size=48,64"],
        ["--image_size", "48", "64"],
        ["--image-size", "48,", "64"],
        ["--image-size=[48,64]"],
    ],
)
def test_spellings_of_a_list(words: list[str]) -> None:
    for line in (["pics", *words], [*words, "pics"], [*words, "--", "pics"]):
        assert parsed("train", line).image_size == (48, 64)


def test_spellings_of_other_values() -> None:
    assert parsed("train", ["pics", "--ema-decay="]).ema_decay == ()
    assert parsed("train", ["pics", "--ema-decay", "--no-progress"]).ema_decay == ()
    assert parsed("train", ["pics", "--max-steps", "2e4"]).max_steps == 20_000
    assert parsed("train", ["--compile", "pics"]).compile is True
    assert parsed("train", ["--compile", "auto", "pics"]).compile == "auto"
    assert parsed("train", ["--no-compile", "pics"]).compile is False
    assert parsed("train", ["pics", "--keep-best", "none"]).keep_best is None
    given = parsed(
        "train", ["pics", "--diffusion.schedule-options", "s=0.01,zero_terminal_snr=true"]
    )
    assert given.diffusion.schedule_options == {"s": 0.01, "zero_terminal_snr": True}
    assert parsed("sample", ["-n16", "runs/a", "--output-dir=-x"]).output_dir == "-x"
    assert parsed("sample", ["--", "-run"]).run == "-run"
    assert parsed("ablate", ["toy:ring", "--set", "a=[1,2]", "--set", "b=3"]).set == (
        "a=[1,2]",
        "b=3",
    )


def test_a_word_that_could_be_either_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("64").mkdir()
    with pytest.raises(
        arguments.UsageError, match=r"--image-size 32,64 for the one, --image-size 32 -- 64 for the"
    ):
        parsed("train", ["--image-size", "32", "64"])
    assert parsed("train", ["--image-size", "32", "--", "64"]).data == "64"
    assert parsed("train", ["--image-size", "32,64", "pics"]).image_size == (32, 64)
    assert parsed("train", ["pics", "--image-size", "32", "64"]).image_size == (32, 64)


@pytest.mark.parametrize("command", ["train", "estimate", "ablate"])
@pytest.mark.parametrize(
    "flags", ["--seed 3", "--max-steps 5", "--output-dir run", "--image-size 8 8", "--seeds 1"]
)
def test_forgotten_data_never_train_the_built_in_ones(
    command: str,
    flags: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if (command == "ablate") != (flags == "--seeds 1"):
        flags = "--images 512" if command == "ablate" else "--preset tiny"
    built_in = "toy:ring" if command == "ablate" else "shapes"
    message = error_of(capsys, command, *flags.split())
    assert f"ddpm {command} path/to/images {flags}" in message
    assert f"ddpm {command} {built_in} {flags}" in message
    assert list(tmp_path.iterdir()) == []


def test_data_may_be_left_out_where_nothing_else_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parsed("train", []).data == parsed("train", ["--print-config"]).data == "shapes"
    (tmp_path / "run.yaml").write_text("data: pics\n")
    assert (
        parsed("train", ["--config", str(tmp_path / "run.yaml"), "--max-steps", "5"]).data == "pics"
    )
    (tmp_path / "run.yaml").write_text("max_steps: 3\n")
    assert "on which data?" in error_of(capsys, "train", "--config", tmp_path / "run.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: shapes\n")
    message = error_of(capsys, "train", "--output-dir", tmp_path / "run")
    assert f"ddpm train --config {tmp_path / 'run'}/config.yaml" in message


TRAIN_WORDS = {
    "lr": "learning-rate",
    "train-lr": "learning-rate",
    "train_batch_size": "batch-size",
    "num-train-steps": "max-steps",
    "train_num_steps": "max-steps",
    "resolution": "image-size",
    "size": "image-size",
    "img-size": "image-size",
    "gradient-accumulation-steps": "accumulation-steps",
    "gpu": "device",
    "gpus": "device",
    "workers": "num-workers",
    "out": "output-dir",
    "output": "output-dir",
    "logdir": "output-dir",
    "save-dir": "output-dir",
    "results-folder": "output-dir",
    "ema-rate": "ema-decay",
    "use-ema": "ema-decay",
    "sampling-timesteps": "sample-steps",
    "num-inference-steps": "sample-steps",
    "ddim-steps": "sample-steps",
    "timestep-respacing": "sample-steps",
    "objective": "diffusion.parametrization",
    "prediction-type": "diffusion.parametrization",
    "beta-schedule": "diffusion.schedule",
    "noise-schedule": "diffusion.schedule",
    "fp16": "mixed-precision",
    "amp": "mixed-precision",
    "cond-scale": "sample-guidance-scale",
    "channel-mult": "model.dim-mults",
    "num-res-blocks": "model.blocks-per-level",
    "diffusion-steps": "diffusion.timesteps",
    "report-to": "trackers",
    "max_step": "max-steps",
    "dimm": "model.dim",
}
SAMPLE_WORDS = {
    "num-samples": "num",
    "n-samples": "num",
    "cond-scale": "guidance-scale",
    "cfg": "guidance-scale",
    "guidance": "guidance-scale",
    "num-inference-steps": "num-steps",
    "ddim-steps": "num-steps",
    "timestep-respacing": "num-steps",
    "ckpt": "checkpoint",
    "out": "output-dir",
    "ddim-eta": "eta",
    "nmu": "num",
    "class": "class-label",
    "use-ema": "ema-decay",
}


@pytest.mark.parametrize(("word", "ours"), TRAIN_WORDS.items())
def test_words_of_others_in_train(word: str, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "train", f"--{word}", "3", "pics")
    assert f"Unknown option '--{word}': did you mean '--{ours}'?" in message
    assert "pics" not in message, "the data are not to blame"


@pytest.mark.parametrize(("word", "ours"), SAMPLE_WORDS.items())
def test_words_of_others_in_sample(
    word: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"'--{word}': did you mean '--{ours}'?" in error_of(
        capsys, "sample", "runs/a", f"--{word}", "3"
    )


def test_words_without_an_option_of_the_same_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("epochs", "num-epochs", "num_train_epochs"):
        message = error_of(capsys, "train", "pics", f"--{word}", "3")
        assert "--max-steps: epochs × images / --batch-size" in message
    assert "of the size that it was trained at" in error_of(
        capsys, "sample", "runs/a", "--image-size", "64"
    )
    assert "CUDA_VISIBLE_DEVICES=1" in error_of(capsys, "train", "pics", "--gpu", "1")


def test_python_hears_the_same(tmp_path: Path) -> None:
    for word, ours in {
        "lr": "learning_rate",
        "train_num_steps": "max_steps",
        "results_folder": "output_dir",
    }.items():
        with pytest.raises(ValueError, match=f"'{word}' \\(did you mean '{ours}'"):
            TrainingConfig.from_options({word: 3})
    with pytest.raises(ValueError, match="max_steps: epochs × images / batch_size"):
        TrainingConfig.from_options({"num_epochs": 3})


def test_values_of_others_and_typos() -> None:
    from ddpm_lib.samplers import SAMPLERS
    from ddpm_lib.schedules import SCHEDULES

    assert nearest("ddmi", SAMPLERS) == "ddim"
    assert nearest("dpm++", SAMPLERS) == "dpmpp_2m"
    assert nearest("squaredcos_cap_v2", SCHEDULES) == "cosine"
    assert nearest("pred_v", ["eps", "x0", "v"]) == "v"
    assert nearest("b.png", ["a.png", "zz.png"]) == "a.png"


def test_every_name_in_the_table_is_one_of_ours() -> None:
    from ddpm_lib import GaussianDiffusion, Unet, open_dataset
    from ddpm_lib.core.options import option_names

    known = {o.path[-1] for cls in CLASSES.values() for o in options_of(cls)} | set(
        option_names(Unet.__init__)
    )
    known |= {*option_names(GaussianDiffusion.__init__), *option_names(GaussianDiffusion.sample)}
    known |= set(option_names(open_dataset))
    assert set(peers_names._SAME) - known == set()


def test_a_pattern_that_the_shell_has_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(f"photos/{name}.png")
    every = [f"photos/{name}.png" for name in "abc"]
    assert parsed("train", ["--image-size", "8", *every]).data == "photos"
    assert parsed("edit", ["runs/mine", *every, "--num-steps", "2"]).images == "photos"
    with pytest.raises(
        arguments.UsageError, match=r"give the folder \(photos\), or quote the pattern"
    ):
        parsed("train", every[:2])


@pytest.mark.parametrize("line", [["help", "{}"], ["{}", "--help"], ["{}", "help"], ["{}", "-h"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_help(
    name: str, line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ddpm(*(word.format(name) for word in line)) == 0
    told = capsys.readouterr().out
    assert f"usage: ddpm {name}" in told
    assert len(told.splitlines()) <= 62
    assert name != "train" or len(told.splitlines()) <= 52
    assert max(map(len, told.splitlines())) <= 80


def test_examples_of_the_help_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from ddpm_lib.cli.help import EXAMPLES

    monkeypatch.chdir(tmp_path)
    for prog, examples in EXAMPLES.items():
        for line, _ in examples:
            words = shlex.split(line)
            assert words[:2] == prog.split()
            parsed(words[1], words[2:])


@pytest.mark.every(2)
@pytest.mark.parametrize("encoding", ["gbk", "cp932", "cp949", "cp1251", "ascii", "latin-1"])
def test_output_in_any_encoding(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["²×…±→≤‖ᾱσ", "é ü ö", "日本語", "Привет", "\udcff"]
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "train",
                "shapes",
                "--image-size",
                "8",
                "--dry-run",
                "--model.dim",
                "8",
                "--model.dim-mults",
                "1,2,2",
            ]
        )
        == 0
    )
    for text in texts:
        print(text)
        print(text, file=sys.stderr)
    sys.stdout.flush()
    told = sys.stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "3x8x8" in told or "3×8×8" in told


def test_closed_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["train", "shapes", "--print-config"]) == 0
    assert main(["train", "--nonsense"]) == 2


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    line = f"{sys.executable} -m ddpm_lib train --help-all | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.startswith("usage: ddpm train")
    assert done.stderr == ""


def test_a_command_cut_short_says_so_by_its_exit_code() -> None:
    """Both streams go to a pipe that nobody reads; a command in torch's place keeps the process
    light.
    """
    code = (
        "import sys, types\n"
        "say = lambda args: [print('line', file=sys.stderr, flush=True) for _ in range(9)]\n"
        "sys.modules['ddpm_lib.cli.train'] = types.SimpleNamespace(main=say)\n"
        "from ddpm_lib.cli import main\n"
        "sys.exit(main(['train']))"
    )
    read, write = os.pipe()
    os.close(read)
    try:
        assert (
            subprocess.run(
                [sys.executable, "-c", code], stdout=write, stderr=write, timeout=60
            ).returncode
            == 141
        )
    finally:
        os.close(write)


def test_training_whose_reader_left_is_resumed_or_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(self: TrainingRows, trainer: Any) -> None:
        if trainer.step == 3:
            raise BrokenPipeError(32, "Broken pipe")

    flags = ("--max-steps", 4, "--save-every", 2)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingRows, "on_step_end", gone)
        assert train(tmp_path / "run", *flags) == 141
    assert "Traceback" not in "".join(capsys.readouterr())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "step-000000002"
    ]
    assert train(tmp_path / "run", *flags) == 0
    assert "step 2" in (tmp_path / "run" / "train.log").read_text()

    def unread(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(
        "ddpm_lib.cli.train.report", unread
    )  # the work is done, only its report was not read
    assert train(tmp_path / "run", "--max-steps", 5, "--save-every", 2) == 0
    assert '"finished"' in (tmp_path / "run" / "status.json").read_text()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 4700000000 bytes. Error code 12 (Cannot allocate"
            " memory)"
        ),
        np._core._exceptions._ArrayMemoryError((10, 10), np.dtype("float64")),
    ],
)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "status"])
def test_too_little_memory_is_one_sentence(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module(f"ddpm_lib.cli.{name}"), "main", fail)
    message = error_of(capsys, name)
    assert "the memory of this machine" in message
    assert "--batch-size" in message


@pytest.mark.parametrize(
    ("loaded", "args", "says"),
    [
        (False, ["pics"], True),
        (True, ["pics"], False),
        (False, ["pics", "--help"], False),
    ],
)
def test_estimate_speaks_before_torch_is_loaded(
    loaded: bool,
    args: list[str],
    says: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[str] = []

    class Command:
        @staticmethod
        def main(args: list[str]) -> int:
            told.append(capsys.readouterr().err)
            return 0

    with monkeypatch.context() as stand_in:
        stand_in.setitem(sys.modules, "ddpm_lib.cli.estimate", Command)
        if not loaded:
            stand_in.delitem(sys.modules, "torch")
        assert main(["estimate", *args]) == 0
    assert told == (["ddpm estimate: loading torch …\n"] if says else [""])
