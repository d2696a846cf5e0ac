"""Learning-rate schedule: warm-up, stable, linear decay (WSD)."""

from __future__ import annotations


def wsd(step: int, steps: int, warmup: float, decay: float, min_ratio: float = 0.0) -> float:
    """Factor on the peak learning rate for update `step` of `steps` (from 0).

    `warmup` and `decay` up to 1 are fractions of `steps`, above it counts. The rate rises linearly from 0 over the
    warm-up, stays, and falls linearly to `min_ratio`, which it would reach at `steps`. A decay takes at least
    two steps where there is room: with one no update would have less than the peak.
    """
    rising, falling = _count(warmup, steps), _count(decay, steps)
    if decay > 0 and falling < 2:
        falling = min(2, steps - rising)
    if step < rising:
        return step / rising
    if step > steps - falling:
        return min_ratio + (1 - min_ratio) * (steps - step) / falling
    return 1.0


def _count(length: float, steps: int) -> int:
    return int(length * steps) if length <= 1 else int(length)
