"""The benchmarks run, at tiny sizes; what they say is not tested here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from locations import ROOT

FOLDER = ROOT / "benchmarks"
PEERS = all(importlib.util.find_spec(name) for name in ("diffusers", "denoising_diffusion_pytorch"))
needs_peers = pytest.mark.skipif(not PEERS, reason="needs the extra [bench]")


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark by name; afterwards these names mean what they meant before (there is a
    folder tests/data).
    """
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def run(script, tmp_path, name, *options):
    output = tmp_path / "found.json"
    found = script(name).main(["--quick", "--device", "cpu", "--output", str(output), *options])
    assert json.loads(output.read_text())["about"]["torch"] == torch.__version__
    assert all(rate > 0 for rate in found["ceilings"].values())
    return found


def test_rounds_take_turns_and_every_other_goes_backwards(script):
    common, seen = script("common"), []
    times = common.interleave({n: lambda n=n: seen.append(n) for n in "abc"}, 2, warm_up=1)
    assert "".join(seen) == "abc" + "abc" + "cba"
    assert {n: len(t) for n, t in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_of_times_of_the_same_round(script):
    common = script("common")
    found = common.ratio({"a": [2.0, 40.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b")
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert common.show_ratio(found) == "3.00× (2.00 … 4.00)"


def test_the_limit_is_the_highest_rate_of_the_precision(script):
    rates = {"matrix fp32": 5.0, "conv 64 fp32": 7.0, "matrix bf16": 9.0, "copy": 100.0}
    common = script("common")
    assert (common.limit(rates, "no"), common.limit(rates, "bf16")) == (7.0, 9.0)


def test_macs_are_counted_alike_by_the_library_and_by_torch(script):
    peers = script("peers")
    model = peers.our_unet(32)
    summary = model.summary(16)
    assert peers.count(model, 16) == (summary.parameters, summary.macs)
    layer = torch.nn.Conv2d(2, 3, 3, padding=1)
    assert script("common").macs_of(layer, torch.zeros(1, 2, 4, 4)) == 16 * 2 * 3 * 9


def test_tables_align(script, capsys):
    script("common").print_table(("name", "n"), [("a", "1"), ("long name", "1,000")])
    assert capsys.readouterr().out.splitlines() == [
        "name           n",
        "─────────  ─────",
        "a              1",
        "long name  1,000",
        "",
    ]


@pytest.mark.slow
@needs_peers
def test_the_networks_are_equal(script):
    peers = script("peers")
    ours = peers.count(peers.our_unet(64))
    assert peers.count(peers.diffusers_unet(64)) == ours
    parameters, macs = peers.count(peers.lucidrains_unet(ours[1]))
    assert macs == pytest.approx(ours[1], rel=0.06)
    assert parameters == pytest.approx(ours[0], rel=0.25)


@pytest.mark.slow
def test_train_step(script, tmp_path):
    found = run(script, tmp_path, "train_step", "--no-peers")
    assert next(iter(found["variants"])) == "ours, fp32"
    found = run(script, tmp_path, "train_step", "--no-peers", "--precision", "bf16")
    assert list(found["variants"]) == ["ours, bf16"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sample(script, tmp_path):
    found = run(script, tmp_path, "sample", "--no-peers")
    assert found["quality"]["DPM-Solver++(2M)"]["network_calls"] == 2
    assert len(found["quality"]["DDIM"]["distances"]) == 2


def test_data(script, tmp_path):
    found = run(script, tmp_path, "data", "--no-peers")
    assert found["ram"]["decoded_later"] == 0
    assert set(found["streamed"]) == {"ours, 0 workers", "ours, 1 workers"}


@pytest.mark.slow
def test_the_model_of_scaling(script):
    """Sums that are hidden cost nothing, sums that are not cost what they take."""
    model = script("scaling_model")
    slow, fast = model.Link(1e6, 0.0), model.Link(1e15, 0.0)
    assert model.step_seconds(1, 2, 4e8, 1, slow) == 3
    assert model.step_seconds(1, 2, 4e8, 8, fast) == pytest.approx(3)
    assert slow.sum_seconds(4e8, 2) == pytest.approx(400)
    assert slow.sum_seconds(4e8, 1000) == pytest.approx(800, rel=0.01)
    alone = model.step_seconds(1, 2, 4e8, 2, slow)  # the first bucket's gradients come first
    assert alone == pytest.approx(1 + 2 / 15 + 400)
    many = model.Link(1e9, 1e-3, trees=True)
    assert many.sum_seconds(1e6, 512) == pytest.approx(2 * 9e-3 + 2e-3)
    sizes = [1e4, 1e6, 1e8]
    link = model.Link(2e9, 3e-5)
    found = model.fitted(sizes, [link.sum_seconds(size, 4) for size in sizes], 4)
    assert (found.bandwidth, found.latency) == pytest.approx((2e9, 3e-5))
    for shares in model.table().values():
        assert all(0 < share <= 1 for share in shares.values())


@pytest.mark.slow
def test_scaling_is_compared_with_its_model(script, tmp_path):
    found = run(script, tmp_path, "scaling_model")
    assert found["processes"]["2"]["bandwidth"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_loop", "startup", "memory", "scaling"])
def test_benchmarks_that_start_processes(script, tmp_path, name):
    run(script, tmp_path, name, *([] if name in ("memory", "scaling") else ["--no-peers"]))


def test_cudnn_chooses_by_trying_where_a_gpu_is_measured(script, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert script("common").pick_device("cpu").type == "cpu"
    assert not torch.backends.cudnn.benchmark
    assert script("common").pick_device("cuda").type == "cuda"
    assert torch.backends.cudnn.benchmark


def test_some_checks_for_a_gpu_run_on_a_cpu(script, tmp_path):
    output = tmp_path / "smoke.json"
    argv = ["--quick", "--device", "cpu", "--output", str(output)]
    found = script("gpu_smoke").main([*argv, "--only", "attention", "seeds", "waits"])
    assert [c["result"] for c in found["checks"].values()] == ["PASS"] * 2 + ["SKIP"]
    table = script("gpu_table").table(tmp_path)
    assert "| waits | SKIP |" in table


@pytest.mark.slow
def test_the_time_of_the_host(script, tmp_path):
    argv = ["--quick", "--device", "cpu", "--output", str(tmp_path / "found.json")]
    found = script("host_time").main(argv)
    assert found["weights"] > 100
    assert all(time > 0 for time in found["milliseconds"])


def test_a_check_that_fails_is_a_result(script, tmp_path):
    smoke = script("gpu_smoke")

    def broken(bench):
        raise AssertionError("off by 3")

    bench = smoke.Bench(torch.device("cpu"), tmp_path, True)
    found = smoke.done(broken, bench)
    assert (found["result"], found["detail"]) == ("FAIL", "AssertionError: off by 3")


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_on_a_cpu(tmp_path):
    environment = {**os.environ, "DEVICE": "cpu", "QUICK": "1", "PYTHON": sys.executable}
    command = ["bash", str(FOLDER / "gpu.sh"), str(tmp_path / "found")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "found" / "table.md").read_text(encoding="utf-8")
    assert done.stdout.endswith(table)
    assert table.count("PASS") >= 6
    assert "FAIL" not in table
    assert "| cifar10 bf16, 4 |" in table or "| cifar10 no, 4 |" in table


@pytest.mark.skipif(os.name == "nt", reason="a script for bash")
def test_the_command_for_a_gpu_removes_its_own_files_only(tmp_path):
    python, folder = tmp_path / "an environment" / "python", tmp_path / "my results"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLS"\n')
    python.chmod(0o755)
    folder.mkdir()
    mine, old = folder / "train_step.json", [folder / "smoke.json", folder / "profile-9.json"]
    for path in (mine, folder / "notes.log", *old):
        path.write_text("{}")
    calls = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls")}
    environment = {**os.environ, **calls, "DEVICE": "cpu", "QUICK": "1"}
    command = ["bash", str(FOLDER / "gpu.sh"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mine.exists()
    assert (folder / "notes.log").exists()
    assert not any(path.exists() for path in old)
    assert "-m ddpm_lib.cli train shapes" in (tmp_path / "calls").read_text()


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize("name", ["train_step", "train_loop", "sample", "data", "startup"])
def test_benchmarks_against_the_other_libraries(script, tmp_path, name):
    run(script, tmp_path, name)


def test_every_benchmark_is_described():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    helpers = {"common", "peers", "loop_servers", "quality_sets"}
    assert [
        p.name for p in FOLDER.glob("*.py") if p.stem not in helpers and f"`{p.name}" not in text
    ] == []


def test_noise_adds_little_to_the_size_that_is_read_from_shapes(script):
    """What is left of noise in samples must not count as area, by which sizes are judged."""
    import numpy as np

    from ddpm_lib import Shapes

    conditions = script("conditions")
    shapes = Shapes(16, n=128, turned=True)
    images = shapes.batch(range(128))["image"].numpy()
    clean = conditions.sizes(conditions.foreground(images), 1.0)
    noise = np.random.default_rng(0).normal(0, 8, images.shape)
    noisy = np.clip(images + noise, 0, 255).round().astype(np.uint8)
    found = conditions.sizes(conditions.foreground(noisy), 1.0)
    assert abs(found - clean).mean() < 0.04 * clean.mean()
