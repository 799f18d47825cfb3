"""Pictures of where a backbone looks, of a few whole clips."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure

from gamut.audio.logmel import unpatch
from gamut.data.assemble import assemble
from gamut.models.attention_map import attention_maps
from gamut.models.vit import VisionTransformer
from gamut.numbers import RATE
from gamut.plan import Clips
from gamut.probe.features import Encoder, whole_clips
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.track import figures


@torch.no_grad()
def attention_figures(encode: Encoder, index: Index, clips: Clips, recipe: Recipe, when: str) -> Iterator[Figure]:
    """A figure a clip, each at its native length: its log-mel, and the attention of every head of the last block; none
    of a backbone that is no vision transformer.

    Where the backbone's weights are spread over ranks, all of them call it.
    """
    if not isinstance(encode.backbone, VisionTransformer):
        return
    plan = whole_clips(clips, recipe)
    batch = assemble(index, plan, range(plan.steps * plan.packs)).to(encode.device)
    pixels = encode.front(batch)
    where = encode.backbone.layout(batch.frames, batch.sizes)
    with encode.evaluating():
        maps = attention_maps(encode.backbone, pixels, where)
    mels = unpatch(pixels).cpu().numpy()
    first = 0
    for clip, frames in enumerate(batch.sizes):
        title = f"{index.key(int(batch.row[clip]))}, attention {when}"
        seconds = float(batch.hop[clip]) / RATE
        yield figures.attention(mels[first : first + frames], maps[clip].float().numpy(), title, seconds)
        first += frames
