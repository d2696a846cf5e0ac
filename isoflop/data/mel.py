"""Log-mel spectra of speech, and their inversion to sound (Griffin and Lim 1984)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

SAMPLE_RATE = 22050  # Hz
HOP_SAMPLES = 441  # 50 spectra a second
WINDOW_SAMPLES = 1024
MEL_BANDS = 32
MIN_AMPLITUDE = 1e-2  # a band below it counts as silent; speech peaks near 70


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Return log-mel spectra (ceil(samples / 441), 32), float32, of a waveform (samples,).

    The waveform is sampled at 22,050 Hz. Values are natural logarithms of mel amplitudes.
    """
    return np.log(np.maximum(np.abs(stft(waveform)) @ mel_filters().T, MIN_AMPLITUDE)).astype(
        np.float32
    )


def invert(log_mels: np.ndarray, iterations: int = 32) -> np.ndarray:
    """Return a waveform (441 * spectra,) for log-mel spectra (spectra, 32)."""
    magnitudes = np.maximum(np.exp(log_mels.astype(np.float64)) @ _pseudo_inverse().T, 0)
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitudes.shape))
    for _ in range(iterations):
        waveform = istft(magnitudes * phases)
        spectra = stft(waveform)
        phases = spectra / np.maximum(np.abs(spectra), 1e-12)
    return istft(magnitudes * phases).astype(np.float32)


def stft(waveform: np.ndarray) -> np.ndarray:
    """Return complex spectra (ceil(samples / 441), 513) of Hann windows."""
    count = max(1, math.ceil(len(waveform) / HOP_SAMPLES))
    padded = np.zeros((count - 1) * HOP_SAMPLES + WINDOW_SAMPLES)
    begin = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
    padded[begin : begin + len(waveform)] = waveform[: len(padded) - begin]
    return np.fft.rfft(
        np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
        * np.hanning(WINDOW_SAMPLES)
    )


def istft(spectra: np.ndarray) -> np.ndarray:
    """Return the waveform (441 * spectra,): the least-squares inverse of `stft`.

    Windows are added with overlap and weights.
    """
    window = np.hanning(WINDOW_SAMPLES)
    pieces = np.fft.irfft(spectra, WINDOW_SAMPLES) * window
    total = np.zeros((len(spectra) - 1) * HOP_SAMPLES + WINDOW_SAMPLES)
    weight = np.full(len(total), 1e-8)
    for index, piece in enumerate(pieces):
        total[index * HOP_SAMPLES : index * HOP_SAMPLES + WINDOW_SAMPLES] += piece
        weight[index * HOP_SAMPLES : index * HOP_SAMPLES + WINDOW_SAMPLES] += window**2
    begin = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
    return (total / weight)[begin : begin + len(spectra) * HOP_SAMPLES]


@cache
def mel_filters() -> np.ndarray:
    """Return triangular filters (32, 513) from 60 Hz to 8 kHz, each with weights that add up to 1.

    mel = 2595 log10(1 + f / 700).
    """
    edges = 700 * (10 ** (np.linspace(_mel(60), _mel(8000), MEL_BANDS + 2) / 2595) - 1)
    frequencies = np.arange(WINDOW_SAMPLES // 2 + 1) * SAMPLE_RATE / WINDOW_SAMPLES
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return filters / np.maximum(filters.sum(1, keepdims=True), 1e-9)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


@cache
def _pseudo_inverse() -> np.ndarray:
    return np.linalg.pinv(mel_filters())
