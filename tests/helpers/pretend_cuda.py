"""A GPU that is not there: tensors whose numbers lie on the CPU, which say they are on cuda:0 and
behave so towards CPU tensors.

What a GPU would refuse, operations between devices, raises; what would make the host wait for it is
counted, by the line of the library that asked. So what the library does on CUDA runs without one,
and gives the CPU's numbers. Speed, kernels, streams, memory and reduced precision are not what this
shows.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib.core import keys

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default}


class CudaTensor(torch.Tensor):
    """A tensor whose numbers are in `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        meta = torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, meta, False)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(
        self,
    ) -> torch.device:  # torch itself takes it for "meta", about which it asks no driver
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{function} with a tensor of the pretended GPU, outside of its `with`.")


class PretendedGpu(TorchDispatchMode):
    """Does on the CPU what is asked of its tensors.

    Attributes:
        waits: How often each line of the library made the host wait for the GPU: {"file.py:line
            operation": times}.
        pinned: Addresses of memory that was page-locked; copies from elsewhere wait.
        has_float64: Whether it computes in float64; Apple's do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.pinned: set[int] = set()
        self.indivisible: set[Any] = set()
        self.has_float64 = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function not in self.indivisible:
            with self:  # operations made of others, which inference_mode hands over whole
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.indivisible.add(function)
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, CudaTensor)]
        target = kwargs.get("device")
        if target is None and not ours:
            return function(*args, **kwargs)
        on_gpu = torch.device(target).type in ("cuda", "meta") if target is not None else True
        if function is aten.copy_.default:
            on_gpu = isinstance(args[0], CudaTensor)
        self._check(function, tensors, ours, on_gpu, args, kwargs)
        kwargs |= {"device": torch.device("cpu")} if target is not None else {}
        kwargs |= {"pin_memory": False} if kwargs.get("pin_memory") else {}
        done = function(*mapped(_inner, args), **mapped(_inner, kwargs))
        same = {id(x.inner): x for x in ours}  # in-place operations return what they were given

        def taken(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            if x.dtype == torch.float64 and not self.has_float64:
                raise TypeError(f"{function}: this GPU has no float64 (Apple's have none).")
            return same[id(x)] if id(x) in same else CudaTensor(x)

        return mapped(taken, done) if on_gpu else done

    def _check(
        self, function: Any, tensors: list, ours: list, on_gpu: bool, args: Any, kwargs: Any
    ) -> None:
        if function in COPIES:
            source = args[1] if function is aten.copy_.default else args[0]
            came = isinstance(source, CudaTensor)
            waits_not = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            free = (
                waits_not
                and source.device.type == "cpu"
                and source.untyped_storage().data_ptr() in self.pinned
            )
            if came != on_gpu and not free:
                self.wait(function)
        elif function in READS and ours:
            self.wait(function)
        elif function in INDEXING and ours:
            if not isinstance(args[0], CudaTensor):
                raise RuntimeError(f"{function}: indices on cuda:0 for a tensor on the CPU.")
            if any(
                not isinstance(i, CudaTensor) or i.dtype in (torch.bool, torch.uint8)
                for i in _some(args[1])
            ):
                self.wait(function)
        elif ours and any(x.ndim for x in tensors if not isinstance(x, CudaTensor)):
            devices = [(str(x.device), tuple(x.shape)) for x in tensors]
            raise RuntimeError(
                f"{function}: tensors on several devices in one operation, {devices}."
            )

    def wait(self, function: Any) -> None:
        place, frame = "elsewhere", sys._getframe(1)
        while place == "elsewhere" and frame is not None:
            if "ddpm_lib/" in frame.f_code.co_filename:
                place = f"{frame.f_code.co_filename.rsplit('ddpm_lib/', 1)[-1]}:{frame.f_lineno}"
            frame = frame.f_back
        self.waits[f"{place} {function}"] += 1


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """Change what lists, tuples and dicts hold, however deep; torch's own tree_map takes several
    times as long.
    """
    if isinstance(tree, dict):
        return {name: mapped(change, x) for name, x in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)([mapped(change, x) for x in tree])
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[mapped(change, x) for x in tree])
    return change(tree)


def leaves(tree: Any) -> list[Any]:
    """Return what lists, tuples and dicts hold, however deep."""
    found: list[Any] = []
    mapped(found.append, tree)
    return found


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, CudaTensor) else x


def _some(indices: Any) -> list[Any]:
    return [i for i in indices if i is not None]


class Calls(TorchFunctionMode):
    """Answers the calls of Python that would ask a driver before they come to the dispatcher."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.generators: list[torch.Generator] = []

    def generator(self, device: torch.device | str, index: int, *parts: Any) -> torch.Generator:
        """Make the CPU's generator, whose numbers land on the GPU if it is meant for that."""
        made = _generator("cpu", index, *parts)
        if torch.device(device).type == "cuda":
            self.generators.append(made)
        return made

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = mapped(_with_index, (args, kwargs or {}))
        if function is torch.Tensor.tolist and isinstance(args[0], CudaTensor):
            return args[0].cpu().tolist()
        if (
            function is torch.Tensor.__getitem__
            and isinstance(args[0], CudaTensor)
            and isinstance(args[1], list)
        ):
            return args[0][torch.tensor(args[1])]
        if function is torch.Tensor.pin_memory:
            self.gpu.pinned.add(args[0].untyped_storage().data_ptr())
            return args[0]
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CUDA:
            return function(*args, **{**kwargs, "device": None}).to(CUDA)
        if (
            any(kwargs.get("generator") is g for g in self.generators)
            and kwargs.get("device") is not None
        ):
            drawn = function(*args, **{**kwargs, "device": "cpu"})
            self.gpu.pinned.add(drawn.untyped_storage().data_ptr())
            return drawn.to(CUDA, non_blocking=True)
        return function(*args, **kwargs)


_generator = keys.generator


def _with_index(x: Any) -> Any:
    """Say which GPU is meant, which torch would ask the driver for."""
    return (
        CUDA
        if (isinstance(x, str) and x == "cuda")
        or (isinstance(x, torch.device) and x.type == "cuda")
        else x
    )


@contextlib.contextmanager
def pretended_gpu(monkeypatch: Any) -> Iterator[PretendedGpu]:
    """Let torch believe in a GPU, and do within what is asked of it."""
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "is_bf16_supported": True,
        "empty_cache": None,
        "synchronize": None,
        "mem_get_info": (8 << 30, 8 << 30),
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "get_rng_state": torch.ByteTensor(0),
        "set_rng_state": None,
        "manual_seed_all": None,
        "manual_seed": None,
        "get_device_capability": (9, 0),
        "get_device_name": "pretended",
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *a, value=value, **k: value)
    monkeypatch.setattr(
        torch.accelerator, "is_available", lambda **k: False
    )  # asked by optimizers, about CUDA graphs
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    gpu = PretendedGpu()
    calls = Calls(gpu)
    monkeypatch.setattr(keys, "generator", calls.generator)
    with calls, gpu:
        yield gpu
