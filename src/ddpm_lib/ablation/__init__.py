"""Which parts matter: small grids of settings under equal images seen, several seeds each: `ddpm
ablate` and `ablate`.
"""

from __future__ import annotations

from ddpm_lib.ablation.grid import Cell, Grid
from ddpm_lib.ablation.grid_report import AblationResult, Outcome
from ddpm_lib.ablation.grid_runs import ablate

__all__ = ["AblationResult", "Cell", "Grid", "Outcome", "ablate"]
