"""Shards and their manifest: written, read back, and refused in one line if damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.data.codec import PocketCodec
from isoflop.data.shards import MANIFEST, Manifest, Shard, Windows, write_shard
from isoflop.data.vocabulary import Vocabulary
from isoflop.errors import DataError

SMALL = Vocabulary(text_size=100, bos=98, eos=99, codebooks=2, codebook_size=10)  # uint16
LARGE = Vocabulary(text_size=100_000, bos=98, eos=99, codebooks=2, codebook_size=10)  # uint32
VERSIONS = {"python": "3.11"}


def stream(vocabulary: Vocabulary, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary.size, length).astype(vocabulary.dtype)


def write(folder: Path, vocabulary: Vocabulary, lengths: dict[str, list[int]]) -> Manifest:
    """Write shards of some lengths by split, each of two documents, and their manifest."""
    shards = []
    for split, sizes in lengths.items():
        for number, size in enumerate(sizes):
            documents = np.array_split(stream(vocabulary, size, number), 2)
            shards.append(
                write_shard(folder, f"{split}-{number}", split, documents, 1.5, vocabulary)
            )
    manifest = Manifest(vocabulary, tuple(shards), {"seed": 0}, VERSIONS)
    manifest.write(folder)
    return manifest


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
def test_the_description_of_a_shard(vocabulary: Vocabulary, tmp_path: Path) -> None:
    (shard,) = write(tmp_path, vocabulary, {"train": [1000]}).shards
    ids = np.fromfile(tmp_path / shard.file, dtype=vocabulary.dtype)
    assert (shard.split, shard.tokens, shard.documents, shard.audio_seconds) == (
        "train",
        1000,
        2,
        1.5,
    )
    np.testing.assert_array_equal(ids, stream(vocabulary, 1000, 0))
    assert sum(shard.kinds.values()) == 1000
    first = vocabulary.first_audio
    assert shard.kinds["semantic"] == ((ids >= first) & (ids < first + 10)).sum()
    assert shard.kinds["acoustic"] == (ids >= first + 10).sum()
    assert shard.sha256 == hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
def test_a_manifest_is_read_back_unchanged(vocabulary: Vocabulary, tmp_path: Path) -> None:
    manifest = write(tmp_path, vocabulary, {"train": [300, 200], "heldout": [50]})
    read = Manifest.read(tmp_path)
    assert read == manifest
    assert read.checksum == manifest.checksum
    assert (read.tokens("train"), read.tokens("heldout"), read.tokens("other")) == (500, 50, 0)


def test_the_checksum_is_of_content_and_vocabulary(tmp_path: Path) -> None:
    manifest = write(tmp_path, SMALL, {"train": [300], "heldout": [50]})
    (train, heldout) = manifest.shards
    same = [
        dataclasses.replace(manifest, versions={"python": "3.12"}),
        dataclasses.replace(
            manifest, shards=(dataclasses.replace(train, file="other.bin"), heldout)
        ),
    ]
    other = [
        dataclasses.replace(manifest, shards=(heldout, train)),
        dataclasses.replace(manifest, shards=(train,)),
        dataclasses.replace(
            manifest, shards=(dataclasses.replace(train, split="heldout"), heldout)
        ),
        dataclasses.replace(manifest, vocabulary=dataclasses.replace(SMALL, codebook_size=20)),
    ]
    assert {m.checksum for m in same} == {manifest.checksum}
    assert len({m.checksum for m in (manifest, *other)}) == 1 + len(other)


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    seq_len=st.integers(1, 40),
    data=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_windows_are_the_stream(
    vocabulary: Vocabulary, tmp_path: Path, lengths: list[int], seq_len: int, data: st.DataObject
) -> None:
    write(tmp_path, vocabulary, {"train": lengths, "heldout": [100]})
    expected = [
        stream(vocabulary, length, number)[begin : begin + seq_len + 1].tolist()
        for number, length in enumerate(lengths)
        for begin in range(0, length - seq_len, seq_len)
    ]
    if not expected:
        with pytest.raises(DataError, match="has no window of"):
            Windows(tmp_path, "train", seq_len)
        return
    windows = Windows(tmp_path, "train", seq_len)
    assert len(windows) == len(expected)
    numbers = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=8))
    batch = windows[np.array(numbers, dtype=np.int64)]
    assert batch.shape == (len(numbers), seq_len + 1)
    assert batch.dtype == np.int64
    assert batch.tolist() == [expected[number] for number in numbers]


@pytest.mark.parametrize("number", [3, -1, 10**6])
def test_there_is_no_window_beyond_the_last(number: int, tmp_path: Path) -> None:
    write(tmp_path, SMALL, {"train": [31]})
    windows = Windows(tmp_path, "train", 10)
    assert len(windows) == 3
    with pytest.raises((IndexError, ValueError)):
        windows[np.array([0, number])]


# Refusals


def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def edit(document: dict[str, Any]) -> Any:
        *parents, last = key.split(".")
        parent: Any = document
        for name in parents:
            parent = parent[int(name) if name.isdigit() else name]
        parent[last] = value
        return document

    return edit


BAD_MANIFESTS = [
    (lambda document: {**document, "schema": 2}, "edited, damaged or of another version"),
    (lambda document: {**document, "checksum": "0" * 64}, "edited, damaged or of another version"),
    (replaced("vocabulary.codebook_size", 11), "edited, damaged or of another version"),
    (replaced("shards.0.sha256", "0" * 64), "edited, damaged or of another version"),
    (replaced("shards.0.split", "heldout"), "edited, damaged or of another version"),
    (replaced("shards.0.colour", "red"), "not a readable manifest"),
    (
        replaced("shards.0.tokens", "300"),
        "not a readable manifest (shards[0].tokens: expected a whole number, got '300'; write 300)",
    ),
    (
        replaced("shards.0.file", 3),
        "not a readable manifest (shards[0].file: expected text, got 3)",
    ),
    (
        replaced("shards.1.kinds", [1]),
        "not a readable manifest (shards[1].kinds: expected a mapping",
    ),
    (
        replaced("shards.1.audio_seconds", None),
        "not a readable manifest (shards[1].audio_seconds: expected a number",
    ),
    (
        replaced("vocabulary.text_size", "100"),
        "not a readable manifest (vocabulary.text_size: expected a whole number",
    ),
    (replaced("versions", "3.11"), "not a readable manifest"),
    (replaced("data", None), "not a readable manifest"),
    (replaced("shards", "none"), "not a readable manifest"),
    (replaced("shards", 3), "not a readable manifest"),
    (replaced("vocabulary", None), "not a readable manifest"),
    (
        lambda document: {key: value for key, value in document.items() if key != "data"},
        "not a readable manifest",
    ),
    (lambda document: [document], "not a readable manifest"),
    (lambda document: "manifest", "not a readable manifest"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_MANIFESTS)
def test_an_edited_manifest_is_refused(
    edit: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, SMALL, {"train": [300], "heldout": [50]})
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    assert_refused(
        lambda: Manifest.read(tmp_path), f"{path}: {message}", "delete the folder and prepare again"
    )


@given(position=st.floats(0, 1), removed=st.integers(0, 20), added=st.binary(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_manifest_is_refused_or_harmless(
    position: float, removed: int, added: bytes, tmp_path: Path
) -> None:
    path = tmp_path / MANIFEST
    manifest = Manifest(
        SMALL, (Shard("train-0.bin", "train", 30, 2, {"text": 30}, 1.5, "0" * 64),), {}, VERSIONS
    )
    if not path.exists():
        manifest.write(tmp_path)
        path.rename(tmp_path / "complete")
    content = (tmp_path / "complete").read_bytes()
    begin = int(position * len(content))
    path.write_bytes(content[:begin] + added + content[begin + removed :])
    with contextlib.suppress(DataError):
        assert Manifest.read(tmp_path).checksum == manifest.checksum


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    assert_refused(
        lambda: Manifest.read(tmp_path / "none"),
        "has no prepared data",
        "run `isoflop prepare SWEEP.yaml`",
    )
    write(tmp_path, SMALL, {"train": [300]})
    (tmp_path / MANIFEST).unlink()
    assert_refused(
        lambda: Manifest.read(tmp_path),
        "has no prepared data",
        "delete the folder and prepare again",
    )


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (flip_a_bit, "damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-2]), "damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),  # not a whole number of ids
    (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), "damaged"),
    (lambda path: path.write_bytes(b""), "damaged"),
    (lambda path: path.unlink(), "missing"),
]


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_shard_is_refused(
    damage: Callable[[Path], object], message: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write(tmp_path, vocabulary, {"train": [300, 400], "heldout": [50]})
    damage(tmp_path / "train-1.bin")
    assert_refused(
        lambda: Windows(tmp_path, "train", 10),
        f"{tmp_path / 'train-1.bin'}: {message}",
        "prepare again",
    )
    assert len(Windows(tmp_path, "heldout", 10)) == 4  # other shards are still valid


@pytest.mark.parametrize("file", ["train-0.bin", "train-1.bin", "heldout-0.bin"])
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_check_finds_a_damaged_shard_of_any_split(
    damage: Callable[[Path], object], message: str, file: str, tmp_path: Path
) -> None:
    manifest = write(tmp_path, SMALL, {"train": [300, 400], "heldout": [50]})
    manifest.check(tmp_path)
    damage(tmp_path / file)
    assert_refused(
        lambda: manifest.check(tmp_path),
        f"{tmp_path / file}: {message}",
        "delete the folder and prepare again",
    )


def codec(value: float) -> PocketCodec:
    return PocketCodec(np.full((8, 32, 128), value, np.float32), np.zeros(128, np.float32))


def test_a_check_finds_a_damaged_codec(tmp_path: Path) -> None:
    manifest = write(tmp_path, SMALL, {"train": [300]})
    manifest = dataclasses.replace(manifest, versions={"codec": codec(1.0).checksum})
    path = tmp_path / "codec.npz"
    assert_refused(
        lambda: manifest.check(tmp_path), f"{path}: not a readable codec", "prepare again"
    )
    codec(1.0).save(path)
    manifest.check(tmp_path)
    flip_a_bit(path)
    assert_refused(lambda: manifest.check(tmp_path), f"{path}: ", "prepare again")
    codec(2.0).save(path)
    assert_refused(
        lambda: manifest.check(tmp_path), f"{path}: not the codec of these shards", "prepare again"
    )


@pytest.mark.parametrize(
    ("split", "seq_len", "message", "mend"),
    [
        ("train", 300, "the train split has no window of 300 tokens", "raise data.tokens"),
        (
            "heldout",
            50,
            "the heldout split has no window of 50 tokens",
            "raise data.heldout_share",
        ),
        ("test", 10, "no split 'test'", "there are heldout, train"),
    ],
)
def test_a_too_small_corpus_is_refused(
    split: str, seq_len: int, message: str, mend: str, tmp_path: Path
) -> None:
    write(tmp_path, SMALL, {"train": [300, 20], "heldout": [50]})
    assert_refused(lambda: Windows(tmp_path, split, seq_len), message, mend)


def test_one_window_is_enough(tmp_path: Path) -> None:
    write(tmp_path, SMALL, {"train": [300, 20]})
    assert len(Windows(tmp_path, "train", 299)) == 1


def assert_refused(action: Callable[[], object], *texts: str) -> None:
    with pytest.raises(DataError) as problem:
        action()
    message = str(problem.value)
    assert "\n" not in message
    for text in texts:
        assert text in message
