"""A small pocket corpus, made in seconds: fewer and shorter sentences, a codec of less speech.

As a program it prepares that corpus, to be killed meanwhile: small_corpus.py ROOT SENTENCES.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from isoflop.config import Data
from isoflop.data import pocket
from isoflop.data.prepare import prepare

SENTENCES, MAX_CHARACTERS = 300, 50
SIZES = {"CODEC_DOCUMENTS": 20, "DOCUMENTS_PER_SHARD": 40}
"""Values of constants of `isoflop.data.pocket`."""

DATA = Data(
    codec="pocket",
    text_tokenizer="bytes",
    mixture={"pocket": 1.0},
    tokens={"pocket": 60_000.0},
    heldout_share=0.45,
)

if __name__ == "__main__":
    sentences = json.loads(Path(sys.argv[2]).read_text())
    pocket.sentences = lambda: sentences
    for name, size in SIZES.items():
        setattr(pocket, name, size)
    print(prepare(Path(sys.argv[1]), DATA, processes=1))
