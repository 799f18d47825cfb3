"""Which public encoder of spectrograms a file of weights is, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gamut.audio.logmel import AST, BEATS, Bank
from gamut.errors import CheckpointError
from gamut.models.find import find_weights
from gamut.models.names import BEATS_KERNEL, DASHENG_TIME, EAT_KERNELS, KERNEL, M2D_BANDS, is_m2d
from gamut.models.section import HEAD_WIDTH
from gamut.models.weights import shapes_of
from gamut.numbers import BINS, HOP, PATCH, RATE, WINDOW
from gamut.recipe import schema
from gamut.track.run import RunFolder


@dataclass(frozen=True)
class Family:
    """What is published of an encoder, and is not in the file."""

    name: str
    frames: int = PATCH  # of a patch
    mels: int = BINS
    high: int = BINS // PATCH  # patches of a column
    least: int = 0  # frames that shorter clips are padded to
    whole: bool = False  # whether the last column is padded to a whole one, or left out
    centred: bool = False  # whether frames are around every 160th sample, or begin there
    pieces: bool = False  # whether clips longer than the table are cut, each piece by itself
    class_token: bool = False  # whether its class token is a clip's vector, as published; else the mean of its steps
    side_by_side: bool = False  # the bands of a column, in place of their mean
    bank: Bank = AST
    mean: float = 0.0  # of the log-mel
    spread: float = 1.0  # by which it is divided: twice the deviation, with M2D once

    @property
    def step(self) -> float:
        """Seconds from one step to the next."""
        return self.frames * HOP / RATE

    @property
    def first(self) -> float:
        """Seconds from the beginning of a clip to the middle of its first step."""
        return ((self.frames - 1) * HOP + (0 if self.centred else WINDOW)) / 2 / RATE


FAMILIES = {
    "eat": Family("EAT or SSLAM", class_token=True, least=1024, whole=True, mean=-4.268, spread=2 * 4.569),
    "audiomae": Family("AudioMAE", least=1024, whole=True, pieces=True, mean=-4.2677393, spread=2 * 4.5689974),
    "beats": Family("BEATs", bank=BEATS, mean=15.41663, spread=2 * 6.55582),
    "dasheng": Family("Dasheng", frames=4, mels=64, high=1, pieces=True, centred=True),
    "m2d": Family(
        "M2D", mels=80, high=M2D_BANDS, whole=True, pieces=True, centred=True, side_by_side=True, mean=-7.1, spread=4.2
    ),
}


@dataclass(frozen=True)
class Found:
    """A file of weights that is of a family."""

    path: Path
    kind: str
    prefix: str  # of its tensors
    shapes: Mapping[str, torch.Size]
    told: Mapping[str, Any]  # the file's own config

    @property
    def model(self) -> schema.Model:
        """Its model section. Raises CheckpointError where its sizes are none of the family's."""
        if self.kind == "beats":
            dim, heads = self.shape("post_extract_proj.weight")[0], self.shape("encoder.layers.0.self_attn.grep_a")[1]
            wide = self.shape("encoder.layers.0.fc1.weight")[0]
            model = schema.Model(backbone="beats", positions="factorised", pooling="mean")
        else:
            dim = next(shape for name, shape in self.shapes.items() if name.endswith(self._kernel))[0]
            heads = 16 if self.kind == "dasheng" and dim == 1280 else dim // HEAD_WIDTH
            wide = self.shape("blocks.0.mlp.fc1.weight")[0]
            learned = self.kind != "dasheng"
            model = schema.Model(
                positions="learned" if learned else "factorised",
                pooling="cls" if learned else "mean",
                norm="post" if self.kind == "eat" else "pre",
                table_frames=self._table() * PATCH,
            )
        if dim % max(heads, 1) or not heads:
            raise CheckpointError(
                f"{self.path} has the names of {FAMILIES[self.kind].name}, but its width of {dim} is no multiple of "
                f"{HEAD_WIDTH}: no published size has that."
            )
        return replace(model, dim=dim, depth=self._depth(), heads=heads, mlp_ratio=wide / dim, drop_path=0.0)

    @property
    def _kernel(self) -> str:
        return EAT_KERNELS[1] if self.kind == "eat" else KERNEL

    def shape(self, name: str) -> torch.Size:
        """Of one of its tensors. Raises CheckpointError where it has none of that name."""
        if self.prefix + name not in self.shapes:
            raise CheckpointError(f"{self.path} is {FAMILIES[self.kind].name}, but has no tensor {self.prefix}{name}.")
        return self.shapes[self.prefix + name]

    def _depth(self) -> int:
        block = re.compile(
            re.escape(self.prefix) + (r"encoder\.layers" if self.kind == "beats" else "blocks") + r"\.(\d+)\."
        )
        return 1 + max(int(found[1]) for name in self.shapes if (found := block.match(name)))

    def _table(self) -> int:
        """Columns of the table of positions."""
        if self.kind == "dasheng":
            return self.shape(DASHENG_TIME)[-1]
        if self.kind == "eat":
            end = "fixed_positional_encoder.positions"
            named = next((name for name in self.shapes if name.endswith(end)), self.prefix + end)
            cells = self.shape(named.removeprefix(self.prefix))[-2]
        else:
            cells = self.shape("pos_embed")[-2] - 1
        return cells // FAMILIES[self.kind].high


def find_public(init: str | Path) -> Found | None:
    """The file of a public encoder that `init` names, a file or a folder that transformers wrote; None where it is
    something else, or not there."""
    try:
        path = find_weights(init)
        if RunFolder.find(path) is not None:
            return None
        shapes, told = shapes_of(path)
    except CheckpointError:
        return None
    for kind, prefix in _families(shapes):
        return Found(path, kind, prefix, shapes, told)
    return None


def _families(shapes: Mapping[str, torch.Size]) -> list[tuple[str, str]]:
    """(kind, prefix) of each that there is."""

    def before(end: str) -> list[str]:
        there = [name.removesuffix(end) for name in shapes if name.endswith(end)]
        return [prefix for prefix in there if not prefix or prefix.endswith(".")]

    found = [("eat", prefix) for prefix in before(EAT_KERNELS[0]) or before(EAT_KERNELS[1])]
    found += [("beats", prefix) for prefix in before(BEATS_KERNEL)]
    for prefix in before(KERNEL):
        kernel, table = shapes[prefix + KERNEL], shapes.get(f"{prefix}pos_embed", torch.Size())
        if prefix + DASHENG_TIME in shapes:
            found.append(("dasheng", prefix))
        elif is_m2d(shapes, prefix):
            found.append(("m2d", prefix))
        elif kernel[1:] == (1, PATCH, PATCH) and prefix in ("", "model.") and table[1:2] == (1 + 64 * 8,):
            found.append(("audiomae", prefix))
    return found
