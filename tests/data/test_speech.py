"""Speech from espeak-ng: reproducible, with an error for missing parts."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from isoflop.data.process_pool import in_fresh_processes
from isoflop.data.speech import ESPEAK_SAMPLE_RATE_HZ, VOICES, Synthesizer, Voice
from isoflop.errors import DataError

SENTENCES = ("The quick brown fox jumps over the lazy dog.", "Is this the end of the line?")


def digests(voices: tuple[Voice, ...]) -> list[str]:
    """Return checksums of the sound of a fixed sequence."""
    synthesizer = Synthesizer()
    return [
        hashlib.sha256(synthesizer.synthesize(text, voice).tobytes()).hexdigest()
        for voice in voices
        for text in SENTENCES
    ]


@pytest.mark.slow
def test_every_voice_is_reproducible_bit_for_bit_in_fresh_processes() -> None:
    first, *others = in_fresh_processes(digests, [VOICES] * 4, 2)
    names = [(voice.name, voice.rate) for voice in VOICES for _ in SENTENCES]
    for other in others:
        assert [name for name, a, b in zip(names, first, other, strict=True) if a != b] == []
    assert len(set(first)) == len(first)  # voices and rates differ


def test_speech_has_a_plausible_length() -> None:
    synthesizer = Synthesizer()
    slow, fast = (
        synthesizer.synthesize(SENTENCES[0], Voice("en-us+m1", rate)) for rate in (150, 200)
    )
    for waveform in (slow, fast):
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert 0.1 < np.abs(waveform).max() <= 1
        assert 1.5 < len(waveform) / ESPEAK_SAMPLE_RATE_HZ < 6
    assert len(slow) > 1.15 * len(fast)
    assert synthesizer.version.split(".")[0] == "1"


@pytest.mark.parametrize("name", ["nobody", "nobody+m1", ""])
def test_an_unknown_voice_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"espeak-ng has no voice {re.escape(repr(name))}"):
        Synthesizer().synthesize(SENTENCES[0], Voice(name, 150))


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"pip install 'isoflop\[pocket\]'") as problem:
        Synthesizer()
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("get_library_path", "espeak-ng can't be loaded"),
        ("get_data_path", "espeak-ng can't read its data in /nowhere"),
    ],
)
def test_a_broken_package_is_an_error_and_does_not_end_the_process(
    broken: str, message: str
) -> None:
    script = (
        f"import espeakng_loader; espeakng_loader.{broken} = lambda: '/nowhere'\n"
        "from isoflop.data.speech import Synthesizer\n"
        "from isoflop.errors import DataError\n"
        "try:\n    Synthesizer()\nexcept DataError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout.count("\n")) == (0, 1)
    assert result.stdout.startswith(message)
