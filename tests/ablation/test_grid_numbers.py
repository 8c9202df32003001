"""Numbers of the table of an ablation."""

import pytest

from ddpm_lib.ablation.grid_report import _spread


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], ""),
        ([0.12345], "0.123"),
        ([3.0, 3.2], "3.10 ± 0.14"),
        ([3.27, 3.2702], "3.2701 ± 0.0001"),
        ([3.2774454, 3.27744541], "3.28 ± 7e-09"),
        ([0.0, 0.0], "0.000 ± 0.000"),
    ],
)
def test_a_mean_has_as_many_digits_as_its_spread_gives_sense(
    values: list[float], words: str
) -> None:
    assert _spread(values) == words
