"""Log-mel spectra of speech and back to sound (Griffin and Lim 1984)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

SAMPLE_RATE = 22050
HOP = 441  # 50 spectra a second
WINDOW = 1024
BINS = 32
FLOOR = 1e-2  # amplitude below which a band is taken as silent; speech peaks near 70


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Natural log of mel amplitudes, (ceil(samples / 441), 32) float32, of a waveform (samples,) at 22,050 Hz."""
    return np.log(np.maximum(np.abs(stft(waveform)) @ mel_filters().T, FLOOR)).astype(np.float32)


def invert(log_mels: np.ndarray, iterations: int = 32) -> np.ndarray:
    """A waveform (441 * spectra,) whose log-mel spectra are near those given, (spectra, 32)."""
    magnitudes = np.maximum(np.exp(log_mels.astype(np.float64)) @ _pseudo_inverse().T, 0)
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitudes.shape))
    for _ in range(iterations):
        waveform = istft(magnitudes * phases)
        spectra = stft(waveform)
        phases = spectra / np.maximum(np.abs(spectra), 1e-12)
    return istft(magnitudes * phases).astype(np.float32)


def stft(waveform: np.ndarray) -> np.ndarray:
    """Spectra (ceil(samples / 441), 513) of Hann windows, complex."""
    count = max(1, math.ceil(len(waveform) / HOP))
    padded = np.zeros((count - 1) * HOP + WINDOW)
    begin = (WINDOW - HOP) // 2
    padded[begin : begin + len(waveform)] = waveform[: len(padded) - begin]
    return np.fft.rfft(
        np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    )


def istft(spectra: np.ndarray) -> np.ndarray:
    """The waveform (441 * spectra,) by weighted overlap-add: the least-squares inverse of `stft`."""
    window = np.hanning(WINDOW)
    pieces = np.fft.irfft(spectra, WINDOW) * window
    total = np.zeros((len(spectra) - 1) * HOP + WINDOW)
    weight = np.full(len(total), 1e-8)
    for index, piece in enumerate(pieces):
        total[index * HOP : index * HOP + WINDOW] += piece
        weight[index * HOP : index * HOP + WINDOW] += window**2
    begin = (WINDOW - HOP) // 2
    return (total / weight)[begin : begin + len(spectra) * HOP]


@cache
def mel_filters() -> np.ndarray:
    """Triangular filters (32, 513), 60 Hz to 8 kHz, each of unit area in bins; mel = 2595 log10(1 + f / 700)."""
    edges = 700 * (10 ** (np.linspace(_mel(60), _mel(8000), BINS + 2) / 2595) - 1)
    frequencies = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return filters / np.maximum(filters.sum(1, keepdims=True), 1e-9)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


@cache
def _pseudo_inverse() -> np.ndarray:
    return np.linalg.pinv(mel_filters())
