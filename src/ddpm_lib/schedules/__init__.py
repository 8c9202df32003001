"""Noise schedules, their levels, and times between them."""

from ddpm_lib.schedules.families import SCHEDULES
from ddpm_lib.schedules.schedule import Schedule

__all__ = ["SCHEDULES", "Schedule"]
