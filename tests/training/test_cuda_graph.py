"""Forward and backward pass as one recorded graph, and the update as another. There is no GPU here:
what is recorded on the CPU is the list of operations, with the memory they work on; replaying does
them again, whatever the host would have decided meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn.conditioning import ClassLabel
from ddpm_lib.nn.kernels import group_norm, weight_passes, winograd
from ddpm_lib.runtime import cuda_graphs
from ddpm_lib.training import optim
from ddpm_lib.training.one_pass import KeptAdam
from ddpm_lib.training.passes import why_not_graphed
from ddpm_lib.training.randomness import StepRandomness
from pretend_cuda import CUDA, leaves, pretended_gpu
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Records operations, and refuses those that ask for a value, as a graph would."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ):
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        for tensor in leaves((args, kwargs or {})):
            if isinstance(tensor, Tensor) and id(tensor) not in self.before:
                self.before[id(tensor)] = tensor, tensor.detach().clone()
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def undo(self) -> None:
        """Give all memory what was there before, as if nothing had been done yet."""
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, out in self.done:
            again = function(*args, **kwargs)
            for old, new in zip(leaves(out), leaves(again), strict=True):
                if isinstance(old, Tensor) and not old.is_set_to(new):
                    old.detach().copy_(new)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let the CPU have graphs; return those that were recorded. No kernels of the library's own,
    whose work no dispatcher sees.
    """
    tapes: list[Tape] = []

    def record(
        function: Callable[[], None], device: torch.device, *, warm_up: bool = True
    ) -> Callable[[], None]:
        for _ in range(3 if warm_up else 0):
            function()
        tape = Tape()
        with tape:
            function()
        if not warm_up:
            tape.undo()
        tapes.append(tape)
        return tape.replay

    monkeypatch.setitem(cuda_graphs.RECORDERS, "cpu", record)
    monkeypatch.setattr(group_norm, "library", lambda: None)
    monkeypatch.setattr(winograd, "convolution_library", lambda: None)
    monkeypatch.setattr(ClassLabel, "validate", lambda *a: None)  # looks at labels on a CPU only
    monkeypatch.setattr(group_norm, "_drops_by_position", lambda x: False)
    monkeypatch.setattr(optim, "OnePassAdam", KeptAdam)
    monkeypatch.setattr(weight_passes, "weights_library", lambda: None)
    return tapes


def run(folder: Path, graphed: bool, **options: Any) -> Trainer:
    callbacks = options.pop("callbacks", ())
    model = {
        "num_classes": 6,
        "class_drop_prob": 0.5,
        "dropout": 0.2,
        "dim_mults": (1,),
        **options.pop("model", {}),
    }
    process = {"time_sampler": "stratified", "offset_noise": 0.1} | options.pop("process", {})
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(
        Unet(dim=8, blocks_per_level=1, **model), image_size=8, timesteps=20, **process
    )
    settings = {"max_steps": 5, "log_every": 1, "compile": False, "horizontal_flip": True}
    return tiny_trainer(
        folder,
        diffusion,
        Shapes(size=8, n=24),
        cuda_graph=graphed,
        callbacks=callbacks,
        **{"device": "cpu"} | settings | options,
    )


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 2},
        {"max_grad_norm": 0.01, "mixed_precision": "bf16"},
        {"process": {"learn_uncertainty": True, "noise_draws": 2}},
        {"optimizer": "muon", "model": {"dim_mults": (1, 2)}},
        {"augment": 0.5, "model": {"augment_dim": 9}},
        {"process": {"time_sampler": "log_normal_sigma"}},
        {"ema_decay": (), "posthoc_ema": (0.1,), "posthoc_every": 2},
    ],
    ids=str,
)
def test_a_replayed_run_is_the_run(
    options: dict[str, Any], tmp_path: Path, recorded: list[Tape]
) -> None:
    for name, graphed in (("eager", False), ("graphed", True)):
        assert run(tmp_path / name, graphed, **options).train().status == "finished"
    assert len(recorded) == (1 if options.get("optimizer") == "muon" else 2)
    assert_same_tensors(final_tensors(tmp_path / "eager"), final_tensors(tmp_path / "graphed"))
    assert curve(tmp_path / "eager") == curve(tmp_path / "graphed")


def test_it_resumes_exactly_also_where_the_run_began_without(
    tmp_path: Path, recorded: list[Tape]
) -> None:
    run(tmp_path / "whole", True).train()
    run(tmp_path / "cut", True, callbacks=[StopAt(2)]).train()
    run(tmp_path / "cut", False, callbacks=[StopAt(3)]).train()
    run(tmp_path / "cut", True).train()
    assert len(recorded) == 6, "passes and updates of three trainings"
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


@pytest.mark.every(2)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_what_is_not_finite_is_kept_out(
    policy: str, tmp_path: Path, recorded: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, spoilt = StepRandomness.noise, []

    def noise(self: StepRandomness, step: int, *args: Any) -> Tensor:
        bad = step == 2 and not spoilt[2:]
        spoilt.extend([step] * bad)
        return real(self, step, *args) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(StepRandomness, "noise", noise)
    for name, graphed in (("eager", False), ("graphed", True)):
        spoilt.clear()
        options = {"on_nonfinite": policy, "save_every": 1}
        assert run(tmp_path / name, graphed, **options).train().status == "finished"
        assert spoilt
    assert_same_tensors(final_tensors(tmp_path / "eager"), final_tensors(tmp_path / "graphed"))


def test_a_gpu_waits_for_nothing_and_has_the_cpu_s_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_LIB_KERNELS", "0")
    options = {"model": {"dropout": 0.0}, "process": {"offset_noise": 0.0}, "log_every": 100}
    options |= {"channels_last": "no", "mixed_precision": "no"}
    run(tmp_path / "cpu", False, **options).train()

    def record(
        function: Callable[[], None], device: torch.device, *, warm_up: bool = True
    ) -> Callable[[], None]:
        assert device == CUDA
        if warm_up:
            function()
        return function

    monkeypatch.setitem(cuda_graphs.RECORDERS, "cuda", record)
    with pretended_gpu(monkeypatch) as gpu:
        trainer = run(tmp_path / "gpu", True, device="cuda", **options)
        trainer.prepare()
        gpu.waits.clear()
        trainer.train()
        often = {k: n for k, n in gpu.waits.items() if n >= 5 and "tensor_files" not in k}
    assert trainer.device == CUDA
    assert not often
    expected, found = final_tensors(tmp_path / "cpu"), final_tensors(tmp_path / "gpu")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("model", "process", "machine", "why"),
    [
        ({"self_condition": True}, {}, {}, "condition 'self_cond' takes decisions"),
        ({"low_res_factor": 2}, {}, {}, "condition 'low_res"),
        ({"gradient_checkpointing": True}, {}, {}, "checkpointing"),
        ({"out_channels": 6}, {"variance": "learned_range"}, {}, "loss='hybrid'"),
        ({}, {"immiscible": True}, {}, "immiscible"),
        ({}, {}, {"device": torch.device("mps")}, "mps has no graphs; it is for cuda"),
        ({}, {}, {"processes": 2}, "2 processes"),
        ({}, {}, {"precision": "fp16"}, "fp16"),
        ({}, {}, {"pulled": True}, "pull_to_start"),
        ({}, {}, {}, None),
        ({"num_classes": 3}, {"learn_uncertainty": True}, {}, None),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_refused_with_its_reason(
    model: Any, process: Any, machine: Any, why: str | None
) -> None:
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, **model)
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=10, **process)
    given = {"device": CUDA, "precision": "bf16", "processes": 1, "pulled": False} | machine
    said = why_not_graphed(diffusion, **given)
    assert (said is None) if why is None else (said is not None and why in said)


def test_a_cpu_is_told_at_the_start(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, tiny_diffusion(), cuda_graph=True, device="cpu")
    with pytest.raises(ConfigError, match=r"cuda_graph=True cannot be here: cpu has no graphs"):
        trainer.train()


def test_a_step_that_asks_for_a_value_says_so(tmp_path: Path, recorded: list[Tape]) -> None:
    trainer = run(tmp_path, True)
    trainer.prepare()
    network, calls = trainer.diffusion.model.middle, []

    def look(module: Any, inputs: Any, output: Tensor) -> None:
        calls.append(output.sum().item())

    network.register_forward_hook(look)
    with pytest.raises(ConfigError, match=r"cannot be recorded.*cuda_graph=True.*_local_scalar"):
        trainer.train()
    assert len(calls) == 3  # while it warms up


def test_recording_warms_up_beside_and_lets_other_threads_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = str(name)

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            events.append("replayed")

    @contextlib.contextmanager
    def within(what: Any, **options: Any) -> Iterator[None]:
        name = getattr(what, "name", "graph")
        events.append(f"in {name} {options.get('capture_error_mode', '')}".strip())
        assert "stream" not in options or options["stream"].name == "cuda:0"
        yield
        events.append(f"out of {name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("usual"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", within)
    replay = cuda_graphs.record_cuda_graph(lambda: events.append("call"), CUDA)
    replay()
    assert events == [
        "cuda:0 waits for usual",
        "in cuda:0",
        *["call"] * 3,
        "out of cuda:0",
        "usual waits for cuda:0",
        "in graph thread_local",
        "call",
        "out of graph",
        "replayed",
    ]
