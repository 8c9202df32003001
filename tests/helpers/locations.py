"""Where the folders of the repository are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
FAULTS = ROOT / "tests" / "faults"
FIXTURES = ROOT / "tests" / "fixtures"
