"""Shards: token ids in flat files that are mapped into memory, with a manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.config.validation import SchemaError, build
from isoflop.data.vocabulary import TokenKind, Vocabulary
from isoflop.errors import DataError
from isoflop.files import replace_file

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """Description of one file of ids.

    Attributes:
        file: name of the file.
        split: split of its documents.
        tokens: number of its ids.
        documents: number of its documents.
        kinds: number of ids by kind of token.
        audio_seconds: seconds of speech; each utterance counts once per order.
        sha256: checksum of its content.
    """

    file: str
    split: str
    tokens: int
    documents: int
    kinds: dict[str, int]
    audio_seconds: float
    sha256: str


def write_shard(
    folder: Path,
    name: str,
    split: str,
    documents: list[np.ndarray],
    seconds: float,
    vocabulary: Vocabulary,
) -> Shard:
    """Write documents one after the other as `name`.bin; return their description."""
    ids = np.concatenate(documents).astype(vocabulary.dtype)
    path = folder / f"{name}.bin"
    with replace_file(path) as temporary:
        temporary.write_bytes(ids.data)
    counts = np.bincount(vocabulary.kinds[ids], minlength=len(TokenKind))
    kinds = {kind.name.lower(): int(counts[kind]) for kind in TokenKind}
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    return Shard(path.name, split, len(ids), len(documents), kinds, seconds, digest)


@dataclass(frozen=True)
class Manifest:
    """Content of a folder of shards.

    Attributes:
        vocabulary: vocabulary of the ids.
        shards: the files.
        data: data specification of the folder.
        versions: versions of Python, espeak-ng and isoflop, and the codec's checksum.
    """

    vocabulary: Vocabulary
    shards: tuple[Shard, ...]
    data: dict[str, Any]
    versions: dict[str, str]

    @property
    def checksum(self) -> str:
        """Checksum of the vocabulary and of every shard's content; a run is tied to it."""
        parts = [repr(self.vocabulary), *(f"{shard.split} {shard.sha256}" for shard in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """Return the number of tokens in a split, `train` or `heldout`."""
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, complete or not at all."""
        document = {
            "schema": SCHEMA_VERSION,
            "data": self.data,
            "vocabulary": asdict(self.vocabulary),
            "versions": self.versions,
            "tokens": {split: self.tokens(split) for split in ("train", "heldout")},
            "shards": [asdict(shard) for shard in self.shards],
            "checksum": self.checksum,
        }
        with replace_file(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest.

        Raises:
            DataError: a missing manifest, or one that is damaged or of another schema.
        """
        path = folder / MANIFEST
        try:
            document = json.loads(path.read_text())
            manifest = build(
                cls, {name: document[name] for name in ("vocabulary", "shards", "data", "versions")}
            )
        except FileNotFoundError:
            fix = (
                "delete the folder and prepare again"
                if folder.exists()
                else "run `isoflop prepare SWEEP.yaml` first"
            )
            raise DataError(f"{folder}: has no prepared data (no {MANIFEST}); {fix}") from None
        except (ValueError, KeyError, TypeError, SchemaError) as error:
            raise DataError(
                f"{path}: not a readable manifest ({error}); delete the folder and prepare again"
            ) from None
        if (
            document.get("schema") != SCHEMA_VERSION
            or document.get("checksum") != manifest.checksum
        ):
            raise DataError(
                f"{path}: edited, damaged or of another version; delete the folder and prepare "
                "again"
            )
        return manifest

    def check(self, folder: Path) -> None:
        """Read all shards of a folder, and their codec if the manifest names one.

        Raises:
            DataError: a shard or codec that is missing or damaged.
        """
        for shard in self.shards:
            _open_shard(folder, shard, self.vocabulary.dtype)
        if "codec" in self.versions:
            from isoflop.data.codec import CODEC_FILE, PocketCodec

            path = folder / CODEC_FILE
            if PocketCodec.load(path).checksum != self.versions["codec"]:
                raise DataError(
                    f"{path}: not the codec of these shards; delete the folder and prepare again"
                )


class Windows:
    """Windows of `seq_len + 1` ids of one split: inputs and shifted targets have `seq_len` each.

    Windows do not span shards; a remainder at a shard's end is not used.
    """

    def __init__(
        self, folder: Path, split: str, seq_len: int, manifest: Manifest | None = None
    ) -> None:
        self.manifest = manifest or Manifest.read(folder)
        self.seq_len = seq_len
        splits = sorted({shard.split for shard in self.manifest.shards})
        if split not in splits:
            raise DataError(f"{folder}: no split {split!r}; there are {', '.join(splits)}")
        self._shards = [
            _open_shard(folder, shard, self.manifest.vocabulary.dtype)
            for shard in self.manifest.shards
            if shard.split == split
        ]
        self._ends = np.cumsum([max(0, (len(ids) - 1) // seq_len) for ids in self._shards])
        if not len(self):
            raise DataError(
                f"{folder}: the {split} split has no window of {seq_len} tokens; raise "
                + ("data.tokens" if split == "train" else "data.heldout_share")
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def spread(self, tokens: int) -> np.ndarray:
        """Return the numbers of windows with about `tokens` targets, evenly spaced over the split.

        There is at least one window.
        """
        count = max(1, min(len(self), tokens // self.seq_len))
        return np.arange(count) * len(self) // count

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the windows (len(numbers), seq_len + 1), int64."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        starts = np.concatenate([[0], self._ends])
        windows = np.empty((len(numbers), self.seq_len + 1), dtype=np.int64)
        for row, (shard, number) in enumerate(zip(shards, numbers, strict=True)):
            begin = (number - starts[shard]) * self.seq_len
            windows[row] = self._shards[shard][begin : begin + self.seq_len + 1]
        return windows


def _open_shard(folder: Path, shard: Shard, dtype: str) -> np.ndarray:
    path = folder / shard.file
    if not path.exists():
        raise DataError(f"{path}: missing; delete the folder and prepare again")
    complete = path.stat().st_size == shard.tokens * np.dtype(dtype).itemsize
    ids = np.empty(0, dtype)
    if complete and shard.tokens:
        ids = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
    if not complete or hashlib.sha256(ids.data).hexdigest() != shard.sha256:
        raise DataError(
            f"{path}: damaged (its content is not the manifest's); delete the folder and prepare "
            "again"
        )
    return ids
