"""Fixtures of the pocket corpus: sentences, codec and speech of the shipped sweeps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import pocket
from isoflop.data.codec import CODEC_FILE, PocketCodec
from isoflop.data.pocket import CODEC_DOCUMENTS, draw_scripts, speak, split_sentences
from isoflop.data.process_pool import in_fresh_processes

HELDOUT_SHARE = 0.03


@pytest.fixture(scope="session")
def split() -> tuple[list[str], list[str]]:
    """Return the held-out and training sentences of the shipped sweeps."""
    return split_sentences(HELDOUT_SHARE, seed=0)


@pytest.fixture(scope="session")
def codec(
    split: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> PocketCodec:
    """Train the codec of the shipped sweeps' corpus."""
    folder: Path = tmp_path_factory.mktemp("codec")
    scripts = draw_scripts(split[1], 0, 0)[:CODEC_DOCUMENTS]
    list(in_fresh_processes(partial(pocket.make_codec, folder, 0), [scripts], 1))
    return PocketCodec.load(folder / CODEC_FILE)


@pytest.fixture(scope="session")
def heldout_speech(split: tuple[list[str], list[str]]) -> list[np.ndarray]:
    """Return waveforms (samples,) of more than 120 held-out sentences, by voices of the corpus."""
    scripts = draw_scripts(split[0], 0, 0)[:60]
    return [waveform for document in speak(scripts) for waveform in document]
