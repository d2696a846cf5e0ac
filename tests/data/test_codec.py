"""The pocket codec: training, file, and speech that stays recognizable."""

from __future__ import annotations

import wave
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.data import mel
from isoflop.data.codec import Codec, PocketCodec, extract_frames, train_pocket_codec
from isoflop.data.pocket import draw_scripts, speak
from isoflop.data.process_pool import in_fresh_processes
from isoflop.errors import DataError


@pytest.fixture(scope="module")
def waveforms(split: tuple[list[str], list[str]]) -> list[np.ndarray]:
    """Return a minute of training speech."""
    scripts = draw_scripts(split[1], 0, 0)[:8]
    return [waveform for document in speak(scripts) for waveform in document]


@pytest.fixture(scope="module")
def codecs(waveforms: list[np.ndarray]) -> list[PocketCodec]:
    """Train codecs on the same speech in fresh processes, with seeds 0, 0 and 1."""
    return list(in_fresh_processes(partial(train_pocket_codec, waveforms), [0, 0, 1], 2))


# Training and coding


@pytest.mark.slow
def test_the_codec_has_the_planned_sizes(codec: PocketCodec, waveforms: list[np.ndarray]) -> None:
    interface: Codec = codec
    assert (
        interface.sample_rate,
        interface.frame_rate,
        interface.codebooks,
        interface.codebook_size,
    ) == (
        22_050,
        12.5,
        8,
        32,
    )
    for waveform in [
        waveforms[0],
        np.zeros(0, np.float32),
        np.zeros(1764, np.float32),
        np.zeros(1765, np.float32),
    ]:
        codes = interface.encode(waveform)
        assert codes.shape == (max(1, -(-len(waveform) // 1764)), 8)
        assert codes.min() >= 0
        assert codes.max() < 32
        decoded = interface.decode(codes)
        assert (decoded.dtype, decoded.shape) == (np.float32, (1764 * len(codes),))


@pytest.mark.slow
def test_the_same_speech_and_seed_give_the_same_codec(
    codecs: list[PocketCodec], waveforms: list[np.ndarray]
) -> None:
    first, second, other = codecs
    assert second.checksum == first.checksum != other.checksum
    np.testing.assert_array_equal(second.centroids, first.centroids)
    codes = first.encode(waveforms[0])
    np.testing.assert_array_equal(second.encode(waveforms[0]), codes)
    np.testing.assert_array_equal(second.decode(codes), first.decode(codes))


@pytest.mark.slow
def test_every_codebook_reduces_the_error_of_spectra(
    codec: PocketCodec, heldout_speech: list[np.ndarray]
) -> None:
    frames = np.concatenate([extract_frames(waveform) for waveform in heldout_speech[:40]])
    codes = np.concatenate([codec.encode(waveform) for waveform in heldout_speech[:40]])
    spread = ((frames - codec.mean) ** 2).sum()
    errors = [
        ((frames - codec.spectra(codes[:, :books]).reshape(frames.shape)) ** 2).sum() / spread
        for books in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.5  # the first codebook is the coarse one
    assert errors[-1] < 0.15


@pytest.mark.slow
def test_the_corpus_uses_every_code(codec: PocketCodec, heldout_speech: list[np.ndarray]) -> None:
    codes = np.concatenate([codec.encode(waveform) for waveform in heldout_speech[:120]])
    for book in range(8):
        shares = np.bincount(codes[:, book], minlength=32) / len(codes)
        entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
        assert (shares > 0).sum() >= 30
        assert entropy > 4  # of 5 bits


@pytest.mark.slow
def test_too_little_speech_is_refused(waveforms: list[np.ndarray]) -> None:
    with pytest.raises(
        DataError, match="frames of speech are too few to train a codec; 320 are needed"
    ):
        train_pocket_codec(waveforms[:3], seed=0)


# The file


@pytest.mark.slow
def test_a_saved_codec_is_read_back_unchanged(codec: PocketCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec.npz")
    loaded = PocketCodec.load(tmp_path / "codec.npz")
    assert loaded.checksum == codec.checksum
    np.testing.assert_array_equal(loaded.centroids, codec.centroids)
    np.testing.assert_array_equal(loaded.mean, codec.mean)
    assert [path.name for path in tmp_path.iterdir()] == ["codec.npz"]


def flip(content: bytes, position: float) -> bytes:
    index = int(position * len(content))
    return content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: b"not a codec",
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
    lambda content: flip(content, 0.3),
    lambda content: flip(content, 0.995),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(
    damage: Callable[[bytes], bytes], codec: PocketCodec, tmp_path: Path
) -> None:
    path = tmp_path / "codec.npz"
    codec.save(path)
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(path)


@pytest.mark.slow
def test_a_missing_file_or_one_of_another_version_is_refused(
    codec: PocketCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(tmp_path / "none.npz")
    monkeypatch.setattr("isoflop.data.codec.CODEC_VERSION", 2)
    codec.save(tmp_path / "codec.npz")
    monkeypatch.undo()
    assert_refused(tmp_path / "codec.npz")


def assert_refused(path: Path) -> None:
    with pytest.raises(DataError) as problem:
        PocketCodec.load(path)
    message = str(problem.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("delete its folder and prepare again")
    assert "\n" not in message


@pytest.mark.slow
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_one_flipped_bit_is_found_or_harmless(
    position: float, bit: int, codec: PocketCodec, tmp_path: Path
) -> None:
    path = tmp_path / "codec.npz"
    codec.save(path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        checksum = PocketCodec.load(path).checksum
    except DataError:
        return
    assert checksum == codec.checksum


# Decoded speech stays recognizable


def warped_costs(spectra: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Return costs (others,) of aligning spectra (I, bands) with others (J, bands) each.

    Dynamic time warping: the cost is the Euclidean distance summed along the best path, over I + J.
    All others are aligned at the same time, row by row: cur[j] = D[j] + min(prev[j], prev[j-1],
    cur[j-1]) is a running minimum after the sums of D are subtracted.
    """
    lengths = np.array([len(other) for other in others])
    padded = np.zeros((len(others), lengths.max(), spectra.shape[1]))
    for row, other in zip(padded, others, strict=True):
        row[: len(other)] = other
    squares = (spectra**2).sum(1)[:, None, None] + (padded**2).sum(2)
    distances = np.sqrt(
        np.maximum(squares - 2 * np.einsum("ib,njb->inj", spectra, padded, optimize=True), 0)
    )
    previous = distances[0].cumsum(1)
    for row in distances[1:]:
        best = previous.copy()
        best[:, 1:] = np.minimum(previous[:, 1:], previous[:, :-1])
        sums = row.cumsum(1)
        previous = np.minimum.accumulate(best - (sums - row), axis=1) + sums
    return previous[np.arange(len(others)), lengths - 1] / (len(spectra) + lengths)


def test_warping_matches_its_definition() -> None:
    generator = np.random.default_rng(0)
    spectra = generator.normal(size=(7, 3))
    others = [generator.normal(size=(n, 3)) for n in (1, 4, 9)]
    expected = []
    for other in others:
        cost = np.full((8, len(other) + 1), np.inf)
        cost[0, 0] = 0
        for i in range(7):
            for j in range(len(other)):
                step = min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
                cost[i + 1, j + 1] = np.linalg.norm(spectra[i] - other[j]) + step
        expected.append(cost[-1, -1] / (7 + len(other)))
    np.testing.assert_allclose(warped_costs(spectra, others), expected)


def recognized_share(codec: PocketCodec, speech: list[np.ndarray]) -> float:
    """Return the share of utterances whose decoded sound is nearest to its own original."""
    originals = [mel.log_mel(waveform)[::2] for waveform in speech]
    recognized = [
        warped_costs(mel.log_mel(codec.decode(codec.encode(waveform)))[::2], originals).argmin()
        == index
        for index, waveform in enumerate(speech)
    ]
    return float(np.mean(recognized))


@pytest.mark.slow
def test_a_few_decoded_utterances_are_recognized(
    codec: PocketCodec, heldout_speech: list[np.ndarray]
) -> None:
    assert recognized_share(codec, heldout_speech[:6]) == 1.0


@pytest.mark.parametrize(
    "count", [pytest.param(60, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)]
)
def test_95_percent_of_decoded_utterances_are_recognized(
    codec: PocketCodec, split: tuple[list[str], list[str]], count: int
) -> None:
    documents = speak(draw_scripts(split[0], 0, 0))
    utterances = list(islice(chain.from_iterable(documents), count))
    assert len(utterances) == count
    assert recognized_share(codec, utterances) >= 0.95


PAIRS = Path(__file__).parents[2] / "analysis" / "codec"


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (
            1,
            2,
            mel.SAMPLE_RATE,
        )
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def test_the_committed_decoded_files_are_recognized() -> None:
    files = sorted(PAIRS.glob("*.wav"))
    assert [file.name for file in files] == [
        f"{n}-{name}.wav" for n in (1, 2, 3) for name in ("decoded", "original")
    ]
    assert sum(file.stat().st_size for file in files) < 600_000
    spectra = {file.stem: mel.log_mel(read_wav(file)) for file in files}
    originals = [spectra[f"{n}-original"] for n in (1, 2, 3)]
    assert [warped_costs(spectra[f"{n}-decoded"], originals).argmin() for n in (1, 2, 3)] == [
        0,
        1,
        2,
    ]
    assert all(0.05 < np.abs(read_wav(file)).max() < 0.95 for file in files)
