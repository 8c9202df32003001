"""From a look at the data, the device and the time there is to the settings of a run, each with its
reason.
"""

from ddpm_lib.training.planning.plan_file import Plan
from ddpm_lib.training.planning.plan_rules import Decision
from ddpm_lib.training.planning.planner import plan

__all__ = ["Decision", "Plan", "plan"]
