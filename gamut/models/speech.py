"""HuBERT, wav2vec2 and their kin as frozen encoders: every block's output, by hooks.

transformers' hidden states end with the normed output, and torchaudio's lists are held in memory whole: a hook on each
block sees what the block gives, of both libraries, one at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gamut.errors import CheckpointError
from gamut.models.folder import CONFIG, read_json, read_state
from gamut.models.strict import take_strictly
from gamut.models.weights import load_weights
from gamut.models.whisper import PRECISIONS

KINDS = ("hubert", "wav2vec2")  # of transformers' folders
# torchaudio's architectures, by its own names: what a file of weights does not say.
ARCHITECTURES = (
    "wav2vec2_base",
    "wav2vec2_large",
    "wav2vec2_large_lv60k",
    "wav2vec2_xlsr_300m",
    "wav2vec2_xlsr_1b",
    "wav2vec2_xlsr_2b",
    "hubert_base",
    "hubert_large",
    "hubert_xlarge",
    "wavlm_base",
    "wavlm_large",
)
EPS = 1e-7  # of the waveform's variance, as transformers' feature extractor has it


class SpeechEncoder(nn.Module):
    """A frozen model on waveforms.

    `normalised`: whether it was trained on waveforms of mean 0 and variance 1, each by itself.
    """

    def __init__(self, module: nn.Module, blocks: nn.ModuleList, dim: int, normalised: bool, kind: str) -> None:
        super().__init__()
        self.module = module
        self.blocks = blocks
        self.dim = dim
        self.normalised = normalised
        self.kind = kind
        self.step, self.field = 1, 1  # samples from one step to the next, and those that one step is made of
        layers: Any = module.feature_extractor
        for layer in layers.conv_layers:
            self.field += (layer.conv.kernel_size[0] - 1) * self.step
            self.step *= layer.conv.stride[0]
        self.requires_grad_(False)
        self.eval()

    @property
    def depth(self) -> int:
        """Blocks."""
        return len(self.blocks)

    @torch.no_grad()
    def prepare(self, waveform: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """float32 [B, samples] as the model wants it, of int16 or float in [-1, 1), of which the first length[b] are
        the clip's and the rest are zeros, and stay so."""
        x = waveform.float() / 32768.0 if waveform.dtype == torch.int16 else waveform.float()
        if not self.normalised:
            return x
        own = torch.arange(x.shape[1], device=x.device) < length[:, None]
        count = length[:, None].clamp(min=1)
        mean = (x * own).sum(1, keepdim=True) / count
        variance = ((x - mean).square() * own).sum(1, keepdim=True) / count
        return torch.where(own, (x - mean) * torch.rsqrt(variance + EPS), 0.0)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, each: Callable[[int, torch.Tensor], Any]) -> torch.Tensor:
        """Encode what `prepare` gave; `each(block, output [B, steps, dim])` is called as the blocks come.

        Returns [B, steps, dim]: after the last norm, where there is one behind the blocks (transformers'
        `last_hidden_state`).
        """
        final: list[torch.Tensor] = []

        def hook(take: Callable[[torch.Tensor], Any]) -> Callable[..., None]:
            def taken(module: nn.Module, inputs: Any, output: Any) -> None:
                take(output if isinstance(output, torch.Tensor) else output[0])

            return taken

        numbered = enumerate(self.blocks)
        handles = [block.register_forward_hook(hook(functools.partial(each, number))) for number, block in numbered]
        encoder: Any = self.module.encoder
        handles.append(encoder.register_forward_hook(hook(final.append)))
        try:
            self.module(x.to(next(self.module.parameters()).dtype))
        finally:
            for handle in handles:
                handle.remove()
        return final[0]


def load_speech(
    path: str | Path, architecture: str = "", *, precision: str = "fp32", device: str | torch.device = "cpu"
) -> SpeechEncoder:
    """HuBERT or wav2vec2 from a folder that transformers wrote, or, with one of torchaudio's `architecture`s, from a
    file of torchaudio's weights.

    Raises CheckpointError where the weights are missing or are not those of such a model.
    """
    path = Path(path).expanduser()
    encoder = _torchaudio(path, architecture) if architecture else _transformers(path)
    return encoder.to(device, PRECISIONS[precision])


def is_speech(path: Path) -> bool:
    """Whether a folder of transformers holds one of these."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") in KINDS


def _transformers(path: Path) -> SpeechEncoder:
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

    told = read_json(path / CONFIG)
    kind = told.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(f"{path} holds a model of type {kind!r}, not {' or '.join(KINDS)}.")
    config: Any
    module: Any
    if kind == "hubert":
        module = HubertModel(config := HubertConfig.from_dict(told))
    else:
        module = Wav2Vec2Model(config := Wav2Vec2Config.from_dict(told))
    own = module.state_dict()

    def wanted(name: str) -> str | None:
        # Of a model with a head the trunk alone; weight norm by the names of torch's present way of it.
        name = name.removeprefix(f"{kind}.")
        name = name.replace("conv.weight_g", "conv.parametrizations.weight.original0")
        name = name.replace("conv.weight_v", "conv.parametrizations.weight.original1")
        return name if name in own else None

    state = read_state(path, wanted)
    if "masked_spec_embed" in own:
        state.setdefault("masked_spec_embed", own["masked_spec_embed"])  # of training: no forward here reads it
    take_strictly(module, state, path)
    extractor = path / "preprocessor_config.json"
    normalised = config.feat_extract_norm == "layer"
    if extractor.is_file():
        normalised = bool(read_json(extractor).get("do_normalize", normalised))
    return SpeechEncoder(module, module.encoder.layers, config.hidden_size, normalised, kind)


def _torchaudio(path: Path, architecture: str) -> SpeechEncoder:
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"torchaudio has no {architecture!r}; there are {', '.join(ARCHITECTURES)}.")
    import torchaudio.models

    state, _ = load_weights(path)
    outputs = len(state["aux.bias"]) if "aux.bias" in state else None
    module = getattr(torchaudio.models, architecture)(aux_num_out=outputs)
    take_strictly(module, state, path)
    transformer = module.encoder.transformer
    # torchaudio's pipelines normalise for the models whose convolutions have layer norms, as transformers does.
    normalised = getattr(module.feature_extractor.conv_layers[1], "layer_norm", None) is not None
    dim = module.encoder.feature_projection.projection.out_features
    return SpeechEncoder(module, transformer.layers, dim, normalised, architecture)
