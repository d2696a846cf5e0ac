"""The pocket corpus: real speech with transcripts, made on the spot from what every machine with Python has.

Sentences of the standard library's documentation are grouped into documents of one to four, each spoken by one of many
voices, encoded by a codec trained on part of the corpus, and written in both orders. A `take` speaks every sentence
once; further takes use other voices and other neighbours. Held-out sentences are never spoken in training documents.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.data.codec import PocketCodec, train_pocket_codec
from isoflop.data.documents import Composition, Utterance, encode_document, is_heldout, orders_of
from isoflop.data.process_pool import in_fresh_processes
from isoflop.data.shards import Manifest, Shard, write_shard
from isoflop.data.speech import VOICES, Synthesizer, Voice
from isoflop.data.text_corpus import sentences
from isoflop.data.vocabulary import Vocabulary, vocabulary
from isoflop.errors import DataError

DOCUMENTS_A_SHARD = 256
CODEC_DOCUMENTS = 160  # about 20 minutes of speech
CODEC_FILE = "codec.npz"


@dataclass(frozen=True)
class Script:
    """What one document says: its sentences and who speaks them."""

    sentences: tuple[str, ...]
    voice: Voice


@dataclass(frozen=True)
class _Job:
    folder: Path
    split: str
    number: int
    scripts: list[Script]
    composition: Composition
    vocabulary: Vocabulary
    seed: int


def prepare_pocket(
    folder: Path,
    data: dict[str, Any],
    processes: int,
    progress: Callable[[int, float], None] | None = None,
) -> Manifest:
    """Makes the corpus in `folder` until the training split has `data["tokens"]["pocket"]` tokens, both orders counted.

    Shards are made in a fixed order by fresh processes (espeak's state carries over inside one), so any number of
    processes gives the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = vocabulary("pocket", data["text_tokenizer"])
    heldout, train = split_sentences(data["heldout_share"], data["seed"])
    codec_scripts = scripts_of(train, data["seed"], 0)[:CODEC_DOCUMENTS]
    (versions,) = in_fresh_processes(partial(make_codec, folder, data["seed"]), [codec_scripts], 1)

    def jobs(split: str, texts: list[str], takes: int | None) -> Iterator[_Job]:
        for number, scripts in enumerate(_batches(texts, data["seed"], takes)):
            yield _Job(folder, split, number, scripts, data["composition"], ids, data["seed"])

    wanted, made = float(data["tokens"]["pocket"]), 0
    shards: list[Shard] = []
    with closing(
        in_fresh_processes(
            _make_shard, chain(jobs("heldout", heldout, 1), jobs("train", train, None)), processes
        )
    ) as results:
        while made < wanted:
            shards.append(next(results))
            made = sum(shard.tokens for shard in shards if shard.split == "train")
            if progress:
                progress(made, wanted)
    _remove_others(folder, {CODEC_FILE, *(shard.file for shard in shards)})
    return Manifest(ids, tuple(shards), data, versions)


def split_sentences(heldout_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Held-out and training sentences.

    Raises:
        DataError: fewer than 100 of either, as on a Python without its documentation.
    """
    everything = sentences()
    heldout = [text for text in everything if is_heldout(text, heldout_share, seed)]
    train = [text for text in everything if not is_heldout(text, heldout_share, seed)]
    if min(len(heldout), len(train)) < 100:
        raise DataError(
            f"{len(heldout)} held-out and {len(train)} training sentences in this Python's standard library: "
            "at least 100 of each are needed; use a complete Python, or raise data.heldout_share"
        )
    return heldout, train


def scripts_of(texts: list[str], seed: int, take: int) -> list[Script]:
    """One take: every sentence once, in documents of 1 to 4 sentences, each with its voice."""
    generator = np.random.default_rng([seed, take])
    shuffled = [texts[index] for index in generator.permutation(len(texts))]
    scripts, begin = [], 0
    while begin < len(shuffled):
        count = int(generator.integers(1, 5))
        scripts.append(
            Script(
                tuple(shuffled[begin : begin + count]), VOICES[int(generator.integers(len(VOICES)))]
            )
        )
        begin += count
    return scripts


def speak(scripts: list[Script]) -> Iterator[list[np.ndarray]]:
    """Waveforms of each script's sentences in turn, by one fresh synthesizer."""
    synthesizer = Synthesizer()
    for script in scripts:
        yield [synthesizer.say(text, script.voice) for text in script.sentences]


def make_codec(folder: Path, seed: int, scripts: list[Script]) -> dict[str, str]:
    """Trains the corpus's codec on scripts and saves it in `folder`; the versions of all that it depends on."""
    codec = train_pocket_codec(
        [waveform for document in speak(scripts) for waveform in document], seed
    )
    codec.save(folder / CODEC_FILE)
    return {
        "isoflop": version("isoflop"),
        "python": platform.python_version(),
        "espeak-ng": Synthesizer().version,
        "codec": codec.checksum,
    }


def _batches(texts: list[str], seed: int, takes: int | None) -> Iterator[list[Script]]:
    take = 0
    while takes is None or take < takes:
        scripts = scripts_of(texts, seed, take)
        for begin in range(0, len(scripts), DOCUMENTS_A_SHARD):
            yield scripts[begin : begin + DOCUMENTS_A_SHARD]
        take += 1


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Removes shards that were made ahead of need, and what was being written when their processes ended."""
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def _make_shard(job: _Job) -> Shard:
    codec = PocketCodec.load(job.folder / CODEC_FILE)
    documents, seconds = [], 0.0
    for script, waveforms in zip(job.scripts, speak(job.scripts), strict=True):
        utterances = [
            Utterance(np.frombuffer(text.encode(), dtype=np.uint8), codec.encode(waveform))
            for text, waveform in zip(script.sentences, waveforms, strict=True)
        ]
        for order in orders_of(job.composition):
            documents.append(encode_document(utterances, order, job.composition, job.vocabulary))
            if job.composition != "text":
                seconds += sum(map(len, waveforms)) / codec.sample_rate
    shuffle = np.random.default_rng([job.seed, job.number, 1]).permutation(len(documents))
    name = f"{job.split}-{job.number:05d}"
    return write_shard(
        job.folder, name, job.split, [documents[i] for i in shuffle], seconds, job.vocabulary
    )
