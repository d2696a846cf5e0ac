"""Documents as ids, in both orders and every composition, and held-out documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.documents import (
    Composition,
    Order,
    Utterance,
    encode_document,
    is_heldout,
    list_orders,
)
from isoflop.data.vocabulary import Vocabulary
from isoflop.errors import DataError

# text_start 100, text_end 101, audio_start 102, audio_end 103, codebooks from 104 and 114
SMALL = Vocabulary(text_size=100, bos=98, eos=99, codebooks=2, codebook_size=10)
UTTERANCES = [
    Utterance(np.array([5, 6, 7]), np.array([[1, 2], [3, 4]])),
    Utterance(np.array([8]), np.array([[9, 0]])),
]
A1, A2 = [102, 105, 116, 107, 118, 103], [102, 113, 114, 103]
T1, T2 = [100, 5, 6, 7, 101], [100, 8, 101]
CASES: list[tuple[Order, Composition, list[int]]] = [
    ("audio-first", "s+a+t", [98, *A1, *T1, *A2, *T2, 99]),
    ("text-first", "s+a+t", [98, *T1, *A1, *T2, *A2, 99]),
    ("audio-first", "s+a", [98, *A1, *A2, 99]),
    ("audio-first", "s", [98, 102, 105, 107, 103, 102, 113, 103, 99]),
    ("audio-first", "text", [98, 5, 6, 7, 8, 99]),
]


@pytest.mark.parametrize(("order", "composition", "expected"), CASES)
def test_ids(order: Order, composition: Composition, expected: list[int]) -> None:
    ids = encode_document(UTTERANCES, order, composition, SMALL)
    assert ids.tolist() == expected
    assert ids.dtype == SMALL.dtype


@pytest.mark.parametrize(("order", "composition", "_expected"), CASES)
def test_no_utterance_is_an_empty_document(
    order: Order, composition: Composition, _expected: list[int]
) -> None:
    assert encode_document([], order, composition, SMALL).tolist() == [98, 99]


def test_speech_of_no_frames_keeps_its_markers() -> None:
    silent = Utterance(np.array([5]), np.empty((0, 2), dtype=int))
    assert encode_document([silent], "audio-first", "s+a+t", SMALL).tolist() == [
        98,
        102,
        103,
        100,
        5,
        101,
        99,
    ]


def test_codes_of_another_codec_are_refused() -> None:
    with pytest.raises(DataError, match="expected"):
        encode_document(
            [Utterance(np.array([5]), np.array([[1, 2, 3]]))], "audio-first", "s+a+t", SMALL
        )


@pytest.mark.parametrize(
    ("composition", "orders"), [("s+a+t", 2), ("s+a", 1), ("s", 1), ("text", 1)]
)
def test_compositions_with_text_and_audio_have_two_orders(
    composition: Composition, orders: int
) -> None:
    assert len(list_orders(composition)) == orders


@given(base_id=st.text(), seed=st.integers(0, 2**64), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_heldout_base_id_stays_held_out_at_larger_shares(
    base_id: str, seed: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    assert is_heldout(base_id, low, seed) == is_heldout(base_id, low, seed)
    assert is_heldout(base_id, high, seed) >= is_heldout(base_id, low, seed)
    assert not is_heldout(base_id, 0.0, seed)
    assert is_heldout(base_id, 1.0, seed)


@pytest.mark.parametrize("share", [0.002, 0.03, 0.3])
def test_the_share_held_out_is_about_right(share: float) -> None:
    count = 40_000
    sides = [[is_heldout(f"utterance {i}", share, seed) for i in range(count)] for seed in (0, 1)]
    error = 4 * (share * (1 - share) / count) ** 0.5
    assert np.mean(sides, axis=1) == pytest.approx([share, share], abs=error)
    assert sides[0] != sides[1]
