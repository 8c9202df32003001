"""Two hosts on one machine: network namespaces with the lines of docs/clusters.md, and a SLURM of
two virtual nodes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runtime.accelerate_state import OwnState
from ddpm_lib.runtime.devices import make_accelerator
from ddpm_lib.runtime.launch import adopt_slurm_ranks, check_ways_of_sharing, first_host
from locations import FAULTS, HELPERS, ROOT
from training_helpers import assert_same_tensors, curve, final_tensors

DOCS = ROOT / "docs" / "clusters.md"
PROGRAM = str(HELPERS / "run_cluster.py")


def test_ranks_of_an_srun_step(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that monkeypatch takes them away again
        monkeypatch.delenv(name)
    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    adopt_slurm_ranks()
    assert [os.environ[name] for name in names] == ["3", "1", "4", "gpu03", "20120"]
    monkeypatch.setenv("SLURM_PROCID", "0")
    adopt_slurm_ranks()
    assert os.environ["RANK"] == "3", "another launcher's ranks stay"


@pytest.mark.parametrize(("visible", "rank"), [(1, "0"), (2, "1"), (4, "3"), (0, "3")])
def test_a_task_that_sees_one_gpu_takes_number_0(
    monkeypatch: pytest.MonkeyPatch, visible: int, rank: str
) -> None:
    """`--gpus-per-task=1` hides the others' GPUs; without GPUs the local rank stays as it is."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    given = {"STEP_NUM_TASKS": "4", "PROCID": "3", "LOCALID": "3", "STEP_NODELIST": "gpu03"}
    for name, value in (given | {"JOB_ID": "123456789"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    adopt_slurm_ranks()
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("3", rank)
    assert 20_000 <= int(os.environ["MASTER_PORT"]) < 32_000  # below what systems give away


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron"),
    ],
)
def test_other_ways_of_sharing_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"{variable}=true asks accelerate for {name}.*unset"):
        make_accelerator(tmp_path, device="cpu")
    monkeypatch.setenv(variable, "false")
    check_ways_of_sharing()


def test_a_launcher_does_not_compile_the_whole_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with OwnState().installed():
        plugin = make_accelerator(tmp_path, device="cpu").state.dynamo_plugin
    assert str(plugin.backend.value) == "NO"


@pytest.mark.parametrize(
    "given",
    [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "x"}, {}],
)
def test_one_process_stays_one_process(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name in [n for n in os.environ if n.startswith("SLURM_")] + ["RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    adopt_slurm_ranks()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("a[01-3,7],b", "a01"),
        ("x-y[9]", "x-y9"),
        ("p,q", "p"),
        ("rack[0-1]node[04-7],z", "rack0node04"),
        ("n[2,5-6]-ib", "n2-ib"),
        ("n[1-3].example.org", "n1.example.org"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def script(mark: str) -> str:
    """The block below a mark in docs/clusters.md."""
    found = re.search(
        rf"<!-- {re.escape(mark)} -->\n```bash\n(.*?)```", DOCS.read_text(), re.DOTALL
    )
    assert found
    return found[1]


def on_tiny(text: str, run: Path, steps: int, seconds: float) -> str:
    """The same script with a tiny run in the place of the user's."""
    text = re.sub(r"ddpm train .*", f"{sys.executable} {PROGRAM} {run} {steps} {seconds}", text)
    text = re.sub(r"-m ddpm_lib\.cli train .*", f"{PROGRAM} {run} {steps} {seconds}", text)
    text = text.replace("ddpm status", f"{sys.executable} -m ddpm_lib.cli status").replace(
        "runs/mine", str(run)
    )
    return re.sub(r"#SBATCH --(gres|gpus|mem|time|ntasks-per-node|cpus-per-task).*\n", "", text)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    subprocess.run(
        [sys.executable, PROGRAM, str(tmp_path / "twin"), "60"],
        check=True,
        timeout=300,
        env=plain_environment(),
    )
    return tmp_path / "twin"


def plain_environment(**more: str) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if (k == "SLURM_CONF" or not k.startswith("SLURM_")) and k not in ("RANK", "WORLD_SIZE")
    }
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def assert_twins(a: Path, b: Path) -> None:
    assert_same_tensors(final_tensors(a), final_tensors(b))
    assert curve(a) == curve(b)


def status_of(run: Path) -> dict:
    try:
        return json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return {"status": "none", "step": 0}


def wait_until(what, limit: float, say: str) -> None:
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, say
        time.sleep(0.1)


def rows(run: Path) -> int:
    return (
        len((run / "metrics.jsonl").read_text().splitlines())
        if (run / "metrics.jsonl").exists()
        else 0
    )


@pytest.fixture
def two_hosts() -> Iterator[dict[str, str]]:
    """Namespaces hostA (10.77.0.1, vA) and hostB (10.77.0.2, vB), joined by a cable; needs root."""
    make = """
        ip netns add hostA && ip netns add hostB && ip link add vA type veth peer name vB
        ip link set vA netns hostA && ip link set vB netns hostB
        ip netns exec hostA ip addr add 10.77.0.1/24 dev vA
        ip netns exec hostB ip addr add 10.77.0.2/24 dev vB
        for h in hostA hostB; do ip netns exec $h ip link set lo up; done
        ip netns exec hostA ip link set vA up && ip netns exec hostB ip link set vB up
    """
    unmake = "ip netns del hostA; ip netns del hostB"
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2")
    subprocess.run(unmake, shell=True, capture_output=True)
    done = subprocess.run(make, shell=True, capture_output=True, text=True)
    if done.returncode:
        subprocess.run(unmake, shell=True, capture_output=True)
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    yield {"hostA": "10.77.0.1", "hostB": "10.77.0.2"}
    subprocess.run(unmake, shell=True, check=True)


def start_hosts(mark: str, run: Path, steps: int, seconds: float) -> list[subprocess.Popen[str]]:
    """Run the guide's line on both hosts; on the second with its own address, rank and network."""
    started = []
    for rank, host in enumerate(("hostA", "hostB")):
        text = on_tiny(script(mark), run, steps, seconds).replace("=eth0", f"=v{host[-1]}")
        text = text.replace(
            "--local-addr 10.77.0.1",
            f"--local-addr 10.77.0.{rank + 1} --rdzv-conf is_host={1 - rank}",
        )
        text = text.replace("--machine_rank 0", f"--machine_rank {rank}")
        text = text.replace("torchrun ", f"{sys.executable} -m torch.distributed.run ")
        text = text.replace("accelerate launch", f"{sys.executable} -m accelerate.commands.launch")
        text = text.replace("-m " + PROGRAM, PROGRAM)
        environment = plain_environment(ACCELERATE_USE_CPU="1")
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, "bash", "-c", text],
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
        )
    return started


def end_all(processes: list[subprocess.Popen[str]]) -> list[str]:
    said = []
    for process in processes:
        try:
            said.append(process.communicate(timeout=90)[1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said.append(process.communicate()[1])
    return said


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["netns: torchrun", "netns: accelerate"])
def test_two_hosts_make_the_run_of_one(
    two_hosts: dict, tmp_path: Path, twin: Path, mark: str
) -> None:
    said = end_all(start_hosts(mark, tmp_path / "run", 60, 0.0))
    assert status_of(tmp_path / "run")["status"] == "finished", said
    assert_twins(tmp_path / "run", twin)


@pytest.mark.slow
def test_a_cut_cable(two_hosts: dict, tmp_path: Path, twin: Path) -> None:
    """Train, cut the link, see it named, restore it, and continue by the same line to the end of
    the twin.
    """
    run = tmp_path / "run"
    processes = start_hosts("netns: torchrun", run, 60, 0.3)
    wait_until(lambda: rows(run) >= 7, 240, "no training")
    subprocess.run("ip netns exec hostB ip link set vB down", shell=True, check=True)
    cut = time.monotonic()
    said = end_all(processes)
    print(f"the last process ended {time.monotonic() - cut:.0f} s after the cut (timeout 18 s)")
    text = "\n".join(said)
    print(
        *sorted(
            {
                line[:300]
                for line in text.splitlines()
                if "Nothing has moved" in line or "LostProcessError" in line
            }
        ),
        sep="\n",
    )
    assert "Nothing has moved for" in text
    assert "LostProcessError: Another process of this run " in text
    assert status_of(run)["status"] in ("lost", "running")
    subprocess.run("ip netns exec hostB ip link set vB up", shell=True, check=True)
    said = end_all(start_hosts("netns: torchrun", run, 60, 0.0))
    assert status_of(run)["status"] == "finished", said
    assert_twins(run, twin)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cluster of two virtual nodes, n1 and n2, with the partitions low (pre-emptible) and
    high.
    """
    if shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("needs root, slurm-wlm and munge")
    folder = Path(tempfile.mkdtemp(prefix="ddpm-slurm-", dir="/tmp"))  # sockets want a short path
    command = [str(FAULTS / "slurm_cluster.sh")]
    with (folder / "start.log").open("w") as out:  # a file, as the daemons keep it open
        done = subprocess.run([*command, "start", str(folder)], stdout=out, stderr=out, timeout=180)
    started = (folder / "start.log").read_text()
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"SLURM does not start here: {started[-1000:]}")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield folder
    subprocess.run(["scancel", "--full", "-u", "root"], capture_output=True)
    time.sleep(1)
    stopped = subprocess.run([*command, "stop", str(folder)], capture_output=True, text=True)
    print(stopped.stderr, end="")  # which daemon needed force
    assert stopped.returncode == 0, stopped.stderr
    assert not slurm_says("pgrep", "-f", f"{folder}/")
    shutil.rmtree(folder, ignore_errors=True)


def slurm_says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def job_state(job: str) -> str:
    return slurm_says("squeue", "--noheader", "--jobs", job, "--format=%T") or "GONE"


def submit(text: str, folder: Path, *flags: str) -> str:
    (folder / "job.sh").write_text(text)
    out = slurm_says(
        "sbatch",
        "--parsable",
        f"--output={folder}/job.out",
        "--export=ALL",
        *flags,
        str(folder / "job.sh"),
    )
    assert out.isdigit(), out
    return out


def start_now(job: str) -> None:
    """A requeued job waits two minutes; the test does not."""
    slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.slow
def test_srun_on_two_nodes_stopped_by_a_signal(slurm: Path, tmp_path: Path, twin: Path) -> None:
    """Ranks from SLURM, SIGUSR1 to the step, exit code 143 kept, and the end of the twin."""
    run = tmp_path / "run"
    line = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--kill-on-bad-exit=1",
        sys.executable,
        PROGRAM,
        str(run),
        "60",
    ]
    process = subprocess.Popen(
        [*line, "0.3"], env=plain_environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: rows(run) >= 5, 240, "no training")
    job = slurm_says("squeue", "--noheader", "--format=%A", "--states=RUNNING").splitlines()[0]
    began = time.monotonic()
    slurm_says("scancel", "--signal=USR1", job)
    _, err = process.communicate(timeout=120)
    print(
        f"stopped {time.monotonic() - began:.1f} s after the signal, exit code {process.returncode}"
    )
    assert status_of(run)["reason"] == "received SIGUSR1", err[-2000:]
    assert process.returncode == 143
    subprocess.run(line, check=True, env=plain_environment(), timeout=300)
    assert_twins(run, twin)


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["slurm: one", "slurm: nodes"])
def test_a_job_is_preempted_and_limited_and_ends_as_the_twin(
    slurm: Path, tmp_path: Path, twin: Path, mark: str
) -> None:
    """The guide's script: pre-empted and requeued by SLURM, stopped before two time limits and
    requeued by itself.
    """
    run, two = tmp_path / "run", mark == "slurm: nodes"
    text = on_tiny(script(mark), run, 60, 4.0)
    flags = ["--partition=low", "--time=2", *(["--nodes=2", "--ntasks=2"] if two else [])]
    job = submit(text, tmp_path, *flags)
    wait_until(lambda: rows(run) >= 3, 240, "no training")
    urgent = slurm_says(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=2",
        "--ntasks=4",
        "--exclusive",
        "--wrap",
        "sleep 3",
        "--output=/dev/null",
    )
    wait_until(lambda: status_of(run)["status"] == "stopped", 90, "not stopped by the pre-emption")
    assert status_of(run)["reason"] == "received SIGTERM"
    reasons, starts = ["received SIGTERM"], 1
    wait_until(lambda: job_state(urgent) == "GONE", 90, "the urgent job does not end")
    while status_of(run)["status"] != "finished":
        wait_until(
            lambda: job_state(job) in ("PENDING", "RUNNING", "GONE"),
            90,
            f"the job is {job_state(job)}",
        )
        if job_state(job) == "GONE":
            break
        if job_state(job) == "PENDING":
            start_now(job)
            wait_until(lambda: job_state(job) in ("RUNNING", "GONE"), 90, "does not start again")
            starts += 1
        before = status_of(run)["step"]

        def ended(before: int = before) -> bool:
            return (
                status_of(run)["status"] in ("stopped", "finished")
                and status_of(run)["step"] > before
            )

        wait_until(ended, 240, "stuck")
        reasons.append(status_of(run)["reason"])
        if len(reasons) == 4:
            break
    slurm_says("scancel", job)
    wait_until(lambda: job_state(job) == "GONE", 60, "the job does not end")
    print(mark, reasons, f"{starts} starts, step {status_of(run)['step']}")
    assert reasons.count("the SLURM job's time limit is near") >= 2
    subprocess.run(
        [sys.executable, PROGRAM, str(run), "60"], check=True, env=plain_environment(), timeout=300
    )
    assert_twins(run, twin)
    assert not slurm_says("pgrep", "-f", f"{PROGRAM} {run} ")


WRITTEN = """data: shapes
image_size: [8]
max_steps: 50000
batch_size: 8
save_every: 100
log_every: 5
val_every: 0
sample_every: 0
model: {dim: 8, dim_mults: [1, 2], attention_levels: []}
diffusion: {timesteps: 50}
output_dir: run
"""


@pytest.mark.slow
def test_the_script_that_ddpm_slurm_writes(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted as it is written: stopped before its limit of two minutes, requeued by itself, and
    so again, from where it was.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(WRITTEN)
    command = [sys.executable, "-m", "ddpm_lib", "slurm", "run.yaml", "--gpus", "0"]
    subprocess.run([*command, "--hours", "0.033", "--cpus", "1"], check=True, timeout=300)
    program = tmp_path / "bin" / "ddpm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ddpm_lib "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = submit((tmp_path / "run.slurm.sh").read_text(), tmp_path, "--chdir", str(tmp_path))
    run, stops = tmp_path / "run", []
    for _ in range(2):
        wait_until(lambda: job_state(job) == "RUNNING", 90, "does not start")
        wait_until(lambda: job_state(job) in ("PENDING", "GONE"), 240, "the job hangs")
        stops.append((status_of(run).get("reason"), status_of(run).get("step")))
        start_now(job)
    slurm_says("scancel", job)
    said = (tmp_path / "job.out").read_text()
    print(stops)
    assert [reason for reason, _ in stops] == ["the SLURM job's time limit is near"] * 2, said[
        -3000:
    ]
    assert 0 < stops[0][1] < stops[1][1], "the second stay goes on where the first one ended"
    assert f"Resumed run/checkpoints/step-{stops[0][1]:09d}" in said
