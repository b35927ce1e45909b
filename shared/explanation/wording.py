"""Durations as people read them."""


def say_s(seconds: float) -> str:
    """``0.0123`` -> '12.3 ms', ``0.18`` -> '180 ms', ``2.3`` -> '2.30 s'."""
    ms = seconds * 1e3
    if abs(ms) < 9.95:
        return f"{ms:.2g} ms" if abs(ms) >= 0.095 else f"{ms:.2f} ms"
    if abs(ms) < 99.5:
        return f"{ms:.0f} ms"
    if abs(ms) < 999.5:
        return f"{ms:.0f} ms"
    return f"{seconds:.2f} s" if abs(seconds) < 100 else f"{seconds:.0f} s"
