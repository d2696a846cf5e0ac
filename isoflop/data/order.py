"""Order of samples by a stateless keyed permutation: a loader's only state is the step number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.errors import DataError

FEISTEL_ROUNDS = 8


@dataclass(frozen=True)
class SampleOrder:
    """Windows of each step's batch: every epoch is another permutation of them, keyed by `seed`."""

    windows: int
    batch_size: int
    seed: int

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Return the window numbers (batch_size / ranks,) of a step, counted from 0, on a rank.

        The parts of all ranks, one after the other, are the batch.

        Raises:
            DataError: a batch that can't be divided evenly among the ranks.
        """
        if self.batch_size % ranks:
            raise DataError(
                f"a batch of {self.batch_size} sequences can't be divided evenly among {ranks} "
                "processes"
            )
        size = self.batch_size // ranks
        begin = step * self.batch_size + rank * size
        epochs, positions = np.divmod(np.arange(begin, begin + size), self.windows)
        numbers = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            mask = epochs == epoch
            numbers[mask] = permute(positions[mask], self.windows, (self.seed, int(epoch)))
        return numbers


def permute(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Return the images (n,) of positions (n,) under a keyed permutation of range(size).

    It is a balanced Feistel network on the next even power of two, with cycle walking until the
    image is in the range (Black and Rogaway 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([number % 2**64 for number in key]).generate_state(
        FEISTEL_ROUNDS, np.uint64
    )
    images = np.asarray(positions, dtype=np.uint64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        high, low = images[outside] >> half, images[outside] & mask
        for round_key in keys:
            high, low = low, high ^ (_mix(low ^ round_key) & mask)
        images[outside] = (high << half) | low
        outside = images >= size
    return images.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return uint64 values mixed by the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
