"""Networks of one's own join the registry and come back by name; nothing of a folder is run."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ddpm_lib import GaussianDiffusion, Trainer, Unet, load_run, register_network
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.nn import MLP, NETWORKS, networks
from ddpm_lib.nn.networks import build_network, describe_network

SOURCE = """
import torch
from torch import nn
from ddpm_lib import register_network

@register_network("tests/{name}")
class Own(nn.Module):
    def __init__(self, width: int, *, scales=(1.0, 2.0), act="tanh", **more):
        super().__init__()
        assert isinstance(scales, tuple)
        self.channels, self.scales, self.more = 3, scales + (0.5,), more
        self.act = getattr(torch, act)
        self.a, self.b = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x, t, cond=None):
        return self.b(self.act(self.a(x) * sum(self.scales)) + t.view(-1, 1, 1, 1) / 1000)
"""


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch):
    monkeypatch.setattr(NETWORKS, "_entries", dict(NETWORKS._entries))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with a network, which only those who import it know."""
    (tmp_path / "my_networks.py").write_text(SOURCE.format(name="own"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_networks")
    sys.modules.pop("my_networks")


def process(model, **options) -> GaussianDiffusion:
    return GaussianDiffusion(model, **{"image_size": 4, "timesteps": 8, **options})


def test_its_arguments_are_recorded(own):
    model = own.Own(5, scales=(3.0,), depth=2)
    assert model.config == {"width": 5, "scales": (3.0,), "act": "tanh", "depth": 2}
    assert describe_network(own.Own(5)) == {
        "class": "tests/own",
        "config": {"width": 5, "scales": [1.0, 2.0], "act": "tanh"},
    }


def test_it_loads_from_a_folder_once_its_module_is_imported(own, tmp_path):
    saved = process(own.Own(5, act="sin", depth=2))
    folder = saved.save_pretrained(tmp_path / "m")
    loaded = GaussianDiffusion.from_pretrained(folder)
    assert type(loaded.model) is own.Own
    assert loaded.model.more == {"depth": 2}
    assert torch.equal(loaded.sample(2, num_steps=2, seed=1), saved.sample(2, num_steps=2, seed=1))
    assert torch.equal(own.Own.from_pretrained(folder).a.weight, saved.model.a.weight)
    saved.model.save_pretrained(tmp_path / "bare")
    assert torch.equal(own.Own.from_pretrained(tmp_path / "bare").a.weight, saved.model.a.weight)

    code = f"""
from ddpm_lib import GaussianDiffusion
try:
    GaussianDiffusion.from_pretrained({str(folder)!r})
except RuntimeError as error:
    print(error)
import my_networks
print(GaussianDiffusion.from_pretrained({str(folder)!r}).model.a.weight.sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    before, after = done.stdout.splitlines()
    assert "holds the weights of a 'tests/own', which is not registered here" in before
    assert "In Python, import the module with the class first" in before
    assert float(after) == saved.model.a.weight.sum().item()


def test_it_loads_from_a_checkpoint_and_the_run_goes_on(own, tmp_path):
    data = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8).numpy()

    def train(steps: int) -> Trainer:
        torch.manual_seed(0)
        options = {"batch_size": 4, "max_steps": steps, "val_every": 0, "progress": False}
        trainer = Trainer(
            process(own.Own(5)), data, output_dir=tmp_path / "run", device="cpu", **options
        )
        trainer.train()
        return trainer

    train(2)
    state = load_run(tmp_path / "run").run_state
    assert state.model == describe_network(own.Own(5))
    trained = train(3)
    loaded = load_run(tmp_path / "run", weights="model")
    assert loaded.step == 3
    assert torch.equal(loaded.diffusion.model.a.weight, trained.diffusion.model.a.weight)
    del NETWORKS._entries["tests/own"]
    with pytest.raises(CheckpointError, match="a tests/own, which is not registered here"):
        load_run(tmp_path / "run")


def test_nothing_in_a_folder_is_imported_or_run(own, tmp_path):
    folder = process(own.Own(5)).save_pretrained(tmp_path / "m")
    for name in ("my_networks.py", "modeling.py", "__init__.py", "tests.py", "config.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    GaussianDiffusion.from_pretrained(folder)
    for name in ("os.system", "my_networks.Own", "torch.nn.Linear", "__import__", "builtins.exec"):
        config["model"] = {"class": name, "config": {}, "auto_map": {"AutoModel": "modeling.X"}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="which is not registered here"):
            GaussianDiffusion.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_an_unregistered_network_says_how(tmp_path):
    class Net(nn.Module):
        channels = 3

        def forward(self, x, t, cond=None):
            return x

    for save in (process(Net()).save_pretrained, lambda path: networks.describe_network(Net())):
        with pytest.raises(ConfigError, match=r"Net is no registered network.* @register_network"):
            save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_subclass_is_a_network_of_its_own(tmp_path):
    class Wide(Unet):
        def __init__(self, factor: int = 2, **options):
            super().__init__(dim=4 * factor, **options)
            self.factor = factor

    with pytest.raises(ConfigError, match="Wide is no registered network"):
        describe_network(Wide(dim_mults=(1,)))
    register_network(Wide)
    made = Wide(3, dim_mults=(1, 2))
    assert describe_network(made) == {
        "class": "Wide",
        "config": {"factor": 3, "dim_mults": [1, 2]},
    }
    assert made.config["dim"] == 12  # what Unet keeps for itself stays
    process(made).save_pretrained(tmp_path / "m")
    again = Wide.from_pretrained(tmp_path / "m")
    assert (again.factor, again.config) == (3, made.config)
    assert isinstance(Unet.from_pretrained(tmp_path / "m"), Wide)  # a Wide is a Unet
    with pytest.raises(ConfigError, match="holds a Wide, no MLP"):
        MLP.from_pretrained(tmp_path / "m")

    @register_network("tests/plain-child")
    class Child(Unet):  # no constructor of its own: Unet's config is right
        pass

    assert describe_network(Child(dim=8))["config"]["dim"] == 8
    assert type(build_network(describe_network(Child(dim=8)), "here")) is Child


def test_names_that_collide_are_refused():
    with pytest.raises(ConfigError, match=r"'Unet' is already registered, for ddpm_lib\.nn\.unet"):
        register_network("Unet")(type("Other", (nn.Module,), {}))
    with pytest.raises(ConfigError, match="Unet is already registered, as 'Unet'"):
        register_network("tests/unet")(Unet)
    assert register_network(Unet) is Unet


NOT_IMPORTED = """
import pickle, sys
from torch import nn
from ddpm_lib import register_network
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn import NETWORKS, _HOME

def refused(name):
    try:
        register_network(name)(type("Other", (nn.Module,), {}))
    except ConfigError as error:
        return str(error)

known = {**_HOME, "diffusers.UNet2DModel": "functools"}
for name, home in known.items():
    place = f"{home}.{name}" if name in _HOME else "functools.partial"
    assert f"'{name}' is already registered, for {place}." in refused(name), refused(name)
    assert name in NETWORKS
assert {*NETWORKS} == {"Unet", "diffusers.UNet1DModel", *known}
assert not {*_HOME.values()} & {*sys.modules}
for name in _HOME:
    cls = NETWORKS[name]
    assert cls.__name__ == name and _HOME[name] in sys.modules
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert "already registered" in refused(name)
print("all of them")
"""


@pytest.mark.slow
def test_the_names_of_networks_that_nothing_has_imported_are_known_and_taken():
    command = [sys.executable, "-c", NOT_IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "all of them\n", done.stderr


def test_a_cell_of_a_notebook_may_be_run_again():
    def cell():
        @register_network("tests/cell")
        class Net(nn.Module):
            def __init__(self, width: int = 3):
                super().__init__()
                self.width = width

        return Net

    first, second = cell(), cell()
    assert first is not second
    assert NETWORKS["tests/cell"] is second
    assert describe_network(second(4)) == {"class": "tests/cell", "config": {"width": 4}}


@pytest.mark.parametrize("wrong", [3, nn.Linear(1, 1), "", int, lambda: None])
def test_what_is_no_network_class_is_refused(wrong):
    name, cls = (wrong, nn.Identity) if isinstance(wrong, str) else ("tests/wrong", wrong)
    with pytest.raises(ConfigError, match=r"A network is a class|The name of a network"):
        register_network(name)(cls)
    assert "tests/wrong" not in NETWORKS


def test_arguments_that_no_file_holds_are_refused():
    @register_network("tests/callable")
    class Net(nn.Module):
        def __init__(self, act=torch.tanh):
            super().__init__()

    with pytest.raises(ConfigError, match=r"was made with act=the function tanh, which no file"):
        describe_network(Net())
    with pytest.raises(ConfigError, match=r"takes '\*widths' by position only"):

        @register_network("tests/args")
        class Many(nn.Module):
            def __init__(self, *widths):
                super().__init__()

    @register_network("tests/declared")
    class Declared(nn.Module):
        config: dict

        def __init__(self, *widths, depth=0):
            super().__init__()
            self.config = {"depth": len(widths)}

    assert describe_network(Declared(1, 2)) == {"class": "tests/declared", "config": {"depth": 2}}


def test_a_network_of_diffusers_comes_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    saved = process(network, image_size=8).eval()
    loaded = GaussianDiffusion.from_pretrained(saved.save_pretrained(tmp_path / "m"))
    assert type(loaded.model) is diffusers.UNet2DModel
    assert torch.equal(loaded.sample(1, num_steps=2, seed=1), saved.sample(1, num_steps=2, seed=1))
