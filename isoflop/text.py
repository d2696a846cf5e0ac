"""Numbers and units as text: one format each for counts, FLOPs, percents, times, GPU-hours, money
and bytes.
"""

from __future__ import annotations

import math
import time

MIN_SHOWN_HOURS = 0.001
MIN_SHOWN_MONEY = 0.01
MIN_SHOWN_PERCENT = 0.001
_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def count_text(value: float, *, padded: bool = True) -> str:
    """Return parameters or tokens in three digits: 812, 147K, 37.6M, 2.10B (2.1B unless padded).

    NaN is `-`, infinity is `unbounded`.
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "unbounded"
    for limit, unit in _COUNT_UNITS:
        if 0.9995 * limit <= value < 1e18:
            scaled = value / limit
            return (_three_digits(scaled) if padded else f"{scaled:.3g}") + unit
    return f"{value:.3g}"


def flops_text(value: float, digits: int = 4) -> str:
    """Return training FLOPs without padding: 1.8e19 for 1.8e+19, 3e20 for 3.000e20."""
    mantissa, exponent = f"{value:.{digits}g}", 0
    if "e" in mantissa:
        mantissa, power = mantissa.split("e")
        exponent = int(power)
    return f"{mantissa}e{exponent}" if exponent else mantissa


def percent_text(share: float, digits: int = 3, *, signed: bool = False) -> str:
    """Return a share as a percentage in three digits without padding: 95% for 0.95, 99.9% for
    0.999, 0.3% for 0.003; +0.3% if signed.

    Whole digits are never cut: 1,234%. A share that would print as zero is <0.001%, or +0% if
    signed.
    """
    percent, sign = 100 * share, "+" if signed else ""
    if 0 < abs(percent) < MIN_SHOWN_PERCENT:
        return f"{percent:{sign}.0f}%" if signed else f"<{MIN_SHOWN_PERCENT:g}%"
    if abs(percent) >= 10**digits - 0.5:
        return f"{percent:{sign},.0f}%"
    return f"{percent:{sign}.{digits}g}%"


def hours_text(hours: float) -> str:
    """Return hours without their unit, in three digits or more: 0.0371, 4.20, 1,084; <0.001 below
    that.
    """
    if 0 < hours < MIN_SHOWN_HOURS:
        return f"<{MIN_SHOWN_HOURS:g}"
    if 0 < hours < 0.9995:
        return f"{hours:.3g}"
    return _three_digits(hours)


def gpu_hours_text(hours: float) -> str:
    """Return GPU-hours with their unit: 0.0371 GPU-hours, 1,084 GPU-hours."""
    return f"{hours_text(hours)} GPU-hours"


def money_text(amount: float) -> str:
    """Return an amount in the currency of the profile: 0.34, 12.50, 9,626; <0.01 below that."""
    if 0 < amount < MIN_SHOWN_MONEY:
        return f"<{MIN_SHOWN_MONEY:g}"
    return f"{amount:.2f}" if 0 < amount < 99.995 else f"{amount:,.0f}"


def bytes_text(value: float) -> str:
    """Return bytes in three digits, in decimal units: 812 B, 37.6 MB, 68.1 GB, 1.48 TB."""
    for limit, unit in _BYTE_UNITS:
        if value >= 0.9995 * limit:
            return f"{_three_digits(value / limit)} {unit}"
    return f"{value:.0f} B"


def duration_text(seconds: float) -> str:
    """Return a duration in its natural unit: <1 s, 40 s, 12 min, 3.4 h or 5.1 days."""
    if 0 < seconds < 0.5:
        return "<1 s"
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def clock_text(seconds_from_now: float) -> str:
    """Return the local time in some seconds: Thu 14:05, or with its date from six days on."""
    then = time.localtime(time.time() + seconds_from_now)
    return time.strftime("%a %H:%M" if seconds_from_now < 6 * 86400 else "%Y-%m-%d %H:%M", then)


def _three_digits(value: float) -> str:
    """Return a number from 1 up in three digits, or its whole digits if they are more."""
    digits = 2 if 0 < value < 9.995 else 1 if 0 < value < 99.95 else 0
    return f"{value:,.{digits}f}"
