"""Self-conditioning and immiscible noise against lucidrains' numbers, in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion
from ddpm_lib.nn import SelfCondition
from ddpm_lib.process.noising import assignment
from ddpm_lib.process.self_conditioning import SelfConditioned
from ddpm_lib.samplers import DDIM, DDPM, sample_loop
from ddpm_lib.schedules import Schedule
from process_tools import GaussianNet, ToyNet, load, replay


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-8, atol=1e-9)


class Selfish(nn.Module):
    """Another network plus D times what it is shown of itself."""

    def __init__(self, net: nn.Module, d: Tensor) -> None:
        super().__init__()
        self.net, self.d = net, d.double()
        self.conditioners = nn.ModuleDict({"self_cond": SelfCondition(d.shape[0], 0.5)})

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        shown = (cond or {}).get("self_cond")
        return self.net(x, t) + (0.0 if shown is None else self.d * shown)


@pytest.mark.parametrize(
    "case", ["cosine_T10", "linear_T50", "linear_T1000_ddim50", "sigmoid_T1000_ddim10"]
)
def test_self_conditioned_sampling(shared: Path, case: str) -> None:
    """The first step sees nothing, each later one the clipped x̂_0 of the step before."""
    data, meta = load(shared, f"C_samplers/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    times = meta["values"].get("times", list(range(schedule.timesteps - 1, -2, -1)))[:-1]
    net = Selfish(GaussianNet(data["mu"], data["s"], schedule, "eps"), data["self_cond_D"])
    shape = data["x_T"].shape
    d = GaussianDiffusion(
        net,
        image_size=tuple(shape[2:]),
        channels=shape[1],
        schedule=schedule,
        parametrization="eps",
    )
    levels, states = [schedule.level(t) for t in [*(t + 1 for t in times), 0]], []
    predict = SelfConditioned(d.denoise, None)
    sampler = DDIM() if "ddim" in case else DDPM()
    start, draw = data["x_T"].double(), replay(data["noise"])
    sample_loop(sampler, start, levels, predict, draw, on_state=lambda i, x: states.append(x))
    close(torch.stack(states), data["f64/self_cond/traj"])


CASES = ["cosine_T50", "linear_T100", "sigmoid_T1000"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["pred_noise", "pred_x0", "pred_v"])
def test_self_conditioned_loss(shared: Path, case: str, name: str) -> None:
    """Everybody sees the estimate, unclipped."""
    data, meta = load(shared, f"B_process/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    d = GaussianDiffusion(
        Selfish(ToyNet(data), data["self_cond_D"]),
        image_size=(4, 2),
        channels=3,
        schedule=schedule,
        parametrization={"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[name],
        weighting="simple",
        clip="none",
    ).eval()
    images = (data["x_start"].double() + 1) / 2
    ours = d(images, t=data["t"] + 1, noise=data["noise"].double(), reduction="none")
    close(ours, data[f"f64/{name}/loss/self_condition"])


@pytest.mark.parametrize("case", CASES)
def test_immiscible_noise(shared: Path, case: str) -> None:
    """It puts the permuted noise into x_t and keeps the other one as target; here it is both."""
    data, meta = load(shared, f"B_process/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    x0, noise, t = data["x_start"].double(), data["noise"].double(), data["t"] + 1
    order = assignment(x0, noise)
    assert order.tolist() == data["f64/immiscible_assignment"].tolist()
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t))
    close(alpha * x0 + sigma * noise[order], data["f64/immiscible_x_t"])
