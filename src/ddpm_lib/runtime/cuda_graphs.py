"""CUDA graphs: work on the GPU that is recorded once and launched as a whole from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UP = 3
"""Calls before recording: compiling, cuDNN's choice of algorithms, gradients that are made."""


class Recorder(Protocol):
    """Records what a function does on a device."""

    def __call__(
        self, function: Callable[[], None], device: torch.device, *, warm_up: bool = True
    ) -> Callable[[], None]:
        """Return what does it again, on the same memory; without `warm_up` nothing is done yet."""


def record_cuda_graph(
    function: Callable[[], None], device: torch.device, *, warm_up: bool = True
) -> Callable[[], None]:
    """Call a function three times, then record it as a CUDA graph.

    Recording does nothing itself: what the function would compute is there after the first replay.

    Args:
        function: Works on tensors of the GPU that stay where they are, and asks for no value of
            them.
        device: The GPU.
        warm_up: Whether to call it before; not for one that was called already.

    Returns:
        Replays the graph.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP if warm_up else 0):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Only this thread is watched: those that page-lock batches and save checkpoints go on.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By kind of device."""
