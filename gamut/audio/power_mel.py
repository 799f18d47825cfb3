"""Log-mels of the spectrogram of powers, as public encoders have them: Dasheng's, M2D's."""

from __future__ import annotations

import functools

import torch

from gamut.numbers import HOP, RATE

HIGH = RATE / 2  # Hz


def dasheng_log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """dB, float32 [B, samples // 160 + 1, 64], of float waveforms [B, samples] in [-1, 1) at 16 kHz.

    Dinkel et al. 2024. No bin is more than 120 dB below the clip's own loudest; in the published front end below the
    batch's.
    """
    decibel = 10.0 * torch.log10(_power(waveform, 512, "htk", 64, 0.0).clamp_min(1e-10))
    return torch.maximum(decibel, decibel.amax((1, 2), keepdim=True) - 120.0)


def m2d_log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """float32 [B, samples // 160 + 1, 80] of float waveforms [B, samples] in [-1, 1) at 16 kHz.

    Niizumi et al. 2022, section 4.
    """
    return (_power(waveform, 400, "slaney", 80, 50.0) + torch.finfo(torch.float32).eps).log()


def _power(waveform: torch.Tensor, fft: int, scale: str, mels: int, low: float) -> torch.Tensor:
    """float32 [B, frames, mels]: powers, frames centred on every 160th sample, the ends mirrored."""
    with torch.autocast(waveform.device.type, enabled=False):
        waveform = waveform.float()
        window = torch.hann_window(fft, device=waveform.device)
        spectrum = torch.stft(waveform, fft, HOP, window=window, return_complex=True)
        return spectrum.abs().square().transpose(1, 2) @ _filters(scale, fft, mels, low, waveform.device)


@functools.cache
def _filters(scale: str, fft: int, mels: int, low: float, device: torch.device) -> torch.Tensor:
    """float32 [fft // 2 + 1, mels] on the device."""
    from torchaudio.functional import melscale_fbanks  # here: it takes its time to import

    norm = "slaney" if scale == "slaney" else None
    return melscale_fbanks(fft // 2 + 1, low, HIGH, mels, RATE, norm=norm, mel_scale=scale).to(device)
