"""The processes of a run: who does which part, and what they tell each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class ProcessState(Protocol):
    """What accelerate's `Accelerator` and `PartialState` say about the processes."""

    @property
    def process_index(self) -> int:
        """Rank of this process."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; the one home of collectives outside DDP.

    Every method but `share` is a collective: it must be called on every rank, in the same order. A
    single process calls nothing of torch.distributed.

    Args:
        rank: This process.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, state: ProcessState) -> Processes:
        """Return the processes that accelerate knows."""
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and speaks."""
        return self.rank == 0

    @property
    def wait_on_device(self) -> bool:
        """Whether collectives run on NCCL, so that the main thread sees nothing of their errors."""
        if self.count == 1:
            return False
        from torch import distributed

        return "nccl" in str(distributed.get_backend())

    def share(self, n: int) -> range:
        """Return this rank's part of 0 … n-1: equal blocks, the last ones shorter or empty."""
        return own_share(n, self.rank, self.count)

    def from_main(self, value: T) -> T:
        """Return the main process's value on every rank."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        answer: T = broadcast_object_list([value])[0]
        return answer

    def all_objects(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, on every rank; they are pickled."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; the argument is not changed."""
        if self.count == 1:
            return tensor.clone()
        from accelerate.utils import reduce

        total: Tensor = reduce(tensor.clone(), reduction="sum")
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, of one shape (n, …), as one of shape (count·n, …)."""
        if self.count == 1:
            return tensor
        from accelerate.utils import gather

        whole: Tensor = gather(tensor)
        return whole

    def on_main(self, function: Callable[[], T]) -> T:
        """Run a function on the main process and return its value on every rank.

        Raises:
            RuntimeError: On the other ranks, where it failed on the main one, saying with what;
                there the error itself is raised.
        """
        if self.count == 1:
            return function()
        value: T | None = None
        failure: Exception | None = None
        if self.is_main:
            try:
                value = function()
            except Exception as error:
                failure = error
        words = f"{type(failure).__name__}: {failure}" if failure is not None else None
        value, words = self.from_main((value, words))
        if failure is not None:
            raise failure
        if words is not None:
            raise RuntimeError(f"The main process failed with {words}")
        return value  # type: ignore[return-value]  # None is a value of T too


def own_share(n: int, rank: int, processes: int) -> range:
    """Return the images 0 … n-1 that a rank makes: equal blocks, the last ones shorter or empty."""
    size = math.ceil(n / processes)
    return range(min(n, rank * size), min(n, (rank + 1) * size))
