"""The pocket corpus at its real size and, for what must be done often, a small one of the same making."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from isoflop.data import pocket
from isoflop.data.codec import PocketCodec
from isoflop.data.pocket import CODEC_DOCUMENTS, CODEC_FILE, scripts_of, speak, split_sentences
from isoflop.data.process_pool import in_fresh_processes

HELDOUT_SHARE = 0.03

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def split() -> tuple[list[str], list[str]]:
    """Held-out and training sentences of the shipped sweeps."""
    return split_sentences(HELDOUT_SHARE, seed=0)


@pytest.fixture(scope="session")
def codec(
    split: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> PocketCodec:
    """The codec of the shipped sweeps' corpus."""
    folder: Path = tmp_path_factory.mktemp("codec")
    scripts = scripts_of(split[1], 0, 0)[:CODEC_DOCUMENTS]
    list(in_fresh_processes(partial(pocket.make_codec, folder, 0), [scripts], 1))
    return PocketCodec.load(folder / CODEC_FILE)


@pytest.fixture(scope="session")
def heldout_speech(split: tuple[list[str], list[str]]) -> list[np.ndarray]:
    """Waveforms of the held-out sentences, each by one of the corpus's voices."""
    return [waveform for document in speak(scripts_of(split[0], 0, 0)) for waveform in document]
