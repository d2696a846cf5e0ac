"""The pocket corpus: speech with transcripts, synthesized from text that comes with Python.

Sentences of the standard library's documentation are grouped into documents of one to four. Each
document is spoken by one of many voices, encoded by a codec trained on part of the corpus, and
written in both orders. A `take` speaks every sentence once; further takes use other voices and
other groups. Held-out sentences are never spoken in training documents.
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

from isoflop.data.codec import CODEC_FILE, PocketCodec, train_pocket_codec
from isoflop.data.documents import Composition, Utterance, encode_document, is_heldout, list_orders
from isoflop.data.process_pool import in_fresh_processes
from isoflop.data.shards import Manifest, Shard, write_shard
from isoflop.data.speech import VOICES, Synthesizer, Voice
from isoflop.data.text_corpus import sentences
from isoflop.data.vocabulary import Vocabulary, build_vocabulary
from isoflop.errors import DataError

DOCUMENTS_PER_SHARD = 256
CODEC_DOCUMENTS = 160  # about 20 minutes of speech


@dataclass(frozen=True)
class Script:
    """The sentences of a document and their voice."""

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
    """Make the corpus in `folder` until the training split has `data["tokens"]["pocket"]` tokens.

    Both orders count. Shards are made in a fixed order by fresh processes, because espeak's state
    persists within a process; so any number of processes makes the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = build_vocabulary("pocket", data["text_tokenizer"])
    heldout, train = split_sentences(data["heldout_share"], data["seed"])
    codec_scripts = draw_scripts(train, data["seed"], 0)[:CODEC_DOCUMENTS]
    (versions,) = in_fresh_processes(partial(make_codec, folder, data["seed"]), [codec_scripts], 1)

    def jobs(split: str, texts: list[str], takes: int | None) -> Iterator[_Job]:
        for number, scripts in enumerate(_batches(texts, data["seed"], takes)):
            yield _Job(folder, split, number, scripts, data["composition"], ids, data["seed"])

    target, made = float(data["tokens"]["pocket"]), 0
    shards: list[Shard] = []
    all_jobs = chain(jobs("heldout", heldout, 1), jobs("train", train, None))
    with closing(in_fresh_processes(_make_shard, all_jobs, processes)) as results:
        while made < target:
            shards.append(next(results))
            made = sum(shard.tokens for shard in shards if shard.split == "train")
            if progress:
                progress(made, target)
    _remove_except(folder, {CODEC_FILE, *(shard.file for shard in shards)})
    return Manifest(ids, tuple(shards), data, versions)


def split_sentences(heldout_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the held-out and the training sentences.

    Raises:
        DataError: fewer than 100 of either, as with a Python without its documentation.
    """
    corpus = sentences()
    heldout = [text for text in corpus if is_heldout(text, heldout_share, seed)]
    train = [text for text in corpus if not is_heldout(text, heldout_share, seed)]
    if min(len(heldout), len(train)) < 100:
        raise DataError(
            f"{len(heldout)} held-out and {len(train)} training sentences in this Python's "
            "standard library; at least 100 of each are needed: use a complete Python, or raise "
            "data.heldout_share"
        )
    return heldout, train


def draw_scripts(texts: list[str], seed: int, take: int) -> list[Script]:
    """Return one take: every sentence once, in documents of 1 to 4 sentences with a voice each."""
    generator = np.random.default_rng([seed, take])
    shuffled = [texts[index] for index in generator.permutation(len(texts))]
    scripts, begin = [], 0
    while begin < len(shuffled):
        count = int(generator.integers(1, 5))
        voice = VOICES[int(generator.integers(len(VOICES)))]
        scripts.append(Script(tuple(shuffled[begin : begin + count]), voice))
        begin += count
    return scripts


def speak(scripts: list[Script]) -> Iterator[list[np.ndarray]]:
    """Yield the waveforms of each script's sentences, by one new synthesizer."""
    synthesizer = Synthesizer()
    for script in scripts:
        yield [synthesizer.synthesize(text, script.voice) for text in script.sentences]


def make_codec(folder: Path, seed: int, scripts: list[Script]) -> dict[str, str]:
    """Train the corpus's codec on scripts and save it in `folder`.

    Return the versions of all that it depends on, and its checksum.
    """
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
        scripts = draw_scripts(texts, seed, take)
        for begin in range(0, len(scripts), DOCUMENTS_PER_SHARD):
            yield scripts[begin : begin + DOCUMENTS_PER_SHARD]
        take += 1


def _remove_except(folder: Path, names: set[str]) -> None:
    """Remove all other files: shards made ahead of need, and incomplete files."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _make_shard(job: _Job) -> Shard:
    codec = PocketCodec.load(job.folder / CODEC_FILE)
    documents, seconds = [], 0.0
    for script, waveforms in zip(job.scripts, speak(job.scripts), strict=True):
        utterances = [
            Utterance(np.frombuffer(text.encode(), dtype=np.uint8), codec.encode(waveform))
            for text, waveform in zip(script.sentences, waveforms, strict=True)
        ]
        for order in list_orders(job.composition):
            documents.append(encode_document(utterances, order, job.composition, job.vocabulary))
            if job.composition != "text":
                seconds += sum(map(len, waveforms)) / codec.sample_rate
    shuffle = np.random.default_rng([job.seed, job.number, 1]).permutation(len(documents))
    name = f"{job.split}-{job.number:05d}"
    return write_shard(
        job.folder, name, job.split, [documents[i] for i in shuffle], seconds, job.vocabulary
    )
