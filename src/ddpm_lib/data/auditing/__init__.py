"""Looking at a set of images before training on it: copies, leaks, faults, sizes, values."""

from ddpm_lib.data.auditing.audit_findings import DROPPED, KINDS, Audit, Finding
from ddpm_lib.data.auditing.auditor import audit

__all__ = ["DROPPED", "KINDS", "Audit", "Finding", "audit"]
