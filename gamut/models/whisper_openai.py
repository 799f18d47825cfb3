"""OpenAI's own files of Whisper's weights, in transformers' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gamut.errors import CheckpointError
from gamut.unpickle import unpickle

# In order: parts of their names -> of transformers'.
NAMES = (
    ("encoder.positional_embedding", "encoder.embed_positions.weight"),
    ("decoder.positional_embedding", "decoder.embed_positions.weight"),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("decoder.token_embedding.", "decoder.embed_tokens."),
    (".blocks.", ".layers."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".cross_attn.", ".encoder_attn."),
    (".attn_ln.", ".self_attn_layer_norm."),
    (".attn.", ".self_attn."),
    ("_attn.query.", "_attn.q_proj."),
    ("_attn.key.", "_attn.k_proj."),
    ("_attn.value.", "_attn.v_proj."),
    ("_attn.out.", "_attn.out_proj."),
    (".mlp_ln.", ".final_layer_norm."),
    (".mlp.0.", ".fc1."),
    (".mlp.2.", ".fc2."),
)
ENCODER = "encoder."
MULTILINGUAL = 51865  # tokens, at least; the models of English alone have 51,864


def openai_whisper(path: Path, decoder: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(what transformers' config would say, tensors in its names): of the encoder alone, or of the whole model.

    The file is read as tensors and numbers, and nothing in it is run. Raises CheckpointError where it is not one of
    OpenAI's Whispers.
    """
    try:
        saved = unpickle(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"The weights {path} cannot be read: {error.strerror}.") from error
    try:
        dims = {name: int(value) for name, value in saved["dims"].items()}
        config = {
            "model_type": "whisper",
            "num_mel_bins": dims["n_mels"],
            "max_source_positions": dims["n_audio_ctx"],
            "d_model": dims["n_audio_state"],
            "encoder_attention_heads": dims["n_audio_head"],
            "encoder_layers": dims["n_audio_layer"],
            "encoder_ffn_dim": 4 * dims["n_audio_state"],
            "vocab_size": dims["n_vocab"],
            "max_target_positions": dims["n_text_ctx"],
            "decoder_attention_heads": dims["n_text_head"],
            "decoder_layers": dims["n_text_layer"],
            "decoder_ffn_dim": 4 * dims["n_text_state"],
            **_tokens(dims["n_vocab"]),
        }
        state = {_name(name): tensor for name, tensor in saved["model_state_dict"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a Whisper of OpenAI's: it lacks {error}.") from error
    if decoder:
        return config, {f"model.{name}": tensor for name, tensor in state.items()}
    return config, {name.removeprefix(ENCODER): one for name, one in state.items() if name.startswith(ENCODER)}


def _tokens(vocabulary: int) -> dict[str, int]:
    """The tokens that begin and end a text, as openai-whisper's tokenizer numbers them."""
    end = min(50257 if vocabulary >= MULTILINGUAL else 50256, vocabulary - 2)
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}


def _name(name: str) -> str:
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return name
