"""A model that hears a waveform, one clip of any length, as a network that can be traced whole: log-mel included.

It computes what training and evaluation compute (`gamut.audio.logmel`, `gamut.models.vit`), for one clip and with
operations that ONNX has. Gathers stand for frames and patches, and a product with a matrix in float64 for the Fourier
transform: a bin with next to no energy beside a loud one needs it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from gamut.audio.logmel import FFT, FLOOR, PREEMPHASIS, mel_weights, normalise
from gamut.audio.whisper_mel import FFT as WHISPER_FFT
from gamut.audio.whisper_mel import FLOOR as WHISPER_FLOOR
from gamut.audio.whisper_mel import mel_filters
from gamut.export.source import frames_of_all
from gamut.features.extract import pool
from gamut.models.classifier import ClassifierNetwork
from gamut.models.tagger import Tagger
from gamut.models.vit import Block, VisionTransformer
from gamut.models.whisper import Whisper
from gamut.numbers import HOP, PATCH, WINDOW
from gamut.plan import Policy


def transform(samples: int, size: int) -> torch.Tensor:
    """float64 [samples, 2, size // 2 + 1]: cosines and sines of the transform of `size` samples, the last ones zero."""
    angle = (
        2 * math.pi / size * torch.outer(torch.arange(samples), torch.arange(size // 2 + 1)).remainder(size).double()
    )
    return torch.stack([angle.cos(), angle.sin()], 1)


def power(frames: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """float32 [..., bins] of float32 frames [..., samples]."""
    parts = (frames.double() @ matrix.flatten(1)).unflatten(-1, (2, matrix.shape[2]))
    return parts.square().sum(-2).float()


class LogMel(nn.Module):
    """The normalised log-mel of a clip's first view, as the evaluation of its recipe cuts, pads and pools it."""

    window: torch.Tensor
    matrix: torch.Tensor
    weights: torch.Tensor

    def __init__(self, policy: Policy, pad_with: str, mean: float, std: float) -> None:
        """policy: of the evaluation."""
        super().__init__()
        self.hop, self.pool = policy.hops[0], policy.pools[0]
        self.zero, self.mean, self.std = pad_with == "zero", mean, std
        self.max_samples = policy.max_samples
        self.fixed = frames_of_all(policy)
        limits = [limit for limit in (policy.crop_frames, policy.max_frames) if limit is not None]
        self.most = min(limits, default=None)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("matrix", transform(WINDOW, FFT), persistent=False)
        self.register_buffer("weights", mel_weights().T.contiguous(), persistent=False)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(float32 [16 * n, 128], n) of float32 [samples] in [-1, 1) at 16 kHz: n times 16 frames."""
        whole = torch.round(waveform * 32768.0).clamp(-32768.0, 32767.0) / 32768.0  # sounds are 16-bit numbers
        samples = torch.ones_like(waveform, dtype=torch.int64).sum()
        sixteens = self._sixteens(samples)
        needed = (sixteens * PATCH * self.pool - 1) * self.hop + WINDOW
        length = samples.clamp(max=needed)
        own = torch.arange(waveform.shape[0]) < length
        mean = (torch.where(own, whole, 0.0).double().sum() / length).float()
        free = torch.cat([torch.where(own, whole - mean, 0.0), whole.new_zeros(needed)])
        number = torch.arange(sixteens)[:, None] * PATCH + torch.arange(PATCH)
        first = (number[..., None] * self.pool + torch.arange(self.pool)) * self.hop
        mel = self._filter_banks(free[first[..., None] + torch.arange(WINDOW)])
        mel = mel.sum(2) / self.pool if self.pool > 1 else mel[:, :, 0]
        if self.zero:
            frames = 1 + torch.div(length - WINDOW, self.hop, rounding_mode="floor")
            frames = torch.div(frames, self.pool, rounding_mode="floor").clamp(min=PATCH)
            mel = torch.where((number < frames)[..., None], mel, 0.0)
        return normalise(mel.flatten(0, 1), self.mean, self.std), sixteens

    def _sixteens(self, samples: torch.Tensor) -> int:
        if self.fixed is not None:
            return self.fixed // PATCH
        within = samples if self.max_samples is None else samples.clamp(max=self.max_samples)
        frames = 1 + torch.div(within - WINDOW, self.hop, rounding_mode="floor")
        most = None if self.most is None else self.most // PATCH
        sixteens = torch.div(frames, self.pool * PATCH, rounding_mode="floor").clamp(1, most).item()
        torch._check(sixteens >= 1)  # which a trace cannot know
        return sixteens  # type: ignore[return-value]  # while it is traced, a number that is not known yet

    def _filter_banks(self, framed: torch.Tensor) -> torch.Tensor:
        """float32 [..., 128] of frames [..., 400]."""
        framed = framed - framed.mean(-1, keepdim=True)
        before = torch.cat([torch.zeros_like(framed[..., :1]), framed[..., :-1]], -1)  # the window begins with 0
        emphasised = (framed - before * PREEMPHASIS) * self.window
        return (power(emphasised, self.matrix) @ self.weights).clamp(min=FLOOR).log()


class Positions(nn.Module):
    """What `gamut.models.positions` adds to the patches of one clip, for any number of columns."""

    time: torch.Tensor
    frequency: torch.Tensor

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.learned, self.like, self.bands = vit.model.positions == "learned", vit.model.table_like, vit.bands
        self.columns = vit.table_columns
        if self.learned:
            time = vit.pos_embed[0, vit.special :].detach().unflatten(0, (-1, vit.bands)).flatten(1)
        else:
            time = vit.pos_embed_time.detach()
            self.register_buffer("frequency", vit.pos_embed_freq.detach().clone())
        self.register_buffer("time", time.clone())

    def forward(self, columns: int) -> torch.Tensor:
        """[columns * bands, dim], time-major."""
        wide = torch.full((), columns)
        row = torch.arange(columns)
        cubic = self.learned and self.like == "asit"
        if self.learned and self.like == "ast":
            row = row + (self.columns // 2 - torch.div(wide, 2, rounding_mode="floor")).clamp(min=0)  # the middle ones
        at = (row + 0.5).double() * self.columns / wide.clamp(min=self.columns).double() - 0.5
        at = at if cubic else at.clamp(min=0.0)
        left = at.floor()
        rows: torch.Tensor | None = None
        for tap, weight in _taps(at - left, cubic):
            part = self.time[(left.long() + tap).clamp(0, self.columns - 1)] * weight.float()[:, None]
            rows = part if rows is None else rows + part
        assert rows is not None
        if self.learned:
            return rows.unflatten(1, (self.bands, -1)).flatten(0, 1)
        return (rows[:, None] + self.frequency).flatten(0, 1)


def _taps(part: torch.Tensor, cubic: bool) -> list[tuple[int, torch.Tensor]]:
    """`gamut.models.positions`'s, of a tensor."""
    if not cubic:
        return [(0, 1.0 - part), (1, part)]
    a, taps = -0.75, []
    for tap in (-1, 0, 1, 2):
        x = (part - tap).abs()
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
        taps.append((tap, torch.where(x <= 1.0, near, far)))
    return taps


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """[Q, heads, d] of q [Q, heads, d] and k, v [T, heads, d]: every query attends to all."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    weight = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(1, 2)
    return (weight.softmax(-1) @ v).transpose(0, 1)


class Listener(nn.Module):
    """A vision transformer of spectrograms, with its classifier if it has one."""

    def __init__(self, network: ClassifierNetwork | VisionTransformer, mel: LogMel) -> None:
        super().__init__()
        self.mel = mel
        vit = network.backbone if isinstance(network, ClassifierNetwork) else network
        assert isinstance(vit, VisionTransformer)
        self.vit, self.head = vit, network.head if isinstance(network, ClassifierNetwork) else None
        self.positions = Positions(vit)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """float32 [samples] in [-1, 1) at 16 kHz -> a classifier: (logits [classes], embedding [dim]), and one of
        frames (logits, embedding, frames [columns, classes]); a backbone: (embedding [dim], tokens [columns * bands,
        dim], time-major, lowest band first, without class tokens)."""
        mel, sixteens = self.mel(waveform)
        x = self.vit.begin(self._embed(mel, sixteens))
        for block in self.vit.blocks:
            assert isinstance(block, Block)
            q, k, v = block.before(x)
            x = block.after(x, attend(q, k, v, block.attn.scale), None)
        tokens = self.vit.end(x)
        embedding = self._pool(tokens)
        if self.head is None:
            return embedding, tokens[self.vit.special :]
        if self.vit.model.pooling == "rows":
            return self.head(tokens.unflatten(0, (-1, self.vit.bands)).mean(0).flatten()[None])[0], embedding
        if self.vit.model.pooling != "frames":
            return self.head(embedding[None])[0], embedding
        frames = self.head(tokens.unflatten(0, (-1, self.vit.bands)).mean(1))
        yes, no = F.logsigmoid(frames), F.logsigmoid(-frames)
        # `gamut.models.pooling.linear_softmax`, of one clip.
        return (2.0 * yes).logsumexp(0) - (yes + no).logsumexp(0), embedding, frames

    def _embed(self, mel: torch.Tensor, sixteens: int) -> torch.Tensor:
        vit, stride = self.vit, self.vit.model.stride
        columns = sixteens if stride == PATCH else (sixteens * PATCH - PATCH) // stride + 1
        start = torch.arange(columns)[:, None] * stride + torch.arange(PATCH)
        bins = torch.arange(vit.bands)[:, None] * stride + torch.arange(PATCH)
        pixels = mel[start][:, :, bins].transpose(1, 2).flatten(2).flatten(0, 1)
        x = vit.patch_embed(pixels) + self.positions(columns)
        leading = [vit.cls_token] if vit.class_token else []
        leading += [vit.dist_token] if vit.model.distilled else []
        if not leading:
            return x
        own = torch.cat([token[0] for token in leading])
        if vit.model.positions == "learned":
            own = own + vit.pos_embed[0, : vit.special]
        return torch.cat([own, x])

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        vit = self.vit
        if vit.class_token:
            return tokens[: vit.special].mean(0)
        if vit.model.pooling != "attention":
            return tokens.mean(0)
        own = vit.attn_pool
        q = own.to_q(own.query).unflatten(-1, (own.heads, -1))
        k, v = own.to_kv(tokens).unflatten(-1, (2, own.heads, -1)).unbind(1)
        return own.proj(attend(q, k, v, own.scale).flatten(1))[0]


class WhisperListener(nn.Module):
    """A head on the blocks of a Whisper's encoder, at the window that it was trained on."""

    window: torch.Tensor
    matrix: torch.Tensor
    filters: torch.Tensor

    def __init__(
        self,
        whisper: Whisper,
        tagger: Tagger,
        samples: int,
        steps: int,
        blocks: tuple[int, ...],
        pad_with: str = "silence",
    ) -> None:
        """samples: of the window, to which a sound is cut or filled up, with silence or a log-mel of 0.0 (`zero`);
        steps: of which the features are means; blocks: those whose outputs are read."""
        super().__init__()
        self.whisper, self.tagger, self.samples, self.steps, self.blocks = whisper, tagger, samples, steps, blocks
        self.zero = pad_with == "zero"
        self.register_buffer("window", torch.hann_window(WHISPER_FFT), persistent=False)
        self.register_buffer("matrix", transform(WHISPER_FFT, WHISPER_FFT), persistent=False)
        self.register_buffer("filters", mel_filters(whisper.mels).T.contiguous(), persistent=False)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [samples] in [-1, 1) at 16 kHz -> (logits [classes], embedding [dim]: what the classifier reads)."""
        padded = torch.cat([waveform, waveform.new_zeros(self.samples)])[torch.arange(self.samples)]
        own = self.whisper(self._log_mel(padded, torch.ones_like(waveform).sum())[None]).blocks
        features = torch.stack([pool(own[number], self.steps) for number in self.blocks], 1)
        embedding = self.tagger.embedding(features)
        return self.tagger.mlp_layer(embedding)[0], embedding[0]

    def _log_mel(self, waveform: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """float32 [mels, frames]: `gamut.audio.whisper_mel`, of a window whose first `length` samples are a sound."""
        half = WHISPER_FFT // 2
        frame = torch.arange(self.samples // HOP)
        number = frame[:, None] * HOP + torch.arange(WHISPER_FFT)
        if self.zero:  # mirrored where the sound ends
            samples = length.long().clamp(WHISPER_FFT, self.samples)
            number = (number - half).abs()
            number = torch.minimum(number, (2 * (samples - 1) - number).clamp(min=0))
            framed = waveform[number]
        else:
            framed = F.pad(waveform[None], (half, half), mode="reflect")[0][number]
        log = (power(framed * self.window, self.matrix) @ self.filters).clamp(min=1e-10).log10()
        if not self.zero:
            return ((torch.maximum(log, log.flatten().amax(0) - WHISPER_FLOOR) + 4.0) / 4.0).T
        own = (frame < samples // HOP)[:, None]
        loudest = torch.where(own, log, -10.0).flatten().amax(0)
        return torch.where(own, (torch.maximum(log, loudest - WHISPER_FLOOR) + 4.0) / 4.0, 0.0).T
