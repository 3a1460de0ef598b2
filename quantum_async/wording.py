"""How figures are said, wherever a run is told of."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> counted(1, "unit"), counted(1200, "unit")
        ('1 unit', '1,200 units')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def seconds(value: float) -> str:
    """Return a duration in the unit that suits it.

    Example:
        >>> seconds(2), seconds(0.0125), seconds(3e-05)
        ('2.00 s', '12.5 ms', '30 µs')
    """
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 or not value else f"{value * 1e6:.0f} µs"
