"""What an evaluation was told of how samples are drawn: what guides, and in which precision."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ddpm_lib.nn.lowering import lowered_copy
from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.compiling import compile_regions
from ddpm_lib.runtime.devices import LOW_PRECISION, pick_precision

if TYPE_CHECKING:
    from ddpm_lib.evaluation.metric_options import MetricOptions
    from ddpm_lib.runs.loading import LoadedRun


def named_partner(
    loaded: LoadedRun, options: MetricOptions, device: torch.device
) -> LoadedRun | None:
    """Load what the option `guide_by` names, on the device; None where it names nothing.

    Raises:
        CheckpointError: If there is no such checkpoint.
        ConfigError: If it cannot guide the run.
    """
    if options.guide_by is None:
        return None
    found = load_partner(loaded, options.guide_by)
    place_network(found.diffusion, device, "no", compiled=options.compile)
    partner_of(loaded.diffusion, found.diffusion, options.guide_scale)
    return found


def drawing_network(
    model: nn.Module, options: MetricOptions, device: torch.device
) -> tuple[nn.Module | None, str]:
    """Return a copy of the network for low precision, as likelihoods want the float32 weights, None
    where it draws itself; and the precision, "no", "bf16" or "fp16".
    """
    precision = pick_precision(options.mixed_precision, str(device))
    if precision not in LOW_PRECISION:
        return None, precision
    network = lowered_copy(model, LOW_PRECISION[precision])
    if options.compile:
        compile_regions(network, True, partial(print, file=sys.stderr))
    return network, precision


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in a precision."""
    kind = LOW_PRECISION.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype=kind, enabled=precision in LOW_PRECISION)
