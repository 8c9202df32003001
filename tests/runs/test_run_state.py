"""The schema of a run: reading, writing, comparing; and that each checkpoint is hashed once."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.images import save_image
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import list_checkpoints, verify
from ddpm_lib.runs.loading import find_checkpoints, load_run
from ddpm_lib.runs.state import DataDescription, Difference, RunState, differences
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training import CheckpointError, ConfigError
from ddpm_lib.training.agreement import check_ranks_agree
from ddpm_lib.training.results import TrainingResult
from training_helpers import tiny_diffusion, tiny_trainer

SMALL = {"dim": 4, "dim_mults": (1,), "dropout": 0.0}


def trainer_of(run: Path, **options):
    return tiny_trainer(run, tiny_diffusion(**SMALL), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, with averages for `ddpm ema`; the best is an older one or the newest."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    trainer_of(folder, save_every=2, posthoc_ema=(0.1,), posthoc_every=4, keep_best="loss").train()
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file of a checkpoint was hashed since."""
    counts: Counter[Path] = Counter()
    real = files._sha256

    def count(path: Path) -> str:
        counts[path.resolve()] += 1
        return real(path)

    monkeypatch.setattr(files, "_sha256", count)
    return counts


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def files_of(checkpoint: Path) -> set[Path]:
    """What a manifest has digests of."""
    return {file.resolve() for file in checkpoint.iterdir() if file.name != files.MANIFEST}


def pictures(folder: Path) -> Path:
    """Two pictures of the run's size."""
    from ddpm_lib import Shapes

    for k in range(2):
        save_image(Shapes(size=8, n=2)[k]["image"], folder / "pictures" / f"{k}.png")
    return folder / "pictures"


def test_state_goes_through_the_type_byte_for_byte(run: Path) -> None:
    text = (newest(run) / "state.json").read_text(encoding="utf-8")
    state = RunState.from_json(json.loads(text), newest(run))
    assert json.dumps(state.to_json(), indent=1) == text
    assert json.dumps(state.trained_on.to_json()) == json.dumps(json.loads(text)["data"])
    assert state.extra == {}


def test_entries_of_a_newer_version_are_kept(run: Path) -> None:
    values = json.loads((newest(run) / "state.json").read_text()) | {
        "horizon": [1, 2],
        "extra": "too",
    }
    state = RunState.from_json(values, newest(run))
    assert state.extra == {"horizon": [1, 2], "extra": "too"}
    assert state.to_json() == values


def test_what_is_missing_or_wrong_is_named(run: Path) -> None:
    values = json.loads((newest(run) / "state.json").read_text())
    with pytest.raises(CheckpointError, match=r"state\.json has no entry 'model', so it is dam"):
        RunState.from_json({k: v for k, v in values.items() if k != "model"}, newest(run))
    with pytest.raises(CheckpointError, match=r"step must be a whole number from 0; got -1"):
        RunState.from_json(values | {"step": -1}, newest(run))
    del values["seed"]
    assert RunState.from_json(values, newest(run)).seed == 0


def test_the_data_of_the_first_version_can_be_read() -> None:
    first = {"source": "x", "images": 3, "fingerprint": "f", "class_names": None}
    described = DataDescription.from_json(first)
    assert (described.fingerprint_version, described.held_fraction, described.whole) == (
        1,
        None,
        None,
    )
    with pytest.raises(KeyError, match="class_names"):
        DataDescription.from_json({k: v for k, v in first.items() if k != "class_names"})


def test_differences_are_values_that_are_worded_last() -> None:
    saved = {"model": {"dim": 8, "mults": (1, 2), "note": "5 in the checkpoint, 6 now"}, "seed": 0}
    now = {"model": {"dim": 16, "mults": [1, 2], "note": "now"}, "seed": 0, "new": 1}
    found = differences(saved, now)
    assert [d.path for d in found] == ["model.dim", "model.note", "new"]
    assert found[0] == Difference("model.dim", 8, 16)
    assert found[0].worded() == "model.dim: 8 in the checkpoint, 16 now"
    assert found[0].worded("here", "there") == "model.dim: 8 here, 16 there"
    assert differences(saved, saved) == []


def test_values_that_read_like_our_words_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trainer = trainer_of(tmp_path)
    first, second = ({"options": {"output_dir": word}} for word in ("now", "in the checkpoint now"))
    gathered = lambda own: [own[0] | first, own[0] | second]  # noqa: E731
    monkeypatch.setattr("accelerate.utils.gather_object", gathered)
    words = r"options\.output_dir: 'now' on process 0, 'in the checkpoint now' on process 1\n"
    with pytest.raises(ConfigError, match=words):
        check_ranks_agree(trainer.config, trainer.diffusion, Processes(0, 2))


def test_the_exit_code_does_not_hang_on_words() -> None:
    ends = ("stopped", 1, "the test said SIGINT", Path("r"), None)
    assert TrainingResult(*ends).exit_code == 143
    assert TrainingResult(*ends, "SIGTERM").exit_code == 143
    assert TrainingResult("stopped", 1, "Ctrl-C", Path("r"), None, "SIGINT").exit_code == 130


def test_a_loaded_run_is_one_line(run: Path) -> None:
    text = repr(load_run(run))
    assert text == f"LoadedRun({newest(run)}, step 6, weights ema 0.5, 6 classes)"
    assert load_run(run).run_state.step == 6


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "sample": lambda run, tmp: ["sample", str(run), "-n", "1", "--output-dir", str(tmp / "s")],
    "sample-all": lambda run, tmp: [
        "sample",
        str(run),
        "-n",
        "1",
        "--checkpoint",
        "all",
        "--output-dir",
        str(tmp / "s"),
    ],
    "edit": lambda run, tmp: ["edit", str(run), str(pictures(tmp)), "--output-dir", str(tmp / "e")],
    "evaluate": lambda run, tmp: [
        "evaluate",
        str(run),
        "--metrics",
        "nll",
        "--data",
        str(pictures(tmp)),
    ],
    "evaluate-all": lambda run, tmp: [
        "evaluate",
        str(run),
        "--checkpoint",
        "all",
        "--metrics",
        "nll",
        "--data",
        str(pictures(tmp)),
    ],
    "push": lambda run, tmp: ["push", str(run), "me/mine", "--dry-run", str(tmp / "pushed")],
    "ema": lambda run, tmp: [
        "ema",
        str(run),
        "--sigma-rel",
        "0.12",
        "--output-dir",
        str(tmp / "ema"),
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_checkpoint_is_hashed_once_per_command(
    run: Path, tmp_path: Path, hashed: Counter[Path], name: str
) -> None:
    words = COMMANDS[name](run, tmp_path)
    if words[0] in ("sample", "edit"):
        words += ["--num-steps", "1", "--device", "cpu", "--no-progress"]
    if words[0] == "evaluate":
        words += [
            "--num-levels",
            "2",
            "--device",
            "cpu",
            "--no-progress",
            "--output-dir",
            str(tmp_path / "r"),
        ]
    assert main(words) == 0
    checkpoints = list_checkpoints(run / "checkpoints") if name.endswith("-all") else [newest(run)]
    assert {file for path in checkpoints for file in files_of(path)} <= set(hashed)
    assert set(hashed.values()) == {1}


@pytest.mark.parametrize("which", ["latest", "best", "all", "4"])
def test_finding_and_loading_hash_once(run: Path, hashed: Counter[Path], which: str) -> None:
    load_run(run, "latest" if which == "all" else which)
    assert set(hashed.values()) == {1}
    hashed.clear()
    assert len(find_checkpoints(run, which)) == (3 if which == "all" else 1)
    assert set(hashed.values()) == {1}


def test_resuming_reads_each_state_once_and_hashes_once(
    tmp_path: Path, hashed: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer_of(tmp_path, max_steps=4, save_every=2).train()
    states: Counter[Path] = Counter()
    real = files.read_state

    def read(path: Path):
        states[path] += 1
        return real(path)

    monkeypatch.setattr(files, "read_state", read)
    resumed = newest(tmp_path)
    hashed.clear()
    assert trainer_of(tmp_path, max_steps=5, save_every=2).train().step == 5
    assert states == {resumed: 1}
    assert {hashed[file] for file in files_of(resumed)} == {1}


def test_a_verified_checkpoint_knows_its_run_and_its_state(run: Path) -> None:
    checkpoint = verify(newest(run))
    assert checkpoint.run == run
    assert checkpoint.state.step == 6
    assert checkpoint.state.batch_size == 6
    assert set(checkpoint.files) >= {"model.safetensors", "state.json"}


def test_other_processes_get_the_state_with_the_checkpoint(
    run: Path, hashed: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = verify(newest(run))
    before = checkpoint.state
    hashed.clear()
    monkeypatch.setattr(files, "read_state", pytest.fail)
    received = copy.deepcopy(checkpoint)  # by the protocol of pickle
    assert received == checkpoint
    assert received.state == before
    assert not hashed
