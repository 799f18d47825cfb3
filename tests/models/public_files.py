"""Files of public encoders with random weights, each in the names and shapes that its publishers use, and what these
encoders give: the packages that people install (openbeats, dasheng), or modules of torch and timm put together as their
papers say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dasheng
import numpy as np
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from dasheng.pretrained.pretrained import Dasheng
from omegaconf import OmegaConf
from openbeats.beats_encoder import BeatsEncoder
from safetensors.torch import save_file
from torch import nn
from torchaudio.compliance.kaldi import fbank
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

DIM, DEPTH, HEADS = 128, 2, 2
State = dict[str, torch.Tensor]
assert dasheng  # what `Dasheng` is of

BEATS_CONFIG = {
    "encoder_layers": DEPTH,
    "encoder_embed_dim": DIM,
    "encoder_ffn_embed_dim": 4 * DIM,
    "encoder_attention_heads": HEADS,
    "embed_dim": 512,
    "input_patch_size": 16,
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "activation_fn": "gelu",
}
DASHENG_CONFIG = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": [64, 4], "patch_stride": [64, 4]}


@torch.no_grad()
def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """All of its weights random, about as large as trained ones; norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(std=scale, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1.0)
    return module.eval()


def blocks_of(blocks: list[nn.Module], run: Callable[[], object]) -> list[torch.Tensor]:
    """Each block's output in a run."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen


# BEATs --------------------------------------------------------------------------------------------------------------


def beats() -> BeatsEncoder:
    made = filled(BeatsEncoder(input_size=0, beats_config=BEATS_CONFIG))
    made.initialize = lambda: None
    for pad in (made.patch_embedding_pad, made.raw2fbank_pad):
        nn.init.ones_(pad.weight)
    return made


def beats_file(folder: Path, of: BeatsEncoder) -> Path:
    """As Microsoft's: `cfg` and `model`, whose convolutions of padding it does not have."""
    state = {name: tensor for name, tensor in of.state_dict().items() if "_pad" not in name}
    head = {"predictor.weight": torch.zeros(527, DIM), "predictor.bias": torch.zeros(527)}
    torch.save({"cfg": BEATS_CONFIG | {"finetuned_model": True}, "model": state | head}, folder / "BEATs.pt")
    return folder / "BEATs.pt"


def beats_blocks(of: BeatsEncoder, waveform: torch.Tensor) -> list[torch.Tensor]:
    """[patches, dim] of each block, of one waveform [samples]."""
    run = partial(of, waveform[None], torch.tensor([len(waveform)]), waveform_input=True)
    return [x[:, 0] for x in blocks_of(list(of.encoder.layers), run)]


# Dasheng ------------------------------------------------------------------------------------------------------------


def dasheng_model() -> Dasheng:
    made = filled(Dasheng(**DASHENG_CONFIG))
    norm = made.init_bn[1]
    norm.running_mean.normal_(-30.0, 5.0, generator=torch.Generator().manual_seed(3))
    norm.running_var.uniform_(100.0, 400.0, generator=torch.Generator().manual_seed(4))
    return made.eval()


def dasheng_file(folder: Path, of: Dasheng) -> Path:
    torch.save({"model": of.state_dict(), "config": DASHENG_CONFIG}, folder / "dasheng_base.pt")
    return folder / "dasheng_base.pt"


def dasheng_blocks(of: Dasheng, waveform: torch.Tensor) -> list[torch.Tensor]:
    """[steps, dim] of each block, its pieces one after the other."""
    seen = blocks_of(list(of.blocks), lambda: of(waveform[None]))
    return [torch.cat([x[0] for x in seen[block::DEPTH]]) for block in range(DEPTH)]


# ViTs ---------------------------------------------------------------------------------------------------------------


def vit(size: tuple[int, int]) -> timm_vit.VisionTransformer:
    made = timm_vit.VisionTransformer(
        img_size=size, patch_size=16, in_chans=1, num_classes=0, embed_dim=DIM, depth=DEPTH, num_heads=HEADS
    )
    return filled(made)  # type: ignore[return-value]


def vit_blocks(of: timm_vit.VisionTransformer, image: torch.Tensor) -> list[torch.Tensor]:
    """[patches, dim] of each block, of one image, without the class token."""
    return [x[0, 1:] for x in blocks_of(list(of.blocks), lambda: of.forward_features(image[None, None]))]


def audiomae_file(folder: Path, of: timm_vit.VisionTransformer) -> Path:
    """As Meta's: `model`, with a decoder."""
    decoder = {"decoder_embed.weight": torch.zeros(8, DIM), "mask_token": torch.zeros(1, 1, 8)}
    torch.save({"model": of.state_dict() | decoder}, folder / "audiomae.pth")
    return folder / "audiomae.pth"


def m2d_file(folder: Path, of: timm_vit.VisionTransformer, statistics: tuple[float, float] | None) -> Path:
    stats = {} if statistics is None else {"norm_stats": torch.tensor(statistics)}
    torch.save({"model": of.state_dict() | stats}, folder / "m2d.pth")
    return folder / "m2d.pth"


# EAT ----------------------------------------------------------------------------------------------------------------


class Eat(nn.Module):
    """After its paper, and data2vec 2.0's: patches with sines, a class token, a norm, then torch's post-norm blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, DIM, 16, 16)
        self.token = nn.Parameter(torch.empty(1, 1, DIM))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 4 * DIM, 0.0, F.gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=False
        )
        self.blocks = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False).layers
        filled(self)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """[1 + patches, dim] of [frames, 128]."""
        x = self.patch(mel[None, None])
        x = x.flatten(2).transpose(1, 2) + positions(x.shape[2])
        x = self.norm(torch.cat([self.token, x], 1))
        for block in self.blocks:
            x = block(x)
        return x

    def tensors(self) -> State:
        """By EAT's names, after what stands before the parts of the front and of the blocks."""
        state = {
            "local_encoder.proj.weight": self.patch.weight,
            "local_encoder.proj.bias": self.patch.bias,
            "extra_tokens": self.token,
            "fixed_positional_encoder.positions": positions(64),
            "norm.weight": self.norm.weight,
            "norm.bias": self.norm.bias,
        }
        names = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        for number, block in enumerate(self.blocks):
            for name, tensor in block.named_parameters():
                new = next(
                    ours + name.removeprefix(theirs) for theirs, ours in names.items() if name.startswith(theirs)
                )
                state[f"blocks.{number}.{new}"] = tensor
        return {name: tensor.detach().clone() for name, tensor in state.items()}


def positions(columns: int) -> torch.Tensor:
    """MAE's, [1, columns * 8, dim], written out."""
    quarter = DIM // 4
    table = np.zeros((columns, 8, DIM))
    for i in range(quarter):
        f = 10000 ** (-i / quarter)
        for band in range(8):
            table[:, band, [i, quarter + i]] = math.sin(band * f), math.cos(band * f)
        for column in range(columns):
            table[column, :, [2 * quarter + i, 3 * quarter + i]] = [[math.sin(column * f)], [math.cos(column * f)]]
    return torch.from_numpy(table).float().flatten(0, 1)[None]


def eat_of_fairseq(folder: Path, of: Eat) -> Path:
    """A checkpoint of pretraining: config and optimiser beside the model, and its decoder."""
    front = "modality_encoders.IMAGE."
    state = {}
    for name, tensor in of.tensors().items():
        before = "" if name.startswith("blocks.") else front
        state[before + name.replace("norm.", "context_encoder.norm.") if before else name] = tensor
    state |= {f"{front}decoder.proj.weight": torch.zeros(4, 4), "_ema": torch.zeros(3)}
    cfg = OmegaConf.create({"model": {"_name": "data2vec_multi", "depth": DEPTH, "modalities": ["image"]}})
    told = {"args": None, "cfg": cfg, "optimizer_history": [{"num_updates": 3}], "extra_state": {"epoch": 1}}
    torch.save({**told, "model": state}, folder / "EAT-base.pt")
    return folder / "EAT-base.pt"


def eat_of_transformers(folder: Path, of: Eat) -> Path:
    """A folder as on the hub."""
    state = {f"model.{name.replace('norm.', 'pre_norm.', 1) if name.startswith('norm.') else name}": tensor
             for name, tensor in of.tensors().items()}  # fmt: skip
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "eat", "embed_dim": DIM, "num_heads": HEADS}))
    return folder


# Log-mels -----------------------------------------------------------------------------------------------------------


def ast_mel(waveform: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """[frames, 128], zeros up to 1,024 frames, normalised."""
    mel = fbank(
        (waveform - waveform.mean())[None], htk_compat=True, window_type="hanning", num_mel_bins=128, use_energy=False,
        sample_frequency=16000, dither=0.0,
    )  # fmt: skip
    frames = max(1024, -(-len(mel) // 16) * 16)
    return (F.pad(mel, (0, 0, 0, frames - len(mel))) - mean) / (2 * std)


def m2d_mel(waveform: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """[80, frames], by transformers' NumPy."""
    filters = mel_filter_bank(201, 80, 50.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    power = spectrogram(waveform.double().numpy(), window, 400, 160, power=2.0, mel_filters=filters, mel_floor=0.0)
    return ((torch.from_numpy(power).float() + torch.finfo(torch.float32).eps).log() - mean) / std


FILES = {
    "beats": lambda folder: beats_file(folder, beats()),
    "dasheng": lambda folder: dasheng_file(folder, dasheng_model()),
    "audiomae": lambda folder: audiomae_file(folder, vit((1024, 128))),
    "eat": lambda folder: eat_of_fairseq(folder, Eat()),
    "m2d": lambda folder: m2d_file(folder, vit((80, 608)), None),
}
