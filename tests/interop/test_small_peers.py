"""Checkpoints of pytorch-ddpm, ddpm-torch and Simple_DDPM: recognised, read to the published
numbers, converted, and trained on from their Adam.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib import GaussianDiffusion, Trainer, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.tensor_files import load_tensors
from ddpm_lib.interop import READERS, read_foreign
from ddpm_lib.interop.imported import Imported
from ddpm_lib.interop.renaming import NAMINGS, rename_unet
from ddpm_lib.nn import NETWORKS
from ddpm_lib.runs.network_state import load_optimizer_tensors

pytestmark = pytest.mark.filterwarnings("ignore:With groups=32")

TABLE = "time_embedding.timembedding.0.weight"
FILES = {
    "pytorch-ddpm": ("pytorch_ddpm", "ckpt.pt", {}),
    "ddpm-torch": ("tqch", "ddpm_2.pt", {"image_size": 8, "timesteps": 40}),
    "simple-ddpm": ("simple_ddpm", "latest_model.pth", {"image_size": 8}),
}
NETS = {
    "pytorch_ddpm": "pytorch-ddpm",
    "tqch_conv_resample": "ddpm-torch",
    "tqch_no_conv_resample": "ddpm-torch",
    "simple_ddpm": "simple-ddpm",
}


class Table(torch.nn.Module):
    """A time embedding that looks its sinusoids up in the table of the file."""

    def __init__(self, table: Tensor, embedding: Any) -> None:
        super().__init__()
        self.table, self.embedding = table, embedding

    def forward(self, t: Tensor) -> Tensor:
        rows = self.table[t.long()].to(self.embedding.linear1.weight.dtype)
        return self.embedding.linear2(F.silu(self.embedding.linear1(rows)))


def network(read: Imported, weights: dict[str, Tensor], table: Tensor | None = None) -> Any:
    model = NETWORKS[read.network](**read.network_config).eval()
    model.load_state_dict(weights)
    if table is not None:
        model.time_embedding = Table(table, model.time_embedding)
    return model


def file_of(shared: Path, name: str) -> Path:
    folder, file, _ = FILES[name]
    return shared / "fixtures" / "D_checkpoints" / folder / file


def read_file(shared: Path, name: str) -> Imported:
    return read_foreign(file_of(shared, name), FILES[name][2])


def content(shared: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(file_of(shared, name), weights_only=True)  # noqa: TID251
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_give_the_published_outputs(shared: Path, name: str) -> None:
    read = read_file(shared, name)
    expected = load_file(file_of(shared, name).parent / "expected.safetensors")
    assert read.format == name
    table = content(shared, name)["net_model"][TABLE] if name == "pytorch-ddpm" else None
    sets = {"model": read.weights, "ema": next(iter(read.averages.values()), None)}
    for which, weights in sets.items():
        if weights is None:
            assert f"{which}/out_f32" not in expected
            continue
        t = expected.get("in/t", torch.zeros(2))
        out = network(read, weights)(expected["in/x"], t)
        torch.testing.assert_close(out, expected[f"{which}/out_f32"], rtol=1e-4, atol=2e-5)
        double = network(read, weights, table).double()(expected["in/x"].double(), t)
        torch.testing.assert_close(double, expected[f"{which}/out_f64"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_bare_networks_give_the_published_outputs(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "fixtures" / "D_unets"
    tensors = load_file(folder / f"{name}.safetensors")
    values = json.loads((folder / f"{name}.json").read_text())["values"]
    stored = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("weights")}
    state = {k: stored[k] for k in values["state_dict_keys"]}
    state = {
        k: v.float() * values["weight_scale"][k] if v.dtype == torch.int8 else v
        for k, v in state.items()
    }
    torch.save(state, tmp_path / "net.bin")
    read = read_foreign(tmp_path / "net.bin", {"image_size": 8})
    assert read.format == NETS[name]
    assert (read.averages, read.optimizer, read.step) == ({}, {}, 0)
    t = tensors.get("in/t", torch.zeros(2))
    assert read.weights is not None
    out = network(read, read.weights)(tensors["in/x"], t)
    torch.testing.assert_close(out, tensors["out_f32"], rtol=1e-4, atol=2e-5)

    model = network(read, read.weights, state.get(TABLE)).double()
    x = tensors["in/x"].double().requires_grad_()
    out = model(x, t)
    torch.testing.assert_close(out, tensors["out_f64"], rtol=1e-9, atol=1e-10)
    (out * tensors["probe"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["grad_x_f64"], rtol=1e-8, atol=1e-10)


def test_what_the_files_say_is_carried_over(shared: Path) -> None:
    ours, theirs = read_file(shared, "pytorch-ddpm"), content(shared, "pytorch-ddpm")
    assert ours.process is not None
    assert (ours.process["image_size"], ours.process["timesteps"], ours.step) == ([8, 8], 30, 5)
    assert ours.step == theirs["step"] + 1
    assert ours.training["learning_rate"] == 1e-3
    assert list(ours.averages) == [0.9999]
    assert any("ema_decay" in note for note in ours.notes)
    given = read_foreign(file_of(shared, "pytorch-ddpm"), {"ema_decay": 0.9})
    assert list(given.averages) == [0.9]
    assert not any("ema_decay" in note for note in given.notes)

    ours = read_file(shared, "ddpm-torch")
    assert (list(ours.averages), ours.step) == ([0.9999], 6)
    assert ours.network_config["time_dim"] == 32
    assert not any("timesteps" in note for note in ours.notes)

    ours = read_file(shared, "simple-ddpm")
    assert (ours.network, ours.network_config["widths"]) == ("TimeBlindUnet", [6, 8, 12])


@pytest.mark.parametrize(
    ("name", "clips"), [("pytorch-ddpm", False), ("ddpm-torch", True), ("simple-ddpm", False)]
)
def test_predictions_are_clipped_where_the_library_clips_them(
    shared: Path, name: str, clips: bool
) -> None:
    """The first clips what it predicts too late: behind the mean that is made of it."""
    read = read_file(shared, name)
    assert read.process is not None
    weights = next(v for v in (read.weights, *read.averages.values()) if v is not None)
    diffusion = GaussianDiffusion(network(read, weights), **read.process)
    far = torch.full((1, 3, 8, 8), 5.0)
    with torch.no_grad():
        predicted = diffusion.denoise(far, diffusion.schedule.level(5)).x0
    assert bool((predicted.abs() <= 1).all()) == clips


@pytest.mark.parametrize("name", ["pytorch-ddpm", "ddpm-torch"])
def test_a_step_of_adam_is_the_one_that_the_peer_would_make(shared: Path, name: str) -> None:
    theirs, read = content(shared, name), read_file(shared, name)
    state = theirs["net_model" if name == "pytorch-ddpm" else "model"]
    peer = {k: torch.nn.Parameter(v.clone(), requires_grad=k != TABLE) for k, v in state.items()}
    peer_adam = torch.optim.Adam(peer.values())
    peer_adam.load_state_dict(theirs["optim" if name == "pytorch-ddpm" else "optimizer"])

    assert read.weights is not None
    model = network(read, read.weights)
    options = read.training
    adam = torch.optim.Adam(
        model.parameters(),
        lr=options["learning_rate"],
        betas=options["adam_betas"],
        eps=options["adam_eps"],
        weight_decay=options["weight_decay"],
    )
    load_optimizer_tensors(adam, model, read.optimizer)

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        trained = {k: v.detach() for k, v in tensors.items() if k != TABLE}
        return rename_unet(model, trained, NAMINGS[name]).weights

    generator = torch.Generator().manual_seed(1)
    for parameter in peer.values():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = renamed({k: p.grad for k, p in peer.items() if p.grad is not None})
    for key, parameter in model.named_parameters():
        parameter.grad = gradients[key]
    peer_adam.step()
    adam.step()
    after = renamed(dict(peer))
    moved = 0.0
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), after[key], rtol=1e-6, atol=1e-8)
        moved = max(moved, float((parameter.detach() - read.weights[key]).abs().max()))
    assert moved > 1e-4


def _changed(name: str, state: dict[str, Any], how: str) -> tuple[dict[str, Any], str]:
    """Break a checkpoint, and return the key that the message must name."""
    part = {"pytorch-ddpm": "net_model", "ddpm-torch": "model", "simple-ddpm": None}[name]
    weights = state if part is None else state[part]
    conv = next(k for k, v in reversed(weights.items()) if v.ndim == 4 and v.shape[2] == 3)
    if how == "missing":
        del weights[conv]
        return state, conv
    if how == "left over":
        weights["surplus.weight"] = torch.zeros(3)
        return state, "surplus.weight"
    if how == "another shape":
        weights[conv] = weights[conv][:, :-1]
        return state, f"{conv if part is None else 'conv_out.weight'}: shape"
    assert how == "another entry"
    state["surprise"] = [1, 2]
    return state, "surprise"


WAYS = ("missing", "left over", "another shape", "another entry")
BROKEN = [(name, how) for name in FILES for how in WAYS]
BROKEN.remove(("simple-ddpm", "another entry"))  # the file holds weights alone


@pytest.mark.parametrize(("name", "how"), BROKEN)
def test_broken_files_are_refused_in_a_line_that_names_the_key(
    shared: Path, tmp_path: Path, name: str, how: str
) -> None:
    state, key = _changed(name, content(shared, name), how)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError) as error:
        read_foreign(tmp_path / "broken.pt", FILES[name][2])
    assert "\n" not in str(error.value)
    assert key in str(error.value)
    assert str(tmp_path / "broken.pt") in str(error.value)


def test_an_optimizer_of_another_network_is_refused(shared: Path, tmp_path: Path) -> None:
    state = content(shared, "ddpm-torch")
    state["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="69 parameters, the weights are 70; left over"):
        read_foreign(tmp_path / "a.pt", FILES["ddpm-torch"][2])
    state = content(shared, "ddpm-torch")
    for entry in state["optimizer"]["state"].values():
        entry["momentum_buffer"] = entry.pop("exp_avg")
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="is not Adam: left over: momentum_buffer; missing"):
        read_foreign(tmp_path / "b.pt", FILES["ddpm-torch"][2])


def test_moments_without_the_weights_they_are_of_are_left(shared: Path, tmp_path: Path) -> None:
    state = content(shared, "pytorch-ddpm")
    del state["net_model"]
    torch.save(state, tmp_path / "a.pt")
    read = read_foreign(tmp_path / "a.pt")
    assert (read.weights, list(read.averages), read.optimizer) == (None, [0.9999], {})
    bare = content(shared, "pytorch-ddpm")["net_model"]
    torch.save(bare, tmp_path / "b.pt")
    notes = read_foreign(tmp_path / "b.pt", {"image_size": 8, "ema_decay": 0.9}).notes
    assert any("no average in the file" in note for note in notes)


def test_another_table_of_sinusoids_is_refused(shared: Path, tmp_path: Path) -> None:
    state = content(shared, "pytorch-ddpm")
    state["net_model"][TABLE] = state["net_model"][TABLE].roll(1, 0)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not the table of sinusoids"):
        read_foreign(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["ddpm-torch", "simple-ddpm"])
def test_a_size_that_no_file_says_must_be_given(shared: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        read_foreign(file_of(shared, name))


def test_weights_of_several_gpus_lose_their_prefix(shared: Path, tmp_path: Path) -> None:
    state = content(shared, "ddpm-torch")
    state["model"] = {f"module.{k}": v for k, v in state["model"].items()}
    state["scheduler"] = None
    torch.save(state, tmp_path / "a.pt")
    one = read_foreign(tmp_path / "a.pt", FILES["ddpm-torch"][2])
    other = read_file(shared, "ddpm-torch")
    assert one.weights is not None
    assert other.weights is not None
    assert one.step == other.step
    for key, tensor in other.weights.items():
        assert torch.equal(one.weights[key], tensor)
    assert one.optimizer.keys() == other.optimizer.keys()


def test_variances_that_ddpm_torch_cannot_sample_leave_the_network_alone(
    shared: Path, tmp_path: Path
) -> None:
    state = content(shared, "ddpm-torch")["model"]
    for leaf in ("weight", "bias"):
        state[f"out_conv.2.{leaf}"] = torch.cat([state[f"out_conv.2.{leaf}"]] * 2)
    torch.save(state, tmp_path / "a.pt")
    read = read_foreign(tmp_path / "a.pt", {"image_size": 8})
    assert read.process is None
    assert any("learned variances" in note for note in read.notes)


def test_a_network_behind_a_space_to_depth_becomes_one_of_patches(
    shared: Path, tmp_path: Path
) -> None:
    state = content(shared, "ddpm-torch")["model"]
    first, last = state["in_conv.weight"], state["out_conv.2.weight"]
    state["in_conv.weight"] = torch.cat([first] * 4, 1)
    state["out_conv.2.weight"] = torch.cat([last * k for k in range(4)])
    state["out_conv.2.bias"] = torch.cat([state["out_conv.2.bias"]] * 4)
    bare = tmp_path / "bare.pt"
    torch.save(state, bare)
    torch.save({f"_model.{k}": v for k, v in state.items()}, tmp_path / "a.pt")
    wrapped = read_foreign(tmp_path / "a.pt", {"image_size": 16})
    plain = read_foreign(bare, {"image_size": 8})
    assert wrapped.weights is not None
    assert plain.weights is not None
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 30])
    expected = F.pixel_shuffle(network(plain, plain.weights)(F.pixel_unshuffle(x, 2), t), 2)
    torch.testing.assert_close(network(wrapped, wrapped.weights)(x, t), expected)


def converted(shared: Path, tmp_path: Path, name: str) -> Path:
    run = tmp_path / "run"
    flags = [w for k, v in FILES[name][2].items() for w in (f"--{k.replace('_', '-')}", str(v))]
    assert main(["convert", str(file_of(shared, name)), str(run), *flags]) == 0
    return run


@pytest.mark.parametrize("name", FILES)
def test_converted_runs_give_the_published_outputs(
    shared: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = converted(shared, tmp_path, name)
    said = capsys.readouterr().out
    assert f"recognised: {name}" in said
    for note in read_file(shared, name).notes:
        assert note.split(" (")[0] in said
    expected = load_file(file_of(shared, name).parent / "expected.safetensors")
    sets = {"model": "model"} | ({"ema": "ema"} if "ema/out_f32" in expected else {})
    for theirs, ours in sets.items():
        loaded = load_run(run, weights=ours)
        out = loaded.diffusion.model(expected["in/x"], expected.get("in/t", torch.zeros(2)))
        torch.testing.assert_close(out, expected[f"{theirs}/out_f32"], rtol=1e-4, atol=2e-5)
    images = loaded.diffusion.sample(2, num_steps=2)
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all()


@pytest.mark.every(3)
@pytest.mark.parametrize("name", FILES)
def test_training_goes_on_and_lowers_the_loss(shared: Path, tmp_path: Path, name: str) -> None:
    run = converted(shared, tmp_path, name)
    read = read_file(shared, name)
    loaded = load_run(run, weights="model")
    ramp = torch.linspace(0, 255, 8)
    images = torch.stack([ramp.roll(k).expand(3, 8, 8) for k in range(8)]).to(torch.uint8)

    def loss(diffusion: GaussianDiffusion) -> float:
        diffusion.train()  # batch normalisation sees the batch, as in training
        torch.manual_seed(0)  # dropout
        generator = torch.Generator().manual_seed(0)
        t = torch.arange(1, 9) * (diffusion.timesteps // 8)
        noise = torch.randn((8, 3, 8, 8), generator=generator)
        with torch.no_grad():
            return float(diffusion(images, t=t, noise=noise))

    before = loss(loaded.diffusion)
    config = {
        "batch_size": 8,
        "progress": False,
        "sample_every": 0,
        "val_every": 0,
        "mixed_precision": "no",
    }
    trainer = Trainer(
        loaded.diffusion,
        images,
        output_dir=run,
        max_steps=read.step + 40,
        device="cpu",
        **{**read.training, **config, "learning_rate": 3e-3},  # theirs is for longer runs
        override=True,
    )
    trainer.train()
    assert trainer.step == read.step + 40
    after = load_run(run, weights="model")
    assert after.step == read.step + 40
    assert loss(after.diffusion) < 0.9 * before
    if read.optimizer:
        saved = load_tensors(after.checkpoint / "optimizer.safetensors")
        counted = {int(v) for k, v in saved.items() if k.endswith("|step")}
        assert counted == {read.step + 40}  # Adam went on counting from the imported state


@pytest.mark.parametrize("name", FILES)
def test_every_reader_recognises_its_own_files_alone(shared: Path, name: str) -> None:
    from ddpm_lib.interop.opening import open_foreign

    opened = open_foreign(file_of(shared, name))
    assert [reader.name for reader in READERS.values() if reader.recognises(opened)] == [name]
