"""Size of a network in numbers: parameters, multiplications, and memory in training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ddpm_lib.nn.attention import Attention

_MIB = 2**20


class SizedNetwork(Protocol):
    """A network of the kind of `Unet`: `type(model)(**model.config)` makes the same one."""

    config: dict[str, Any]
    channels: int
    dims: int

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit."""


@dataclass(frozen=True)
class Summary:
    """What a network costs. Memory is in bytes; printing it gives MiB.

    Args:
        parameters: Number of parameters.
        macs: Multiply-accumulate operations per image, forward, in convolutions, linear layers and
            attention.
        image_size: Spatial size of one image.
        batch_size: Number of images that `activation_bytes` is for.
        state_bytes: Weights, gradients, two Adam moments and one EMA copy.
        activation_bytes: Tensors that the forward pass keeps for the backward pass.
        precision: "float32", or "bf16" for activations under autocast; state is float32 in any
            case.
    """

    parameters: int
    macs: int
    image_size: tuple[int, ...]
    batch_size: int
    state_bytes: int
    activation_bytes: int
    precision: str = "float32"

    @property
    def training_bytes(self) -> int:
        """Estimated memory of training, without the temporary buffers of the kernels."""
        return self.state_bytes + self.activation_bytes

    def __str__(self) -> str:
        """Write the summary as a small table."""
        size = "×".join(map(str, self.image_size))
        return "\n".join(
            (
                f"parameters             {self.parameters:>15,}",
                f"MACs per {size + ' image':<13} {self.macs:>15,}",
                f"training memory ({self.precision} estimate)",
                f"  weights, gradients, Adam, EMA {self.state_bytes / _MIB:>10,.1f} MiB",
                (
                    f"  activations, batch size {self.batch_size:<5}"
                    f" {self.activation_bytes / _MIB:>11,.1f} MiB"
                ),
                f"  together                      {self.training_bytes / _MIB:>10,.1f} MiB",
            )
        )


def summarize(
    model: SizedNetwork,
    image_size: int | Sequence[int],
    batch_size: int = 1,
    precision: Literal["float32", "bf16"] = "float32",
    eager_on_cuda: bool = False,
) -> Summary:
    """Count by running a copy of the network on the meta device: nothing is computed and no memory
    is used.

    Multiplications are counted by hooks on convolutions, linear layers and attention (2·n²·width
    for n positions); activations are the distinct tensors autograd saves, under bf16 autocast a
    little more than half of those of float32.

    Args:
        model: The network.
        image_size: One size for all directions, or one per direction.
        batch_size: Number of images in the batch.
        precision: Of the activations.
        eager_on_cuda: Whether they are those of torch's own operations on CUDA, uncompiled, where
            autocast keeps normalisations in float32: about half as much again in bf16.

    Returns:
        The counts.
    """
    model.check_size(image_size)
    sizes = (image_size,) * model.dims if isinstance(image_size, int) else tuple(image_size)
    with torch.device("meta"):
        copy = _copy_of(model)
        x, t = torch.zeros(batch_size, model.channels, *sizes), torch.zeros(batch_size)
    macs = _count_macs(copy, x[:1], t[:1])
    if precision == "bf16":
        activations = _count_saved_bytes_in_bf16(model, x.shape, eager_on_cuda)
    else:
        activations = _count_saved_bytes(copy, x, t)
    parameters = sum(p.numel() for p in copy.parameters())
    return Summary(
        parameters=parameters,
        macs=macs,
        image_size=sizes,
        batch_size=batch_size,
        state_bytes=5 * 4 * parameters,
        activation_bytes=activations,
        precision=precision,
    )


def _copy_of(model: SizedNetwork) -> nn.Module:
    """Make a network of the same shape, with weights of its own, on the current device."""
    network: Any = type(model)
    return network(**model.config)


def _count_macs(model: nn.Module, x: Tensor, t: Tensor) -> int:
    """Count multiply-accumulate operations of one forward pass."""
    counts: list[int] = []

    def per_output(module: nn.Module, args: Any, output: Tensor) -> None:
        # A linear layer and a convolution both do one row of weights per output element.
        weight = module.weight
        assert isinstance(weight, Tensor)
        counts.append(output.numel() * math.prod(weight.shape[1:]))

    def attention(module: nn.Module, args: Any, output: Tensor) -> None:
        positions = math.prod(output.shape[2:])
        counts.append(2 * output.shape[0] * positions**2 * output.shape[1])

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(per_output)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention)
    with torch.no_grad():
        model(x, t)
    return sum(counts)


def saved_bytes(
    forward: Callable[[], Tensor],
    network: nn.Module,
    ignored: Callable[[Tensor], bool] = lambda tensor: False,
) -> int:
    """Run a forward pass and add up the distinct storages that autograd keeps from it, the
    network's weights not counted.
    """
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and not ignored(tensor):
            saved[storage._cdata] = (
                storage  # held, so that its address is not used again within this pass
            )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(storage.nbytes() for storage in saved.values())
    del output
    return total


def _count_saved_bytes(model: nn.Module, x: Tensor, t: Tensor) -> int:
    """Add up what one forward pass keeps for the backward pass."""

    def of_the_formula(tensor: Tensor) -> bool:
        # The meta device attends by the textbook formula and keeps n×n matrices, which no real
        # device does in float32.
        square = tensor.ndim in (3, 4) and tensor.shape[-2] == tensor.shape[-1] > max(x.shape[2:])
        return x.device.type == "meta" and square

    return saved_bytes(lambda: model(x, t), model, of_the_formula)


def _count_saved_bytes_in_bf16(model: SizedNetwork, shape: Sequence[int], cuda: bool) -> int:
    """Count under autocast, which the meta device knows nothing of and tensors that only look like
    the CPU's do. Autocast of CUDA leaves normalisations in float32, that of CPUs does not.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind = "cuda" if cuda else "cpu"
    with FakeTensorMode(), torch.device(kind):
        copy = _copy_of(model)
        x, t = torch.zeros(*shape), torch.zeros(shape[0])
        with _autocast_of(kind):
            return _count_saved_bytes(copy, x, t)


@contextlib.contextmanager
def _autocast_of(kind: str) -> Iterator[None]:
    """Autocast to bf16 as a kind of device does it, whether there is one or not."""
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])
        torch.clear_autocast_cache()
