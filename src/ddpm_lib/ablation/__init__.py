"""Which parts matter: small grids of settings under equal images seen, several seeds each: `ddpm
ablate` and `ablate`.
"""

from __future__ import annotations

from ddpm_lib.ablation.grid import Cell, Grid
from ddpm_lib.ablation.grid_runs import ablate
from ddpm_lib.ablation.report import AblationResult, Outcome

__all__ = ["AblationResult", "Cell", "Grid", "Outcome", "ablate"]
