"""Where the library's kernels leave a layer to torch: for who waits for calls of the layer, for
torch.func, for several gradients at once; and that they ask no setting of torch what to compute in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib import Unet
from ddpm_lib.nn.kernels import conv3x3, norm_act
from ddpm_lib.nn.kernels.build import convolution_library, library
from ddpm_lib.nn.kernels.small_conv import _LowConv, _small_gradients

pytestmark = pytest.mark.skipif(
    library() is None or convolution_library() is None, reason="no kernels here"
)
C = 32
Apply = Callable[[Tensor, nn.Module], Tensor]


def map_of(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, C, 16, 16, generator=generator, dtype=torch.float32, device="cpu")
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=["convolution", "normalisation"])
def layer(request: pytest.FixtureRequest) -> tuple[Apply, Apply, nn.Module, str]:
    """Return a layer by the kernel and by torch, its module, and the kernel's name in a graph."""
    torch.manual_seed(1)
    if request.param == "convolution":
        conv = nn.Conv2d(C, C, 3, padding=1)
        return conv3x3, lambda x, m: m(x), conv, "_WinogradBackward"
    norm = nn.GroupNorm(4, C)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm_act, lambda x, m: F.silu(m(x)), norm, "_NormActBackward"


def test_the_kernel_is_what_runs(layer: tuple[Apply, Apply, nn.Module, str]) -> None:
    ours, theirs, module, name = layer
    found = ours(map_of(), module)
    assert type(found.grad_fn).__name__ == name
    torch.testing.assert_close(found, theirs(map_of(), module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_called(way: str, layer: tuple[Apply, Apply, nn.Module, str]) -> None:
    ours, _, module, _ = layer
    calls: list[nn.Module] = []
    handle = getattr(module, way)(lambda m, *_: calls.append(m))
    ours(map_of().requires_grad_(), module).sum().backward()
    assert calls == [module]
    handle.remove()
    ours(map_of().requires_grad_(), module).sum().backward()
    assert calls == [module]


@pytest.mark.parametrize(
    "way",
    [
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
        "register_module_full_backward_hook",
        "register_module_full_backward_pre_hook",
    ],
)
def test_hooks_on_all_modules_are_called(
    way: str, layer: tuple[Apply, Apply, nn.Module, str]
) -> None:
    ours, _, module, _ = layer
    calls: list[nn.Module] = []
    handle = getattr(nn.modules.module, way)(lambda m, *_: calls.append(m))
    try:
        ours(map_of().requires_grad_(), module).sum().backward()
    finally:
        handle.remove()
    assert module in calls


def test_every_convolution_and_norm_of_a_network_can_be_watched() -> None:
    torch.manual_seed(0)
    network = Unet(16, (1, 2), attention_levels=(1,)).to(memory_format=torch.channels_last)
    kinds = (nn.Conv2d, nn.GroupNorm)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    seen: set[str] = set()
    for name, module in layers.items():
        module.register_full_backward_hook(lambda *_, name=name: seen.add(name))
    network(map_of()[:, :3].requires_grad_(), torch.arange(4)).sum().backward()
    assert seen == set(layers)


def test_a_forward_of_ones_own_is_called(layer: tuple[Apply, Apply, nn.Module, str]) -> None:
    ours, _, module, _ = layer
    module.forward = torch.zeros_like  # type: ignore[method-assign]
    assert not ours(map_of(), module).any()


def test_a_norm_of_ones_own_is_called() -> None:
    class Nothing(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x)

    assert not norm_act(map_of(), Nothing(4, C)).any()


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_gradients_by_torch_func(
    names: tuple[str, ...], layer: tuple[Apply, Apply, nn.Module, str]
) -> None:
    ours, theirs, module, _ = layer
    given = {name: module.get_parameter(name).detach() for name in names}

    class Wrapped(nn.Module):
        def __init__(self, function: Apply) -> None:
            super().__init__()
            self.inner, self.function = module, function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x, self.inner)

    def gradients(function: Apply) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            named = {f"inner.{name}": p for name, p in parameters.items()}
            called = torch.func.functional_call(Wrapped(function), named, (map_of(),))
            return called.square().mean()

        return torch.func.grad(loss)(given)

    found, wanted = gradients(ours), gradients(theirs)
    for name in names:
        torch.testing.assert_close(found[name], wanted[name])


def test_layers_of_numbers_inside_of_torch_func(
    layer: tuple[Apply, Apply, nn.Module, str],
) -> None:
    """What is differentiated or mapped comes in only behind them."""
    ours, theirs, module, _ = layer
    factors, x = torch.tensor([1.0, 2.0]), map_of()

    def loss(function: Apply, factor: Tensor) -> Tensor:
        return (factor * function(x, module).detach()).square().mean()

    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        found = transform(lambda f: loss(ours, f))(factors[0])
        torch.testing.assert_close(found, transform(lambda f: loss(theirs, f))(factors[0]))
    found = torch.func.vmap(lambda f: loss(ours, f))(factors)
    torch.testing.assert_close(found, torch.func.vmap(lambda f: loss(theirs, f))(factors))


@pytest.mark.parametrize("name", ["add", "scale"])
def test_conditions_by_torch_func(name: str) -> None:
    torch.manual_seed(0)
    norm, given = nn.GroupNorm(4, C), torch.randn(4, C)

    def loss(value: Tensor, x: Tensor) -> Tensor:
        options = {"add": value} if name == "add" else {"scale": value, "shift": value}
        return norm_act(x, norm, **options).square().mean()

    found = torch.func.grad(loss)(given, map_of())
    leaf = given.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, map_of()), leaf)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_several_gradients_at_once(layer: tuple[Apply, Apply, nn.Module, str]) -> None:
    ours, _, module, _ = layer
    leaf = map_of().requires_grad_()
    leaves = (leaf, *module.parameters())
    y = ours(leaf, module)
    grads = torch.stack([map_of(k) for k in (1, 2, 3)])
    found = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, leaves, grad, retain_graph=True) for grad in grads]
    for a, *b in zip(found, *one_by_one):
        torch.testing.assert_close(a, torch.stack(b), rtol=1e-4, atol=1e-4)


def test_several_gradients_at_once_of_dropout_and_of_small_maps() -> None:
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(4, C), nn.Conv2d(C, C, 3, padding=1)
    leaf = map_of()[:, :, :4, :4].contiguous(memory_format=torch.channels_last).requires_grad_()
    for y in (
        norm_act(leaf, norm, dropout=0.3),
        _LowConv.apply(leaf, conv.weight, conv.bias, _small_gradients),
    ):
        grads = torch.stack([torch.randn_like(y) for _ in range(3)])
        (found,) = torch.autograd.grad(y, leaf, grads, is_grads_batched=True, retain_graph=True)
        wanted = [torch.autograd.grad(y, leaf, grad, retain_graph=True)[0] for grad in grads]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["float64", "bfloat16", "meta"])
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let torch make other tensors than float32 ones on the CPU where nobody says."""
    if request.param == "meta":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(getattr(torch, request.param))
    yield
    torch.set_default_dtype(torch.float32)


def test_torchs_defaults_change_nothing(
    layer: tuple[Apply, Apply, nn.Module, str], setting: None
) -> None:
    ours, theirs, module, _ = layer
    found, wanted = [], []
    for function, results in ((ours, found), (theirs, wanted)):
        leaf = map_of().requires_grad_()
        y = function(leaf, module)
        results += [y, *torch.autograd.grad(y, (leaf, *module.parameters()), map_of(1))]
    for a, b in zip(found, wanted):
        assert (a.dtype, a.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


def test_masks_are_drawn_on_the_cpu_whatever_the_default() -> None:
    norm = nn.GroupNorm(4, C)
    torch.manual_seed(0)
    wanted = norm_act(map_of(), norm, dropout=0.5)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert torch.equal(norm_act(map_of(), norm, dropout=0.5), wanted)


@pytest.mark.parametrize("name", ["add", "scale"])
def test_one_row_of_conditions_is_for_all_samples(name: str) -> None:
    torch.manual_seed(0)
    norm, row = nn.GroupNorm(4, C), torch.randn(1, C, requires_grad=True)

    def result(value: Tensor) -> tuple[Tensor, Tensor]:
        options = {"add": value} if name == "add" else {"scale": value, "shift": value}
        y = norm_act(map_of(), norm, **options)
        return y, torch.autograd.grad(y.square().sum(), row)[0]

    for a, b in zip(result(row), result(row.expand(4, C))):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="size"):
        norm_act(map_of(), norm, add=torch.zeros(3, C))


def test_weights_and_conditions_on_another_device_are_torchs_error() -> None:
    norm = nn.GroupNorm(4, C)
    with pytest.raises((RuntimeError, NotImplementedError)):
        norm_act(map_of(), nn.GroupNorm(4, C, device="meta")).sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        norm_act(map_of(), norm, add=torch.zeros(4, C, device="meta")).sum().item()
