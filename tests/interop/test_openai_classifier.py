"""Noisy classifiers of guided-diffusion: the published numbers, and guidance by them."""

from __future__ import annotations

import pytest
import torch

from ddpm_lib import GaussianDiffusion
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.guidance import ClassLogProb
from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.renaming import openai_trunk_paths
from ddpm_lib.nn import NETWORKS, NoisyClassifier, Unet
from openai_checkpoints import classifier_state, randomised_classifier
from published_networks import PublishedNetwork


@pytest.fixture
def published(shared, tmp_path):
    fixture = PublishedNetwork(shared / "fixtures" / "D_unets", "guided_diffusion_classifier")
    path = tmp_path / "weights.pt"
    torch.save({k: v.float() for k, v in fixture.state.items()}, path)
    return fixture, path


def test_the_published_classifier_gives_its_numbers(published, tmp_path, capsys):
    fixture, path = published
    inputs = fixture.tensors
    found = read_foreign(path, {"head_dim": 16})
    assert (found.format, found.process) == ("openai-classifier", None)
    model = NETWORKS[found.network](**found.network_config).eval()
    model.load_state_dict(found.weights, strict=True)
    torch.testing.assert_close(
        model(inputs["in/x"], inputs["in/t"]), inputs["out_f32"], rtol=1e-4, atol=2e-5
    )
    model.double()
    x = inputs["in/x"].double().requires_grad_()
    out = model(x, inputs["in/t"])
    torch.testing.assert_close(out, inputs["out_f64"], rtol=1e-9, atol=1e-10)
    (out * inputs["probe"]).sum().backward()
    torch.testing.assert_close(x.grad, inputs["grad_x_f64"], rtol=1e-8, atol=1e-10)

    out = tmp_path / "classifier"
    assert main(["convert", str(path), str(out), "--head-dim", "16"]) == 0
    assert f"NoisyClassifier.from_pretrained('{out}')" in capsys.readouterr().out
    again = NoisyClassifier.from_pretrained(out)
    torch.testing.assert_close(
        again(inputs["in/x"], inputs["in/t"]), inputs["out_f32"], rtol=1e-4, atol=2e-5
    )


POSITION = "out.2.positional_embedding"
SMALL = {"num_classes": 3, "image_size": 16, "dim": 32, "head_dim": 16, "groups": 32}


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize(
    "config",
    [
        {"dim_mults": (1, 2, 2), "attention_levels": (2,), "blocks_per_level": 1},
        {"dim_mults": (1, 2), "attention_levels": (1,), "resample": "conv"},
        {"dim_mults": (1, 1), "attention_levels": (), "resample": "pool", "dropout": 0.1},
    ],
)
def test_reading_undoes_writing(tmp_path, pool, config):
    torch.manual_seed(0)
    model = randomised_classifier(**SMALL | config | {"pool": pool})
    torch.save(classifier_state(model), tmp_path / "classifier.pt")
    given = {"image_size": 16, "head_dim": 16, "attention_order": "legacy"}
    given |= {"dropout": config.get("dropout", 0.0)}
    found = read_foreign(tmp_path / "classifier.pt", given)
    read = NoisyClassifier(**found.network_config).eval()
    assert read.config == model.config
    read.load_state_dict(found.weights)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 700])
    torch.testing.assert_close(read(x, t), model(x, t), rtol=0, atol=0)
    assert model(x, t).std() > 0
    assert found.notes == ()


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_shapes_that_fit_several_networks_are_no_guess(tmp_path):
    config = {"dim_mults": (1, 1), "attention_levels": (), "blocks_per_level": 1, "pool": "spatial"}
    torch.save(classifier_state(randomised_classifier(**SMALL | config)), tmp_path / "c.pt")
    with pytest.raises(ConfigError, match=r"allow 3, 1 residual blocks per level"):
        read_foreign(tmp_path / "c.pt", {"head_dim": 16})
    found = read_foreign(tmp_path / "c.pt", {"head_dim": 16, "blocks_per_level": 1})
    assert found.network_config["dim_mults"] == (1, 1)


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("out.2.c_proj.bias"), r"missing: out\.2\.c_proj\.bias"),
        (lambda s: s.update({"out.7.bias": torch.zeros(1)}), r"left over: out\.7\.bias"),
        (
            lambda s: s.update({"out.2.positional_embedding": torch.zeros(3)}),
            r"no network of OpenAI",
        ),
        (
            lambda s: s.update({"out.2.positional_embedding": torch.zeros(32, 8)}),
            r"no classifier of",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, words):
    state = classifier_state(randomised_classifier(**SMALL | {"dim_mults": (1, 2)}))
    change(state)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=words):
        read_foreign(tmp_path / "c.pt", {"head_dim": 16, "image_size": 16})


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_it_guides_sampling_towards_its_class():
    torch.manual_seed(0)
    classifier = randomised_classifier(**SMALL | {"dim_mults": (1, 2), "pool": "adaptive"})
    assert set(openai_trunk_paths(classifier.down)) > {"conv_in", "middle.attn"}
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=16, timesteps=20)
    options = {"sampler": "ddim", "num_steps": 4, "seed": 0}

    def log_prob(images):
        t = torch.zeros(len(images))
        with torch.no_grad():
            return torch.log_softmax(classifier(2 * images - 1, t), 1)[:, 1].mean()

    plain = diffusion.sample(4, **options)
    guided = diffusion.sample(
        4, classifier=ClassLogProb(classifier, 1), classifier_scale=20.0, **options
    )
    assert log_prob(guided) > log_prob(plain)
