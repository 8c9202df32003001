"""What a run means: from its records to a judgement with its evidence, in words, and what to do
next; loads no torch.

`judge(read_records(run))` judges, `words` says it, and `next_steps` says what follows.
"""

from ddpm_lib.runs.verdict.findings import GOES_WELL, KINDS, Evidence, Finding, Verdict
from ddpm_lib.runs.verdict.judging import judge, judge_readings
from ddpm_lib.runs.verdict.notes import row_note, row_notes
from ddpm_lib.runs.verdict.proposals import ELLIPSIS, Proposal, next_steps
from ddpm_lib.runs.verdict.readings import Readings
from ddpm_lib.runs.verdict.sentences import headline, plain, words
from ddpm_lib.runs.verdict.symptoms import symptom_line

__all__ = [
    "ELLIPSIS",
    "GOES_WELL",
    "KINDS",
    "Evidence",
    "Finding",
    "Proposal",
    "Readings",
    "Verdict",
    "headline",
    "judge",
    "judge_readings",
    "next_steps",
    "plain",
    "row_note",
    "row_notes",
    "symptom_line",
    "words",
]
