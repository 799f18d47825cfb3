"""Heads on all layers of a frozen encoder (Whisper-AT, Gong et al. 2023, section 3): time- and layer-wise transformers.

Features are the outputs of every block, pooled over time: [clips, layers, steps, dim]. Parameters have the names of the
public whisper-at package, so its weights load (`load_tagger`).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gamut.errors import CheckpointError, RecipeError
from gamut.models.find import HEAD, find_weights
from gamut.models.initialise import initialise, unfilled
from gamut.models.strict import copy_into, require_fit
from gamut.models.weights import Loaded, load_weights
from gamut.recipe import schema


class HeadAttention(nn.Module):
    """Whisper's: the key has no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, length, dim] from the same: every position attends to all of its row."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class HeadBlock(nn.Module):
    """Whisper's pre-norm block: attention, then an MLP four times as wide."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = HeadAttention(dim, heads)
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class Tagger(nn.Module):
    """A head of one of four kinds, ending in LayerNorm + Linear; without embeddings of position or layer.

    `last_mlp`: the last layer, its mean over time. `wa_mlp`: a learned weighted average of the layers (sum w x / sum w,
    every w 1/layers at first), its mean over time. `wa_tr`: that average, one block over time, mean. `tl_tr`: one block
    over time, the same for every layer, mean over time, then one block over layers, mean. With `head.dim` a LayerNorm +
    Linear maps the features there first (TL-Tr-512). Weights come from `seed` alone; with None
    there are none, only shapes (on the meta device).

    Raises RecipeError where a block's dimension is not divisible by its heads.

    >>> tagger = Tagger(schema.Head(kind="tl_tr", dim=16, layer_heads=4), layers=4, dim=32, classes=10)
    >>> tagger(torch.zeros(2, 4, 25, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, head: schema.Head, layers: int, dim: int, classes: int, seed: int | None = 0) -> None:
        super().__init__()
        self.head, self.layers, self.dim, self.classes = head, layers, dim, classes
        inner = head.dim or dim
        for key, heads, used in (
            ("time_heads", head.time_heads, head.kind in ("wa_tr", "tl_tr")),
            ("layer_heads", head.layer_heads, head.kind == "tl_tr"),
        ):
            if used and inner % heads:
                raise RecipeError(
                    f"The head's dimension {inner} is not divisible by head.{key} = {heads}: choose another of the two "
                    "(head.dim maps the features to a dimension of its own)."
                )
        with unfilled():
            if head.kind in ("wa_mlp", "wa_tr"):
                self.layer_weight = nn.Parameter(torch.empty(layers))
            if head.dim is not None:
                self.down_layer = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, inner))
            if head.kind in ("wa_tr", "tl_tr"):
                self.time_tr = HeadBlock(inner, head.time_heads)
            if head.kind == "tl_tr":
                self.layer_tr = HeadBlock(inner, head.layer_heads)
            self.mlp_layer = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, classes))
        if seed is None:
            return
        initialise(self, seed)
        if head.kind in ("wa_mlp", "wa_tr"):
            nn.init.constant_(self.layer_weight, 1.0 / layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [clips, classes] of features [clips, layers, steps, dim]: of all layers, or of those it `reads`.

        Raises ValueError for features of another number of layers or dimension.
        """
        return self.mlp_layer(self.embedding(features))

    def embedding(self, features: torch.Tensor) -> torch.Tensor:
        """One vector a clip, [clips, `head.dim` or dim], of the same features: what the classifier reads.

        Raises ValueError for features of another number of layers or dimension.
        """
        fit = {self.layers, len(range(self.layers)[reads(self.head.kind)])}
        if features.ndim != 4 or features.shape[3] != self.dim or features.shape[1] not in fit:
            raise ValueError(
                f"Features {list(features.shape)} do not fit a head for {self.layers} layers of {self.dim} dimensions."
            )
        if self.head.kind == "tl_tr":
            return self._time_then_layers(features)
        if self.head.kind == "wa_tr":
            return self.time_tr(self._down(self._average(features))).mean(1)
        pooled = features[:, reads(self.head.kind)].mean(2, keepdim=True)
        one = pooled[:, -1] if self.head.kind == "last_mlp" else self._average(pooled)
        return self._down(one)[:, 0]

    def _average(self, features: torch.Tensor) -> torch.Tensor:
        """[clips, steps, dim]: the layers by their weights; in float32, since halves would round the sum away."""
        weight = self.layer_weight.float()
        return torch.einsum("blsd,l->bsd", features.float(), weight) / weight.sum()

    def _down(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.head.dim is None else self.down_layer(x)

    def _time_then_layers(self, features: torch.Tensor) -> torch.Tensor:
        x = self._down(features)
        x = self.time_tr(x.flatten(0, 1)).mean(1)
        return self.layer_tr(x.reshape(len(features), self.layers, x.shape[1])).mean(1)


def reads(kind: str) -> slice:
    """Which of the encoder's layers a head of this kind makes use of."""
    return slice(-1, None) if kind == "last_mlp" else slice(None)


def load_tagger(tagger: Tagger, path: str | Path) -> Loaded:
    """Copy a head's weights into `tagger`: ours, or those of the public whisper-at package (`at_model.*`, `module.*`).

    Strict: every tensor must be there and fit, or nothing is copied; only a classifier for another number of classes
    stays fresh. Raises CheckpointError naming the first tensor that is missing, of another shape, or unknown to this
    kind.
    """
    path = _head_at(path)
    state, prefix = head_tensors(path)
    own = tagger.state_dict()
    fresh: tuple[str, ...] = ()
    if HEAD in state and state[HEAD].shape[0] != tagger.classes:
        fresh = (HEAD, HEAD.replace("weight", "bias"))
    wanted = {name: mine for name, mine in own.items() if name not in fresh}
    theirs = {name: tensor for name, tensor in state.items() if name not in fresh}
    hint = "set head.kind and head.dim to its own, and use features of the encoder that it was trained on"
    lacking = "its head is of another kind than head.kind"
    require_fit(wanted, theirs, path, hint, prefix=prefix, mine_has="this head's has", lacking=lacking)
    copy_into(wanted, theirs)
    others = tuple(name for name in load_weights(path)[0] if not name.startswith(prefix))
    note = "a classifier for other classes" if fresh else ""
    return Loaded(path, prefix, (), fresh, others, note, what="head")


def open_tagger(path: str | Path, layers: int | None = None, time_heads: int = 1, layer_heads: int = 8) -> Tagger:
    """The head in a file, whose kind and sizes are told by its tensors, in evaluation mode.

    layers: of the encoder; a TL-Tr does not hold their number. The numbers of attention heads are not in the weights
    either; the defaults are the paper's. Raises CheckpointError where the file has no head, or a head of a kind that is
    not one of the four, or of another number of layers.
    """
    path = _head_at(path)
    state, _ = head_tensors(path)
    kind = "tl_tr" if "layer_tr.attn.query.weight" in state else "wa_tr" if "time_tr.attn.query.weight" in state else ""
    kind = kind or ("wa_mlp" if "layer_weight" in state else "last_mlp")
    if kind == "wa_tr" and "layer_weight" not in state:
        raise CheckpointError(
            f"The head in {path} has a block over time but no weights of layers: it is of no known kind."
        )
    own = len(state["layer_weight"]) if "layer_weight" in state else None
    if own is not None and layers is not None and own != layers:
        raise CheckpointError(f"The head in {path} is for {own} layers, not {layers}: it belongs to another encoder.")
    count = own or layers
    if count is None:
        if kind != "last_mlp":
            raise CheckpointError(f"The head in {path} does not say for how many layers it is: give the encoder too.")
        count = 1
    classes, inner = state[HEAD].shape
    down = state.get("down_layer.1.weight")
    head = schema.Head(kind, None if down is None else inner, time_heads, layer_heads)
    tagger = Tagger(head, count, inner if down is None else down.shape[1], classes)
    load_tagger(tagger, path)
    return tagger.eval()


def _head_at(path: str | Path) -> Path:
    if not Path(path).expanduser().exists():
        raise CheckpointError(
            f"There is no head at {path}: give a file of weights, or the folder of a fine-tuning round."
        )
    return find_weights(path)


def head_tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """(tensors of the one head in a file, without their prefix; that prefix). Raises CheckpointError."""
    state = load_weights(path)[0]
    found = sorted(name.removesuffix(HEAD) for name in state if name.endswith(HEAD))
    if len(found) != 1:
        there = f"it has those of {', '.join(found)}" if found else "it has none"
        raise CheckpointError(f"{path} has no single head (*{HEAD}): {there}.")
    prefix = found[0]
    parts = ("layer_weight", "down_layer.", "time_tr.", "layer_tr.", "mlp_layer.")
    mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # `module.` in front of a whole Whisper: its encoder and decoder are not the head's.
    return {name: value for name, value in mine.items() if name.startswith(parts)}, prefix
