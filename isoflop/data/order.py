"""Order of samples: a keyed permutation without state, so that a loader's whole state is the step number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.errors import DataError

ROUNDS = 8


@dataclass(frozen=True)
class Order:
    """Which windows each step's batch holds: every epoch its own permutation of `windows`, keyed by `seed`."""

    windows: int
    batch_size: int
    seed: int

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Window numbers (batch_size / ranks,) of a step (from 0); the ranks' parts in turn are the whole batch.

        Raises:
            DataError: a batch that the ranks can't share evenly.
        """
        if self.batch_size % ranks:
            raise DataError(
                f"a batch of {self.batch_size} sequences can't be shared evenly by {ranks} processes"
            )
        part = self.batch_size // ranks
        begin = step * self.batch_size + rank * part
        epochs, positions = np.divmod(np.arange(begin, begin + part), self.windows)
        chosen = np.empty(part, dtype=np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            chosen[mine] = permute(positions[mine], self.windows, (self.seed, int(epoch)))
        return chosen


def permute(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Images of positions under a keyed permutation of range(size).

    A balanced Feistel network on the next even power of two, walked along its cycles until inside the range (Black and
    Rogaway 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(ROUNDS, np.uint64)
    images = np.asarray(positions, dtype=np.uint64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        left, right = images[outside] >> half, images[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        images[outside] = (left << half) | right
        outside = images >= size
    return images.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
