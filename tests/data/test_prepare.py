"""Preparation of shards: reproducible, and complete or absent."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import small_corpus
from support.small_corpus import DATA, MAX_CHARACTERS, SENTENCES, SIZES

from isoflop.data import pocket, prepare
from isoflop.data.codec import PocketCodec
from isoflop.data.documents import Composition, is_heldout
from isoflop.data.prepare import data_folder
from isoflop.data.shards import MANIFEST, Manifest, Windows, write_shard
from isoflop.data.vocabulary import Vocabulary, build_vocabulary
from isoflop.errors import DataError

IDS = build_vocabulary("pocket", "bytes")


@pytest.fixture(scope="session")
def few_sentences(split: tuple[list[str], list[str]]) -> list[str]:
    return [text for text in split[1] if len(text) <= MAX_CHARACTERS][:SENTENCES]


@pytest.fixture
def small(few_sentences: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make this process's corpora small; return their sentences."""
    shrink(monkeypatch, few_sentences)
    return few_sentences


def shrink(monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> None:
    monkeypatch.setattr(pocket, "sentences", lambda: sentences)
    for name, size in SIZES.items():
        monkeypatch.setattr(pocket, name, size)


@pytest.fixture(scope="session")
def corpus(few_sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small corpus in one process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch, few_sentences)
        return prepare.prepare(tmp_path_factory.mktemp("corpus"), DATA, processes=1)


# Content


def test_the_manifest_describes_the_corpus(corpus: Path) -> None:
    manifest = Manifest.read(corpus)
    assert corpus == data_folder(corpus.parent.parent, DATA)
    assert sorted(path.name for path in corpus.iterdir()) == sorted(
        [MANIFEST, "codec.npz", *(shard.file for shard in manifest.shards)]
    )
    assert manifest.vocabulary == IDS
    target = DATA.tokens["pocket"]
    assert manifest.data["tokens"] == {"pocket": target}
    assert (
        manifest.tokens("train") >= target > manifest.tokens("train") - manifest.shards[-1].tokens
    )
    assert set(manifest.versions) == {"isoflop", "python", "espeak-ng", "codec"}
    assert manifest.versions["codec"] == PocketCodec.load(corpus / "codec.npz").checksum
    for shard in manifest.shards:
        ids = np.fromfile(corpus / shard.file, dtype=IDS.dtype)
        assert len(ids) == shard.tokens == sum(shard.kinds.values())
        assert (ids == IDS.bos).sum() == (ids == IDS.eos).sum() == shard.documents
        assert shard.kinds["acoustic"] == 7 * shard.kinds["semantic"]
        assert shard.kinds["semantic"] == pytest.approx(12.5 * shard.audio_seconds, rel=0.03)
    assert len(Windows(corpus, "heldout", 256)) > 100


def read_documents(folder: Path, split: str) -> list[np.ndarray]:
    shards = [shard for shard in Manifest.read(folder).shards if shard.split == split]
    ids = np.concatenate([np.fromfile(folder / shard.file, dtype=IDS.dtype) for shard in shards])
    return np.split(ids, np.flatnonzero(ids == IDS.eos)[:-1] + 1)


def parse_document(document: np.ndarray) -> tuple[str, list[str], list[np.ndarray]]:
    """Return order, texts and codes of a document from its ids."""
    kinds, texts, codes = "", [], []
    rest = document.tolist()
    assert (rest[0], rest[-1]) == (IDS.bos, IDS.eos)
    rest = rest[1:-1]
    while rest:
        end = rest.index({IDS.text_start: IDS.text_end, IDS.audio_start: IDS.audio_end}[rest[0]])
        if rest[0] == IDS.text_start:
            texts.append(bytes(rest[1:end]).decode())
            kinds += "t"
        else:
            codes.append(IDS.audio_codes(np.array(rest[1:end])))
            kinds += "a"
        rest = rest[end + 1 :]
    return kinds, texts, codes


def test_documents_come_in_both_orders_with_the_same_content(corpus: Path) -> None:
    for split in ("train", "heldout"):
        parsed = [parse_document(document) for document in read_documents(corpus, split)]
        contents: dict[str, list[Any]] = {"at": [], "ta": []}
        for kinds, texts, codes in parsed:
            assert kinds in ("at" * len(texts), "ta" * len(texts))
            assert 1 <= len(texts) == len(codes) <= 4
            contents[kinds[:2]].append((texts, [array.tolist() for array in codes]))
        assert sorted(contents["at"]) == sorted(contents["ta"])
        # shuffled
        assert [kinds[:2] for kinds, _, _ in parsed] != ["at", "ta"] * (len(parsed) // 2)


def test_heldout_sentences_are_never_trained_on(corpus: Path, few_sentences: list[str]) -> None:
    spoken = {
        split: {
            text
            for document in read_documents(corpus, split)
            for text in parse_document(document)[1]
        }
        for split in ("train", "heldout")
    }
    assert spoken["heldout"] == {
        text for text in few_sentences if is_heldout(text, DATA.heldout_share, 0)
    }
    assert spoken["train"] <= set(few_sentences)
    assert not spoken["train"] & spoken["heldout"]


def test_codes_are_those_of_the_codec_for_that_speech(corpus: Path, small: list[str]) -> None:
    codec = PocketCodec.load(corpus / "codec.npz")
    heldout, _ = pocket.split_sentences(DATA.heldout_share, 0)
    scripts = pocket.draw_scripts(heldout, 0, 0)[:3]
    documents = {
        tuple(texts): codes
        for _, texts, codes in map(parse_document, read_documents(corpus, "heldout"))
    }
    (spoken,) = pocket.in_fresh_processes(speak_all, [scripts], 1)
    for script, waveforms in zip(scripts, spoken, strict=True):
        for waveform, codes in zip(waveforms, documents[script.sentences], strict=True):
            np.testing.assert_array_equal(codec.encode(waveform), codes)


def speak_all(scripts: list[pocket.Script]) -> list[list[np.ndarray]]:
    return list(pocket.speak(scripts))


@pytest.mark.parametrize(
    ("composition", "kinds"),
    [("s", {"semantic"}), ("s+a", {"semantic", "acoustic"}), ("text", {"text"})],
)
def test_other_compositions_have_their_kinds_of_tokens(
    composition: Composition, kinds: set[str], corpus: Path, small: list[str], tmp_path: Path
) -> None:
    shutil.copy(corpus / "codec.npz", tmp_path)
    scripts = pocket.draw_scripts(small, 0, 0)[:4]
    job = pocket._Job(tmp_path, "train", 0, scripts, composition, IDS, 0)
    shard = pocket._make_shard(job)
    assert {kind for kind, count in shard.kinds.items() if count} == kinds | {"control"}
    assert shard.documents == 4
    assert (shard.audio_seconds > 0) == (composition != "text")


# Reproducibility


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(
    corpus: Path, small: list[str], tmp_path: Path
) -> None:
    made: list[tuple[int, float]] = []
    second = prepare.prepare(
        tmp_path, DATA, processes=2, progress=lambda done, target: made.append((done, target))
    )
    assert Manifest.read(second) == Manifest.read(corpus)
    for path in corpus.iterdir():
        if path.suffix == ".bin":
            assert (second / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in second.parent.iterdir()] == [second.name]
    assert [done for done, _ in made] == sorted(done for done, _ in made)
    assert made[-1][0] >= made[-1][1] == DATA.tokens["pocket"]


def test_takes_repeat_sentences_with_other_voices_and_groups(small: list[str]) -> None:
    first, second = (pocket.draw_scripts(small, seed=0, take=take) for take in (0, 1))
    for scripts in (first, second):
        assert sorted(text for script in scripts for text in script.sentences) == sorted(small)
        assert {len(script.sentences) for script in scripts} == {1, 2, 3, 4}
        assert len({script.voice for script in scripts}) > 25
    assert not {script.sentences for script in first if len(script.sentences) > 1} & {
        script.sentences for script in second
    }
    assert (
        first
        == pocket.draw_scripts(small, seed=0, take=0)
        != pocket.draw_scripts(small, seed=1, take=0)
    )


def test_a_second_call_finds_the_corpus(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_find_maker", lambda _data: pytest.fail("made again"))
    before = (corpus / MANIFEST).stat()
    assert prepare.prepare(corpus.parent.parent, DATA) == corpus
    same = dataclasses.replace(DATA, max_epochs=9.0)  # a threshold of warnings, not content
    assert prepare.prepare(corpus.parent.parent, same) == corpus
    assert (corpus / MANIFEST).stat() == before


# Complete or absent


def strays(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "data").iterdir())


def accept_interrupts() -> None:
    """Take SIGINT: a shell ignores it for background processes, and may run the tests as one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT]
)
def test_an_interrupted_preparation_leaves_no_half_corpus(
    number: signal.Signals, corpus: Path, few_sentences: list[str], small: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "sentences.json"
    listed.write_text(json.dumps(few_sentences))
    program = Path(small_corpus.__file__)
    process = subprocess.Popen(
        [sys.executable, program, tmp_path, listed],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/.*/heldout-*.bin")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Past the start of the next process: Python drops an interrupt within a finalizer.
    time.sleep(0.3)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == -number
    folder = data_folder(tmp_path, DATA)
    assert not folder.exists()
    if number == signal.SIGINT:
        assert strays(tmp_path) == []
        assert complaint.count("Traceback") == 1  # of this process, not of every process
        return
    assert len(strays(tmp_path)) == 1
    assert prepare.prepare(tmp_path, DATA, processes=1) == folder
    assert Manifest.read(folder) == Manifest.read(corpus)
    assert strays(tmp_path) == [folder.name]


def stub(folder: Path, data: dict[str, Any], _processes: int, _progress: object) -> Manifest:
    """Make a minimal corpus, for tests of its folder only."""
    shard = write_shard(folder, "train-00000", "train", [np.arange(100)], 0.0, IDS)
    return Manifest(IDS, (shard,), data, {})


def replace_maker(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Manifest]) -> None:
    monkeypatch.setattr(prepare, "_find_maker", lambda _data: make)


def test_only_abandoned_folders_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_maker(monkeypatch, stub)
    folder = data_folder(tmp_path, DATA)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    remaining = [
        f".{folder.name}.{host}.1.tmp",
        f".{folder.name}.elsewhere.org.{gone.pid}.tmp",
        ".other.1.tmp",
        "other",
    ]
    removed = [f".{folder.name}.{host}.{gone.pid}.tmp", f".{folder.name}.{host}.{os.getpid()}.tmp"]
    for name in remaining + removed:
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / "train-00000.bin").touch()
    prepare.prepare(tmp_path, DATA)
    assert strays(tmp_path) == sorted([folder.name, *remaining])


def test_the_first_of_two_simultaneous_preparations_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = data_folder(tmp_path, DATA)

    def make(temporary: Path, *arguments: Any) -> Manifest:
        stub(folder, *arguments).write(folder)  # another process ends before this one
        return stub(temporary, *arguments)

    replace_maker(monkeypatch, make)
    assert prepare.prepare(tmp_path, DATA) == folder
    assert strays(tmp_path) == [folder.name]
    assert len(Windows(folder, "train", 50)) == 1


def test_a_failing_preparation_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(folder: Path, *arguments: Any) -> Manifest:
        stub(folder, *arguments)
        raise OSError(errno.EIO, "the disk broke")

    replace_maker(monkeypatch, make)
    with pytest.raises(OSError, match="the disk broke"):
        prepare.prepare(tmp_path, DATA)
    assert strays(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Mount a disk of 200 KB, which holds the codec but not the shards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk is not allowed on this machine")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(small_disk: Path, small: list[str]) -> None:
    with pytest.raises(OSError, match="No space left on device") as problem:
        prepare.prepare(small_disk, DATA, processes=1)
    assert problem.value.errno == errno.ENOSPC
    assert str(problem.value.filename).startswith(str(small_disk))
    assert strays(small_disk) == []


# Refusals

CASES = [
    ({"codec": "mimi"}, "this version can prepare only the pocket corpus"),
    ({"text_tokenizer": "stanford-crfm/marin-tokenizer"}, "data.text_tokenizer bytes"),
    ({"mixture": {"yodas2-en": 1.0}, "tokens": {}}, "the sweep has pocket, bytes, yodas2-en"),
    ({"mixture": {"pocket": 0.5, "text": 0.5}}, "the sweep has pocket, bytes, pocket, text"),
    (
        {"tokens": {}},
        "data.tokens.pocket: missing; give the number of tokens to make, "
        "e.g. tokens: {pocket: 3.0e6}",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_unsupported_data_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as problem:
        prepare.prepare(tmp_path, dataclasses.replace(DATA, **changes))
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)
    assert list(tmp_path.iterdir()) == []


def test_too_few_sentences_are_refused(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pocket, "sentences", lambda: small[:150])
    with pytest.raises(
        DataError, match=r"at least 100 of each are needed: .* or raise data.heldout_share"
    ):
        prepare.prepare(tmp_path, DATA)
    assert strays(tmp_path) == []


def test_a_folder_without_its_manifest_is_refused_and_not_changed(tmp_path: Path) -> None:
    folder = data_folder(tmp_path, DATA)
    folder.mkdir(parents=True)
    (folder / "train-00000.bin").write_bytes(b"something")
    with pytest.raises(
        DataError, match=f"{folder}: has no prepared data .*; delete the folder and prepare again"
    ):
        prepare.prepare(tmp_path, DATA)
    assert (folder / "train-00000.bin").read_bytes() == b"something"


def test_a_missing_espeak_is_an_error_before_anything_is_written(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "espeakng_loader.py"  # found first by the processes that speak
    library.write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError, match=r"the pocket corpus needs espeak-ng: pip install 'isoflop\[pocket\]'"
    ):
        prepare.prepare(tmp_path, DATA, processes=1)
    assert strays(tmp_path) == []


def test_the_vocabulary_of_the_corpus_is_that_of_the_plan() -> None:
    assert Vocabulary(258, 256, 257, 8, 32) == IDS
