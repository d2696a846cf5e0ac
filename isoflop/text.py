"""Numbers and units as text: the one way in which isoflop prints counts, FLOPs and times."""

from __future__ import annotations

import math
import time


def count_text(value: float) -> str:
    """Return parameters or tokens in three digits: 812, 147K, 37.6M, 2.11B; `-` for NaN."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "unbounded"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if 0.9995 * limit <= value < 1e18:
            scaled = value / limit
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.3g}"


def flops_text(value: float, digits: int = 4) -> str:
    """Return training FLOPs without padding: 1.8e19 for 1.8e+19, 3e20 for 3.000e20."""
    mantissa, exponent = f"{value:.{digits}g}", 0
    if "e" in mantissa:
        mantissa, power = mantissa.split("e")
        exponent = int(power)
    return f"{mantissa}e{exponent}" if exponent else mantissa


def duration_text(seconds: float) -> str:
    """Return a duration in its natural unit: 40 s, 12 min, 3.4 h or 5.1 days."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def clock_text(seconds_from_now: float) -> str:
    """Return a local time: Thu 14:05, or with its date if more than six days away."""
    then = time.localtime(time.time() + seconds_from_now)
    return time.strftime("%a %H:%M" if seconds_from_now < 6 * 86400 else "%Y-%m-%d %H:%M", then)
