import math

import pytest
import torch

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.schedules import Schedule
from ddpm_lib.weighting import WEIGHTINGS, plot_weightings
from process_tools import TinyNet

SNR = Schedule.make("linear", 50).snr[1:]


def weights(name: str, **options: float) -> torch.Tensor:
    return WEIGHTINGS[name](**options)(SNR)


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_vlb_is_the_bound_of_the_small_variance(parametrization: str, schedule: str) -> None:
    options = {
        "image_size": 4,
        "timesteps": 20,
        "schedule": schedule,
        "parametrization": parametrization,
    }
    by_weight = GaussianDiffusion(TinyNet(), weighting="vlb", **options)
    by_terms = GaussianDiffusion(TinyNet(), loss="vlb", **options)
    images, noise = torch.rand(19, 3, 4, 4).double(), torch.randn(19, 3, 4, 4).double()
    for d in (by_weight, by_terms):
        d.double()
    draws = {"t": torch.arange(2, 21), "noise": noise, "reduction": "none"}
    torch.testing.assert_close(
        by_weight(images, **draws), by_terms(images, **draws), rtol=1e-8, atol=1e-12
    )


def test_identities() -> None:
    sigma, data = SNR**-0.5, 0.5
    torch.testing.assert_close(weights("edm"), (sigma**2 + data**2) / (sigma * data) ** 2)
    torch.testing.assert_close(weights("edm", sigma_data=1.0), weights("snr_plus_one"))
    soft, hard = weights("soft_min_snr"), weights("min_snr")
    assert ((soft < hard) & (soft >= hard / 2)).all()
    # The sigmoid of Kingma & Gao is the bound times S(b − λ), and soft min-SNR is L_simple times
    # the same.
    gate = torch.sigmoid(math.log(5) - SNR.log())
    torch.testing.assert_close(soft, 5 * gate * SNR / 5)
    bound = weights("vlb") * 2 * math.log(2)
    torch.testing.assert_close(weights("sigmoid", b=math.log(5))[1:], (bound * gate)[1:])


def test_edm_weighs_its_network_uniformly() -> None:
    d = GaussianDiffusion(
        TinyNet(),
        image_size=4,
        timesteps=20,
        schedule="karras",
        parametrization="edm",
        weighting="edm",
    )
    torch.testing.assert_close(d.loss_weights[1:], torch.ones(20).double())


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_weightings(SNR, ["simple", "min_snr", "sigmoid"])
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["simple", "min_snr", "sigmoid"]
    assert len(plot_weightings(SNR, on="x0").axes[0].get_lines()) == len(WEIGHTINGS)
    d = GaussianDiffusion(
        TinyNet(), image_size=4, timesteps=50, schedule="linear", learn_uncertainty=True
    )
    d.uncertainty.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    learned = d.effective_weights()
    u = d.uncertainty(SNR.log().float()).double().detach()
    torch.testing.assert_close(learned, weights("min_snr") * torch.exp(-u), rtol=1e-5, atol=0)
    lines = plot_weightings(SNR, [], extra={"learned": learned}, on="x0").axes[0].get_lines()
    torch.testing.assert_close(
        torch.tensor(lines[0].get_ydata(), dtype=torch.float64), learned / learned.mean()
    )
    with pytest.raises(ValueError, match="on must be"):
        plot_weightings(SNR, on="v")
    with pytest.raises(ValueError, match=r"'short' must have one entry per SNR \(50\)"):
        plot_weightings(SNR, extra={"short": SNR[1:]})
