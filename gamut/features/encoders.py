"""Frozen encoders behind one face: from planned clips to every block's output, [clips, steps, dim]."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
import xxhash
from torch import nn

from gamut.data.batch import PackedBatch
from gamut.data.front import normalised
from gamut.errors import RecipeError
from gamut.models.backbone import Backbone, build
from gamut.models.families import find_public
from gamut.models.find import find_weights, recipe_of
from gamut.models.public import PublicEncoder, load_public
from gamut.models.shipped import located
from gamut.models.speech import SpeechEncoder, is_speech, load_speech
from gamut.models.weights import load_backbone
from gamut.models.whisper import STEP, Whisper, is_whisper, load_whisper
from gamut.numbers import HOP, PATCH, RATE, WINDOW
from gamut.plan import Policy
from gamut.recipe.policy import hop
from gamut.recipe.schema import FrontEnd, Recipe
from gamut.registry import Registry
from gamut.shards.trained import trained_front

SHORTEST = ((PATCH - 1) * HOP + WINDOW) / RATE  # seconds: 16 frames, a column of patches

Each = Callable[[int, torch.Tensor], Any]  # (block, its output [clips, steps, dim] in the encoder's precision)


@dataclass(frozen=True)
class Final:
    """What an encoder gives behind its last block, of C clips of one length, on its device."""

    steps: torch.Tensor  # [C, steps, dim], after the last norm
    first: float  # seconds from the beginning of a clip to the middle of its first step
    step: float  # seconds from one step to the next
    clip: torch.Tensor | None = None  # [C, dim], the encoder's own vector of a clip; None: it has none
    patches: torch.Tensor | None = None  # [C, steps, bands, dim], where a step is a column of patches


class Encoder(Protocol):
    """A frozen encoder at a window of so many seconds."""

    depth: int  # blocks
    dim: int
    model: dict[str, Any]  # what it is, weights included: part of a cache's address
    front: dict[str, Any]  # what it does to a clip before the first block: likewise

    def policy(self, clips: int) -> Policy:
        """What a clip becomes in a plan of packs of so many clips."""
        ...

    def __call__(self, batch: PackedBatch, each: Each) -> Final | None:
        """Encode a batch of that plan on the encoder's device, calling `each` with every block's output in order.

        Returns what comes behind the last block; None where nothing does: then the last block's output stands for it,
        its steps spread over the window.
        """
        ...


@runtime_checkable
class AnyLength(Protocol):
    """An encoder that need not fill up short clips."""

    least: int  # samples at 16 kHz, the fewest that it can read

    def at(self, samples: int) -> Encoder:
        """The same encoder with a window of so many samples, or of `least`."""
        ...


class _OfWaveforms:
    """A window of samples, from a plan whose frames are a sample apart: so it is of any length, to the sample."""

    def __init__(self, seconds: float) -> None:
        self.samples = round(seconds * RATE)

    def policy(self, clips: int) -> Policy:
        frames = -(-max(self.samples - WINDOW + 1, 1) // PATCH) * PATCH
        return _policy(clips, frames, 1)

    def window(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(int16 [C, samples], zeros after the clip's own; int64 [C], how many are its own)."""
        waveform = batch.waveform.view(batch.clips, -1)[:, : self.samples]
        return waveform, batch.length.clamp(max=self.samples)


class OfWhisper(_OfWaveforms):
    """Whisper: log-mel of the window, positions cut to it."""

    def __init__(
        self, whisper: Whisper, seconds: float, precision: str, device: torch.device, pad_with: str = "silence"
    ) -> None:
        """pad_with: what a window is filled up with, silence or `zero`, a log-mel of 0.0."""
        if seconds > whisper.longest:
            raise RecipeError(
                f"A window of {seconds:g} s (extract.seconds) is more than the {whisper.longest:g} s that this "
                "Whisper's positions reach."
            )
        super().__init__(max(round(seconds * RATE) // STEP, 1) * STEP / RATE)
        self._whisper, self._device = whisper, device
        self.depth, self.dim = whisper.depth, whisper.dim
        self.model = {"kind": "whisper", "weights": digest(whisper.encoder), "precision": precision}
        self.front = {"kind": "whisper log-mel", "mels": whisper.mels, "seconds": self.samples / RATE}
        self._zero = pad_with == "zero"
        self.front |= {"pad_with": pad_with} if self._zero else {}

    def __call__(self, batch: PackedBatch, each: Each) -> Final:
        length = batch.length.tolist() if self._zero else None  # in the host's memory still
        waveform, _ = self.window(batch.to(self._device))
        # Step n is centred on frame 2 n, and that on sample 160 * 2 n.
        return Final(self._whisper(self._whisper.log_mel(waveform, length), each).final, 0.0, STEP / RATE)


class _OfAnyWaveforms(_OfWaveforms):
    """`AnyLength`."""

    front: dict[str, Any]
    least: int

    def at(self, samples: int) -> Self:
        other = copy.copy(self)
        other.samples = max(samples, self.least)
        other.front = self.front | {"seconds": other.samples / RATE}
        return other


class OfSpeech(_OfAnyWaveforms):
    """HuBERT, wav2vec2: the waveform of the window."""

    def __init__(self, speech: SpeechEncoder, seconds: float, precision: str, device: torch.device) -> None:
        super().__init__(seconds)
        self._speech, self._device, self.least = speech, device, speech.field
        self.depth, self.dim = speech.depth, speech.dim
        self.model = {"kind": speech.kind, "weights": digest(speech.module), "precision": precision}
        self.front = {"kind": "waveform", "normalised": speech.normalised, "seconds": self.samples / RATE}

    def __call__(self, batch: PackedBatch, each: Each) -> Final:
        waveform, length = self.window(batch.to(self._device))
        steps = self._speech(self._speech.prepare(waveform, length), each)
        return Final(steps, self._speech.field / 2 / RATE, self._speech.step / RATE)


class OfPublic(_OfAnyWaveforms):
    """EAT, SSLAM, AudioMAE, BEATs, Dasheng, M2D: their own log-mel of the window; a step is a column of patches."""

    def __init__(self, encoder: PublicEncoder, seconds: float, precision: str, device: torch.device) -> None:
        super().__init__(max(seconds, SHORTEST))
        self._encoder, self._device, self._precision = encoder, device, precision
        self.least = round(SHORTEST * RATE)
        self.depth, self.dim = encoder.depth, encoder.dim
        self.model = {"kind": encoder.kind, "weights": digest(encoder), "precision": precision}
        self.front = {"kind": f"log-mel of {encoder.family.name}", "seconds": self.samples / RATE}

    def __call__(self, batch: PackedBatch, each: Each) -> Final:
        mel = self._encoder.log_mel(*self.window(batch.to(self._device)))
        with half(self._device, self._precision):
            found = self._encoder(mel, each)
        family = self._encoder.family
        return Final(found.steps, family.first, family.step, found.clip, found.patches)


class OfSpectrograms:
    """Our own backbones, such as ASiT's teacher: a step is a column of patches (16 frames, or `model.stride` of them
    where they overlap), the mean of its 8 (12 at a stride of 10)."""

    def __init__(
        self,
        vit: Backbone,
        front: FrontEnd,
        hop_length: int,
        seconds: float,
        precision: str,
        device: torch.device,
        *,
        plan: Policy | None = None,
        pad_with: str = "silence",
    ) -> None:
        """plan: what a clip becomes, as `evaluation_policy` says it, in place of a window of `seconds`. pad_with: what
        follows a clip that is shorter than its window (`spectrogram`)."""
        assert front.mean is not None
        assert front.std is not None
        self._vit, self._device, self._precision = vit.to(device).eval().requires_grad_(False), device, precision
        self._mean, self._std, self._mode = front.mean, front.std, front.mode
        self._plan, self._pad_with, self._hop_length = plan, pad_with, hop_length
        self._frames = max((round(seconds * RATE) - WINDOW) // hop_length + 1, PATCH) // PATCH * PATCH
        self.depth, self.dim = len(vit.blocks), vit.model.dim
        self.model = {"kind": "spectrogram transformer", "weights": digest(vit), "precision": precision}
        self.front = {"kind": "log-mel", "mean": front.mean, "std": front.std, "mode": front.mode}
        self.front |= {"shift": hop_length, "frames": self._frames}
        self.front |= {"stride": vit.model.stride} if vit.model.stride != PATCH else {}

    def policy(self, clips: int) -> Policy:
        if self._plan is not None:
            return replace(self._plan, packs=1, tokens=None, clips=clips, too_long="cut")
        return _policy(clips, self._frames, self._hop_length)

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, each: Each) -> Final:
        batch = batch.to(self._device)
        stride = self._vit.model.stride
        pixels = normalised(batch, self._mean, self._std, self._mode, pad_with=self._pad_with, stride=stride)
        where = self._vit.layout(batch.frames, batch.sizes)

        def columns(tokens: torch.Tensor) -> torch.Tensor:
            own = torch.index_select(tokens, 0, where.patch)  # time-major, class tokens left out
            return own.view(batch.clips, -1, where.bands, self.dim)

        def hook(number: int) -> Callable[..., None]:
            def take(module: nn.Module, inputs: Any, tokens: torch.Tensor) -> None:
                each(number, columns(tokens).mean(2))

            return take

        handles = [block.register_forward_hook(hook(number)) for number, block in enumerate(self._vit.blocks)]
        try:
            with half(self._device, self._precision):
                tokens = self._vit(pixels, where)
                clip = self._vit.pool(tokens, where)
        finally:
            for handle in handles:
                handle.remove()
        patches = columns(tokens)
        pool = 1 if self._plan is None else self._plan.pools[0]
        middle = ((PATCH * pool - 1) * self._hop_length + WINDOW) / 2
        step = stride * pool * self._hop_length
        return Final(patches.mean(2), middle / RATE, step / RATE, clip, patches)


def load_encoder(recipe: Recipe, device: torch.device) -> Encoder:
    """The frozen encoder that a recipe names by `init`, at its window. Of a run its own model and front end, but for
    `front` where the recipe gives it.

    Raises CheckpointError where the weights are missing or not what they should be, RecipeError where the recipe does
    not say which or asks for what the encoder cannot do.
    """
    if not recipe.init:
        raise RecipeError(
            "The recipe names no encoder: add init=PATH, a folder that transformers wrote (Whisper, HuBERT, wav2vec2), "
            "an OpenAI Whisper (.pt), torchaudio weights (with extract.architecture), a file of EAT, SSLAM, AudioMAE, "
            "BEATs, Dasheng or M2D, or an ASiT run."
        )
    path = located(recipe.init)
    return ENCODERS[kind_of(path, recipe)].load(path, recipe, device)


def kind_of(path: Path, recipe: Recipe) -> str:
    """The name in `ENCODERS` of the kind that knows the weights at `path`."""
    return next(name for name in reversed([*ENCODERS]) if ENCODERS[name].knows(path, recipe))


@dataclass(frozen=True)
class Kind:
    """Frozen encoders of one kind: which weights are theirs, and how they are loaded.

    Both get `init` as a path and the recipe. The kind that was registered last is asked first, so that one from outside
    is asked before the package's own; the first that knows the weights loads them.
    """

    knows: Callable[[Path, Recipe], bool]  # without reading the tensors; the path may not be there
    load: Callable[[Path, Recipe, torch.device], Encoder]  # at a window of `extract.seconds`, on the device


ENCODERS: Registry[Kind] = Registry("frozen encoder")


def _load_whisper(path: Path, recipe: Recipe, device: torch.device) -> Encoder:
    whisper = load_whisper(path, precision=recipe.precision, device=device)
    return OfWhisper(whisper, recipe.extract.seconds, recipe.precision, device, recipe.extract.pad_with)


def _load_speech(path: Path, recipe: Recipe, device: torch.device) -> Encoder:
    speech = load_speech(path, recipe.extract.architecture, precision=recipe.precision, device=device)
    return OfSpeech(speech, recipe.extract.seconds, recipe.precision, device)


def _is_public(path: Path, recipe: Recipe) -> bool:
    """A recipe that says how the log-mel is normalised means a model on ours, whatever its tensors are called."""
    return not recipe.extract.architecture and recipe.front.mean is None and find_public(path) is not None


def _load_public(path: Path, recipe: Recipe, device: torch.device) -> Encoder:
    encoder = load_public(path, device=device)
    return OfPublic(encoder, recipe.extract.seconds, recipe.precision, device)


def _load_spectrograms(path: Path, recipe: Recipe, device: torch.device) -> Encoder:
    weights = find_weights(path)
    own = recipe_of(weights) or recipe
    own = own if recipe.front.mean is None else replace(own, front=recipe.front)
    front = trained_front(weights, own, recipe.data)
    vit = build(own.model)
    print(f"weights: {load_backbone(vit, weights)}", flush=True)
    hop_length = hop(own.views.resolutions[0])
    return OfSpectrograms(vit, front, hop_length, recipe.extract.seconds, recipe.precision, device)


ENCODERS.add("spectrogram transformer", Kind(lambda path, recipe: True, _load_spectrograms))  # all that is no other's
ENCODERS.add(
    "whisper", Kind(lambda path, recipe: is_whisper(path) or (path.is_file() and path.suffix == ".pt"), _load_whisper)
)
ENCODERS.add("speech", Kind(lambda path, recipe: bool(recipe.extract.architecture) or is_speech(path), _load_speech))


ENCODERS.add("public", Kind(_is_public, _load_public))


def half(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic in half precision, fp16 or bf16, where `precision` says so."""
    kind = {"fp16": torch.float16}.get(precision, torch.bfloat16)
    return torch.autocast(device.type, kind, enabled=precision != "fp32")


def _policy(clips: int, frames: int, hop_length: int) -> Policy:
    return Policy(
        packs=1,
        clips=clips,
        crop_frames=frames,
        hops=(hop_length,),
        random_crop=False,
        shuffle=False,
        class_token=False,
    )


def digest(module: nn.Module) -> str:
    """32 hexadecimal digits of a module's tensors: names, shapes and bytes."""
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        hashed.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
