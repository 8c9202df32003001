"""What a tuning found, and the table that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.process.sampling_default import SamplingDefault


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        default: The way of sampling that was chosen, with its evidence.
        saved: Its file; None where it was not better than what there was, or another process wrote.
        is_better: Whether it was nearer to the reported half than the library's way with as many
            calls.
    """

    default: SamplingDefault
    saved: Path | None
    is_better: bool

    @property
    def evidence(self) -> dict[str, Any]:
        """What was measured; see docs/tuning.md."""
        return dict(self.default.evidence)

    def table(self) -> str:
        """Return what was reported, as lines."""
        found = self.evidence
        rows = [("way of sampling", "calls", "distance", "95 % interval", "precision", "recall")]
        for row in found["reported"]:
            interval = row["interval"]
            span = "" if interval is None else f"{interval[0]:.4g} … {interval[1]:.4g}"
            shares = ["" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall")]
            rows.append((row["way"], str(row["calls"]), f"{row['distance']:.4g}", span, *shares))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if k == 0 else text.rjust(width)
                for k, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", *self.sentences()])

    def sentences(self) -> list[str]:
        """Say what the table means."""
        found, lines = self.evidence, []
        for name, words in (("same_calls", "as many calls"), ("twice_calls", "twice as many")):
            gain = found["gains"].get(name)
            if gain is None:
                continue
            value, error = gain["value"], gain["error"]
            sure = abs(value) > 1.96 * error
            verdict = "nearer" if value > 0 else "farther"
            odds = "" if sure else ", which chance explains"
            lines.append(
                f"against the library's way with {words}: {verdict} by {abs(value):.3g} ±"
                f" {1.96 * error:.2g}{odds}"
            )
        n, reference = found["num"], found["reference"]
        lines.append(
            f"({n:,} samples, compared in {found['features']} with the {reference['half']:,} of the"
            f" {reference['name']} that nothing was chosen by)"
        )
        return lines
