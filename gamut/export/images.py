"""`--to hf` and `--to timm`: a vision transformer as transformers' AST or ViT, or as timm's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gamut.errors import ExportError
from gamut.export.card import card
from gamut.export.fixed import Fixed, fixed
from gamut.export.folder import CARD
from gamut.export.source import Source
from gamut.files import write_bytes, write_text
from gamut.models.classifier import ClassifierNetwork
from gamut.models.find import MODEL, described
from gamut.models.folder import CONFIG
from gamut.models.names import HUGGING_FACE_AST, HUGGING_FACE_KERNEL
from gamut.models.vit import EPS
from gamut.models.weights import plain
from gamut.numbers import BINS, HOP, PATCH, RATE, WINDOW
from gamut.recipe.policy import evaluation_policy

State = dict[str, torch.Tensor]

# Our names, which are timm's, as transformers has written them up to version 4, and as all versions read them.
RENAMED = (
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
USE_AST = """
import numpy as np
from transformers import pipeline

classify = pipeline("audio-classification", model="FOLDER")
waveform = np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32)  # yours: mono, 16 kHz, in [-1, 1)
for found in classify({"raw": waveform, "sampling_rate": 16000}, top_k=3):
    print(found["label"], found["score"])
"""
SPECTROGRAM = """
import torch
import torchaudio
{imports}

waveform = 0.1 * torch.randn(1, 30 * 16000)  # yours: mono, 16 kHz, in [-1, 1)
mel = torchaudio.compliance.kaldi.fbank(
    waveform - waveform.mean(), htk_compat=True, window_type="hanning", num_mel_bins=128, frame_shift={shift!r},
    sample_frequency=16000.0,
)
pixels = ((mel - {mean!r}) / (2 * {std!r}))[None, None, :{frames}]  # [batch, 1, frames, mel bins]
"""
USE_VIT = """
model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False).eval()
tokens = model(pixels).last_hidden_state  # [batch, 1 + columns * bands, dim]: CLS, and column by column
print(tokens.shape)
"""
USE_TIMM = """
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
tokens = model.forward_features(pixels)  # [batch, (CLS and) columns * bands, dim], column by column
print(tokens.shape, model(pixels).shape)
"""


def write_hf(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time. Raises ExportError for what transformers' classes cannot
    express."""
    if isinstance(source.network, ClassifierNetwork):
        yield from _write_ast(source, folder, seconds)
    else:
        yield from _write_vit(source, folder, seconds)


def _write_ast(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    model, views = source.recipe.model, source.recipe.views
    if not model.distilled:
        others = "hf and timm hold" if model.pooling == "cls" else "timm holds"
        raise ExportError(
            "transformers' ASTForAudioClassification reads the mean of two tokens, CLS and distillation, and this "
            f"classifier's pooling is {model.pooling} alone (model.distilled=false). --to onnx, torch and safetensors "
            f"hold it; with --backbone, {others} all but pooling and classifier."
        )
    laid = fixed(source, seconds)
    policy = evaluation_policy(source.recipe)
    if policy.hops[0] != HOP or policy.pools[0] != 1:
        raise ExportError(
            f"This model's frames are {1000 * policy.hops[0] * policy.pools[0] / RATE:g} ms apart, and those of "
            "transformers' ASTFeatureExtractor 10 ms: --to onnx, torch and safetensors hold it."
        )
    if model.head_eps != EPS:
        yield f"the classifier's LayerNorm has the epsilon {EPS:g} of all others there, not its own {model.head_eps:g}"
    needed = (laid.frames - 1) * HOP + WINDOW
    short = (
        f"A sound shorter than {needed / RATE:.2f} s is padded by ASTFeatureExtractor with frames of 0.0; this model "
        f"was trained with silence there: append zeros to the waveform, to {needed} samples, first."
        if views.pad_with == "silence"
        else ""
    )
    if short:
        yield short
    state = _of_transformers(laid, frequency_first=True)
    state = {f"{HUGGING_FACE_AST}{name}": value for name, value in state.items()}
    for theirs, mine in (("layernorm", "norm"), ("dense", "linear")):
        for kind in ("weight", "bias"):
            state[f"classifier.{theirs}.{kind}"] = source.state[f"head.{mine}.{kind}"]
    labels = dict(enumerate(source.labels))
    config = _config(laid, source, "audio-spectrogram-transformer", "ASTForAudioClassification") | {
        "frequency_stride": model.stride,
        "time_stride": model.stride,
        "max_length": laid.frames,
        "num_mel_bins": BINS,
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
        "problem_type": "single_label_classification" if source.about["loss"] == "ce" else "multi_label_classification",
    }
    if "thresholds" in source.about:
        config["thresholds"] = source.about["thresholds"]
    normalised = source.about["normalise"]
    extractor = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "max_length": laid.frames,
        "mean": normalised["mean"],
        "std": normalised["std"],
        "num_mel_bins": BINS,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": RATE,
    }
    _write(folder, state, laid.about, config)
    write_text(folder / "preprocessor_config.json", json.dumps(extractor, indent=2))
    kind = "A classifier that Gamut trained, as transformers' ASTForAudioClassification with its ASTFeatureExtractor."
    layout = (
        f"`input_values` [batch, {laid.frames} frames, {BINS} mel bins] as ASTFeatureExtractor makes them of a "
        f"waveform: mono, 16 kHz, in [-1, 1). Out: `logits` [batch, {len(labels)}]. {short}"
    )
    write_text(folder / CARD, card(source, kind, layout.strip(), USE_AST))


def _write_vit(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    model = source.recipe.model
    if not source.backbone.class_token or model.distilled or model.stride != PATCH:
        what = (
            f"patches {model.stride} apart"
            if model.stride != PATCH
            else "a distillation token"
            if model.distilled
            else "no class token"
        )
        others = "timm, " if model.stride == PATCH and not model.distilled else ""
        raise ExportError(
            f"transformers' ViTModel has a class token and patches of {PATCH} side by side, and this backbone has "
            f"{what}: --to {others}onnx, torch and safetensors hold it."
        )
    laid = fixed(source, seconds)
    yield f"laid out for {laid.frames} frames"
    config = _config(laid, source, "vit", "ViTModel") | {
        "image_size": [laid.frames, BINS],
        "num_channels": 1,
        "encoder_stride": PATCH,
    }
    _write(folder, _of_transformers(laid, frequency_first=False), laid.about, config)
    kind = "A backbone that Gamut trained, as transformers' ViTModel of one channel."
    use = _spectrogram(source, laid, "from transformers import ViTModel") + USE_VIT
    write_text(folder / CARD, card(source, kind, _layout(laid), use))


def write_timm(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time. Raises ExportError for what timm's class cannot express."""
    model = source.recipe.model
    if isinstance(source.network, ClassifierNetwork):
        raise ExportError(
            "timm's VisionTransformer has one LayerNorm before its classifier, and this classifier reads the vector "
            "through two: --to onnx, torch and safetensors hold it; with --backbone timm holds the rest."
        )
    if model.distilled or model.stride != PATCH:
        what = f"patches {model.stride} apart" if model.stride != PATCH else "distillation token"
        raise ExportError(
            f"timm's VisionTransformer has no {what}, as this backbone has: --to onnx, torch and safetensors hold it."
        )
    laid = fixed(source, seconds)
    yield f"laid out for {laid.frames} frames"
    if model.pooling == "attention":
        yield "attention pooling stays behind: timm's has other parts. The model gives tokens"
    state = dict(laid.state)
    state["patch_embed.proj.weight"] = state.pop("kernel")[:, None]
    state["pos_embed"] = torch.cat([laid.special, laid.positions.flatten(0, 1)])[None]
    pool = {"cls": "token", "attention": ""}.get(model.pooling, "avg")
    arguments = {
        "img_size": [laid.frames, BINS],
        "patch_size": PATCH,
        "in_chans": 1,
        "num_classes": 0,
        "global_pool": pool,
        "embed_dim": model.dim,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "class_token": source.backbone.class_token,
        "fc_norm": False,
    }
    config = {
        "architecture": "vit_base_patch16_224",  # a name that timm knows; the arguments make it this one
        "num_classes": 0,
        "num_features": model.dim,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [1, laid.frames, BINS],
            "fixed_input_size": True,
            "mean": [0.0],
            "std": [1.0],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    _write(folder, state, laid.about, config)
    kind = "A backbone that Gamut trained, as timm's VisionTransformer of one channel, without a classifier."
    use = _spectrogram(source, laid, "import timm") + USE_TIMM
    write_text(folder / CARD, card(source, kind, _layout(laid), use))


def _of_transformers(laid: Fixed, frequency_first: bool) -> State:
    """The backbone in transformers' names. frequency_first: kernels and patches as AST has them, else time first."""
    state: State = {}
    for name, value in laid.state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            before = f"encoder.layer.{number}."
            if rest.startswith("attn.qkv."):
                for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                    state[f"{before}attention.attention.{part}.{rest.removeprefix('attn.qkv.')}"] = piece
                continue
            for mine, theirs in RENAMED:
                rest = theirs + rest.removeprefix(mine) if rest.startswith(mine) else rest
            state[before + rest] = value
    kernel, positions = laid.state["kernel"], laid.positions
    if frequency_first:
        kernel, positions = kernel.transpose(1, 2), positions.transpose(0, 1)
    state[HUGGING_FACE_KERNEL] = kernel[:, None]
    state["embeddings.patch_embeddings.projection.bias"] = laid.state["patch_embed.proj.bias"]
    state["embeddings.position_embeddings"] = torch.cat([laid.special, positions.flatten(0, 1)])[None]
    for theirs, mine in (("cls_token", "cls_token"), ("distillation_token", "dist_token")):
        if mine in laid.state:
            state[f"embeddings.{theirs}"] = laid.state[mine]
    return state | {f"layernorm.{kind}": laid.state[f"norm.{kind}"] for kind in ("weight", "bias")}


def _config(laid: Fixed, source: Source, kind: str, architecture: str) -> dict[str, Any]:
    model = source.recipe.model
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.dim * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": EPS,
        "patch_size": PATCH,
        "qkv_bias": True,
        "dtype": "float32",
        "torch_dtype": "float32",  # what it was called up to version 4
    }


def _write(folder: Path, state: State, about: dict[str, Any], config: dict[str, Any]) -> None:
    # transformers wants to be told the format. Of two keys the order is random, so the bytes may differ.
    write_bytes(folder / MODEL, save(plain(state), {"format": "pt"} | described(about)))
    write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False))


def _layout(laid: Fixed) -> str:
    return (
        f"An image [batch, 1, {laid.frames}, {BINS}]: the normalised log-mel, a row for each frame in order of time, a "
        f"column for each mel bin, lowest first. Patches are {PATCH} x {PATCH}, {laid.columns} over time and "
        f"{laid.bands} over frequency; tokens go through the bands of the first column, then of the second."
    )


def _spectrogram(source: Source, laid: Fixed, imports: str) -> str:
    normalised = source.about["normalise"]
    policy = evaluation_policy(source.recipe)
    # Half a sample more, since torchaudio cuts milliseconds down to samples.
    shift = (policy.hops[0] + 0.5) * 1000 / RATE if policy.hops[0] != HOP else 10.0
    return SPECTROGRAM.format(
        imports=imports, shift=shift, mean=normalised["mean"], std=normalised["std"], frames=laid.frames
    ).strip() + ("\n" if policy.pools[0] == 1 else f"  # of means of {policy.pools[0]} frames\n")
