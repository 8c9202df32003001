"""Every argument and flag of five other libraries is answered: by our name for it, by the place
where it is given, or by why there is none.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli.arguments import options_of
from ddpm_lib.cli.sample import SampleCommand
from ddpm_lib.cli.train import TrainCommand
from ddpm_lib.core import peers_names
from ddpm_lib.core.options import option_names
from ddpm_lib.core.peers.elsewhere import HOME, INSTEAD, NOWHERE
from ddpm_lib.training.config import TrainingConfig
from peers_signatures import PEERS

ANSWER = re.compile(r"[Dd]id you mean '([^']+)'")


def flags(command: type, default: Any) -> list[str]:
    return [option.flag for option in options_of(command, default)]


OURS: dict[str, list[str]] = {
    "Unet": option_names(Unet.__init__),
    "GaussianDiffusion": option_names(GaussianDiffusion.__init__),
    "Trainer": [
        "diffusion",
        "data",
        "callbacks",
        "transform",
        *(f.name for f in dataclasses.fields(TrainingConfig)),
    ],
    "sample": option_names(GaussianDiffusion.sample),
    "train": flags(TrainCommand, TrainCommand()),
    "ddpm sample": flags(SampleCommand, SampleCommand(run="r")),
}
WORDS = [
    (peer, where, word)
    for peer, places in PEERS.items()
    for where, words in places.items()
    for word in words.split()
]


def known(where: str, word: str) -> bool:
    spelled = {name.lstrip("-").replace("-", "_") for name in OURS[where]}
    return word in spelled


@pytest.mark.parametrize(("peer", "where"), sorted({(p, w) for p, w, _ in WORDS}))
def test_every_word_of_a_peer_is_answered(peer: str, where: str) -> None:
    unanswered = []
    for word in PEERS[peer][where].split():
        if known(where, word):
            continue
        spelled = "--" + word.replace("_", "-") if where in ("train", "ddpm sample") else word
        told = peers_names.hint(spelled, OURS[where])
        found = ANSWER.search(told or "")
        if told is None or (found and found[1] not in OURS[where]):
            unanswered.append(word)
    assert unanswered == []


def calls() -> dict[str, Callable[..., Any]]:
    diffusion = GaussianDiffusion(nn.Identity(), image_size=8, channels=3)
    return {
        "Unet": Unet,
        "GaussianDiffusion": lambda **k: GaussianDiffusion(nn.Identity(), **{"image_size": 8, **k}),
        "Trainer": lambda **k: Trainer(diffusion, **k),
        "sample": diffusion.sample,
    }


@pytest.mark.parametrize("where", ["Unet", "GaussianDiffusion", "Trainer", "sample"])
def test_python_gives_the_answer(where: str) -> None:
    call = calls()[where]
    for _, place, word in WORDS:
        if place != where or known(where, word):
            continue
        told = peers_names.hint(word, OURS[where])
        assert told is not None
        with pytest.raises((TypeError, ValueError)) as error:
            call(**{word: 1})
        assert told[1:].rstrip(".?)") in str(error.value), word


@pytest.mark.parametrize(
    ("where", "word", "answer"),
    [
        ("GaussianDiffusion", "objective", "did you mean 'parametrization'"),
        ("GaussianDiffusion", "sampling_timesteps", "chosen when sampling"),
        ("GaussianDiffusion", "prediction_type", "did you mean 'parametrization'"),
        ("GaussianDiffusion", "learn_sigma", "did you mean 'variance'? (its value is 'learned_r"),
        ("GaussianDiffusion", "num_train_timesteps", "did you mean 'timesteps'"),
        ("GaussianDiffusion", "ddim_sampling_eta", "diffusion.sample(eta=…)"),
        ("Trainer", "train_lr", "did you mean 'learning_rate'"),
        ("Trainer", "results_folder", "did you mean 'output_dir'"),
        ("Trainer", "amp", "did you mean 'mixed_precision'"),
        ("Trainer", "objective", "GaussianDiffusion(parametrization=…)"),
        ("Trainer", "dim", "Unet(dim=…)"),
        ("Trainer", "ema_update_every", "no counterpart: averages are updated at every step"),
        ("Trainer", "folder", "did you mean 'data'"),
        ("sample", "num_inference_steps", "did you mean 'num_steps'"),
        ("sample", "beta_schedule", "GaussianDiffusion(schedule=…)"),
        ("train", "--root", "did you mean '--data-root'"),
        ("Trainer", "push_to_hub", "ddpm push RUN OWNER/NAME"),
        ("train", "--hid-channels", "did you mean '--model.dim'"),
        ("train", "--num-accum", "did you mean '--accumulation-steps'"),
        ("train", "--subseq-size", "did you mean '--sample-steps'"),
        ("ddpm sample", "--beta-schedule", "ddpm train --diffusion.schedule"),
    ],
)
def test_the_answers_are_the_right_ones(where: str, word: str, answer: str) -> None:
    assert answer in (peers_names.hint(word, OURS[where]) or "")


def test_words_for_values_are_not_taken_for_options() -> None:
    assert peers_names.hint("dim", ["eps", "x0", "v"]) is None
    assert peers_names.hint("lr", ["linear", "cosine"]) is None


def test_options_are_given_where_the_table_says() -> None:
    places = {
        "network": OURS["Unet"],
        "process": OURS["GaussianDiffusion"],
        "sampling": OURS["sample"],
        "training": OURS["Trainer"],
    }
    assert places.keys() == HOME.keys()
    for room, names in places.items():
        here = {name for name, home in peers_names._HOME_OF.items() if home == room}
        assert here - set(names) == set()


def test_no_word_has_two_instructions() -> None:
    words = [word for table in (INSTEAD, NOWHERE) for group in table for word in group]
    assert len(words) == len(set(words))


LIVE = {
    ("lucidrains", "Unet"): ("denoising_diffusion_pytorch", "Unet"),
    ("lucidrains", "GaussianDiffusion"): ("denoising_diffusion_pytorch", "GaussianDiffusion"),
    ("lucidrains", "Trainer"): ("denoising_diffusion_pytorch", "Trainer"),
    ("diffusers", "Unet"): ("diffusers", "UNet2DModel"),
    ("diffusers", "GaussianDiffusion"): ("diffusers", "DDPMScheduler"),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", LIVE)
def test_the_lists_are_those_of_the_installed_libraries(key: tuple[str, str]) -> None:
    module, name = LIVE[key]
    pytest.importorskip(module)
    there = inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
    assert set(there) - {"self"} <= set(PEERS[key[0]][key[1]].split())
