"""Whisper's log-mel (Radford et al. 2022, section 2.2): 25 ms windows every 10 ms, 80 or 128 mels, 8 decades deep."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from gamut.numbers import HOP, RATE

FFT = 400  # samples: 25 ms
FLOOR = 8.0  # decades below a clip's loudest bin, where everything quieter is held


def whisper_log_mel(waveform: torch.Tensor, mels: int = 80) -> torch.Tensor:
    """float32 [B, mels, samples // 160] of float waveforms [B, samples] in [-1, 1) at 16 kHz, on their device.

    The floor is the clip's own, never the batch's. The operations are those of transformers' feature extractor and of
    openai-whisper, in their order.
    """
    waveform = waveform.float()
    window = torch.hann_window(FFT, device=waveform.device)
    spectrum = torch.stft(waveform, FFT, HOP, window=window, return_complex=True)
    power = (spectrum[..., :-1].abs() ** 2).contiguous()  # without the frame centred behind the last sample
    mel = _filters_on(waveform.device, mels) @ power
    log = torch.clamp(mel, min=1e-10).log10()
    loudest = log.amax((1, 2), keepdim=True)
    return (torch.maximum(log, loudest - FLOOR) + 4.0) / 4.0


def filled_log_mel(waveform: torch.Tensor, length: Sequence[int], mels: int = 80) -> torch.Tensor:
    """float32 [B, mels, samples // 160]: of each waveform's first `length` samples, and then 0.0, as the published
    features of Whisper-AT are filled up; silence in the waveform is at the clip's floor there, some -0.7.
    """
    whole = waveform.shape[1]
    if all(samples >= whole for samples in length):
        return whisper_log_mel(waveform, mels)
    mel = waveform.new_zeros(len(waveform), mels, whole // HOP, dtype=torch.float32)
    for row, one, samples in zip(mel, waveform, length, strict=True):
        own = whisper_log_mel(one[None, : min(max(samples, FFT), whole)], mels)[0]  # of less there is no frame
        row[:, : own.shape[1]] = own
    return mel


@functools.cache
def mel_filters(mels: int) -> torch.Tensor:
    """float32 [mels, 201], Slaney's mel scale and normalisation, as librosa's."""
    from transformers.audio_utils import mel_filter_bank  # here: it takes its time to import

    bank = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=mels,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank).float().T


@functools.cache
def _filters_on(device: torch.device, mels: int) -> torch.Tensor:
    """`mel_filters` on a device, brought there once, which is not waited for."""
    return mel_filters(mels).to(device, non_blocking=True)
