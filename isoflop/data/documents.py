"""Documents: utterances as token ids, interleaved at utterance level in both orders.

This is SODA's format.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.data.vocabulary import Vocabulary

Order = Literal["audio-first", "text-first"]
Composition = Literal["s", "s+a", "s+a+t", "text"]
ORDERS: tuple[Order, ...] = ("audio-first", "text-first")


@dataclass(frozen=True)
class Utterance:
    """A transcript as ids of the text tokenizer, and its speech as codes (frames, codebooks)."""

    text: np.ndarray
    codes: np.ndarray


def encode_document(
    utterances: list[Utterance], order: Order, composition: Composition, vocabulary: Vocabulary
) -> np.ndarray:
    """Return the ids (tokens,) of a document: BOS, the blocks of each utterance in `order`, EOS.

    An utterance has an audio and a text block. The composition `s` keeps codebook 0 only; `s` and
    `s+a` have no text; `text` has neither audio nor markers.
    """
    v = vocabulary
    pieces: list[np.ndarray | list[int]] = [[v.bos]]
    for utterance in utterances:
        if composition == "text":
            pieces.append(utterance.text)
            continue
        codes = utterance.codes[:, :1] if composition == "s" else utterance.codes
        audio = [[v.audio_start], v.audio_ids(codes), [v.audio_end]]
        text = [[v.text_start], utterance.text, [v.text_end]] if composition == "s+a+t" else []
        pieces += audio + text if order == "audio-first" else text + audio
    return np.concatenate([*pieces, [v.eos]]).astype(v.dtype)


def list_orders(composition: Composition) -> tuple[Order, ...]:
    """Return both orders if a document has audio and text, else the only one."""
    return ORDERS if composition == "s+a+t" else ORDERS[:1]


def is_heldout(base_id: str, share: float, seed: int) -> bool:
    """Return whether the documents of `base_id` are held out, at a share of all ids.

    A hash decides, so that all documents of an id (every voice, both orders) stay together.
    """
    digest = hashlib.sha256(f"{seed}/{base_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
