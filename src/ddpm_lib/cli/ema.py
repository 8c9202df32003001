"""`ddpm ema RUN`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import tyro

from ddpm_lib.cli import options
from ddpm_lib.runs.synthesis import synthesise_ema
from ddpm_lib.training import ConfigError

DESCRIPTION = (
    "Make weight averages of any length after training, from the snapshots of a run that kept"
    " post-hoc averages (ddpm train --posthoc-ema 0.05 0.1). Each is a checkpoint for ddpm sample"
    " and ddpm evaluate."
)


@dataclass(frozen=True, kw_only=True)
class EmaCommand:
    """Options of `ddpm ema`."""

    run: tyro.conf.Positional[str]
    """A run directory."""
    sigma_rel: tuple[float, ...] = (0.1,)
    """Lengths: standard deviation of the weighting in time relative to the step, between 0 and
    0.288.
    """
    step: int | None = None
    """Step at which the average ends, one of the stored ones; default: the newest."""
    output_dir: str | None = None
    """Where to write it, for one length; default: ema/ in the run."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: EmaCommand = options.parse(
        EmaCommand, args, EmaCommand(run=tyro.MISSING), "ddpm ema", DESCRIPTION
    )
    if not command.sigma_rel:
        raise ConfigError("--sigma-rel needs one or more lengths, such as --sigma-rel 0.05 0.1.")
    if command.output_dir is not None and len(command.sigma_rel) > 1:
        raise ConfigError(
            "--output-dir takes one average. Give one --sigma-rel, or leave --output-dir out."
        )
    for sigma_rel in command.sigma_rel:
        made = synthesise_ema(command.run, sigma_rel, command.step, command.output_dir)
        print(
            f"sigma_rel {sigma_rel:g} at step {made.step:,} from {made.snapshots} stored averages, "
            f"profile error {100 * made.profile_error:.2g} % -> {made.path}"
        )
    print(
        f"\nNext:\n  ddpm sample {shlex.quote(str(made.path))}\n  ddpm evaluate"
        f" {shlex.quote(str(made.path))}"
    )
    return 0
