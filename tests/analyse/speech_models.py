"""Recognisers of a few thousand random weights, in the folders that transformers writes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def tiny_whisper(folder: Path, seed: int = 0) -> Path:
    """An English-only Whisper with a tokenizer of bytes, which says at most six tokens."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in own] + [chr(256 + number) for number in range(256 - len(own))]
    tokenizer = WhisperTokenizer(vocab={c: n for n, c in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    tokenizer.add_tokens(["<|startoftranscript|>", "<|notimestamps|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=16,
        decoder_start_token_id=257, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # so that sounds differ in what is heard
    model.generation_config = GenerationConfig(
        decoder_start_token_id=257, bos_token_id=256, eos_token_id=256, pad_token_id=256, max_length=8,
        is_multilingual=False, no_timestamps_token_id=258,
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def tiny_ctc(folder: Path) -> Path:
    """A wav2vec2 with a head of letters."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder.mkdir(parents=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *sorted(set("".join(WORDS).upper()))]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(10, 16), conv_kernel=(20, 16), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder
