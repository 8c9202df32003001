"""`ddpm slurm`: the script is that of the guide, its limit comes from steps, files are safe."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from command_line import ddpm, error_of
from ddpm_lib.cli import slurm as command
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runtime.slurm_script import (
    LONGEST,
    Job,
    hours_to_ask_for,
    slurm_script,
    time_limit,
)
from locations import ROOT

CONFIG = """data: shapes
image_size: [8]
max_steps: 100
batch_size: 8
model: {dim: 8, dim_mults: [1, 2], attention_levels: []}
output_dir: runs/my run
"""


def block(mark: str) -> str:
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_the_scripts_of_the_guide() -> None:
    """Those are submitted to a real SLURM by tests/runtime/test_clusters.py."""
    flags = "--output-dir runs/mine --max-steps 75000 --no-progress"
    train = ["ddpm", "train", "path/to/images", *flags.split()]
    assert slurm_script(Job(memory="16G"), train, "runs/mine") == block("slurm: one")
    assert slurm_script(Job(nodes=2, gpus=4), train, "runs/mine") == block("slurm: nodes")


def test_time_limits() -> None:
    for hours, text in (
        (1 / 60, "00:01:00"),
        (0.001, "00:01:00"),
        (1.01, "01:01:00"),
        (23.999, "1-00:00:00"),
        (49, "2-01:00:00"),
    ):
        assert time_limit(hours) == text
    assert hours_to_ask_for(2.0, 1) == 2.75
    assert hours_to_ask_for(8.0, 4) == 2.75
    assert hours_to_ask_for(1000.0, 1) == LONGEST


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "holds"),
    [
        ("", ["--gres=gpu:1", "--mem=16G", "--ntasks=1", "--job-name=my-run", "--time=04:00:00"]),
        ("--gpus 0 --hours 2", ["--time=02:00:00", "--device cpu", "--ntasks=1"]),
        ("--gpus 4", ["--gpus-per-node=4", "--ntasks-per-node=4", "--nodes=1", "kill-on-bad-exit"]),
        ("--gpus 0 --nodes 2 --hours 1", ["--nodes=2", "--ntasks-per-node=1", "--device cpu"]),
        (
            "--partition a100 --account lab --memory 64G --cpus 9 --job-name x",
            ["--partition=a100", "--account=lab", "--mem=64G", "--cpus-per-task=9", "name=x"],
        ),
    ],
)
def test_what_is_asked_for(
    here: Path,
    flags: str,
    holds: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert ddpm("slurm", "run.yaml", *flags.split()) == 0
    text = (here / "run.slurm.sh").read_text()
    for part in holds:
        assert part in text, part
    assert ("gpu" in text) == ("--gpus 0" not in flags)
    assert "ddpm train --config run.yaml --output-dir 'runs/my run' --no-progress" in text
    assert "ddpm status --word 'runs/my run'" in text
    assert subprocess.run(["bash", "-n", "run.slurm.sh"], cwd=here).returncode == 0
    out = capsys.readouterr().out
    assert "sbatch run.slurm.sh" in out
    assert ("a guess: this machine has no GPU" in out) == ("--hours" not in flags)
    assert "exists, and nothing is overwritten" in error_of(capsys, "slurm", "run.yaml")


@pytest.mark.parametrize("code", [0, 2, 75, 143])
@pytest.mark.parametrize("word", ["finished", "stopped", "lost", "killed", "failed", "none"])
def test_what_goes_back_into_the_queue(here: Path, word: str, code: int) -> None:
    """Run with stand-ins for the commands: the exit code is kept, and cut-off runs are requeued."""
    (here / "bin").mkdir()
    for name, body in {
        "srun": f'echo "$@" > said; echo $SRUN_CPUS_PER_TASK > cpus; exit {code}',
        "ddpm": f"[ \"$*\" = 'status --word runs/a b' ] && echo {word}",
        "scontrol": 'echo "$@" >> queue',
    }.items():
        (here / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (here / "bin" / name).chmod(0o755)
    script = slurm_script(Job(), ["ddpm", "train", "it's"], "runs/a b")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=here,
        env={
            "PATH": f"{here}/bin:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
        },
    )
    assert (here / "cpus").read_text() == "4\n"
    assert done.returncode == code
    assert (here / "said").read_text() == "ddpm train it's\n"
    again = (here / "queue").read_text() if (here / "queue").exists() else ""
    assert again == ("requeue 7\n" if word in ("stopped", "lost", "killed") else "")


def test_the_limit_comes_from_steps_on_this_machine(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ddpm("slurm", "run.yaml", "--gpus", "0", "--probe-steps", "1") == 0
    out = capsys.readouterr().out
    hours = re.search(r"all steps take ([\d.e-]+) hours in one process here", out)
    assert hours
    limit = time_limit(hours_to_ask_for(float(hours[1]), 1))
    assert f"#SBATCH --time={limit}" in (here / "run.slurm.sh").read_text()


def test_what_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--gpus", "3"], "3 processes do not divide the batch of 8 images. Ask for 1, 2, 4 GPUs"),
        (["--nodes", "0"], "nodes must be at least 1; got 0"),
        (["--gpus", "-1"], "gpus must be at least 0"),
        (["--hours", "0"], "hours must be a positive number"),
        (["--partition", "a b"], "partition must be one word"),
        (["--job-name", "a\nb"], "name must be one word"),
    ):
        assert words in error_of(capsys, "slurm", "run.yaml", *flags)
    assert "does not exist" in error_of(capsys, "slurm", "ru.yaml")
    (here / "bad.yaml").write_text(CONFIG.replace("max_steps", "max_step"))
    assert "did you mean 'max_steps'" in error_of(capsys, "slurm", "bad.yaml")
    assert [p.name for p in here.iterdir() if p.suffix == ".sh"] == []
    with pytest.raises(ConfigError):
        Job(cpus=0)


def test_a_machine_without_a_gpu_does_not_guess_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = command.SlurmCommand(config="run.yaml", probe_steps=0, gpus=0)
    job = command.job_of(wishes, 4.0, "x")
    hours, why = command.limit(wishes, None, job)  # type: ignore[arg-type]
    assert (hours, why) == (4.0, "a guess, as no steps were timed (--probe-steps 0)")


@pytest.mark.parametrize(
    ("flags", "gpus", "told"),
    [
        ("", 1, True),
        ("", 0, False),
        ("--preset small", 1, False),
        ("--diffusion.parametrization v", 1, False),
    ],
)
def test_a_file_that_was_written_on_a_login_node_is_told_to_hold_the_network_of_cpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    gpus: int,
    told: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ddpm("train", "shapes", "--image-size", 32, *flags.split(), "--print-config") == 0
    Path("run.yaml").write_text(capsys.readouterr().out)
    assert ddpm("slurm", "run.yaml", "--gpus", gpus, "--hours", 1) == 0
    said = capsys.readouterr().out
    assert ("--preset small" in said) is told
