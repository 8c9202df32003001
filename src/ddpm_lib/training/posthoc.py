"""Post-hoc EMA: power-function averages, from whose snapshots any other length is synthesised after
training.

Karras et al. 2024 ("EDM2"), section 3 and appendix C. The power-function average at time t weights
the weights of time τ by p(τ) = (γ+1) τ^γ / t^{γ+1}: its width grows with t, so that it forgets the
beginning without a warm-up. Its length is named by σ_rel, the standard deviation of p over t. A few
such averages, stored every now and then, span nearly every other one: `combine` finds the linear
combination of snapshots whose profile is closest.

Time counts optimizer steps, θ_k being the weights after step k. The update below makes the weight
of θ_k exactly the integral of p from k − 1 to k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.paths import another
from ddpm_lib.core.spelling import option
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.snapshots import FOLDER, gamma_of


class PostHocAverages:
    """Power-function averages of a network's weights, in float32 on its device; on every rank.

    Args:
        model: The network to follow.
        sigma_rels: Relative widths; empty: nothing is kept.
    """

    def __init__(self, model: nn.Module, sigma_rels: Sequence[float]) -> None:
        self.model, self.sigma_rels = model, tuple(sigma_rels)
        self._gammas = [gamma_of(s) for s in sigma_rels]
        self._averages: list[dict[str, Tensor]] = [
            {name: _exact(tensor).detach().clone() for name, tensor in model.state_dict().items()}
            for _ in sigma_rels
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step 1, 2, …: β = (1 − 1/t)^{γ+1}."""
        if not self._averages:
            return
        now = {name: _exact(tensor).detach() for name, tensor in self.model.state_dict().items()}
        for gamma, average in zip(self._gammas, self._averages):
            weight = 1.0 if step == 1 else -math.expm1((gamma + 1.0) * math.log1p(-1.0 / step))
            moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([average[n] for n in moving], [now[n] for n in moving], weight)
            for name, tensor in now.items():
                if not tensor.is_floating_point():
                    average[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Return all averages under `<sigma_rel>/<name>`."""
        return {
            f"{s}/{k}": v
            for s, average in zip(self.sigma_rels, self._averages)
            for k, v in average.items()
        }

    def restore(self, checkpoint: VerifiedCheckpoint) -> None:
        """Load the averages of a checkpoint.

        Raises:
            ConfigError: If it lacks one: an average that begins in the middle of a run has another
                profile.
        """
        path, state = checkpoint.path, checkpoint.state
        kept = state.training.get("posthoc_ema", [])
        lacking = [s for s in self.sigma_rels if s not in kept]
        if lacking and state.step:
            kept_words = ", ".join(map(str, kept)) or "none"
            raise ConfigError(
                f"{path} has no post-hoc average of sigma_rel {', '.join(map(str, lacking))}, and"
                f" one cannot begin in the middle of a run. Set {option('posthoc_ema')} to what"
                f" this run keeps ({kept_words}), or use {another(checkpoint.run)}."
            )
        saved = checkpoint.read_tensors(FOLDER) if self.sigma_rels and not lacking else {}
        for sigma_rel, average in zip(self.sigma_rels, self._averages):
            for name, tensor in average.items():
                if saved:
                    tensor.copy_(saved[f"{sigma_rel}/{name}"])


def _exact(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in at least float32: in half precision small steps would be
    rounded away.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
