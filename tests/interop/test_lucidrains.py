"""Files of denoising-diffusion-pytorch: read as published, refused where they are damaged."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm_lib import Trainer
from ddpm_lib.cli import main as ddpm
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.imported import Opened
from ddpm_lib.interop.lucidrains import READER
from ddpm_lib.interop.lucidrains_network import to_our_names, to_peer_names
from ddpm_lib.interop.lucidrains_process import objective_of
from ddpm_lib.nn import LucidrainsUnet
from ddpm_lib.runs.loading import load_run
from ddpm_lib.runs.network_state import load_optimizer_tensors
from ddpm_lib.schedules import Schedule
from published_networks import PublishedNetwork

NETWORKS = {
    "default_dim8": {},
    "full_attn": {},
    "init_out_dim_gray": {"channels": 1, "time_base": 500.0},
    "learned_fourier": {},
    "learned_variance": {},
    "linear_attn_only_levels": {},
    "random_fourier": {"time_features": "random"},
    "self_condition": {},
}
ALONE = {"init_out_dim_gray", "learned_fourier", "random_fourier"}


def built(imported, weights) -> LucidrainsUnet:
    model = LucidrainsUnet(**imported.network_config).eval()
    model.load_state_dict(weights)
    return model


def saved(folder: Path, content: object, name: str = "anything.bin") -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, "") for name in NETWORKS),
        *((name, "model.") for name in sorted(NETWORKS.keys() - ALONE)),
    ],
)
def test_published_networks_alone(shared, tmp_path, name, prefix):
    published = PublishedNetwork(shared / "fixtures" / "D_unets", f"lucidrains_{name}")
    state = {prefix + k: v.float() for k, v in published.state.items()}
    if prefix:
        state["betas"] = torch.linspace(1e-3, 0.2, 100)
    given = NETWORKS[name] | ({} if name in ALONE else {"image_size": 8})
    imported = read_foreign(saved(tmp_path, state), given)
    assert imported.format == "lucidrains"
    assert (imported.process is None) == (name in ALONE)
    model = built(imported, imported.weights)
    shown = [v for k, v in published.tensors.items() if k.startswith("in/") and k[3:] not in "xt"]
    cond = {"self_cond": v for v in shown}  # noqa: B035 - one at most
    x, t = published.tensors["in/x"], published.tensors["in/t"]
    out = model(x, t, cond)
    torch.testing.assert_close(out, published.tensors["out_f32"], rtol=1e-4, atol=2e-5)
    out = model.double()(x.double(), t, {k: v.double() for k, v in cond.items()})
    torch.testing.assert_close(out, published.tensors["out_f64"], rtol=1e-9, atol=1e-10)
    if name == "learned_variance":
        assert imported.process["variance"] == "learned_range"


@pytest.fixture
def trainer_file(shared) -> Path:
    return shared / "fixtures" / "D_checkpoints" / "lucidrains_trainer" / "model-1.pt"


@pytest.fixture
def expected(trainer_file) -> dict[str, torch.Tensor]:
    return load_file(trainer_file.with_name("expected.safetensors"))


@pytest.fixture
def content(trainer_file):
    return torch.load(trainer_file, weights_only=True)  # noqa: TID251


@pytest.fixture
def run(trainer_file, tmp_path) -> Path:
    assert ddpm(["convert", str(trainer_file), str(tmp_path / "run"), "--image-size", "8"]) == 0
    return tmp_path / "run"


def test_a_file_of_its_trainer(trainer_file):
    imported = read_foreign(trainer_file, {"image_size": 8})
    assert imported.process == {
        "image_size": [8, 8],
        "channels": 3,
        "timesteps": 50,
        "schedule": "sigmoid",
        "schedule_options": {},
        "parametrization": "v",
        "weighting": "simple",
        "variance": "fixed_small",
        "clip": "static",
    }
    assert imported.step == 123
    assert imported.training["learning_rate"] == 1e-3
    assert imported.training["adam_betas"] == (0.9, 0.99)
    assert list(imported.averages) == [0.9995]
    assert any("0.995 at every tenth step" in note for note in imported.notes)


@pytest.mark.parametrize("which", ["model", "ema"])
def test_outputs_of_the_converted_run(run, expected, which):
    model = load_run(run, weights=which).diffusion.model
    out = model(expected["in/x"], expected["in/t"])
    torch.testing.assert_close(out, expected[f"{which}/out_f32"], rtol=1e-4, atol=2e-5)
    out = model.double()(expected["in/x"].double(), expected["in/t"])
    torch.testing.assert_close(out, expected[f"{which}/out_f64"], rtol=1e-8, atol=1e-9)


def test_the_converted_run_samples_as_the_peer(run, expected):
    diffusion, states = load_run(run).diffusion, expected["ema_ddim_sample_f32"]
    _, frames = diffusion.sample(
        x_T=expected["noise"][0],
        sampler="ddim",
        spacing=(50, 40, 30, 20, 10),
        return_trajectory=True,
    )
    # Ours are clamped to the range of pixels, theirs are not; the noise was given in [-1, 1].
    torch.testing.assert_close(frames.transpose(0, 1), states.clamp(0, 1), rtol=1e-4, atol=2e-5)


def test_a_step_from_the_imported_moments_is_torchs_own(trainer_file, content):
    imported = read_foreign(trainer_file, {"image_size": 8})
    torch.manual_seed(0)
    theirs = {
        k.removeprefix("model."): nn.Parameter(v.clone())
        for k, v in content["model"].items()
        if k.startswith("model.")
    }
    adam = torch.optim.Adam(theirs.values(), lr=1.0)
    adam.load_state_dict(content["opt"])
    model = built(imported, imported.weights)
    ours = torch.optim.Adam(model.parameters(), lr=1e-3, betas=imported.training["adam_betas"])
    load_optimizer_tensors(ours, model, imported.optimizer)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        theirs[name].grad = parameter.grad.clone()
    adam.step()
    ours.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=0)


def test_training_goes_on_and_lowers_the_loss(run):
    torch.manual_seed(0)
    images = (torch.rand(16, 3, 8, 8) * 255).byte()
    diffusion = load_run(run, weights="model").diffusion
    noise, t = torch.randn(16, 3, 8, 8), torch.arange(1, 49, 3)

    def loss() -> float:
        with torch.no_grad():
            return float(diffusion.eval()(images, t=t, noise=noise))

    before = loss()
    trainer = Trainer(
        diffusion,
        images,
        output_dir=str(run),
        max_steps=143,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=0,
        optimizer="adam",
        adam_betas=(0.9, 0.99),
        ema_decay=(0.9995,),
        val_fraction=0.0,
        sample_every=0,
        progress=False,
    )
    trainer.prepare()
    assert trainer.step == 123
    moments = trainer.optimizer.state_dict()["state"]
    assert {float(entry["step"]) for entry in moments.values()} == {123.0}
    assert trainer.train().step == 143
    assert loss() < before


def broken(content, change):
    content = copy.deepcopy(content)
    change(content)
    return content


MUTATIONS = {
    "missing": (
        lambda c: c["model"].pop("model.downs.0.0.block1.proj.bias"),
        "missing: downs.0.0.block1.proj.bias",
    ),
    "left over": (
        lambda c: c["model"].update({"model.extra.weight": torch.zeros(1)}),
        "left over: extra.weight",
    ),
    "left over beside": (lambda c: c["model"].update(secret=torch.zeros(1)), "left over: secret"),
    "left over in the average": (
        lambda c: c["ema"].update(other=torch.zeros(1)),
        "left over: ema.other",
    ),
    "another entry": (lambda c: c.update(lion={}), "lion"),
    "shape": (
        lambda c: c["model"].update({"model.mid_attn.to_out.weight": torch.zeros(16, 31, 1, 1)}),
        "mid_attn.to_out.weight: shape",
    ),
    "widths": (
        lambda c: c["model"].update({"model.time_mlp.1.weight": torch.zeros(44, 8)}),
        "time_mlp.1.weight|belong to no U-Net",
    ),
    "average of another network": (
        lambda c: c["ema"].update({"ema_model.model.final_conv.weight": torch.zeros(4, 8, 1, 1)}),
        "final_conv.weight: shape",
    ),
    "betas": (lambda c: c["model"].update(betas=torch.ones(50)), "betas are not all between"),
    "no betas": (lambda c: c["model"].pop("betas"), "missing: betas"),
    "moments": (
        lambda c: c["opt"]["state"][3].update(exp_avg=torch.zeros(5)),
        "exp_avg of time_mlp.1.bias has shape",
    ),
    "fewer parameters": (
        lambda c: c["opt"]["param_groups"][0]["params"].pop(),
        "not that of this network",
    ),
    "step": (lambda c: c.update(step="late"), "'late'"),
    "a sequence": (
        lambda c: c["model"].update({"model.init_conv.weight": torch.zeros(8, 3, 7)}),
        "Unet1D",
    ),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", MUTATIONS)
def test_damaged_files_are_refused_in_a_line(content, tmp_path, name, capsys):
    change, says = MUTATIONS[name]
    path = saved(tmp_path, broken(content, change))
    with pytest.raises(CheckpointError, match=says) as error:
        read_foreign(path, {"image_size": 8})
    assert "\n" not in str(error.value)
    assert ddpm(["convert", str(path), str(tmp_path / "run"), "--image-size", "8"]) == 2
    assert not (tmp_path / "run").exists()
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


def test_what_the_file_does_not_say_is_asked_for(trainer_file, content, tmp_path):
    with pytest.raises(ConfigError, match="image_size"):
        read_foreign(trainer_file)
    with pytest.raises(ConfigError, match="divisible by 2"):
        read_foreign(trainer_file, {"image_size": 9})
    for wrong in ({"timesteps": 100}, {"schedule": "cosine"}, {"parametrization": "eps"}):
        with pytest.raises(ConfigError, match="eave"):
            read_foreign(trainer_file, {"image_size": 8} | wrong)
    other = broken(
        content,
        lambda c: c.update(
            opt={"state": {0: {"exp_avg": torch.zeros(1)}}}
            | {"param_groups": c["opt"]["param_groups"]},
            scaler={"scale": 1.0},
        ),
    )
    imported = read_foreign(saved(tmp_path, other), {"image_size": 8, "ema_decay": 0.99})
    assert imported.optimizer == {}
    assert list(imported.averages) == [0.99]
    assert {"not Adam" in n for n in imported.notes} == {True, False}
    assert any("scaler" in note for note in imported.notes)


@pytest.mark.parametrize("gamma", [None, 0.5, 5.0])
@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_the_objective_is_read_off_the_weights_of_the_loss(schedule, kind, gamma):
    made = Schedule.make(schedule, 100)
    snr = made.snr[1:]
    capped = snr.clamp(max=gamma) if gamma else snr
    table = capped / {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[kind]
    assert objective_of(table.float().double(), made) == (kind, gamma)


def test_weights_of_no_objective_say_nothing():
    assert objective_of(torch.rand(100).double(), Schedule.make("linear", 100)) is None


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("schedule", "options", "read"),
    [
        ("linear", {}, "linear"),
        ("cosine", {}, "cosine"),
        ("sigmoid", {}, "sigmoid"),
        ("sigmoid", {"tau": 0.7}, "betas"),
    ],
)
def test_the_schedule_is_read_off_the_betas(content, tmp_path, schedule, options, read):
    made = Schedule.make(schedule, 50, options)
    log = 2 * made.alpha.log()
    betas = -torch.expm1(log.diff())
    changed = broken(content, lambda c: c["model"].update(betas=betas.float()))
    path = saved(tmp_path, changed)
    imported = read_foreign(path, {"image_size": 8})
    assert imported.process["schedule"] == read
    again = Schedule.make(read, 50, imported.process["schedule_options"])
    torch.testing.assert_close(again.alpha, made.alpha, rtol=1e-6, atol=1e-7)
    if options:
        named = {"schedule": schedule, "schedule_options": options, "image_size": 8}
        assert read_foreign(path, named).process["schedule"] == schedule


def classes(**options) -> LucidrainsUnet:
    return LucidrainsUnet(
        dim=8,
        dim_mults=(1, 2),
        attention_levels=(),
        memory_tokens=0,
        downsampling="conv",
        num_classes=3,
        **options,
    )


def test_a_network_with_classes(tmp_path):
    torch.manual_seed(0)
    model = classes(mid_heads=2, mid_head_dim=8).eval()
    state = to_peer_names(model.state_dict())
    assert {"classes_emb.weight", "null_classes_emb", "classes_mlp.2.bias"} < set(state)
    assert {"downs.0.2.fn.norm.g", "ups.1.2.fn.fn.to_out.1.g", "mid_attn.fn.fn.to_out.bias"} < set(
        state
    )
    back = to_our_names(state)
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)
    imported = read_foreign(saved(tmp_path, state), {"image_size": 8, "heads": 2})
    assert imported.process["schedule"] == "cosine"
    assert imported.process["parametrization"] == "eps"
    x, t, cond = (
        torch.randn(2, 3, 8, 8),
        torch.tensor([1, 7]),
        {"class_label": torch.tensor([2, 0])},
    )
    torch.testing.assert_close(
        built(imported, imported.weights).eval()(x, t, cond), model(x, t, cond)
    )


def test_older_networks_are_refused_by_name(tmp_path):
    state = to_peer_names(classes(norm="group").state_dict())
    with pytest.raises(CheckpointError, match=r"1\.7 or earlier") as error:
        read_foreign(saved(tmp_path, state), {"image_size": 8})
    assert "\n" not in str(error.value)


def test_networks_of_1_8_with_group_normalisation(tmp_path):
    model = LucidrainsUnet(dim=8, dim_mults=(1, 2), norm="group", memory_tokens=0).eval()
    imported = read_foreign(saved(tmp_path, model.state_dict()), {"image_size": 8})
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 7])
    torch.testing.assert_close(built(imported, imported.weights)(x, t), model(x, t))


ODD = (
    None,
    3,
    "x",
    b"x",
    True,
    [],
    {},
    -1,
    float("nan"),
    torch.tensor(1.0),
    torch.zeros(0),
    torch.full((50,), float("nan")),
    torch.zeros(8, 3, 7, 7, dtype=torch.int64),
)


def with_odd_value(content, draw: random.Random) -> None:
    """Remove or replace a value at a random place of a nested file, or add one."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = draw.choice(keys)
        inner = content[key]
        if not (isinstance(inner, dict | list) and inner and draw.random() < 0.9):
            break
        content = inner
    what = draw.random()
    if what < 0.25:
        del content[key]
    elif what < 0.85 or isinstance(content, list):
        content[key] = draw.choice(ODD)
    else:
        content[draw.choice([7, "more", "model.model.more", 3.5])] = draw.choice(ODD)


@pytest.mark.slow
def test_odd_values_anywhere_are_refused_in_a_line_or_change_nothing(content, tmp_path):
    def read(what):
        opened = Opened(tmp_path, what)
        if not READER.recognises(opened):
            raise CheckpointError("not of this format")
        return READER.read(opened, {"image_size": (8, 8)})

    whole, draw, refused = read(content), random.Random(0), []
    for _ in range(30):
        changed = broken(content, lambda c: with_odd_value(c, draw))
        try:
            found = read(changed)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        for name, tensor in whole.weights.items():
            torch.testing.assert_close(found.weights[name], tensor, rtol=0, atol=0)
    assert len(refused) > 5
    assert not any("\n" in line for line in refused)


def test_weights_that_are_not_finite_are_refused(content, tmp_path):
    bad = broken(content, lambda c: c["model"]["model.final_conv.bias"].fill_(float("inf")))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        read_foreign(saved(tmp_path, bad), {"image_size": 8})


@pytest.mark.parametrize("hidden", [True, False])
def test_moments_of_a_network_with_classes(tmp_path, hidden):
    torch.manual_seed(0)
    model = classes()
    theirs = {k: nn.Parameter(v.clone()) for k, v in to_peer_names(model.state_dict()).items()}
    adam = torch.optim.Adam(theirs.values(), lr=1e-2, betas=(0.9, 0.99))
    for _ in range(3):
        for name, parameter in theirs.items():
            # Where no label is ever hidden, the null class has no gradient and no moments.
            if hidden or name != "null_classes_emb":
                parameter.grad = torch.randn_like(parameter)
        adam.step()
    names = {f"model.{k}": v.detach() for k, v in theirs.items()}
    file = {"step": 3, "opt": adam.state_dict()}
    file |= {"model": {"betas": torch.linspace(1e-3, 0.2, 100), **names}}
    imported = read_foreign(saved(tmp_path, file), {"image_size": 8})
    moments = {k.split("|")[0]: v for k, v in imported.optimizer.items() if k.endswith("|exp_avg")}
    assert moments.keys() == dict(model.named_parameters()).keys()
    back = to_peer_names(moments)
    for name, parameter in theirs.items():
        state = adam.state.get(parameter, {"exp_avg": torch.zeros_like(parameter)})
        torch.testing.assert_close(back[name], state["exp_avg"], rtol=0, atol=0)
    assert {float(v) for k, v in imported.optimizer.items() if k.endswith("|step")} == {3.0}
