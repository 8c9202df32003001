"""The page of a run: report.html, one file without a network, and what else is made of a run's
records for people.
"""

from __future__ import annotations

from ddpm_lib.runs.report.writing import PAGE, write_comparison, write_report

__all__ = ["PAGE", "write_comparison", "write_report"]
