"""`ddpm completion` in real shells, and `python -m ddpm_lib`, which is `ddpm`."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import ddpm, error_of
from ddpm_lib.cli import COMMANDS, completion_scripts
from ddpm_lib.cli.completion_tables import Entry, command_class, entries
from ddpm_lib.runs.metrics_file import write_status


@pytest.fixture(scope="module")
def table() -> list[Entry]:
    return entries()


def test_every_command_and_option_is_there(table: list[Entry]) -> None:
    assert [entry.name for entry in table] == [*COMMANDS]
    by_name = {entry.name: entry for entry in table}
    train = {flag.names[0]: flag for flag in by_name["train"].flags}
    assert train["--preset"].choices[:1]
    assert "cosine" in train["--diffusion.schedule"].choices
    assert "bf16" in train["--mixed-precision"].choices
    assert train["--class-conditional"].takes == train["--no-progress"].takes == "nothing"
    assert train["--init-from"].takes == "run"
    sample = {flag.names[0]: flag for flag in by_name["sample"].flags}
    assert sample["--num"].names == ("--num", "-n")
    assert "dpmpp_2m" in sample["--sampler"].choices
    assert by_name["sample"].runs
    assert by_name["weights"].words == ("list", "fetch", "verify")
    assert all(len(flag.about) <= 75 for entry in table for flag in entry.flags)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mine", "runs/mine too", "alone"):
        (tmp_path / name).mkdir(parents=True)
        write_status(tmp_path / name, status="finished", step=1, max_steps=1, reason="")
    (tmp_path / "runs" / "pictures").mkdir()
    (tmp_path / "pics").mkdir()
    return tmp_path


def bash_says(text: str, words: list[str]) -> list[str]:
    """What completes the last of some words, by the function itself."""
    line = f"{text}\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n_ddpm\n"
    done = subprocess.run(
        ["bash", "--norc", "-c", line + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


CASES: list[tuple[list[str], list[str]]] = [
    (["ddpm", "comp"], ["compare", "completion"]),
    (["ddpm", "help", "sam"], ["sample"]),
    (["ddpm", "--ver"], ["--version"]),
    (["ddpm", "train", "--max-st"], ["--max-steps"]),
    (["ddpm", "train", "--no-prog"], ["--no-progress"]),
    (["ddpm", "train", "--model.dim-m"], ["--model.dim-mults"]),
    (["ddpm", "train", "--mixed-precision", "b"], ["bf16"]),
    (["ddpm", "train", "--mixed-precision", "=", "b"], ["bf16"]),
    (["ddpm", "train", "--mixed-precision", "="], ["auto", "no", "bf16", "fp16"]),
    (["ddpm", "evaluate", "runs/mine", "--metrics", "fid,ki"], ["fid,kid"]),
    (["ddpm", "weights", "f"], ["fetch"]),
    (["ddpm", "sample", "runs/m"], ["runs/mine", "runs/mine too"]),
    (["ddpm", "train", "--init-from", "al"], ["alone"]),
    (["ddpm", "sample", "pi"], []),
    (["ddpm", "train", "pi"], []),
    (["ddpm", "nonsense", "--x"], []),
    (["ddpm", "slurm", "--gp"], ["--gpus"]),
    (["ddpm", "completion", "z"], ["zsh"]),
]


@pytest.mark.parametrize(("words", "found"), CASES, ids=lambda v: " ".join(v)[:40])
def test_in_bash(table: list[Entry], place: Path, words: list[str], found: list[str]) -> None:
    assert sorted(bash_says(completion_scripts.bash(table), words)) == sorted(found)


def typed(command: list[str], start: str, line: str, wanted: str, place: Path) -> None:
    """Type a line with a tabulator into a shell of a real terminal, and wait for what it makes."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "PS1": "> ", "HOME": str(place)}
    shell = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=place,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    said = ""

    def wait(text: str) -> None:
        nonlocal said
        deadline = time.monotonic() + 20
        while text not in said:
            assert time.monotonic() < deadline, said[-1500:]
            if select.select([master], [], [], 0.1)[0]:
                said += os.read(master, 65536).decode("utf-8", "replace")

    try:
        os.write(master, f"{start}; echo rea''dy\n".encode())
        wait("ready\r\n")
        said = ""
        os.write(master, line.encode())
        wait(wanted)
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


LINES = [
    ("ddpm sta\t", "ddpm status "),
    ("ddpm sample runs/mine\\ \t", "runs/mine\\ too"),
    ("ddpm train --mixed-precision b\t", "--mixed-precision bf16 "),
    ("ddpm train --max-st\t", "--max-steps "),
    ("ddpm train pi\t", "ddpm train pics/"),
]


@pytest.mark.every(2)
@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_in_a_terminal_with_bash(table: list[Entry], place: Path, line: str, wanted: str) -> None:
    (place / "c").write_text(completion_scripts.bash(table))
    typed(["bash", "--norc", "-i"], "source ./c", line, wanted, place)


@pytest.mark.every(3)
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_in_a_terminal_with_zsh(table: list[Entry], place: Path, line: str, wanted: str) -> None:
    (place / ".zfunc").mkdir()
    (place / ".zfunc" / "_ddpm").write_text(completion_scripts.zsh(table))
    start = "fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u -d ~/dump"
    typed(["zsh", "-f", "-i"], start, line, wanted.rstrip(), place)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_in_fish(table: list[Entry], place: Path) -> None:
    (place / "c.fish").write_text(completion_scripts.fish(table))
    for words, found in CASES:
        if "=" in words or "help" in words or not found or words[1].startswith("-"):
            continue
        line = " ".join(words)
        if "," in line:
            continue
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source c.fish; complete -C {shlex.quote(line)}"],
            capture_output=True,
            text=True,
            timeout=30,
            env=os.environ | {"HOME": str(place)},
        )
        assert done.stderr == ""
        names = [row.split("\t")[0].rstrip("/") for row in done.stdout.splitlines()]
        assert {*found} <= {*names}, (line, names)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    assert ddpm("completion", shell) == 0
    text = capsys.readouterr().out
    for _ in range(2):
        assert ddpm("completion", shell, "--install") == 0
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path.read_text() == text
    assert f"wrote {path}" in capsys.readouterr().out
    path.write_text("mine\n")
    assert "is not of this command" in error_of(capsys, "completion", shell, "--install")
    assert path.read_text() == "mine\n"


def test_unknown_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'bash'?" in error_of(capsys, "completion", "bsh")


def test_each_command_has_one_class_of_options() -> None:
    for name in COMMANDS:
        assert command_class(name).__module__ == f"ddpm_lib.cli.{name}"


LIKE_DDPM = [["help", "status"], ["stats"], ["status", "x"]]


@pytest.mark.parametrize("words", LIKE_DDPM, ids=" ".join)
def test_the_module_is_the_command(words: list[str], tmp_path: Path) -> None:
    """`python -m ddpm_lib` and `-m ddpm_lib.cli` say, and end, as `ddpm` does."""
    program = Path(sys.executable).with_name("ddpm")
    ways = [[sys.executable, "-m", "ddpm_lib"], [sys.executable, "-m", "ddpm_lib.cli"]]
    ways += [[str(program)]] if program.exists() else []
    said = [
        subprocess.run([*way, *words], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        for way in ways
    ]
    answers = {(done.returncode, done.stdout, done.stderr) for done in said}
    assert len(answers) == 1
    assert said[0].returncode == (0 if "help" in words else 2)
    assert "__main__" not in said[0].stdout + said[0].stderr
