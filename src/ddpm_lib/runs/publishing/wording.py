"""Numbers in the words of a card."""

from __future__ import annotations


def amount(value: float, digits: int = 4) -> str:
    """Word a number.

    >>> amount(0.0379041), amount(12345.6), amount(6.9e-18), amount(-0.5), amount(2 / 3, 2)
    ('0.0379', '12,350', '0', '−0.5', '0.67')
    """
    if abs(value) < 1e-12:
        return "0"
    text = f"{value:.{digits}g}"
    if abs(value) >= 1000:
        text = f"{float(text):,.0f}"
    return text.replace("-", "−", 1) if value < 0 else text


def span(ends: tuple[float, float], share: bool = False) -> str:
    r"""Word an interval, of numbers or of shares.

    >>> span((0.025, 0.05156)), span((0.0, 0.0741), share=True).replace("\u00a0", " ")
    ('0.025 to 0.0516', '0 % to 7.4 %')
    """
    low, high = (percent(end) if share else amount(end, 3) for end in ends)
    return f"{low} to {high}"


def percent(share: float) -> str:
    r"""Word a share; the space before the sign does not break.

    >>> [percent(share).replace("\u00a0", " ") for share in (0.0741, 0.0, 1.0)]
    ['7.4 %', '0 %', '100 %']
    """
    return f"{amount(float(f'{100 * share:.2g}')) if share < 1 else 100}\u00a0%"


def duration(seconds: float) -> str:
    """Word a time.

    >>> duration(18.4), duration(600), duration(7000), duration(400_000)
    ('18 seconds', '10 minutes', '1.9 hours', '111.1 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"
