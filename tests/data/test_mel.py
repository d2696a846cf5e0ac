"""Spectra and back to sound."""

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
def test_there_is_a_spectrum_for_every_hop_begun_and_at_least_one(samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).normal(size=samples)
    count = max(1, math.ceil(samples / 441))
    assert mel.stft(waveform).shape == (count, 513)
    spectra = mel.log_mel(waveform)
    assert (spectra.shape, spectra.dtype) == ((count, 32), np.float32)
    assert np.isfinite(spectra).all()


@given(samples=st.integers(1, 6000), seed=st.integers(0, 99))
def test_the_inverse_of_the_spectra_is_the_waveform(samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).normal(size=samples)
    again = mel.istft(mel.stft(waveform))
    assert len(again) == 441 * math.ceil(samples / 441)
    np.testing.assert_allclose(again[:samples], waveform, atol=1e-6)


@pytest.mark.parametrize("hertz", [150, 440, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_the_band_that_holds_it(hertz: float) -> None:
    loudest = mel.log_mel(tone(hertz))[5:-5].argmax(1)
    filters = mel.mel_filters()
    centre = filters.argmax(1)[loudest] * mel.SAMPLE_RATE / mel.WINDOW
    width = (filters > 0).sum(1)[loudest] * mel.SAMPLE_RATE / mel.WINDOW
    assert (np.abs(centre - hertz) <= width / 2 + 22).all()


def test_filters_weigh_every_band_alike_and_miss_no_frequency_of_speech() -> None:
    filters = mel.mel_filters()
    np.testing.assert_allclose(filters.sum(1), 1)
    assert (filters >= 0).all()
    frequencies = np.arange(513) * mel.SAMPLE_RATE / mel.WINDOW
    assert (filters.sum(0)[(frequencies > 90) & (frequencies < 7900)] > 0).all()


def test_silence_is_the_floor_and_comes_back_quiet() -> None:
    spectra = mel.log_mel(np.zeros(4410))
    np.testing.assert_allclose(spectra, math.log(mel.FLOOR), rtol=1e-6)
    assert np.abs(mel.invert(spectra)).max() < 5e-3


def test_sound_made_of_spectra_has_those_spectra() -> None:
    chirp = np.sin(np.cumsum(np.linspace(0.05, 0.6, 22_050))) * np.hanning(22_050)
    spectra = mel.log_mel(chirp)
    waveform = mel.invert(spectra)
    assert (waveform.shape, waveform.dtype) == ((441 * len(spectra),), np.float32)
    again = mel.log_mel(waveform)
    loud = spectra > spectra.max() - 4
    assert np.abs(again - spectra)[loud].mean() < 0.35
    np.testing.assert_array_equal(waveform, mel.invert(spectra))  # it draws nothing at random


def test_no_spectra_are_no_sound() -> None:
    assert mel.invert(np.empty((0, 32))).shape == (0,)
