"""`--to onnx` and `--to torch`: one program from the waveform to logits and embedding, for sounds of any length.

Both folders hold the weights for Gamut, too: from a program alone a training could not start.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gamut.errors import ExportError, missing
from gamut.export.card import card
from gamut.export.folder import CARD
from gamut.export.listener import Listener, LogMel, WhisperListener
from gamut.export.source import THRESHOLDS, Source
from gamut.export.tensors import write_weights
from gamut.files import write_text
from gamut.models.find import MODEL
from gamut.models.vit import VisionTransformer
from gamut.models.whisper import STEP
from gamut.numbers import PATCH, RATE
from gamut.recipe.policy import evaluation_policy

ONNX, PROGRAM, LABELS = "model.onnx", "model.pt2", "labels.json"
INLINE = 1_500_000_000  # bytes of weights: more do not fit into one file of ONNX's
NEAR = 1e-4  # of the largest number: how near a program's outputs must come to the network's
OPSET = 18

USE_ONNX = """
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
waveform = np.random.default_rng(0).normal(0, 0.1, 3 * 16000).astype(np.float32)  # yours: mono, 16 kHz, in [-1, 1)
first, second, *_ = session.run(None, {"waveform": waveform})
"""
USE_TORCH = """
import json
import torch

model = torch.export.load("FOLDER/model.pt2").module()
waveform = 0.1 * torch.randn(3 * 16000)  # yours: mono, 16 kHz, in [-1, 1)
first, second, *_ = model(waveform)
"""
CLASSES = """
about = json.load(open("FOLDER/labels.json"))
best = first.argsort()[-3:]  # logits, of which the embedding is `second`
print([about["labels"][number] for number in best])
"""
VECTORS = """
print(first.shape, second.shape)  # the embedding, and the tokens
"""


def write_onnx(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time. Raises ExportError where the extra is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX needs {missing(str(error.name), 'export')}") from None
    network = listener(source, seconds)
    with _quietly():
        program = torch.onnx.export(
            traced(network), dynamo=True, verbose=False, opset_version=OPSET, output_names=_names(source)
        )
        assert program is not None
        weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
        program.save(folder / ONNX, external_data=weights > INLINE)
    session = onnxruntime.InferenceSession(folder / ONNX)
    yield _compared(network, lambda waveform: session.run(None, {"waveform": waveform.numpy()}), "onnxruntime's")
    _beside(source, folder, seconds, f"`{ONNX}`, a program for onnxruntime", USE_ONNX)


def write_torch(source: Source, folder: Path, seconds: float | None) -> Iterator[str]:
    """Fill a new folder; what was done, a line at a time."""
    network = listener(source, seconds)
    with _quietly():
        torch.export.save(traced(network), folder / PROGRAM)
        module = torch.export.load(folder / PROGRAM).module()
    yield _compared(network, module, "the program's")
    _beside(source, folder, seconds, f"`{PROGRAM}`, a program of torch.export", USE_TORCH)


def listener(source: Source, seconds: float | None) -> nn.Module:
    """The network that is traced, in float32. Raises ExportError for a backbone that is no vision transformer."""
    if source.speech is not None and source.speech.head is not None:
        if seconds is not None:
            raise ExportError("A head on Whisper reads a window of its own length: leave --seconds out.")
        whisper, head = source.speech.whisper, source.speech.head
        samples = round(min(head.seconds, whisper.longest) * RATE) // STEP * STEP
        blocks = head.blocks or tuple(range(whisper.depth))
        own = WhisperListener(whisper, head.tagger, samples, head.unit, blocks, head.pad_with)
        return own.eval().requires_grad_(False)
    source.require_whisper()
    if source.network is None:
        raise ExportError(f"{source.weights} is a head without its encoder: name that with --encoder.")
    if not isinstance(source.backbone, VisionTransformer):
        raise ExportError(
            f"The backbone {source.recipe.model.backbone} is no vision transformer, so how it hears one clip is not "
            "known here: --to safetensors holds it."
        )
    normalised = source.about["normalise"]
    policy = evaluation_policy(source.heard(seconds))
    mel = LogMel(policy, source.recipe.views.pad_with, normalised["mean"], normalised["std"])
    return Listener(source.network, mel).eval().requires_grad_(False)  # type: ignore[arg-type]


def traced(network: nn.Module) -> torch.export.ExportedProgram:
    """For waveforms of any length from one sample on."""
    samples = {"waveform": {0: torch.export.Dim("samples", min=1)}}
    return torch.export.export(network, (torch.zeros(RATE),), dynamic_shapes=samples)


def _compared(network: nn.Module, program: Callable[[torch.Tensor], Any], whose: str) -> str:
    """How near the program's outputs are to the network's, in words. Raises ExportError where they are not."""
    apart = 0.0
    for seconds in (0.3, 7.0):
        noise = np.random.default_rng(0).normal(0.0, 0.1, round(seconds * RATE))
        waveform = torch.from_numpy(noise.astype(np.float32))
        for mine, theirs in zip(network(waveform), program(waveform), strict=True):
            apart = max(apart, float((mine - torch.as_tensor(theirs)).abs().max() / mine.abs().max()))
    if not apart < NEAR:
        raise ExportError(
            f"On noise {whose} outputs are {apart:.1e} of their size from this model's, more than {NEAR:g}: nothing "
            "was written. Report it with the model section of the recipe."
        )
    return f"checked on noise of 0.3 and 7 s: {whose} outputs are within {apart:.1e} of this model's"


def _names(source: Source) -> list[str]:
    if not source.labels:
        return ["embedding", "tokens"]
    return ["logits", "embedding", *(["frames"] if source.recipe.model.pooling == "frames" else [])]


def _beside(source: Source, folder: Path, seconds: float | None, what: str, use: str) -> None:
    write_weights(source, folder)
    about = {name: source.about[name] for name in ("labels", "loss", *THRESHOLDS) if name in source.about}
    if source.labels:
        write_text(folder / LABELS, json.dumps(about, indent=1, ensure_ascii=False))
    longest = f"{seconds:g} s" if seconds else "as below"
    frames = ""
    if "frames" in _names(source):
        policy = evaluation_policy(source.recipe)
        every = PATCH * policy.hops[0] * policy.pools[0] / RATE
        frames = f", and `frames` [columns, {len(source.labels)}], logits of every {every:g} s"
    outputs = (
        f"`logits` [{len(source.labels)}] ({'softmax' if source.about['loss'] == 'ce' else 'sigmoid'} makes them "
        f"probabilities), `embedding`, the clip's vector{frames}. `{LABELS}` names the classes."
        if source.labels
        else "`embedding` [dim], the clip's vector, and `tokens` [columns * bands, dim], one a patch, column by column."
    )
    layout = (
        f"`waveform`, float32 [samples] in [-1, 1), mono, 16 kHz, of any length in; cut or padded {longest}. Out: "
        f"{outputs} The log-mel is inside; all is computed in float32."
    )
    kind = (
        f"A model that Gamut trained, as {what}, which needs nothing else. `{MODEL}` has the weights for Gamut itself."
    )
    write_text(folder / CARD, card(source, kind, layout, use.strip() + (CLASSES if source.labels else VECTORS)))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of torch's own code about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
