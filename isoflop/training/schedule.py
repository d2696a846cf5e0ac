"""Learning-rate schedule: warm-up, stable, linear decay (WSD)."""

from __future__ import annotations


def wsd(step: int, steps: int, warmup: float, decay: float, min_ratio: float = 0.0) -> float:
    """Return the factor on the peak learning rate for update `step` of `steps` (from 0).

    `warmup` and `decay` up to 1 are fractions of `steps`, above 1 they are counts. The rate rises
    linearly from 0 over the warm-up, stays, and falls linearly towards `min_ratio`, which it would
    reach at `steps`. A decay takes at least two steps if they fit: with one step no update would
    have less than the peak.
    """
    rising, falling = _step_count(warmup, steps), _step_count(decay, steps)
    if decay > 0 and falling < 2:
        falling = min(2, steps - rising)
    if step < rising:
        return step / rising
    if step > steps - falling:
        return min_ratio + (1 - min_ratio) * (steps - step) / falling
    return 1.0


def _step_count(length: float, steps: int) -> int:
    return int(length * steps) if length <= 1 else int(length)
