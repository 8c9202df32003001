"""Processes that a loop of one's own saves are the same when loaded, also by another program."""

import copy
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.diffusion import LOSSES
from ddpm_lib.nn import MLP, LucidrainsUnet, TimeBlindUnet
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.process.clipping import CLIPS
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.time_sampling import TIME_SAMPLERS
from ddpm_lib.variance import VARIANCES
from ddpm_lib.weighting import WEIGHTINGS, MinSNR
from draw_from_folders import said
from locations import HELPERS
from process_tools import REQUIRED

SMALL = {"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1, "attention_levels": (1,)}


def shaken(module: nn.Module) -> nn.Module:
    """Weights as after some training: a network begins as exactly 0."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor += noise.abs() if name.endswith("running_var") else noise
    return module


def process(model: nn.Module, **options: object) -> GaussianDiffusion:
    settings: dict = {"image_size": 8, "timesteps": 16, **options}
    return shaken(GaussianDiffusion(model, **settings)).eval()


def learned(**options: object) -> GaussianDiffusion:
    return process(Unet(out_channels=6, **SMALL), variance="learned_range", **options)


KINDS = {
    "learned variance": learned,
    "classes": lambda: process(Unet(num_classes=3, **SMALL)),
    "self-condition": lambda: process(Unet(self_condition=True, **SMALL)),
    "low-res": lambda: process(Unet(low_res_factor=2, **SMALL)),
    "augmented": lambda: process(Unet(augment_dim=9, **SMALL)),
    "uncertainty": lambda: process(Unet(**SMALL), learn_uncertainty=True),
    "all": lambda: learned(learn_uncertainty=True, loss="hybrid", offset_noise=0.1),
    "patches": lambda: process(Unet(patch_size=2, **SMALL)),
    "sequence": lambda: process(Unet(dims=1, channels=2, **SMALL), image_size=(8,)),
    "volume": lambda: process(Unet(dims=3, channels=1, **SMALL), image_size=(4, 4, 4)),
    "points": lambda: process(MLP(width=16), image_size=(1,)),
    "lucidrains": lambda: process(LucidrainsUnet(dim=8, dim_mults=(1, 2)), image_size=8),
    "time-blind": lambda: process(TimeBlindUnet(widths=(4, 8)), image_size=8),
    "zero terminal SNR": lambda: process(
        Unet(**SMALL),
        schedule="linear",
        schedule_options={"zero_terminal_snr": True},
        weighting="flat",
    ),
    "bf16": lambda: process(Unet(**SMALL)).to(torch.bfloat16),
    "fp16": lambda: process(Unet(**SMALL)).to(torch.float16),
    "float64": lambda: process(Unet(**SMALL), learn_uncertainty=True).double(),
}
SIZES = ["5GB", "1MB", "10KB"]


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine
    )


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(tmp_path, kind):
    saved = KINDS[kind]()
    saved.class_names = ("circle", "square", "ring") if kind == "classes" else None
    folder = saved.save_pretrained(tmp_path / "m", max_shard_size=SIZES[len(kind) % 3])
    loaded = GaussianDiffusion.from_pretrained(folder)
    assert same(loaded, saved)
    assert not any(module.training for module in loaded.modules())
    assert loaded.config == saved.config
    assert loaded.class_names == saved.class_names
    network = type(saved.model).from_pretrained(folder)
    assert same(network, saved.model)
    assert network.config == saved.model.config
    assert not network.training


@pytest.fixture(scope="module")
def in_a_new_process(tmp_path_factory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What each kind draws here, and what another process draws with what it loads."""
    place = tmp_path_factory.mktemp("new") / "m"
    place.mkdir()
    here = {}
    for number, (name, make) in enumerate(KINDS.items()):
        diffusion = make()
        diffusion.save_pretrained(place / name, max_shard_size=SIZES[number % 3])
        here[name] = said(diffusion)
    out = place.parent / "drawn.safetensors"
    command = [sys.executable, HELPERS / "draw_from_folders.py", place, out]
    subprocess.run(command, check=True, timeout=250)
    there = load_file(out)
    return {name: (here[name], there[name]) for name in KINDS}


@pytest.mark.slow
def test_a_new_process_draws_the_same_to_the_bit(in_a_new_process):
    wrong = [name for name, (a, b) in in_a_new_process.items() if not torch.equal(a, b)]
    assert wrong == []
    assert all(a.isfinite().all() and a.std() > 0 for a, _ in in_a_new_process.values())


@pytest.mark.filterwarnings("ignore:The weighting")
def test_every_part_of_a_process_comes_back(tmp_path):
    """One process for each entry of each table, all others at their defaults."""
    tables = {
        "schedule": SCHEDULES,
        "parametrization": PARAMETRIZATIONS,
        "weighting": WEIGHTINGS,
        "time_sampler": TIME_SAMPLERS,
        "clip": CLIPS,
        "variance": VARIANCES,
        "loss": LOSSES,
    }
    model = MLP(width=4, depth=1, frequencies=0)
    double = MLP(width=4, depth=1, frequencies=0, out_channels=4)
    for table, entries in tables.items():
        for name in entries:
            options: dict = {"image_size": (1,), "timesteps": 8, table: name}
            if table == "schedule":
                options["schedule_options"] = REQUIRED.get(name, {})
            wide = name in ("learned_range", "hybrid")
            if name == "hybrid":
                options["variance"] = "learned_range"
            saved = GaussianDiffusion(double if wide else model, **options)
            saved.save_pretrained(tmp_path / "m")
            loaded = GaussianDiffusion.from_pretrained(tmp_path / "m")
            assert loaded.config == saved.config
            assert torch.equal(loaded.schedule.alpha, saved.schedule.alpha)
    built = GaussianDiffusion(
        model,
        image_size=(1,),
        schedule=Schedule.make("cosine", 12),
        weighting=MinSNR(gamma=2.5),
        offset_noise=0.1,
        input_perturbation=0.2,
        immiscible=True,
        dynamic_threshold_ratio=0.9,
    )
    built.save_pretrained(tmp_path / "m")
    assert GaussianDiffusion.from_pretrained(tmp_path / "m").config == built.config


def test_a_plain_loop_saves_its_network_and_its_averages(tmp_path):
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(**SMALL), image_size=8, timesteps=16)
    slow, fast = copy.deepcopy(diffusion.model), copy.deepcopy(diffusion.model)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-2)
    for _ in range(3):
        loss = diffusion(torch.rand(4, 3, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, decay in ((slow, 0.9), (fast, 0.5)):
                for mine, now in zip(average.parameters(), diffusion.model.parameters()):
                    mine.lerp_(now, 1 - decay)
    averages = {"ema:0.9": slow, "ema:0.5": fast.state_dict()}
    diffusion.save_pretrained(tmp_path / "m", averages=averages)
    load = GaussianDiffusion.from_pretrained
    for weights, network in (
        (None, slow),
        ("ema:0.9", slow),
        ("ema:0.90", slow),
        ("ema:0.5", fast),
        ("model", diffusion.model),
    ):
        assert same(load(tmp_path / "m", weights=weights).model, network)
        assert same(Unet.from_pretrained(tmp_path / "m", weights=weights), network)
    with pytest.raises(
        ConfigError, match=r"holds no weights 'ema'. It holds: 'ema:0.9', 'ema:0.5'"
    ):
        load(tmp_path / "m", weights="ema")
    load(tmp_path / "m", weights="model").train()(torch.rand(4, 3, 8, 8)).backward()  # and goes on

    whole = copy.deepcopy(diffusion)  # an average of the process, as some loops keep it
    whole.model = fast
    diffusion.save_pretrained(tmp_path / "m", averages={"ema": whole})
    assert same(load(tmp_path / "m").model, fast)
    diffusion.save_pretrained(tmp_path / "m", averages={"ema": slow})
    assert same(load(tmp_path / "m", weights="ema").model, slow)
    diffusion.save_pretrained(tmp_path / "m")
    assert same(load(tmp_path / "m").model, diffusion.model)
    for wrong in ({"model": slow}, {"best": slow}, {"ema": 3}):
        with pytest.raises(ConfigError, match=r"averages must map|Weights are called"):
            diffusion.save_pretrained(tmp_path / "m", averages=wrong)
    with pytest.raises(CheckpointError, match=r"averages\['ema'\] are of another network"):
        diffusion.save_pretrained(tmp_path / "m", averages={"ema": Unet(dim=16)})


def test_a_wrong_keyword_is_answered(tmp_path):
    for cls in (GaussianDiffusion, Unet):
        with pytest.raises(
            TypeError, match=r"Unknown argument of from_pretrained 'wieghts'.*'weights'"
        ):
            cls.from_pretrained(tmp_path, wieghts="ema")


def test_a_mutated_folder_is_an_error_of_ours_or_loads(tmp_path):
    """Bytes of any file and entries of the JSON files, changed at random."""
    network = MLP(width=8, depth=1, num_classes=3)
    folder = process(network, image_size=(1,), learn_uncertainty=True).save_pretrained(
        tmp_path / "m", max_shard_size=2000
    )
    draw, refused = random.Random(0), 0
    for path in [path for path in sorted(folder.iterdir()) for _ in range(12)]:
        whole = path.read_bytes()
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), draw.choice([30, 10**6])))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            GaussianDiffusion.from_pretrained(folder)
        except (CheckpointError, ConfigError):
            refused += 1
        path.write_bytes(whole)
    assert refused > 50


def test_a_network_alone(tmp_path):
    network = shaken(Unet(**SMALL))
    network.save_pretrained(tmp_path / "m", averages={"ema": copy.deepcopy(network)})
    assert same(Unet.from_pretrained(tmp_path / "m"), network)
    with pytest.raises(
        CheckpointError, match=r"a network without a process: load it with Unet\.from"
    ):
        GaussianDiffusion.from_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"holds a Unet, no MLP. Unet\.from_pretrained loads it"):
        MLP.from_pretrained(tmp_path / "m")


def test_devices(tmp_path):
    folder = process(Unet(**SMALL)).save_pretrained(tmp_path / "m")
    assert GaussianDiffusion.from_pretrained(folder, device="cpu").device.type == "cpu"
    assert Unet.from_pretrained(folder, device=torch.device("cpu")).conv_in.weight.is_cpu
    for cls in (GaussianDiffusion, Unet):
        with pytest.raises(ConfigError, match="device must be"):
            cls.from_pretrained(folder, device="gpu")


def harmed(folder: Path, change) -> Path:
    """Rewrite the weights of a folder."""
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def lack(tensors):
    del tensors["conv_in.bias"]


def add(tensors):
    tensors["extra.weight"] = torch.zeros(2)


def reshape(tensors):
    tensors["conv_in.bias"] = torch.zeros(9)


def retype(tensors):
    tensors["conv_in.bias"] = torch.zeros(8, dtype=torch.int64)


def rename_all(tensors):
    for name in list(tensors):
        tensors[f"module.{name}"] = tensors.pop(name)


def poison(tensors):
    tensors["conv_in.bias"][3] = float("nan")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lack, [r"missing in the file: conv_in\.bias"]),
        (add, [r"not in the model: extra\.weight"]),
        (reshape, [r"conv_in\.bias: \(9,\) in the file, \(8,\) in the model"]),
        (retype, [r"conv_in\.bias: torch\.int64 in the file, torch\.float32 in the model"]),
        (
            rename_all,
            [r"missing in the file: ", r"more such\n  not in the model: module\.", "more such$"],
        ),
        (poison, [r"NaN or infinite weights \(1 of \d+ tensors, the first is conv_in\.bias\)"]),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_weights_that_do_not_fit_are_listed(tmp_path, change, says):
    folder = harmed(process(Unet(**SMALL)).save_pretrained(tmp_path / "m"), change)
    for cls in (GaussianDiffusion, Unet):
        with pytest.raises(CheckpointError) as told:
            cls.from_pretrained(folder)
        for pattern in says:
            assert re.search(pattern, str(told.value)), str(told.value)


@pytest.mark.parametrize(
    ("entry", "values", "says"),
    [
        (
            "model",
            {"class": "Unet", "config": {"dim": 7}},
            "describes nothing that this version can",
        ),
        (
            "model",
            {"class": "Unet", "config": {"dims": [0]}},
            "describes nothing that this version",
        ),
        ("model", {"class": "Unet", "config": {"colour": 1}}, "describes nothing .*colour"),
        (
            "model",
            {"class": "Net", "config": {}},
            "a 'Net', which is not registered here. In Python, import the",
        ),
        ("diffusion", {"image_size": 8, "schedule": "magic"}, "describes a process that .*magic"),
        ("diffusion", {"image_size": 8, "timesteps": 10**12}, "with timesteps from 1 to 1,000,000"),
        ("diffusion", {"image_size": 8, "betas": 1}, "describes a process that .*betas"),
        ("diffusion", {}, "describes a process that .*image_size"),
    ],
)
def test_a_config_that_builds_nothing_is_named(tmp_path, entry, values, says):
    folder = process(Unet(**SMALL)).save_pretrained(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config[entry] = values
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        GaussianDiffusion.from_pretrained(folder)


def test_an_uncertainty_that_is_missing_or_not_finite_is_named(tmp_path):
    folder = process(Unet(**SMALL), learn_uncertainty=True).save_pretrained(tmp_path / "m")
    path = folder / "uncertainty.safetensors"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no uncertainty\.safetensors"):
        GaussianDiffusion.from_pretrained(folder)
    path.write_bytes(whole[:-4] + b"\0\0\xc0\x7f")
    with pytest.raises(CheckpointError, match="the uncertainty holds NaN"):
        GaussianDiffusion.from_pretrained(folder)
    Unet.from_pretrained(folder)
