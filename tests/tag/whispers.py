"""Small Whispers with random weights that write text with timestamps, in the folders that transformers writes."""

from __future__ import annotations

from pathlib import Path

import torch

TEXT = 257  # tokens of bytes, and the end
SPECIAL = (
    "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
)  # fmt: skip
LAYERS, DIM = 2, 32


def talking_whisper(folder: Path, seed: int = 0, longest: int = 40, dim: int = DIM) -> Path:
    """A multilingual Whisper of two languages; a window's text is at most `longest` tokens."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in own] + [chr(256 + number) for number in range(256 - len(own))]
    tokenizer = WhisperTokenizer(vocab={c: n for n, c in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    tokenizer.save_pretrained(folder)
    numbers = {name: TEXT + place for place, name in enumerate(SPECIAL)}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256)
    start = numbers["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=TEXT + len(SPECIAL) + 1501, d_model=dim, encoder_layers=LAYERS, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_target_positions=2 * longest, decoder_start_token_id=start, suppress_tokens=None,
        begin_suppress_tokens=None, **ends,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.normal_(0.0, 1.5 / max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.1)
                if name.endswith("norm.weight"):
                    tensor.add_(1.0)
            model.model.decoder.embed_tokens.weight[TEXT + len(SPECIAL) :] *= 0.6  # or times would drown the text
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, max_length=longest, is_multilingual=True, return_timestamps=False,
        no_timestamps_token_id=numbers["<|notimestamps|>"], prev_sot_token_id=numbers["<|startofprev|>"],
        lang_to_id={name: numbers[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: numbers[f"<|{name}|>"] for name in ("translate", "transcribe")},
        suppress_tokens=list(range(TEXT, TEXT + len(SPECIAL))), begin_suppress_tokens=[256],
        max_initial_timestamp_index=50, **ends,
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder
