"""Whisper's encoder with every block's output, at any window, from one pass.

    whisper = load_whisper("models/whisper-tiny", decoder=True)     # a folder of transformers, or an OpenAI .pt
    mel = whisper.log_mel(waveform)                                 # [B, mels, frames] of [B, samples]
    encoded = whisper(mel)                                          # one pass
    encoded.blocks                                                  # L tensors [B, steps, dim]: each block's output
    encoded.final                                                   # [B, steps, dim]: after the last norm
    whisper.generator.generate(mel, encoder_outputs=encoded.for_decoder())    # transformers' own decoding

The blocks and their weights are transformers'; the forward is ours, since theirs refuses all windows but 30 s and does
not give the last block's output (its hidden states end with the normed one). Positions are cut to the window (Gong et
al. 2023, section 3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gamut.audio.whisper_mel import filled_log_mel, whisper_log_mel
from gamut.errors import CheckpointError, RecipeError
from gamut.models.folder import CONFIG, read_json, read_state
from gamut.models.strict import take_strictly
from gamut.models.whisper_openai import openai_whisper
from gamut.numbers import HOP, RATE

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEP = 2 * HOP  # samples of an encoder step: 20 ms


@dataclass(frozen=True)
class Encoded:
    """What a pass of the encoder gives, in the encoder's precision unless `each` made something else of a block."""

    blocks: tuple[torch.Tensor, ...]  # of each block [B, steps, dim], before the final norm
    final: torch.Tensor  # [B, steps, dim]

    def for_decoder(self) -> Any:
        """`final` as transformers' `generate(..., encoder_outputs=)` takes it."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.final)


class Whisper(nn.Module):
    """A frozen Whisper encoder; `generator` is transformers' whole model, around the same encoder, where it was asked
    for."""

    encoder: Any
    generator: Any

    def __init__(self, encoder: nn.Module, generator: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self) -> Any:
        """transformers' WhisperConfig."""
        return self.encoder.config

    @property
    def mels(self) -> int:
        return self.config.num_mel_bins

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.config.encoder_layers

    @property
    def dim(self) -> int:
        return self.config.d_model

    @property
    def longest(self) -> float:
        """Seconds that the positions reach: 30 for Whisper's own."""
        return self.config.max_source_positions * STEP / RATE

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor, length: Sequence[int] | None = None) -> torch.Tensor:
        """float32 [B, mels, samples // 160] of waveforms [B, samples], float in [-1, 1) or int16, at 16 kHz.

        The window is as long as the waveforms are: whoever calls cuts them or pads them with zeros. length: samples of
        each, behind which the log-mel is 0.0 (`filled_log_mel`); None: all are its own.
        """
        wave = waveform / (32768.0 if waveform.dtype == torch.int16 else 1.0)
        return whisper_log_mel(wave, self.mels) if length is None else filled_log_mel(wave, length, self.mels)

    def forward(
        self, mel: torch.Tensor, each: Callable[[int, torch.Tensor], torch.Tensor | None] | None = None
    ) -> Encoded:
        """Encode log-mels [B, mels, frames], an even number of frames and no more than the positions reach.

        `each(block, output [B, steps, dim])` is called as the blocks come, and what it returns is kept in its place
        (None: nothing is), so that whoever pools need not hold all outputs of a large model. Where the encoder's
        parameters are made to require gradients, as in fine-tuning, there are some; as it is loaded there are none.
        """
        own = self.encoder
        weight = own.conv1.weight
        hidden = F.gelu(own.conv1(mel.to(weight.device, weight.dtype)))
        hidden = F.gelu(own.conv2(hidden)).transpose(1, 2)
        steps = hidden.shape[1]
        if steps > own.embed_positions.num_embeddings:
            raise ValueError(f"{steps} steps are more than the {own.embed_positions.num_embeddings} positions")
        hidden = hidden + own.embed_positions.weight[:steps]
        blocks = []
        for number, block in enumerate(own.layers):
            hidden = block(hidden, None)
            kept = hidden if each is None else each(number, hidden)
            if kept is not None:
                blocks.append(kept)
        return Encoded(tuple(blocks), own.layer_norm(hidden))

    def require_language(self, language: str | None, task: str | None = None) -> None:
        """Raises RecipeError where `generator` cannot be asked for text in this language (`en`, `english`), or for this
        task."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        settings = self.generator.generation_config
        known = getattr(settings, "lang_to_id", None) or {}
        if language is None and task is None:
            return
        if not known or not getattr(settings, "is_multilingual", True):
            raise RecipeError("This Whisper has one language: give neither a language nor a task.")
        code = (language or "").lower()
        if language is not None and not {code, f"<|{TO_LANGUAGE_CODE.get(code, code)}|>"} & set(known):
            codes = ", ".join(sorted(name.strip("<|>") for name in known))
            raise RecipeError(f"This Whisper does not know the language {language!r}; it knows {codes}.")


def load_whisper(
    path: str | Path, *, decoder: bool = False, precision: str = "fp32", device: str | torch.device = "cpu"
) -> Whisper:
    """Whisper from a folder that transformers wrote, or from a file of OpenAI's (.pt), on this machine.

    decoder: keep transformers' whole model too (`generator`), for its text; without it only the encoder is read.
    precision: fp32, bf16 or fp16. Raises CheckpointError where there is no Whisper, or not all of one.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config, state, generation = _from_folder(path, decoder)
    elif path.is_file():
        config, state, generation = *openai_whisper(path, decoder), None
    else:
        raise CheckpointError(f"There is no Whisper at {path}: no such folder or file.")
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    made = WhisperConfig.from_dict(config)
    module: Any
    with torch.device("meta"):
        module = WhisperForConditionalGeneration(made) if decoder else WhisperEncoder(made)
    if decoder:
        state.setdefault("proj_out.weight", state.get("model.decoder.embed_tokens.weight", torch.zeros(0)))
    take_strictly(module, state, path)
    module.to(device, PRECISIONS[precision])
    if not decoder:
        return Whisper(module)
    module.tie_weights()
    # `generate` warns of the arguments that transformers' own Whisper gives it, and of a mask that a Whisper has not.
    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)
    if generation is not None:
        module.generation_config = GenerationConfig.from_dict(generation)
    return Whisper(module.model.encoder, module)


def is_whisper(path: Path) -> bool:
    """Whether a folder of transformers holds a Whisper."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") == "whisper"


def _from_folder(path: Path, decoder: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any] | None]:
    """(config, tensors by the names of the module that will take them, generation_config.json if it is there)."""
    config = read_json(path / CONFIG)
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{path} holds a model of type {config.get('model_type')!r}, not whisper.")

    def whole(name: str) -> str | None:
        return name if name.startswith(("model.", "proj_out.")) else f"model.{name}"

    def encoder(name: str) -> str | None:
        head, found, rest = name.partition("encoder.")
        return rest if found and head in ("", "model.") else None

    generation = path / "generation_config.json"
    told = read_json(generation) if decoder and generation.is_file() else None
    return config, read_state(path, whole if decoder else encoder), told
