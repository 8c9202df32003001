"""The flags of the READMEs of improved-diffusion and guided-diffusion, in our options."""

from __future__ import annotations

import shlex

import pytest
import torch

from ddpm_lib import Unet, load_run
from ddpm_lib.cli import main, train
from ddpm_lib.cli.convert import train_command
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.interop import read_flagged, translate_flags
from ddpm_lib.interop.openai import network_config
from ddpm_lib.interop.openai_shapes import read_shapes
from ddpm_lib.nn import PRESETS
from ddpm_lib.process.presets import PROCESS_PRESETS
from openai_checkpoints import openai_state, randomised

# As printed in the README of improved-diffusion.
PUBLISHED = {
    "imagenet64-hybrid": (
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True"
        " --diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128"
    ),
    "imagenet64-vlb": (
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True"
        " --diffusion_steps 4000 --noise_schedule cosine --use_kl True"
        " --lr 1e-4 --batch_size 128 --schedule_sampler loss-second-moment"
    ),
    "imagenet64-conditional": (
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True"
        " --diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False"
        " --rescale_timesteps False --lr 3e-4 --batch_size 2048"
    ),
    "cifar10-hybrid": (
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3"
        " --diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128"
    ),
    "cifar10-vlb": (
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3"
        " --diffusion_steps 4000 --noise_schedule cosine --use_kl True"
        " --lr 1e-4 --batch_size 128 --schedule_sampler loss-second-moment"
    ),
    "upsample-64-256": (
        "--large_size 256 --small_size 64"
        " --num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond True"
        " --diffusion_steps 4000 --noise_schedule linear --rescale_learned_sigmas False"
        " --rescale_timesteps False --lr 3e-4 --batch_size 256"
    ),
    "lsun-bedroom": (
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True"
        " --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000"
        " --noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False"
        " --lr 2e-5 --batch_size 128"
    ),
}
# As printed in the README of guided-diffusion; 296 M, 422 M and 554 M in Dhariwal & Nichol 2021,
# table 4 (the 256×256 network without classes is one label embedding smaller).
GUIDED = {
    "64x64": (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1"
        " --image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192"
        " --num_head_channels 64 --num_res_blocks 3 --resblock_updown True"
        " --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True",
        296,
    ),
    "128x128": (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 128"
        " --learn_sigma True --noise_schedule linear --num_channels 256 --num_heads 4"
        " --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True",
        422,
    ),
    "256x256": (
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 256"
        " --learn_sigma True --noise_schedule linear --num_channels 256 --num_head_channels 64"
        " --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True",
        554,
    ),
}


def completed(config: dict[str, object]) -> dict[str, object]:
    with torch.device("meta"):
        return Unet(**config).config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flags_are_the_published_preset(name):
    flags = translate_flags(PUBLISHED[name])
    assert completed(flags.network) == completed(PRESETS[name])
    # time_sampler and vlb_weight at their defaults are no difference.
    defaults = {"time_sampler": "uniform", "vlb_weight": 0.001}
    assert {**defaults, **flags.process} == {**defaults, **PROCESS_PRESETS[name]}
    assert flags.training["optimizer"] == "adamw"


@pytest.mark.parametrize("name", GUIDED)
def test_flags_of_guided_diffusion_make_networks_of_the_published_sizes(name):
    text, millions = GUIDED[name]
    flags = translate_flags(text)
    with torch.device("meta"):
        model = Unet(**flags.network)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert flags.given["attention_order"] == ("new" if name == "64x64" else "legacy")
    assert flags.network["time_scale"] == 1.0
    assert flags.training["mixed_precision"] == "fp16"


@pytest.mark.parametrize("text", [*PUBLISHED.values(), *(text for text, _ in GUIDED.values())])
def test_shapes_of_the_published_networks_say_what_their_flags_say(text):
    flags = translate_flags(text)
    with torch.device("meta"):
        model = Unet(**flags.network)
    shapes = read_shapes(openai_state(model), "the file")
    network = network_config(shapes, flags.given, [])
    wanted = {**flags.network, "groups": 32}
    assert {k: network.get(k, wanted[k]) for k in wanted} == wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_printed_command_trains_the_same(name, capsys, monkeypatch):
    assert main(["convert", "--flags", PUBLISHED[name]]) == 0
    printed = capsys.readouterr().out.splitlines()[1].strip()
    flags = translate_flags(PUBLISHED[name])
    assert printed == train_command(flags)
    command = train.resolve(shlex.split(printed)[2:])
    own, network = command.model, completed(flags.network)
    from_data = ("channels", "dims", "out_channels", "num_classes", "conditions")
    names = [n for n in network if n not in from_data]
    for option in names:
        value = getattr(own, option)
        assert (list(value) if isinstance(value, tuple) else value) == network[option], option
    assert command.class_conditional == (network["num_classes"] is not None)
    for option, value in flags.process.items():
        if option != "image_size":
            assert getattr(command.diffusion, option) == value
    assert command.image_size == (flags.process["image_size"],)
    assert (command.learning_rate, command.batch_size, command.optimizer) == (
        flags.training["learning_rate"],
        flags.training["batch_size"],
        "adamw",
    )


def test_sampling_flags_and_those_without_counterpart_are_said(capsys):
    text = (
        "--image_size 64 --use_ddim True --timestep_respacing ddim25 --data_dir x --num_samples 9"
    )
    assert main(["convert", "--flags", text]) == 0
    said = capsys.readouterr().out
    assert "ddpm sample RUN --sampler ddim --spacing ddim25" in said
    assert "--data_dir has no counterpart" in said
    assert "--num_samples has no counterpart" in said


def test_clipping_is_said_where_it_can_be(file, tmp_path, capsys):
    text = f"{FLAGS} --clip_denoised False"
    assert main(["convert", "--flags", f"{text} --use_ddim True"]) == 0
    _, training, _, sampling, *_ = capsys.readouterr().out.splitlines()
    assert "--diffusion.clip none" in training
    assert "--clip" not in sampling
    assert train.resolve(shlex.split(training)[2:]).diffusion.clip == "none"
    for flags, clip in ((text, "none"), (FLAGS, "static")):
        assert main(["convert", str(file[1]), str(tmp_path / clip), "--flags", flags]) == 0
        assert load_run(tmp_path / clip, weights="model").diffusion.clip == clip


def test_the_rate_stays_as_theirs_unless_it_is_annealed():
    plain = translate_flags("--image_size 64 --lr 1e-4").training
    assert (plain["lr_schedule"], plain["warmup_steps"]) == ("constant", 0)
    falling = translate_flags("--image_size 64 --lr 1e-4 --lr_anneal_steps 500").training
    assert (falling["lr_schedule"], falling["warmup_steps"]) == ("linear", 0)
    assert falling["max_steps"] == 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--num_chanels 128", r"--'num_chanels' is no flag.*Did you mean 'num_channels'"),
        ("--num_channels many", r"--num_channels cannot have the value 'many'"),
        ("--learn_sigma perhaps", r"--learn_sigma cannot have the value 'perhaps'"),
        ("num_channels 128", r"`--name value` pairs; got 'num_channels'"),
        ("--image_size 96", r"know image_size 32, 64, 128, 256 and 512; got 96"),
        ("--image_size 512 --num_channels 256", r"half of its channels at the first level"),
        ("--noise_schedule sigmoid", r"linear or cosine; got 'sigmoid'"),
        ("--image_size 64 '", r"cannot be read"),
    ],
)
def test_flags_that_mean_nothing_are_refused(text, words, capsys):
    with pytest.raises(ConfigError, match=words):
        translate_flags(text)
    assert main(["convert", "--flags", text]) == 2


FLAGS = (
    "--image_size 16 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --num_heads 2"
    " --attention_resolutions 8 --learn_sigma True --diffusion_steps 100 --noise_schedule cosine"
    " --use_new_attention_order True --dropout 0.2 --lr 3e-4 --batch_size 64"
)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    config = {"dim": 32, "dim_mults": (1, 2), "attention_levels": (1,), "heads": 2}
    model = randomised(**config, out_channels=6)
    torch.save(openai_state(model, order="guided-diffusion"), tmp_path / "m.pt")
    return model, tmp_path / "m.pt"


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_flags_say_what_the_file_does_not(file, tmp_path, capsys):
    model, path = file
    found = read_flagged(path, translate_flags(FLAGS))
    read = Unet(**found.network_config).eval()
    read.load_state_dict(found.weights)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 90])
    torch.testing.assert_close(read(x, t), model(x, t))
    assert read.config["dropout"] == 0.2
    assert found.process["vlb_weight"] == 1 / 100
    assert found.process["loss"] == "hybrid"
    assert not any("does not say" in note for note in found.notes[:-3])
    assert main(["convert", str(path), str(tmp_path / "run"), "--flags", FLAGS]) == 0
    assert "100 levels, schedule cosine" in capsys.readouterr().out
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "learning_rate: 0.0003" in text
    assert "batch_size: 64" in text


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_what_is_given_wins_over_the_flags(file):
    _, path = file
    found = read_flagged(path, translate_flags(FLAGS), {"schedule": "linear", "heads": 4})
    assert (found.process["schedule"], found.network_config["heads"]) == ("linear", 4)


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--num_channels 32", "--num_channels 64"), r"dim: flags 64, weights 32"),
        (("--learn_sigma True", "--learn_sigma False"), r"out_channels|variance"),
        (("--channel_mult 1,2", "--channel_mult 1,1"), r"dim_mults: flags \(1, 1\)"),
        (("--num_heads 2", "--num_heads 2 --class_cond True"), r"num_classes: flags 1000"),
    ],
)
def test_flags_of_another_model_are_refused(file, change, words):
    _, path = file
    with pytest.raises((ConfigError, RuntimeError), match=words):
        read_flagged(path, translate_flags(FLAGS.replace(*change)))
