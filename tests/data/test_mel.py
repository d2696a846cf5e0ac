"""Spectra of sound, and sound of spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data import mel


def tone(hertz: float, samples: int = 11_025) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / mel.SAMPLE_RATE)


@given(samples=st.integers(0, 6000), seed=st.integers(0, 99))
def test_there_is_one_spectrum_per_started_hop_and_at_least_one(samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).normal(size=samples)
    count = max(1, math.ceil(samples / 441))
    assert mel.stft(waveform).shape == (count, 513)
    spectra = mel.log_mel(waveform)
    assert (spectra.shape, spectra.dtype) == ((count, 32), np.float32)
    assert np.isfinite(spectra).all()


@given(samples=st.integers(1, 6000), seed=st.integers(0, 99))
def test_the_inverse_of_the_spectra_is_the_waveform(samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).normal(size=samples)
    inverse = mel.istft(mel.stft(waveform))
    assert len(inverse) == 441 * math.ceil(samples / 441)
    np.testing.assert_allclose(inverse[:samples], waveform, atol=1e-6)


@pytest.mark.parametrize("hertz", [150, 440, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_the_band_that_holds_it(hertz: float) -> None:
    loudest = mel.log_mel(tone(hertz))[5:-5].argmax(1)
    filters = mel.mel_filters()
    centre = filters.argmax(1)[loudest] * mel.SAMPLE_RATE / mel.WINDOW_SAMPLES
    width = (filters > 0).sum(1)[loudest] * mel.SAMPLE_RATE / mel.WINDOW_SAMPLES
    assert (np.abs(centre - hertz) <= width / 2 + 22).all()


def test_filters_have_equal_weight_and_cover_all_frequencies_of_speech() -> None:
    filters = mel.mel_filters()
    np.testing.assert_allclose(filters.sum(1), 1)
    assert (filters >= 0).all()
    frequencies = np.arange(513) * mel.SAMPLE_RATE / mel.WINDOW_SAMPLES
    assert (filters.sum(0)[(frequencies > 90) & (frequencies < 7900)] > 0).all()


def test_silence_has_the_minimum_amplitude_and_stays_quiet() -> None:
    spectra = mel.log_mel(np.zeros(4410))
    np.testing.assert_allclose(spectra, math.log(mel.MIN_AMPLITUDE), rtol=1e-6)
    assert np.abs(mel.invert(spectra)).max() < 5e-3


def test_inverted_sound_has_the_same_spectra() -> None:
    chirp = np.sin(np.cumsum(np.linspace(0.05, 0.6, 22_050))) * np.hanning(22_050)
    spectra = mel.log_mel(chirp)
    waveform = mel.invert(spectra)
    assert (waveform.shape, waveform.dtype) == ((441 * len(spectra),), np.float32)
    inverted = mel.log_mel(waveform)
    loud = spectra > spectra.max() - 4
    assert np.abs(inverted - spectra)[loud].mean() < 0.35
    np.testing.assert_array_equal(waveform, mel.invert(spectra))  # deterministic


def test_no_spectra_give_no_sound() -> None:
    assert mel.invert(np.empty((0, 32))).shape == (0,)
