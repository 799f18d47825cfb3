"""Public encoders of spectrograms, known by the names and shapes of their tensors: EAT and SSLAM, AudioMAE, BEATs,
Dasheng, M2D.

    encoder = load_public("models/BEATs_iter3.pt")
    mel = encoder.log_mel(waveform, length)          # its own, of [B, samples]
    encoder(mel, lambda block, steps: ...)           # every block's output [B, steps, dim], one at a time

Each has the front end that it was published with, and lengths are treated as there:

| | log-mel | shorter | longer |
| --- | --- | --- | --- |
| EAT, SSLAM | AST's 128, hann | zeros up to 1,024 frames | as long as it is: its positions are sines |
| AudioMAE | AST's 128, hann | zeros up to 1,024 frames | pieces of 1,024 frames |
| BEATs | Kaldi's 128, povey | as it is | as it is: it has no positions |
| Dasheng | 64, dB, its own batch norm | as it is | pieces of 1,008 frames |
| M2D | 80, 50 Hz to 8 kHz | up to whole patches | pieces as long as its table (608 frames) |

A step is a column of patches: the mean of its bands, of M2D all of them side by side. Class tokens and what is padding
only are encoded and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gamut.audio.logmel import log_mel
from gamut.audio.power_mel import dasheng_log_mel, m2d_log_mel
from gamut.errors import CheckpointError
from gamut.models.backbone import Backbone, build
from gamut.models.beats import BUCKETS, FARTHEST, GROUPS, TAPS
from gamut.models.families import FAMILIES, Family, Found, find_public
from gamut.models.find import find_weights
from gamut.models.positions import sines
from gamut.models.vit import VisionTransformer
from gamut.models.weights import load_backbone, load_weights, shapes_of
from gamut.numbers import HOP, PATCH, WINDOW

TOLD_BEATS = {  # what its config says of the model, where that is not in the shapes
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "activation_fn": "gelu",
    "num_buckets": BUCKETS,
    "max_distance": FARTHEST,
    "conv_pos": TAPS,
    "conv_pos_groups": GROUPS,
    "input_patch_size": PATCH,
}


class Final(NamedTuple):
    """What comes behind the last block and its norm."""

    steps: torch.Tensor  # [B, steps, dim]
    patches: torch.Tensor  # [B, steps, bands, width]
    clip: torch.Tensor | None  # [B, dim], of the class token, where that is what is published as the clip's vector


class PublicEncoder(nn.Module):
    """One of them, frozen."""

    gain: torch.Tensor  # what the log-mel is multiplied with, [1] or [mels]
    shift: torch.Tensor  # and what is added then

    def __init__(self, kind: str, backbone: Backbone, gain: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.kind, self.family, self.backbone = kind, FAMILIES[kind], backbone
        self.register_buffer("gain", gain)
        self.register_buffer("shift", shift)
        self.requires_grad_(False)
        self.eval()

    @property
    def depth(self) -> int:
        """Blocks."""
        return len(self.backbone.blocks)

    @property
    def dim(self) -> int:
        """Of a step."""
        return self.backbone.model.dim * (self.family.high if self.family.side_by_side else 1)

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """float32 [B, frames, mels], normalised, of int16 [B, samples] at 16 kHz, of which the first length[b] are the
        clip's and the rest are zeros."""
        if self.kind in ("dasheng", "m2d"):
            make = dasheng_log_mel if self.kind == "dasheng" else m2d_log_mel
            return make(waveform / 32768.0) * self.gain + self.shift
        count, samples = waveform.shape
        frames = (samples - WINDOW) // HOP + 1
        device = waveform.device
        mel = log_mel(
            waveform.flatten(),
            torch.arange(count + 1, device=device) * samples,
            length,
            torch.full((count,), HOP, device=device),
            torch.full((count,), frames, device=device),
            (frames,) * count,
            bank=self.family.bank,
        )
        return mel.unflatten(0, (count, frames)) * self.gain + self.shift

    @torch.no_grad()
    def forward(self, mel: torch.Tensor, each: Callable[[int, torch.Tensor], Any]) -> Final:
        """Encode what `log_mel` gave; `each(block, output [B, steps, dim])` is called as the blocks come."""
        family, count, own = self.family, len(mel), -(-mel.shape[1] // self.family.frames)
        mel = self._padded(mel)
        columns = mel.shape[1] // family.frames
        self._reach(columns)
        high = family.mels // family.high
        grid = mel[:, : columns * family.frames].reshape(count, columns, family.frames, family.high, high)
        pixels = grid.transpose(2, 3).reshape(-1, family.frames * high)
        piece = self._piece or columns
        sizes = tuple(min(piece, columns - at) * PATCH for at in range(0, columns, piece)) * count
        where = self.backbone.layout(torch.tensor(sizes, device=mel.device), sizes)

        def cells(tokens: torch.Tensor) -> torch.Tensor:
            return torch.index_select(tokens, 0, where.patch).view(count, columns, family.high, -1)[:, :own]

        def steps(patches: torch.Tensor) -> torch.Tensor:
            return patches.flatten(2) if family.side_by_side else patches.mean(2)

        def hook(number: int) -> Callable[..., None]:
            return lambda module, inputs, tokens: each(number, steps(cells(tokens)))

        handles = [block.register_forward_hook(hook(number)) for number, block in enumerate(self.backbone.blocks)]
        try:
            tokens = self.backbone(pixels, where)
        finally:
            for handle in handles:
                handle.remove()
        patches = cells(tokens)
        return Final(steps(patches), patches, self.backbone.pool(tokens, where) if family.class_token else None)

    @property
    def _piece(self) -> int:
        """Columns that are encoded together; 0: all of them."""
        if not self.family.pieces:
            return 0
        assert isinstance(self.backbone, VisionTransformer)
        return self.backbone.table_columns

    def _padded(self, mel: torch.Tensor) -> torch.Tensor:
        family, frames = self.family, mel.shape[1]
        if not family.whole:
            return mel
        unit = family.least if family.least and family.pieces else family.frames
        missing = max(family.least, -(-frames // unit) * unit) - frames
        # Zeros of the log-mel itself; of M2D zeros of the normalised one, which are its mean.
        empty = torch.zeros_like(self.shift) if self.kind == "m2d" else self.shift
        return torch.cat([mel, empty.expand(len(mel), missing, family.mels)], 1)

    def _reach(self, columns: int) -> None:
        """Lengthen EAT's sines to so many columns."""
        vit = self.backbone
        if self.kind != "eat" or not isinstance(vit, VisionTransformer) or columns <= vit.table_columns:
            return
        table = sines(columns, vit.bands, vit.model.dim).flatten(0, 1).to(vit.pos_embed)
        known = vit.pos_embed[0, 1:]
        if not torch.allclose(table[: len(known)], known, atol=1e-3):
            longest = vit.table_columns * PATCH
            raise CheckpointError(
                "The positions of this EAT are not the sines that it was published with, so it has none for more than "
                f"{longest} frames: set extract.seconds to {longest / 100:g} or less."
            )
        vit.pos_embed = nn.Parameter(torch.cat([vit.pos_embed[:, :1], table[None]], 1), requires_grad=False)
        vit.table_columns = columns


def load_public(init: str | Path, *, device: str | torch.device = "cpu") -> PublicEncoder:
    """The public encoder in a file, or in a folder that transformers wrote.

    Raises CheckpointError where it is none, or lacks something: the first tensor that is missing is named.
    """
    found = find_public(init)
    if found is None:
        shapes_of(find_weights(init))  # which says so where it cannot be read
        raise CheckpointError(f"{init} has the tensors of none of {', '.join(one.name for one in FAMILIES.values())}.")
    family = FAMILIES[found.kind]
    if found.kind == "beats":
        for key, value in TOLD_BEATS.items():
            if found.told.get(key, value) != value:
                raise CheckpointError(
                    f"{found.path} is a BEATs with {key} = {found.told[key]!r}; only {value!r}, as in the published "
                    "ones, can be read."
                )
        backbone = build(found.model)
    else:
        backbone = VisionTransformer(found.model, grid=(family.frames, family.mels // family.high, family.high))
    load_backbone(backbone, found.path)
    gain, shift = _normalisation(found, family)
    return PublicEncoder(found.kind, backbone, gain, shift).to(device)


def _normalisation(found: Found, family: Family) -> tuple[torch.Tensor, torch.Tensor]:
    """What the log-mel is multiplied with, and what is added: of Dasheng its batch norm over mel bins."""
    mean, spread = torch.tensor([family.mean]), torch.tensor([family.spread])
    if found.kind == "beats":
        mean[0] = found.told.get("fbank_mean", family.mean)
        spread[0] = 2 * found.told.get("fbank_std", family.spread / 2)
    if found.kind == "m2d" and f"{found.prefix}norm_stats" in found.shapes:
        mean, spread = load_weights(found.path)[0][f"{found.prefix}norm_stats"].float().split(1)
    if found.kind != "dasheng":
        return 1.0 / spread, -mean / spread
    names = {part: f"init_bn.1.{part}" for part in ("running_mean", "running_var", "weight", "bias")}
    for name in names.values():
        found.shape(name)
    state = load_weights(found.path)[0]
    norm = {part: state[found.prefix + name].float() for part, name in names.items()}
    gain = norm["weight"] * torch.rsqrt(norm["running_var"] + 1e-5)
    return gain, norm["bias"] - norm["running_mean"] * gain
