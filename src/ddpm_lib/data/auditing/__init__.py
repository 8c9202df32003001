"""Looking at a set of images before training on it: copies, leaks, faults, sizes, values."""

from ddpm_lib.data.auditing.auditor import audit
from ddpm_lib.data.auditing.findings import DROPPED, KINDS, Audit, Finding

__all__ = ["DROPPED", "KINDS", "Audit", "Finding", "audit"]
