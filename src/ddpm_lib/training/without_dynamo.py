"""Optimizers that do not import torch's compiler."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class WithoutDynamo:
    """What torch keeps out of compiled code by decorators whose first call imports torch._dynamo,
    SymPy and Inductor: one to two seconds of every process, which for the most part compiles
    nothing. Put in front of an optimizer, this has the same methods without the decorators.

    >>> class Plain(WithoutDynamo, torch.optim.SGD):
    ...     pass
    >>> len(Plain([torch.nn.Parameter(torch.zeros(2))], lr=0.1).param_groups)
    1
    """

    add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
