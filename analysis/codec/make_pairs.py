"""Write three held-out sentences as sound, before and after the pocket codec.

python analysis/codec/make_pairs.py
"""

from __future__ import annotations

import csv
import wave
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from isoflop.config import load_sweep
from isoflop.data.codec import PocketCodec
from isoflop.data.pocket import (
    CODEC_DOCUMENTS,
    CODEC_FILE,
    draw_scripts,
    make_codec,
    speak,
    split_sentences,
)
from isoflop.data.process_pool import in_fresh_processes

PAIRS = 3
MIN_SECONDS, MAX_SECONDS = 1.4, 2.2
MAX_AMPLITUDE = 0.9


def main() -> None:
    """Write the pairs of WAV files and pairs.csv."""
    data = load_sweep("pocket").data
    heldout, train = split_sentences(data.heldout_share, data.seed)
    codec = train_codec(draw_scripts(train, data.seed, 0)[:CODEC_DOCUMENTS], data.seed)
    scripts = draw_scripts(heldout, data.seed, 0)
    rows, variants = [], set()
    for script, waveforms in zip(scripts, speak(scripts), strict=True):
        for sentence, waveform in zip(script.sentences, waveforms, strict=True):
            variant, seconds = script.voice.name.split("+")[1], len(waveform) / codec.sample_rate
            suitable = MIN_SECONDS <= seconds <= MAX_SECONDS and variant not in variants
            if len(rows) < PAIRS and suitable:
                variants.add(variant)
                number, voice = len(rows) + 1, script.voice
                rows.append([number, voice.name, voice.rate, f"{seconds:.2f}", sentence])
                decoded = codec.decode(codec.encode(waveform))
                write_pair(number, waveform, decoded, codec.sample_rate)
    with Path(__file__).with_name("pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["pair", "voice", "words_per_minute", "seconds", "sentence"], *rows])


def train_codec(scripts: list, seed: int) -> PocketCodec:
    """Train the codec as data preparation does, in a fresh process."""
    with TemporaryDirectory() as folder:
        list(in_fresh_processes(partial(make_codec, Path(folder), seed), [scripts], 1))
        return PocketCodec.load(Path(folder) / CODEC_FILE)


def write_pair(number: int, original: np.ndarray, decoded: np.ndarray, rate: int) -> None:
    """Write 16-bit mono WAV files, both scaled by the same factor if either would clip."""
    scale = min(1.0, MAX_AMPLITUDE / max(np.abs(original).max(), np.abs(decoded).max()))
    for name, waveform in {"original": original, "decoded": decoded}.items():
        with wave.open(str(Path(__file__).with_name(f"{number}-{name}.wav")), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.round(waveform * scale * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
