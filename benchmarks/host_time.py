"""What the host does in a training step besides the network: the time that a GPU would wait for.

    python benchmarks/host_time.py --output host_time.json
    python benchmarks/host_time.py --network small --averages 1
    python benchmarks/host_time.py --graph

The network is replaced by one with as many weights of one number each, whose forward and backward
pass are one operation each; what these two take alone is measured too, and taken off. What is left
is the loop: drawing numbers, copying, the loss, clipping, the guard, the optimizer, the averages
and the records. On a CPU too, optimizer and averages go the way that they go on a GPU: torch's
fused Adam and foreach operations, without the kernels of a CPU, and without asking for them.

With --graph passes and updates are replayed by a graph that does nothing, of a network with as many
weights, which are small: what is left is drawing numbers, copying them, and the records.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from common import finish, make_parser, pick_device, print_table
from ddpm_lib import Callback, GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.runtime.cuda_graphs import RECORDERS
from ddpm_lib.training import ema, optim
from ddpm_lib.training.one_pass import KeptAdam


class _Touch(torch.autograd.Function):
    """Return x; give every weight a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul(list(ctx.saved_tensors), 0.5)


class Stub(nn.Module):
    """As many weights as another network has, of one number each."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        ones = [nn.Parameter(torch.ones([1] * p.ndim)) for p in like.parameters()]
        self.weights = nn.ParameterList(ones)
        self._listed = ones  # walking through a ParameterList takes a while

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return _Touch.apply(x, *self._listed)


class Steps(Callback):
    """Takes the processor time of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last = time.thread_time()

    def on_step_end(self, trainer: Any) -> None:
        now = time.thread_time()
        self.times.append(now - self._last)
        self._last = now


def alone(stub: nn.Module, batch: int, steps: int) -> float:
    """Return what the stand-in's own forward and backward pass take, in milliseconds."""
    x, t = torch.randn(batch, 3, 8, 8), torch.ones(batch)
    weights, times = list(stub.parameters()), []
    for _ in range(steps):
        for weight in weights:
            weight.grad = None
        start = time.thread_time()
        torch.autograd.backward(stub(x, t).sum())
        times.append(time.thread_time() - start)
    return 1000 * statistics.median(times)


def replay_nothing(
    function: Callable[[], None], device: torch.device, *, warm_up: bool = True
) -> Callable[[], None]:
    """Record a graph that does nothing; what a warm-up leaves behind is made."""
    if warm_up:
        function()
    return lambda: None


@patch.object(optim, "OnePassAdam", KeptAdam)
@patch.object(ema, "one_pass_fits", lambda *lists: False)
@patch.dict(RECORDERS, {"cpu": replay_nothing})
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__)
    parser.add_argument("--network", default="cifar10", help="the preset whose weights are counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--graph", action="store_true", help="as with cuda_graph")
    parser.add_argument("--averages", type=int, default=1, help="averages of the weights")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.network, asked.batch, asked.steps, asked.rounds = "tiny", 2, 6, 1
    device = pick_device(asked.device)
    network: nn.Module = Stub(Unet.preset(asked.network))
    if asked.graph:
        network = Unet.preset(asked.network, dim=8)
    count = len(list(network.parameters()))
    medians, stand_in = [], []
    for _ in range(asked.rounds):
        clock = Steps()
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                GaussianDiffusion(network, image_size=8, channels=3),
                Shapes(size=8, n=64),
                output_dir=folder,
                max_steps=asked.steps,
                batch_size=asked.batch,
                ema_decay=(0.9999, 0.999, 0.99)[: asked.averages],
                val_every=0,
                sample_every=0,
                save_every=10 * asked.steps,
                log_every=50,
                progress=False,
                report=False,
                compile=False,
                cuda_graph=asked.graph,
                device=str(device),
                callbacks=[clock],
            ).train()
        whole = 1000 * statistics.median(clock.times[len(clock.times) // 4 :])
        stand_in.append(0.0 if asked.graph else alone(network, asked.batch, asked.steps))
        medians.append(whole - stand_in[-1])
    head = (f"host time, {asked.network}", "weights", "ms/step", "")
    rows = [("all but the network", medians), ("the stand-in's passes", stand_in)]
    shown = rows[: 1 if asked.graph else 2]
    print_table(head, [(name, str(count), *middle_of(times)) for name, times in shown])
    return finish(asked, device, milliseconds=medians, stand_in=stand_in, weights=count)


def middle_of(times: Sequence[float]) -> tuple[str, str]:
    """Return a median and its range, in words."""
    return f"{statistics.median(times):.2f}", f"({min(times):.2f} … {max(times):.2f})"


if __name__ == "__main__":
    main()
