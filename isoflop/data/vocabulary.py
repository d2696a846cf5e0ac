"""Token ids of text, control and audio tokens, and the kind of each id.

The layout is SODA's: first the text tokenizer's own ids (with BOS and EOS), then four markers, then
one block of ids for each codebook of the audio codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from isoflop.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class TokenKind(IntEnum):
    """Kind of a token; the value is its code in arrays."""

    CONTROL = 0
    TEXT = 1
    SEMANTIC = 2
    ACOUSTIC = 3


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a text tokenizer and an audio codec.

    Attributes:
        text_size: entries of the text tokenizer.
        bos: id of the begin-of-sequence token.
        eos: id of the end-of-sequence token.
        codebooks: codebooks of the codec.
        codebook_size: codes of a codebook.
    """

    text_size: int
    bos: int
    eos: int
    codebooks: int
    codebook_size: int

    @property
    def text_start(self) -> int:
        """Return the id of the token before a text."""
        return self.text_size

    @property
    def text_end(self) -> int:
        """Return the id of the token after a text."""
        return self.text_size + 1

    @property
    def audio_start(self) -> int:
        """Return the id of the token before audio."""
        return self.text_size + 2

    @property
    def audio_end(self) -> int:
        """Return the id of the token after audio."""
        return self.text_size + 3

    @property
    def first_audio(self) -> int:
        """Id of code 0 of codebook 0."""
        return self.text_size + 4

    @property
    def size(self) -> int:
        """Return the number of ids: text, control tokens and audio codes."""
        return self.first_audio + self.codebooks * self.codebook_size

    @property
    def dtype(self) -> str:
        """Smallest unsigned integer type that holds every id."""
        return "uint16" if self.size <= 2**16 else "uint32"

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of every id, shape (size,), uint8."""
        import numpy as np

        kinds = np.full(self.size, TokenKind.ACOUSTIC, dtype=np.uint8)
        kinds[: self.text_size] = TokenKind.TEXT
        kinds[[self.bos, self.eos]] = TokenKind.CONTROL
        kinds[self.text_size : self.first_audio] = TokenKind.CONTROL
        kinds[self.first_audio : self.first_audio + self.codebook_size] = TokenKind.SEMANTIC
        return kinds

    def audio_ids(self, codes: np.ndarray) -> np.ndarray:
        """Return the ids (frames * codebooks,), frame-major, of codes (frames, codebooks).

        Raises:
            DataError: too many codebooks, or codes outside a codebook.
        """
        import numpy as np

        if codes.ndim != 2 or codes.shape[1] > self.codebooks:
            raise DataError(
                f"codes of shape {codes.shape}: expected (frames, up to {self.codebooks} codebooks)"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise DataError(
                f"codes from {codes.min()} to {codes.max()}: expected 0 to {self.codebook_size - 1}"
            )
        offsets = self.first_audio + np.arange(codes.shape[1]) * self.codebook_size
        return (codes + offsets).reshape(-1)

    def audio_codes(self, ids: np.ndarray, codebooks: int | None = None) -> np.ndarray:
        """Return the codes (frames, codebooks) of frame-major audio ids (ids,).

        An incomplete last frame is dropped.

        Raises:
            DataError: an id of another codebook than the expected one.
        """
        import numpy as np

        width = self.codebooks if codebooks is None else codebooks
        frames = np.asarray(ids, dtype=np.int64)[: len(ids) // width * width].reshape(-1, width)
        codes = frames - self.first_audio - np.arange(width) * self.codebook_size
        if ((codes < 0) | (codes >= self.codebook_size)).any():
            raise DataError(
                "audio ids out of codebook order: expected codebooks 0, 1, ... in every frame"
            )
        return codes


TEXT_TOKENIZERS = {
    "bytes": (258, 256, 257),  # 256 bytes, BOS, EOS
    "stanford-crfm/marin-tokenizer": (128256, 128000, 128001),
}
"""Entries, BOS and EOS of the text tokenizers that plans support."""

CODECS = {
    "pocket": (8, 32),
    "mimi": (8, 2048),
}
"""Codebooks and codes per codebook of the codecs that plans support."""


def build_vocabulary(codec: str, text_tokenizer: str) -> Vocabulary:
    """Return the vocabulary of a codec and a text tokenizer, without loading either.

    Raises:
        DataError: an unknown codec or tokenizer; the message lists the known ones.
    """
    if codec not in CODECS:
        raise DataError(f"data.codec {codec!r} is not known; use one of {', '.join(CODECS)}")
    if text_tokenizer not in TEXT_TOKENIZERS:
        raise DataError(
            f"data.text_tokenizer {text_tokenizer!r} is not known; "
            f"use one of {', '.join(TEXT_TOKENIZERS)}"
        )
    return Vocabulary(*TEXT_TOKENIZERS[text_tokenizer], *CODECS[codec])


def vocabulary_size(codec: str, text_tokenizer: str) -> int:
    """Return the number of ids, e.g. 144,644 for Mimi with the Marin tokenizer."""
    return build_vocabulary(codec, text_tokenizer).size
