"""Audio codecs: waveform to codes (frames, codebooks) and back.

`PocketCodec` is a small residual vector quantizer of log-mel frames, trained on the corpus that it
encodes. It stands in for Mimi with the same interface: 12.5 frames a second, 8 codebooks, the first
the coarsest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from isoflop.data import mel
from isoflop.data.vocabulary import CODECS
from isoflop.errors import DataError
from isoflop.files import replace_file

if TYPE_CHECKING:
    from isoflop.frames import Ints

CODEC_FILE = "codec.npz"
CODEC_VERSION = 1
SPECTRA_PER_FRAME = 4  # 50 spectra a second, 12.5 frames


class Codec(Protocol):
    """Interface of an audio codec for data preparation."""

    @property
    def sample_rate(self) -> int:
        """Return the samples of a waveform per second."""
        ...

    @property
    def frame_rate(self) -> float:
        """Return the frames of codes per second."""
        ...

    @property
    def codebooks(self) -> int:
        """Return the number of codebooks, the codes of a frame."""
        ...

    @property
    def codebook_size(self) -> int:
        """Return the number of codes in a codebook."""
        ...

    def encode(self, waveform: np.ndarray) -> Ints:
        """Return codes (frames, codebooks) of a waveform (samples,) at `sample_rate`."""
        ...

    def decode(self, codes: Ints) -> np.ndarray:
        """Return the waveform (samples,), float32, of codes (frames, codebooks)."""
        ...


@dataclass(frozen=True, eq=False)
class PocketCodec:
    """Residual vector quantizer of frames of 4 log-mel spectra.

    Attributes:
        centroids: (codebooks, codebook_size, 128) float32; codebook k quantizes the residual of
            codebooks 0 to k-1.
        mean: (128,) float32, subtracted first.
    """

    centroids: np.ndarray
    mean: np.ndarray
    sample_rate: int = mel.SAMPLE_RATE
    frame_rate: float = mel.SAMPLE_RATE / mel.HOP_SAMPLES / SPECTRA_PER_FRAME

    @property
    def codebooks(self) -> int:
        """Return the number of codebooks."""
        return self.centroids.shape[0]

    @property
    def codebook_size(self) -> int:
        """Return the number of codes in a codebook."""
        return self.centroids.shape[1]

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of centroids and mean, in hexadecimal."""
        return hashlib.sha256(self.centroids.tobytes() + self.mean.tobytes()).hexdigest()

    def encode(self, waveform: np.ndarray) -> Ints:
        """Return codes (frames, codebooks), int64, of a waveform (samples,) at 22,050 Hz.

        The last frame is padded with silence.
        """
        residual = extract_frames(waveform) - self.mean
        codes = np.empty((len(residual), self.codebooks), dtype=np.int64)
        for book, centroids in enumerate(self.centroids):
            codes[:, book] = _nearest(residual, centroids)
            residual = residual - centroids[codes[:, book]]
        return codes

    def decode(self, codes: Ints) -> np.ndarray:
        """Return the waveform (1764 * frames,), float32, of codes (frames, up to 8 codebooks)."""
        return mel.invert(self.spectra(codes))

    def spectra(self, codes: Ints) -> np.ndarray:
        """Return the log-mel spectra (4 * frames, 32) of codes (frames, up to 8 codebooks)."""
        books = np.arange(codes.shape[1])
        return (self.mean + self.centroids[books, codes].sum(1)).reshape(-1, mel.MEL_BANDS)

    def save(self, path: Path) -> None:
        """Write the codec as .npz, complete or not at all."""
        with replace_file(path) as temporary, temporary.open("wb") as file:
            header = json.dumps({"version": CODEC_VERSION, "checksum": self.checksum})
            np.savez(file, centroids=self.centroids, mean=self.mean, about=np.array(header))

    @classmethod
    def load(cls, path: Path) -> PocketCodec:
        """Read a codec that `save` wrote.

        Raises:
            DataError: a missing or damaged file, or one of another version.
        """
        try:
            with path.open("rb") as file, np.load(file) as stored:
                header = json.loads(str(stored["about"]))
                codec = cls(stored["centroids"], stored["mean"])
                valid = header["version"] == CODEC_VERSION and header["checksum"] == codec.checksum
        except Exception as error:  # numpy and zipfile raise many types for a damaged file
            raise DataError(
                f"{path}: not a readable codec ({error}); delete its folder and prepare again"
            ) from None
        if not valid:
            raise DataError(
                f"{path}: damaged or of another version; delete its folder and prepare again"
            )
        return codec


def extract_frames(waveform: np.ndarray) -> np.ndarray:
    """Return the frames (ceil(samples / 1764), 128) of a waveform (samples,).

    A frame has 4 log-mel spectra; the last one is padded with silence.
    """
    spectra = mel.log_mel(waveform)
    missing = -len(spectra) % SPECTRA_PER_FRAME
    padded = np.pad(spectra, ((0, missing), (0, 0)), constant_values=np.log(mel.MIN_AMPLITUDE))
    return padded.reshape(-1, SPECTRA_PER_FRAME * mel.MEL_BANDS)


def train_pocket_codec(waveforms: list[np.ndarray], seed: int) -> PocketCodec:
    """Train a codec on waveforms (samples,) at 22,050 Hz by residual k-means.

    The same input and seed give the same codec.

    Raises:
        DataError: fewer frames than codes.
    """
    codebooks, size = CODECS["pocket"]
    frames = np.concatenate([extract_frames(waveform) for waveform in waveforms])
    if len(frames) < 10 * size:
        raise DataError(
            f"{len(frames)} frames of speech are too few to train a codec; {10 * size} are needed"
        )
    generator = np.random.default_rng(seed)
    mean = frames.mean(0)
    residual, centroids = frames - mean, []
    for _ in range(codebooks):
        centroids.append(_k_means(residual, size, generator))
        residual = residual - centroids[-1][_nearest(residual, centroids[-1])]
    return PocketCodec(np.stack(centroids), mean)


def _k_means(
    points: np.ndarray, count: int, generator: np.random.Generator, iterations: int = 20
) -> np.ndarray:
    """Return centroids (count, features) of points (n, features) by Lloyd's algorithm.

    A centroid without points moves to a random point.
    """
    centroids = points[generator.choice(len(points), count, replace=False)]
    for _ in range(iterations):
        nearest = _nearest(points, centroids)
        members = (nearest == np.arange(count)[:, None]).astype(np.float32)
        sizes, sums = members.sum(1), members @ points
        spare = points[generator.choice(len(points), count, replace=False)]
        centroids = np.where(
            sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], spare
        ).astype(np.float32)
    return centroids


def _nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((centroids**2).sum(1) - 2 * points @ centroids.T).argmin(1)
