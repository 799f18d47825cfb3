"""Small Whispers with random weights, in both forms in which weights are given away."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

DIM, BLOCKS, HEADS, VOCABULARY = 64, 3, 2, 120


def of_transformers(mels: int = 80, seed: int = 0) -> nn.Module:
    """transformers' whole model."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=mels,
        d_model=DIM,
        encoder_layers=BLOCKS,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * DIM,
        decoder_ffn_dim=4 * DIM,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config).eval()
        scramble(model)
    return model


def scramble(model: nn.Module) -> None:
    """Random values everywhere, norms and biases included, of a size at which activations stay near 1."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(0.0, 0.5 / max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.1)
            if name.endswith("weight") and tensor.ndim == 1:  # of a norm
                tensor.add_(1.0)


def saved_by_transformers(folder: Path, mels: int = 80, seed: int = 0) -> Path:
    of_transformers(mels, seed).save_pretrained(folder)
    return folder


def of_openai(mels: int = 80, seed: int = 0) -> nn.Module:
    """openai-whisper's whole model."""
    from whisper.model import ModelDimensions, Whisper

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Whisper(ModelDimensions(mels, 1500, DIM, HEADS, BLOCKS, VOCABULARY, 32, DIM, HEADS, 2)).eval()
        scramble(model)
    return model


def saved_by_openai(path: Path, model: nn.Module) -> Path:
    torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
    return path


def sounds(samples: int, clips: int = 3) -> torch.Tensor:
    """float32 [clips, samples]: a chord in noise, a click in silence, and noise that is louder than both."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(samples) / 16_000
    noise = torch.randn(clips, samples, generator=generator)
    chord = (torch.sin(440 * 6.28 * t) + torch.sin(3000 * 6.28 * t)) * 0.1 + noise[0] * 0.01
    click = torch.zeros(samples)
    click[samples // 3] = 0.5
    return torch.stack([chord, click, *(noise[2:] * 0.3)])
