"""Speech synthesis with espeak-ng, by the library in the `espeakng-loader` wheel."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from isoflop.errors import DataError

if TYPE_CHECKING:
    import numpy as np

ESPEAK_SAMPLE_RATE_HZ = 22050
RATE_PARAMETER = 1  # espeak_PARAMETER
SYNCHRONOUS, UTF8, CHARACTERS = 2, 1, 1
DONT_EXIT = 0x8000  # without it, espeak ends the process if its data can't be read

DIALECTS = ("en-us", "en", "en-gb-scotland")
VARIANTS = ("m1", "m7", "f1", "f4")  # f2, f3, f5 differ from process to process in espeak-ng 1.52
WORDS_PER_MINUTE = (150, 175, 200)


@dataclass(frozen=True)
class Voice:
    """An espeak voice, with its rate in words per minute."""

    name: str
    rate: int


class Synthesizer:
    """espeak-ng in this process.

    It keeps state between calls, so only a whole sequence of calls is reproducible.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise DataError(
                "the pocket corpus needs espeak-ng: pip install 'isoflop[pocket]' "
                "(or pip install espeakng-loader)"
            ) from None
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise DataError(
                f"espeak-ng can't be loaded ({error}); reinstall espeakng-loader"
            ) from None
        data = espeakng_loader.get_data_path()
        if (
            self._library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DONT_EXIT)
            != ESPEAK_SAMPLE_RATE_HZ
        ):
            raise DataError(
                f"espeak-ng can't read its data in {data}; reinstall espeakng-loader, "
                "under a shorter path if this one has more than 150 characters"
            )
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback(self._receive)  # espeak holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    @property
    def version(self) -> str:
        """Return the version of espeak-ng."""
        self._library.espeak_Info.restype = ctypes.c_char_p
        return self._library.espeak_Info(None).decode()

    def synthesize(self, text: str, voice: Voice) -> np.ndarray:
        """Return the waveform (samples,), float32 in [-1, 1], at 22,050 Hz.

        Raises:
            DataError: an unknown voice, or text that espeak-ng can't speak.
        """
        import numpy as np

        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice.name!r}")
        self._library.espeak_SetParameter(RATE_PARAMETER, voice.rate, 0)
        self._chunks.clear()
        encoded = text.encode() + b"\0"
        failed = (
            self._library.espeak_Synth(encoded, len(encoded), 0, CHARACTERS, 0, UTF8, None, None)
            != 0
        )
        if failed or not self._chunks:
            raise DataError(f"espeak-ng could not speak {text!r}")
        return np.concatenate(self._chunks).astype(np.float32) / 32768

    def _receive(self, samples: ctypes._Pointer, count: int, _events: int | None) -> int:
        import numpy as np

        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


VOICES = tuple(
    Voice(f"{dialect}+{variant}", rate)
    for dialect, variant, rate in product(DIALECTS, VARIANTS, WORDS_PER_MINUTE)
)
