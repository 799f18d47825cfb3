"""Speech recognisers on this machine as one function: sounds in, texts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gamut.accelerator import accelerator
from gamut.analyse.noise import LONGEST, Transcriber
from gamut.errors import CheckpointError
from gamut.models.folder import CONFIG, read_json
from gamut.models.whisper import PRECISIONS, load_whisper
from gamut.numbers import RATE

CTC = ("hubert", "wav2vec2")
TOKENIZERS = ("tokenizer.json", "vocab.json")
# How a Whisper writes its text: greedily; and as its authors do, again at higher temperatures where the text repeats
# itself or is unlikely (Radford et al. 2022, section 4.5; transformers' thresholds, whose ratio is of tokens).
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "whisper": {
        "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "compression_ratio_threshold": 1.35,
        "logprob_threshold": -1.0,
    },
}


def transcriber(
    path: str | Path,
    *,
    tokens: str | Path | None = None,
    language: str = "en",
    precision: str = "fp32",
    decoding: str = "whisper",
) -> Transcriber:
    """What a Whisper (a folder of transformers or an OpenAI .pt) or a HuBERT or wav2vec2 with a CTC head hears.

    tokens: a folder of transformers with the tokenizer (and generation_config.json), where the model is a .pt.
    language: of a multilingual Whisper. decoding: of a Whisper, as DECODINGS; the same sounds in the same batches give
    the same text. A CTC head is decoded greedily. Raises CheckpointError where the model or its tokenizer is missing,
    RecipeError for a language that it does not know.
    """
    path = Path(path).expanduser()
    device = torch.device(accelerator())
    kind = read_json(path / CONFIG).get("model_type") if path.is_dir() else "whisper"
    return (
        _ctc(path, kind, precision, device)
        if kind in CTC
        else _whisper(path, Path(tokens or path), language, precision, device, decoding)
    )


def _whisper(
    path: Path, tokens: Path, language: str, precision: str, device: torch.device, decoding: str
) -> Transcriber:
    from transformers import GenerationConfig, WhisperTokenizer

    # Checked by name, since transformers makes an empty tokenizer where there is none.
    if not any((tokens / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(
            f"{tokens} has no tokenizer: give --tokens FOLDER, a folder of transformers with that of the same Whisper."
        )
    model = load_whisper(path, decoder=True, precision=precision, device=device)
    tokenizer = _from(WhisperTokenizer, tokens)
    if tokens != path and (tokens / "generation_config.json").is_file():
        model.generator.generation_config = GenerationConfig.from_dict(read_json(tokens / "generation_config.json"))
    settings = model.generator.generation_config
    spoken: dict[str, Any] = {"num_beams": 1} | DECODINGS[decoding]
    if decoding == "whisper":  # half of the decoder's positions, as its authors' code: what is longer repeats itself
        spoken["max_new_tokens"] = model.generator.config.max_target_positions // 2
    if getattr(settings, "lang_to_id", None):
        model.require_language(language)
        spoken |= {"language": language, "task": "transcribe"}

    @torch.inference_mode()
    def hear(sounds: list[np.ndarray]) -> list[str]:
        window = torch.zeros(len(sounds), round(min(LONGEST, model.longest) * RATE))
        for row, sound in zip(window, sounds):
            row[: len(sound)] = torch.from_numpy(np.ascontiguousarray(sound))[: len(row)]
        mel = model.log_mel(window.to(device)).to(PRECISIONS[precision])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return tokenizer.batch_decode(model.generator.generate(mel, **spoken), skip_special_tokens=True)

    return hear


def _ctc(path: Path, kind: str, precision: str, device: torch.device) -> Transcriber:
    from transformers import HubertForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    made = HubertForCTC if kind == "hubert" else Wav2Vec2ForCTC
    tokenizer, extractor = _from(Wav2Vec2CTCTokenizer, path), _from(Wav2Vec2FeatureExtractor, path)
    model = _from(made, path).to(device, PRECISIONS[precision]).eval()

    @torch.inference_mode()
    def hear(sounds: list[np.ndarray]) -> list[str]:
        texts = []
        for sound in sounds:  # one by one: padding would change the results of models without a mask
            values = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_values
            best = model(values.to(device, PRECISIONS[precision])).logits.argmax(-1)
            texts += tokenizer.batch_decode(best)
        return texts

    return hear


def _from(kind: Any, path: Path) -> Any:
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"The {kind.__name__} in {path} cannot be read: {first}") from error
