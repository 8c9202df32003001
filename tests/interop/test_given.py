"""What is said of a foreign file fits it, or is refused: nothing is accepted and ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusers import pipeline, small_parts
from test_edm import save, state

from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.interop import READERS, read_flagged, read_foreign, translate_flags
from ddpm_lib.interop.given import checked, option_names
from ddpm_lib.nn import LucidrainsUnet
from ddpm_lib.schedules import Schedule
from diffusers_folders import write_unet
from openai_checkpoints import openai_state, randomised

pytestmark = pytest.mark.filterwarnings("ignore:With groups=32")

OUT_OF_RANGE: dict[str, list[Any]] = {
    "image_size": [0, -8, (8, 0), (8, 8, 8), ()],
    "channels": [0],
    "timesteps": [0, -1],
    "time_scale": [0.0, -1.0, float("inf")],
    "blocks_per_level": [0],
    "heads": [0, -4],
    "heads_up": [0],
    "head_dim": [0],
    "dropout": [-0.1, 1.0],
    "class_drop_prob": [-0.1, 1.5],
    "ema_decay": [-0.1, 1.0, 2.0],
    "low_res_factor": [0],
    "time_base": [0.0, -1.0],
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_out_of_range_are_refused_by_name(name):
    for value in OUT_OF_RANGE[name]:
        with pytest.raises(ConfigError, match=rf"^{name} must be .*; got"):
            checked({name: value}, option_names(), "any")


def openai(folder: Path, **config) -> Path:
    config = {"dim": 32, "dim_mults": (1, 2), "attention_levels": (1,), "heads": 4} | config
    torch.manual_seed(0)
    torch.save(openai_state(randomised(**config)), folder / "m.pt")
    return folder / "m.pt"


def lucidrains(folder: Path, **config) -> Path:
    model = LucidrainsUnet(**{"dim": 8, "dim_mults": (1, 2)} | config)
    torch.save(model.state_dict(), folder / "m.pt")
    return folder / "m.pt"


def lucidrains_with_tables(folder: Path, **config) -> Path:
    path = lucidrains(folder, **config)
    weights = torch.load(path, weights_only=True)  # noqa: TID251
    tables = {"betas": torch.linspace(1e-3, 0.2, 100)}
    torch.save({f"model.{k}": v for k, v in weights.items()} | tables, path)
    return path


def edm(folder: Path) -> Path:
    without = {k: v for k, v in state().items() if "map_label" not in k}
    return save(folder / "edm", without)


MEANINGLESS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "openai, a small image": (openai, {"low_res_factor": 2}, "enlarges nothing.*low_res_factor"),
    "openai, heads twice": (openai, {"heads": 4, "head_dim": 8}, "both say"),
    "openai, heads up twice": (openai, {"heads_up": 4, "head_dim": 8}, "both say"),
    "openai, a variance": (openai, {"variance": "learned_range"}, "says no variances"),
    "openai, a schedule": (openai, {"schedule": "linaer"}, "'linaer'.*linear"),
    "openai, a loss": (openai, {"loss": "hybrid"}, "loss='hybrid'"),
    "openai, a size": (openai, {"image_size": 9}, "divisible by 2"),
    "lucidrains, classes": (lucidrains, {"class_drop_prob": 0.5}, "no classes.*class_drop_prob"),
    "lucidrains, heads": (lucidrains, {"heads": 8}, "says the heads"),
    "lucidrains, frequencies": (lucidrains, {"time_features": "random"}, "no frequencies"),
    "lucidrains, a base": (
        lambda folder: lucidrains(folder, time_features="learned"),
        {"time_base": 500.0},
        "holds the frequencies",
    ),
    "lucidrains, a process": (
        lambda folder: lucidrains(folder, time_features="learned"),
        {"schedule": "cosine"},
        "belongs to no process",
    ),
    "lucidrains, options of a schedule": (
        lucidrains_with_tables,
        {"schedule_options": {"s": 0.01}},
        "says its noise levels",
    ),
    "lucidrains, another objective": (
        lambda folder: lucidrains_with_tables(folder, out_channels=6),
        {"parametrization": "v"},
        "predicts eps",
    ),
    "edm, classes": (edm, {"class_drop_prob": 0.1}, "no classes"),
    "diffusers, classes": (
        lambda folder: pipeline(folder / "p"),
        {"class_drop_prob": 0.1},
        "no classes",
    ),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_means_nothing_for_a_file_is_refused(tmp_path, name):
    write, given, words = MEANINGLESS[name]
    path = write(tmp_path)
    size = {"image_size": 8} if "image_size" in READERS[name.split(",")[0]].options else {}
    assert read_foreign(path, size).network_config
    with pytest.raises(ConfigError, match=words) as error:
        read_foreign(path, size | given)
    assert "\n" not in str(error.value)


def test_no_run_is_made_of_it(tmp_path, capsys):
    path, run = openai(tmp_path), tmp_path / "run"
    for wrong in (["--timesteps", "0"], ["--schedule", "x"], ["--variance", "learned_range"]):
        assert main(["convert", str(path), str(run), "--image-size", "8", *wrong]) == 2
        said = capsys.readouterr().err
        assert wrong[0] in said or wrong[1] in said
        assert said.count("\n") == 1
        assert not run.exists()


def test_heads_that_do_not_divide_are_not_rounded(tmp_path):
    model = LucidrainsUnet(dim=8, dim_mults=(1, 2), memory_tokens=0, norm="group")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    read = read_foreign(tmp_path / "m.pt", {"image_size": 8, "head_dim": 64})
    assert (read.network_config["mid_heads"], read.network_config["mid_head_dim"]) == (2, 64)
    with pytest.raises(CheckpointError, match="128 features does not divide into heads of 48"):
        read_foreign(tmp_path / "m.pt", {"image_size": 8, "head_dim": 48})


def test_given_heads_win_over_the_width_of_the_flags(tmp_path):
    text = (
        "--image_size 8 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1"
        " --attention_resolutions 4"
    )
    wide = translate_flags(f"{text} --num_head_channels 16")
    many = translate_flags(f"{text} --num_heads 2 --num_heads_upsample 4 --use_fp16 False")
    path = openai(tmp_path)
    read = read_flagged(path, wide, {"heads": 4})
    assert (read.network_config["heads"], read.network_config.get("head_dim")) == (4, None)
    read = read_flagged(path, many, {"head_dim": 16})
    assert (read.network_config["head_dim"], read.network_config.get("heads_up")) == (16, None)


def test_an_average_that_is_not_there_has_no_decay(tmp_path):
    notes = read_foreign(lucidrains(tmp_path), {"image_size": 8, "ema_decay": 0.99}).notes
    assert ["no average in the file" in note for note in notes].count(True) == 1


def test_diffusers_linear_is_the_same_named_and_unnamed(tmp_path):
    folder = write_unet(tmp_path / "bare", *small_parts())
    cosine = pipeline(tmp_path / "p", beta_schedule="squaredcos_cap_v2")
    made = []
    for path, given in (
        (folder, {"timesteps": 100}),
        (folder, {"timesteps": 100, "schedule": "linear"}),
        (cosine, {"timesteps": 100, "schedule": "linear"}),
    ):
        process = read_foreign(path, given).process
        assert process is not None
        made.append(Schedule.make(process["schedule"], 100, process["schedule_options"]).alpha)
    for alpha in made:
        torch.testing.assert_close(alpha, made[0], rtol=0, atol=0)
    betas = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    torch.testing.assert_close(made[0][1:].square(), (1 - betas).cumprod(0))


@pytest.mark.parametrize("value", [None, "0.5", -1, 0, True, [0.5], float("nan"), float("inf")])
def test_sigma_data_is_a_positive_number(tmp_path, value):
    folder = save(tmp_path / "edm", state())
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"sigma_data": value}))
    with pytest.raises(CheckpointError, match=r"sigma_data=.*positive number"):
        read_foreign(folder)
