"""Token ids: layouts of SODA and of the pocket corpus, and codes as ids and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from isoflop.data.vocabulary import TokenKind, Vocabulary, build_vocabulary, vocabulary_size
from isoflop.errors import DataError

SODA = build_vocabulary("mimi", "stanford-crfm/marin-tokenizer")
POCKET = build_vocabulary("pocket", "bytes")


def test_layout_of_soda() -> None:
    assert SODA.size == vocabulary_size("mimi", "stanford-crfm/marin-tokenizer") == 144_644
    assert (SODA.bos, SODA.eos) == (128_000, 128_001)
    assert (SODA.text_start, SODA.text_end, SODA.audio_start, SODA.audio_end) == (
        128_256,
        128_257,
        128_258,
        128_259,
    )
    assert SODA.dtype == "uint32"
    codes = np.array([[0] * 8, [2047] * 8, range(8)])
    ids = SODA.audio_ids(codes).reshape(3, 8)
    assert ids[0].tolist() == [128_260 + 2048 * book for book in range(8)]
    assert ids[1, 0] == 130_307
    assert ids[1, 7] == 144_643
    assert ids[2].tolist() == [128_260 + 2048 * book + book for book in range(8)]


def test_layout_of_the_pocket_corpus() -> None:
    assert POCKET.size == 256 + 2 + 4 + 8 * 32
    assert (POCKET.bos, POCKET.eos, POCKET.text_start, POCKET.first_audio) == (256, 257, 258, 262)
    assert POCKET.dtype == "uint16"


@pytest.mark.parametrize(
    ("first", "last", "kind"),
    [
        (0, 127_999, TokenKind.TEXT),
        (128_000, 128_001, TokenKind.CONTROL),
        (128_002, 128_255, TokenKind.TEXT),
        (128_256, 128_259, TokenKind.CONTROL),
        (128_260, 130_307, TokenKind.SEMANTIC),
        (130_308, 144_643, TokenKind.ACOUSTIC),
    ],
)
def test_kinds_of_soda(first: int, last: int, kind: TokenKind) -> None:
    assert len(SODA.kinds) == SODA.size
    assert set(SODA.kinds[first : last + 1]) == {kind}


@pytest.mark.parametrize(
    ("size", "dtype"), [(65_535, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_the_type_is_the_smallest_that_holds_every_id(size: int, dtype: str) -> None:
    assert Vocabulary(size - 4 - 8 * 32, 0, 1, 8, 32).dtype == dtype
    assert np.iinfo(dtype).max >= size - 1


@given(
    vocabulary=st.sampled_from([SODA, POCKET]),
    width=st.integers(1, 8),
    frames=st.integers(0, 20),
    partial=st.integers(0, 7),
    data=st.data(),
)
def test_codes_to_ids_and_back(
    vocabulary: Vocabulary, width: int, frames: int, partial: int, data: st.DataObject
) -> None:
    codes = data.draw(
        npst.arrays(
            np.int64, (frames, width), elements=st.integers(0, vocabulary.codebook_size - 1)
        )
    )
    ids = vocabulary.audio_ids(codes)
    assert ids.shape == (frames * width,)
    assert not frames or (ids.min() >= vocabulary.first_audio and ids.max() < vocabulary.size)
    is_semantic = [vocabulary.kinds[i] == TokenKind.SEMANTIC for i in ids]
    assert is_semantic == [True, *[False] * (width - 1)] * frames
    with_partial_frame = np.concatenate([ids, ids[: partial % width]]).astype(vocabulary.dtype)
    np.testing.assert_array_equal(vocabulary.audio_codes(with_partial_frame, width), codes)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros(8, dtype=int),
        np.zeros((2, 9), dtype=int),
        np.full((2, 8), 32),
        np.full((2, 8), -1),
    ],
)
def test_invalid_codes_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected"):
        POCKET.audio_ids(codes)


@given(shift=st.integers(1, 7), frames=st.integers(1, 5))
def test_ids_in_another_order_are_refused(shift: int, frames: int) -> None:
    ids = POCKET.audio_ids(np.zeros((frames + 1, 8), dtype=np.int64))
    with pytest.raises(DataError, match="out of codebook order"):
        POCKET.audio_codes(ids[shift:])


@pytest.mark.parametrize("id", [0, POCKET.bos, POCKET.audio_end, POCKET.size - 1])
def test_other_tokens_among_audio_are_refused(id: int) -> None:
    ids = POCKET.audio_ids(np.zeros((2, 8), dtype=np.int64))
    ids[8] = id
    with pytest.raises(DataError, match="out of codebook order"):
        POCKET.audio_codes(ids)


@pytest.mark.parametrize(
    ("codec", "tokenizer", "message"),
    [
        ("encodec", "bytes", "data.codec 'encodec' is not known; use one of pocket, mimi"),
        (
            "pocket",
            "gpt2",
            "data.text_tokenizer 'gpt2' is not known; use one of bytes, stanford-crfm/marin",
        ),
    ],
)
def test_an_unknown_codec_or_tokenizer_is_refused(codec: str, tokenizer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_vocabulary(codec, tokenizer)
