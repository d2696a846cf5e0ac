"""The order of samples: a permutation in every epoch, the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isoflop.data.order import SampleOrder, permute
from isoflop.errors import DataError

keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 1000))


@given(size=st.integers(1, 3000), key=keys)
@example(size=1, key=(0, 0))
@example(size=2, key=(0, 0))
@example(size=3, key=(2**64 - 1, 0))
@example(size=2**12, key=(0, 0))
@example(size=2**12 + 1, key=(0, 0))
def test_every_window_occurs_once(size: int, key: tuple[int, int]) -> None:
    images = permute(np.arange(size), size, key)
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


@given(size=st.integers(2**20, 2**40), key=keys, seed=st.integers(0, 2**32))
def test_windows_of_a_large_corpus_are_distinct_and_in_range(
    size: int, key: tuple[int, int], seed: int
) -> None:
    positions = np.unique(np.random.default_rng(seed).integers(0, size, 500))
    images = permute(positions, size, key)
    assert images.min() >= 0
    assert images.max() < size
    assert len(np.unique(images)) == len(positions)


def test_an_image_does_not_depend_on_other_positions() -> None:
    whole = permute(np.arange(100), 100, (0, 0))
    for position in (0, 41, 99):
        assert permute(np.array([position]), 100, (0, 0)).tolist() == [whole[position]]


def test_the_order_is_well_mixed() -> None:
    size = 4000
    images = permute(np.arange(size), size, (7, 0))
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 4 / size**0.5
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 4 / size**0.5
    assert abs((images % 2 == np.arange(size) % 2).mean() - 0.5) < 2 / size**0.5


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_small_sizes_use_all_their_permutations(size: int) -> None:
    orders = {tuple(permute(np.arange(size), size, (seed, 0)).tolist()) for seed in range(60)}
    assert len(orders) == {1: 1, 2: 2}.get(size, 60)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    def epoch(number: int, seed: int) -> list[int]:
        order = SampleOrder(windows=50, batch_size=10, seed=seed)
        return np.concatenate(
            [order.batch(step) for step in range(5 * number, 5 * number + 5)]
        ).tolist()

    orders = [epoch(number, seed) for number in range(3) for seed in (0, 1)]
    assert all(sorted(windows) == list(range(50)) for windows in orders)
    assert len({tuple(windows) for windows in orders}) == len(orders)


@given(
    windows=st.integers(1, 200),
    batch=st.integers(1, 12),
    ranks=st.integers(1, 8),
    step=st.integers(0, 10**9),
    seed=st.integers(0, 2**32 - 1),
)
def test_ranks_share_the_batch_of_one_process(
    windows: int, batch: int, ranks: int, step: int, seed: int
) -> None:
    order = SampleOrder(windows, batch * ranks, seed)
    whole = order.batch(step)
    rank_batches = [order.batch(step, rank, ranks) for rank in range(ranks)]
    assert all(len(windows_of_rank) == batch for windows_of_rank in rank_batches)
    np.testing.assert_array_equal(np.concatenate(rank_batches), whole)
    assert ((whole >= 0) & (whole < windows)).all()
    stateless = SampleOrder(windows, batch * ranks, seed).batch(step)
    np.testing.assert_array_equal(stateless, whole)


@given(windows=st.integers(1, 60), batch=st.integers(1, 30), steps=st.integers(1, 8))
def test_counts_of_windows_differ_by_at_most_one(windows: int, batch: int, steps: int) -> None:
    order = SampleOrder(windows, batch, seed=3)
    counts = np.bincount(
        np.concatenate([order.batch(step) for step in range(steps)]), minlength=windows
    )
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("batch", "ranks"), [(8, 3), (1, 2), (6, 4)])
def test_a_batch_that_ranks_do_not_divide_is_refused(batch: int, ranks: int) -> None:
    message = f"a batch of {batch} sequences can't be divided evenly among {ranks} processes"
    with pytest.raises(DataError, match=message):
        SampleOrder(10, batch, 0).batch(0, 0, ranks)
