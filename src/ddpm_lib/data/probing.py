"""Whether a transform draws random numbers, tried on a picture."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np

from ddpm_lib.data.decode import ImageError, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.source import Source
from ddpm_lib.data.transforms import Probe

_TRIED = 64


def draws_numbers(source: Source, spec: DecodeSpec) -> bool:
    """Whether the transform draws random numbers, tried on the first picture that can be read.

    Pictures of a Dataset of the user's are not read in this process; one of noise stands for them.

    Raises:
        TransformError: If it gives no picture, or draws numbers that cannot be repeated.
    """
    probe = Probe(spec.transform)  # type: ignore[arg-type]
    if source.foreign:
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, spec.channels))
        pixels = noise.astype(np.uint8)
        with contextlib.suppress(ImageError):
            fit_array(pixels, replace(spec, transform=probe, value_range=None))
    else:
        for row in range(min(len(source), _TRIED)):
            with contextlib.suppress(ImageError, OSError):
                source.load(row, replace(spec, transform=probe))
            if probe.random is not None:
                break
    return probe.random is not False
