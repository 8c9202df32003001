"""A training that stops by itself: where, on resuming, with what exit code, in which records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import flags
from ddpm_lib.runs.end_screen import end_screen
from ddpm_lib.runs.run_status import run_status
from ddpm_lib.training import TrainingResult
from ddpm_lib.training.callbacks.validation import Validation
from ddpm_lib.training.results import StopReason
from training_helpers import assert_same_tensors, curve, final_tensors, tiny_trainer

OPTIONS: dict[str, Any] = {
    "max_steps": 40,
    "val_every": 1,
    "val_max_images": 2,
    "val_fraction": 0.2,
    "log_every": 1,
    "keep_early": "no",
    "keep_best": None,
    "ema_decay": (),
    "report": False,
    "stop_when": ("overfitting",),
}


@pytest.fixture
def over_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the held-out loss rise from step 6 on, while that of training images falls."""

    def losses(self: Validation, trainer: Any, dataset: Any, n: int, *rest: Any) -> Tensor:
        step = trainer.step
        held_out = 0.1 + 0.01 * abs(step - 6)
        value = held_out if dataset is trainer.held_out else 0.1 - 0.001 * step
        return torch.full((n,), value, dtype=torch.float64)

    monkeypatch.setattr(Validation, "losses", losses)


def test_it_stops_and_says_why_everywhere(tmp_path: Path, over_fits: None) -> None:
    """Complete, exit code 0; in status.json, train.log, the end screen and the result."""
    run = tmp_path / "run"
    result = tiny_trainer(run, **OPTIONS).train()
    assert (result.status, result.complete, result.exit_code) == ("finished", True, 0)
    assert result.stopped_by == "overfitting"
    assert 9 <= result.step <= 14
    assert result.checkpoint is not None
    assert result.checkpoint.name.endswith(f"{result.step:09d}")
    now = run_status(run)
    assert (now.word, now.step, now.stopped_by) == ("finished", result.step, "overfitting")
    assert now.reason == result.reason
    told = (run / "train.log").read_text()
    assert "Stops by itself at overfitting; judged at a validation every 1 steps" in told
    assert f"Training finished at step {result.step}: {result.reason}." in told
    screen = " ".join(end_screen(run).split())
    assert f"END finished at step {result.step} of 40: stop_when=" in screen
    assert "over-fitting since step" in screen


def test_the_same_command_stops_again_and_says_how_to_go_on(
    tmp_path: Path, over_fits: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step is done; without stop_when, or with more patience, the run goes on."""
    run = tmp_path / "run"
    first = tiny_trainer(run, **OPTIONS).train()
    with flags():
        again = tiny_trainer(run, **OPTIONS).train()
    assert (again.step, again.stopped_by, again.exit_code) == (first.step, "overfitting", 0)
    said = capsys.readouterr().err
    assert "has stopped here by itself, and does so again. To go on all the same" in said
    assert "--stop-when none, or more --patience than 3." in said
    patient = tiny_trainer(run, **OPTIONS, patience=5).train()
    assert patient.step == first.step + 2
    whole = tiny_trainer(run, **{**OPTIONS, "stop_when": ()}).train(3)
    assert whole.step == patient.step + 3


def test_a_run_in_pieces_stops_where_the_run_in_one_go_does(
    tmp_path: Path, over_fits: None
) -> None:
    """Bit for bit, the rows included; also where the pieces end among the rising validations."""
    whole = tiny_trainer(tmp_path / "whole", **OPTIONS).train()
    result: TrainingResult | None = None
    for steps in (5, 4, 1, None):
        result = tiny_trainer(tmp_path / "pieces", **OPTIONS).train(steps)
    assert result is not None
    assert (result.step, result.stopped_by) == (whole.step, "overfitting")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "pieces")


def test_all_ranks_do_what_the_main_one_says(over_fits: None) -> None:
    """Another rank has no rows of its own: the reason is the main process's."""
    from ddpm_lib.training.callbacks.stop_when import StopWhen

    class Ranks:
        def on_main(self, function: Any) -> Any:
            return "what the main process found"

    class View:
        ranks, is_main, step, reason = Ranks(), False, 7, None
        config = type("Options", (), {"max_steps": 40, "lr_schedule": "cosine"})()

        def logged(self, name: str) -> Any:
            return 1.0 if name == "val_loss" else None

        def end(self, reason: Any) -> None:
            self.reason = reason

    view = View()
    StopWhen(("overfitting",), 3).on_step_end(view)  # type: ignore[arg-type]
    assert view.reason == "what the main process found"


def test_flat_is_asked_before_the_cool_down_which_is_then_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under wsd the loss falls once more when the rate does: a run that was flat at its full rate
    says how it goes through the cool-down, and one that is in it is taken to its end.
    """
    from ddpm_lib.training.callbacks import stop_when

    for since, stops in ((8, 8), (33, 40)):

        def reason(rows: Any, trivial: Any, kinds: Any, patience: int, since: int = since) -> Any:
            seen = "flat" in kinds and rows[-1]["step"] >= since
            return StopReason("flat", complete=True, by="flat") if seen else None

        monkeypatch.setattr(stop_when, "reason_to_end", reason)
        run = tmp_path / str(since)
        options = {**OPTIONS, "stop_when": ("flat",), "lr_schedule": "wsd", "warmup_steps": 2}
        assert tiny_trainer(run, **options).train().step == stops
    told = (tmp_path / "8" / "train.log").read_text()
    assert "To do so from here: max_steps=11 and stop_when=()." in told
    assert "To do so from here" not in (run / "train.log").read_text()
    options |= {"max_steps": 11, "stop_when": ()}
    assert tiny_trainer(tmp_path / "8", **options).train().step == 11
    rates = [row["learning_rate"] for row in curve(tmp_path / "8")]
    assert rates[7] == rates[8] > rates[10]
    steps = [path.name for path in (tmp_path / "8" / "checkpoints").iterdir()]
    assert {"step-000000009", "step-000000011"} <= {*steps}  # from the first it goes on again


def test_a_run_that_is_done_anyway_is_finished(tmp_path: Path, over_fits: None) -> None:
    """At the last step nothing is left to stop."""
    whole = tiny_trainer(tmp_path / "a", **OPTIONS).train()
    result = tiny_trainer(tmp_path / "b", **{**OPTIONS, "max_steps": whole.step}).train()
    assert (result.status, result.stopped_by) == ("finished", "")


def test_it_is_in_the_records_of_the_options(tmp_path: Path) -> None:
    """config.yaml repeats it."""
    import yaml

    run = tmp_path / "run"
    tiny_trainer(run, **OPTIONS, patience=2).train(1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["stop_when"], config["patience"]) == (["overfitting"], 2)
    assert "stopped_by" not in json.loads((run / "status.json").read_text())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such reason": ({"stop_when": "overfiting"}, "overfitting"),
    "no patience": ({"patience": 0}, "patience must be at least 1"),
    "no validation": ({"val_every": 0}, "judges by held-out images, and this run has none"),
    "nothing held out": ({"val_fraction": 0.0}, "Set val_every and val_fraction or val_data"),
    "no grids": ({"stop_when": "copying"}, "Set sample_every and sample_count"),
    "one sample": ({"stop_when": "copying", "sample_every": 4, "sample_count": 1}, "at least 2"),
}


@pytest.mark.parametrize(("options", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_judged_is_refused(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    """At construction, naming the option to set."""
    with pytest.raises(ConfigError, match=told):
        tiny_trainer(tmp_path / "run", **OPTIONS | options)


def test_so_few_images_that_none_is_held_out_are_refused(tmp_path: Path) -> None:
    """When the data are open."""
    from ddpm_lib import Shapes

    few = Shapes(size=8, n=4)
    with pytest.raises(ConfigError, match="of these 4 none are held out"):
        tiny_trainer(tmp_path / "run", data=few, **OPTIONS).prepare()


def test_a_network_that_enlarges_cannot_copy(tmp_path: Path) -> None:
    """Its samples look like what it was given."""
    from training_helpers import tiny_diffusion

    options = {**OPTIONS, "stop_when": "copying", "sample_every": 4}
    with pytest.raises(ConfigError, match="makes no sense for a network that enlarges"):
        tiny_trainer(tmp_path / "run", tiny_diffusion(low_res_factor=2), **options)
