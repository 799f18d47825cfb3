"""Ten kinds of sound after those of ESC-10, made of noise, harmonics and envelopes: to try what real ones have taught.

Each clip has its own pitch, pace, timbre, room, equaliser, level and background noise (3 dB louder than the sound to 20
dB softer), so that a few labelled clips show little of what a kind may be.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 22_050
Random = np.random.Generator


def scene(kind: str, seconds: float, random: Random) -> np.ndarray:
    """One clip of a kind, float64 [seconds * RATE], peak under 1."""
    time = np.arange(int(seconds * RATE)) / RATE
    sound = _in_a_room(SCENES[kind](time, random), random)
    sound = sound / _rms(sound)
    background = _noise(len(time), random.uniform(0.0, 2.0), random)
    sound = sound + background / _rms(background) * 10.0 ** (-random.uniform(-3.0, 20.0) / 20.0)
    tilt = random.uniform(-0.5, 0.5)
    sound = _filtered(sound, lambda hertz: (np.maximum(hertz, 60.0) / 1000.0) ** tilt)
    return sound / np.abs(sound).max() * 10.0 ** random.uniform(-0.9, -0.05)


def _dog(time: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(len(time))
    base, formant = _octaves(194, 588, random), _octaves(588, 1783, random)
    gap, start = random.uniform((0.25, 0.0), (0.7, 0.5))
    for number in range(random.integers(1, 5)):
        length = random.uniform(0.08, 0.22)
        along = np.linspace(0.0, 3.0, int(3 * length * RATE))
        rise = random.uniform(0.1, 0.5) * np.exp(-(((along - 0.6) / 0.5) ** 2))
        bark = _voice(base * (1.0 + rise) * random.uniform(0.9, 1.1), 0.6, 0.8, random)
        bark = _band(bark * _struck(len(along), 0.015, length), formant, 1.2) * random.uniform(0.5, 1.0)
        _add(out, start + number * gap * random.uniform(0.8, 1.2), bark)
    return out


def _rooster(time: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(len(time))
    base, start = _octaves(446, 1176, random), random.uniform(0.0, 0.5)
    syllables = [*random.uniform(0.08, 0.2, random.integers(1, 4)), random.uniform(0.5, 1.0)]
    for number, length in enumerate(syllables):
        last = number == len(syllables) - 1
        along = np.linspace(0.0, 1.0, int(length * RATE))
        bend = (1.0 + (0.25 if last else 0.1) * np.sin(np.pi * along)) * (1.0 - 0.35 * along * last)
        call = _voice(base * bend * random.uniform(0.85, 1.15), random.uniform(0.5, 1.2), 0.2, random)
        _add(out, start, call * np.sin(np.pi * along) ** 0.4)
        start += length + random.uniform(0.03, 0.12)
    return out


def _rain(time: np.ndarray, random: Random) -> np.ndarray:
    hiss, drops = _noise(len(time), random.uniform(-0.6, 0.8), random), np.zeros(len(time))
    many = int(random.integers(100, 900) * time[-1])
    drops[random.integers(0, len(time), many)] = random.exponential(1.0, many) * random.choice([-1.0, 1.0], many)
    one = time[:400]
    one = np.exp(-one / random.uniform(0.0005, 0.003)) * np.sin(2 * np.pi * random.uniform(1500, 5000) * one)
    drops = np.convolve(drops, one)[: len(time)]
    return 0.6 * hiss + random.uniform(0.1, 0.8) * drops / np.abs(drops).max()


def _sea_waves(time: np.ndarray, random: Random) -> np.ndarray:
    swell = np.abs(np.sin(np.pi * (time * random.uniform(0.15, 0.5) + random.uniform()))) ** random.uniform(1, 3) + 0.15
    low, high = _noise(len(time), random.uniform(1, 2), random), _noise(len(time), random.uniform(0, 0.5), random)
    return low * swell + random.uniform(0.2, 0.8) * high * swell**2


def _crackling_fire(time: np.ndarray, random: Random) -> np.ndarray:
    out = random.uniform(0.1, 0.5) * _noise(len(time), random.uniform(1.2, 2.2), random)
    for _ in range(random.poisson(random.uniform(5, 25) * time[-1])):
        samples = int(random.uniform(0.002, 0.02) * RATE)
        crack = random.standard_normal(samples) * np.exp(-4.0 * np.arange(samples) / samples)
        _add(out, random.uniform(0.0, time[-1]), crack * min(0.2 * random.pareto(1.5), 1.0))
    return out


def _crying_baby(time: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(len(time))
    base, formant, start = _octaves(294, 630, random), _octaves(891, 2353, random), random.uniform(0.0, 0.3)
    while start < time[-1]:
        length = random.uniform(0.35, 1.1)
        along = np.linspace(0.0, 1.0, int(length * RATE))
        bend = 1.0 + 0.25 * np.sin(np.pi * along**0.7)
        bend += 0.03 * np.sin(2 * np.pi * random.uniform(5, 9) * length * along)
        cry = _voice(base * bend * random.uniform(0.92, 1.08), random.uniform(0.1, 0.6), 0.15, random)
        _add(out, start, _band(cry, formant, 1.3) * np.sin(np.pi * along) ** 0.5)
        start += length + random.uniform(0.1, 0.4)
    return out


def _sneezing(time: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(len(time))
    start, breath, burst = random.uniform((0.0, 0.15, 0.3), (0.35 * time[-1], 0.5, 0.6))
    inhaled = random.standard_normal(int(breath * RATE))
    inhaled = 0.25 * _band(inhaled, _octaves(1448, 4096, random), 0.8) * np.linspace(0.0, 1.0, len(inhaled)) ** 2
    _add(out, start, inhaled)
    samples = int(burst * RATE)
    hiss = _band(random.standard_normal(samples), _octaves(1448, 5793, random), 1.5)
    hiss *= _struck(samples, 0.01, random.uniform(0.05, 0.15))
    cry = _voice(_octaves(181, 512, random) * (1.0 - 0.3 * np.linspace(0.0, 1.0, samples)), 0.8, 0.0, random)
    cry *= _struck(samples, 0.02, random.uniform(0.05, 0.15))
    _add(out, start + breath + random.uniform(0.0, 0.1), hiss / np.abs(hiss).max() + random.uniform(0.0, 0.5) * cry)
    return out


def _clock_tick(time: np.ndarray, random: Random) -> np.ndarray:
    out = np.zeros(len(time))
    period, pitches, decay = 1.0 / random.uniform(1.0, 4.5), random.uniform(1500, 6000, 2), random.uniform(0.002, 0.015)
    along, start, number = np.arange(int(0.08 * RATE)) / RATE, random.uniform(0.0, period), 0
    while start < time[-1]:
        angle = 2 * np.pi * pitches[number % 2] * along
        tick = np.sin(angle) + 0.7 * np.sin(1.53 * angle) + 0.5 * random.standard_normal(len(along))
        _add(out, start, tick * np.exp(-along / decay) * (1.0 if number % 2 else random.uniform(0.5, 1.0)))
        start, number = start + period * random.uniform(0.98, 1.02), number + 1
    return out


def _helicopter(time: np.ndarray, random: Random) -> np.ndarray:
    phase = (time * random.uniform(8, 22) + random.uniform()) % 1.0
    blades = np.exp(-phase * random.uniform(3, 8)) + random.uniform(0.05, 0.3)
    turbine = _voice(np.full(len(time), random.uniform(80, 250)), 1.0, 0.0, random)
    return _noise(len(time), random.uniform(0.8, 2.0), random) * blades + 0.2 * turbine


def _chainsaw(time: np.ndarray, random: Random) -> np.ndarray:
    throttle = np.interp(time, np.linspace(0.0, time[-1], 6), random.uniform(-0.35, 0.35, 6))
    motor = _voice(_octaves(64, 194, random) * (1.0 + throttle), random.uniform(0.0, 0.5), 0.4, random)
    return _band(motor, _octaves(724, 2896, random), 1.8) + 0.15 * _noise(len(time), 0.0, random)


SCENES: dict[str, Callable[[np.ndarray, Random], np.ndarray]] = {
    "dog": _dog,
    "rooster": _rooster,
    "rain": _rain,
    "sea_waves": _sea_waves,
    "crackling_fire": _crackling_fire,
    "crying_baby": _crying_baby,
    "sneezing": _sneezing,
    "clock_tick": _clock_tick,
    "helicopter": _helicopter,
    "chainsaw": _chainsaw,
}


def _octaves(low: float, high: float, random: Random) -> float:
    """A frequency in Hz, uniform in octaves."""
    return float(low * (high / low) ** random.uniform())


def _noise(samples: int, slope: float, random: Random) -> np.ndarray:
    """Noise whose power falls as 1 / f ** slope, peak 1."""
    white = random.standard_normal(samples)
    shaped = _filtered(white, lambda hertz: (np.maximum(hertz, 40.0) / 1000.0) ** (-slope / 2.0))
    return shaped / np.abs(shaped).max()


def _voice(pitch: np.ndarray, tilt: float, breath: float, random: Random) -> np.ndarray:
    """Harmonics of a curve of pitch in Hz, the k-th of amplitude k ** -tilt, peak 1, and noise."""
    angle, wave = 2 * np.pi * np.cumsum(pitch) / RATE, np.zeros(len(pitch))
    for harmonic in range(1, 25):
        if harmonic * pitch.max() < 10_000:
            wave += np.sin(harmonic * angle + random.uniform(0.0, 2 * np.pi)) * harmonic**-tilt
    return wave / (np.abs(wave).max() + 1e-9) + 0.3 * breath * random.standard_normal(len(pitch))


def _band(wave: np.ndarray, centre: float, octaves: float) -> np.ndarray:
    """Within a bell of so many octaves (its deviation) around a frequency."""
    return _filtered(wave, lambda hertz: np.exp(-0.5 * (np.log2(np.maximum(hertz, 1.0) / centre) / octaves) ** 2))


def _struck(samples: int, attack: float, decay: float) -> np.ndarray:
    """An envelope that rises for `attack` seconds and then falls by e every `decay`."""
    time = np.arange(samples) / RATE
    return np.minimum(time / attack, 1.0) * np.exp(-np.maximum(time - attack, 0.0) / decay)


def _in_a_room(wave: np.ndarray, random: Random) -> np.ndarray:
    samples = int(random.uniform(0.03, 0.35) * RATE)
    echo = random.standard_normal(samples) * np.exp(-5.0 * np.arange(samples) / samples) * random.uniform(0.0, 0.12)
    echo[0] = 1.0
    whole = 2 * len(wave)
    return np.fft.irfft(np.fft.rfft(wave, whole) * np.fft.rfft(echo, whole))[: len(wave)]


def _filtered(wave: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.fft.irfft(np.fft.rfft(wave) * gain(np.fft.rfftfreq(len(wave), 1.0 / RATE)), len(wave))


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)) + 1e-9)


def _add(out: np.ndarray, start: float, wave: np.ndarray) -> None:
    """What of a wave lies within the clip, from `start` seconds on."""
    first = int(start * RATE)
    length = min(len(wave), len(out) - first)
    if length > 0:
        out[first : first + length] += wave[:length]
