"""From the tokens of each segment to one vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gamut.models.attention import pooling_attention
from gamut.models.layout import Layout


def mean_pool(tokens: torch.Tensor, where: Layout) -> torch.Tensor:
    """Mean over each segment's tokens: [S, dim] from [T, dim]."""
    lengths = where.cu_seqlens.diff().long()
    # unsafe skips a check of the lengths that would wait for the device; they are right by construction.
    return torch.segment_reduce(tokens, "mean", lengths=lengths, axis=0, unsafe=True)


def band_means(tokens: torch.Tensor, where: Layout) -> torch.Tensor:
    """Mean over time of each band of patches, the bands of a segment side by side: float32 [S, bands * dim].

    tokens: [T, dim]. As in MSM-MAE (Niizumi et al. 2022): unlike a mean over all patches it tells frequencies apart. Of
    a segment of which patches were dropped it is the mean of the others; zeros for a band that has none.
    """
    own = torch.index_select(tokens, 0, where.patch).float()
    if len(where.patch) != sum(where.widths) * where.bands:
        band = where.owner * where.bands + where.frequency
        counts = torch.zeros(where.segments * where.bands, dtype=torch.int64, device=band.device)
        counts.scatter_add_(0, band, torch.ones_like(band))
        ordered = torch.index_select(own, 0, torch.argsort(band, stable=True))
        sums = torch.segment_reduce(ordered, "sum", lengths=counts, axis=0, unsafe=True)
        return (sums / counts.clamp_min(1)[:, None]).view(where.segments, -1)
    columns = own.unflatten(0, (-1, where.bands)).flatten(1)
    return torch.segment_reduce(columns, "mean", lengths=where.columns, axis=0, unsafe=True)


def column_means(tokens: torch.Tensor, where: Layout) -> torch.Tensor:
    """Mean over frequency of the patches of each column: [columns of all segments, dim], in order of time.

    tokens: [T, dim], with every patch of every segment. Raises ValueError where patches were dropped: their columns
    would not be whole.
    """
    if len(where.patch) != sum(where.widths) * where.bands:
        raise ValueError("Columns cannot be pooled over frequency where patches are dropped.")
    return torch.index_select(tokens, 0, where.patch).unflatten(0, (-1, where.bands)).mean(1)


def linear_softmax(frames: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Logits float32 [S, classes] of segments from those of their frames, [N, classes], of which segment s has the next
    columns[s] (int64 [S], at least 1 each).

    With p = sigmoid(logit of a frame), a segment's probability is sum p^2 / sum p over its frames (Wang, Li and Metze
    2019, linear softmax), in which loud frames count for more: so it can be trained on labels without times. Computed
    in the logarithm, so that it stays exact where every p is next to 0, and given back as a logit.
    """
    yes, no = F.logsigmoid(frames.float()), F.logsigmoid(-frames.float())
    # 1 - sum p^2 / sum p = sum p (1 - p) / sum p, and sum p is the same in both.
    return _log_sum(2.0 * yes, columns) - _log_sum(yes + no, columns)


def _log_sum(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """log sum exp of each segment's values: [S, classes] from [N, classes]."""
    with torch.no_grad():
        most = torch.segment_reduce(values, "max", lengths=columns, axis=0, unsafe=True)
        spread = most.repeat_interleave(columns, dim=0, output_size=len(values))
    return torch.segment_reduce((values - spread).exp(), "sum", lengths=columns, axis=0, unsafe=True).log() + most


class AttentionPool(nn.Module):
    """One learned query attends to each segment's tokens (ElasticAST: masked attention pooling).

    The query is not normalised and there is no residual. Parameters are given their values by the model that owns it.
    """

    def __init__(self, dim: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.query = nn.Parameter(torch.empty(1, dim))
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)  # keys, then values
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, where: Layout) -> torch.Tensor:
        """[S, dim] from tokens [T, dim]."""
        q = self.to_q(self.query).unflatten(-1, (self.heads, -1)).repeat(where.segments, 1, 1)
        k, v = self.to_kv(tokens).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return self.proj(pooling_attention(q, k, v, where, self.scale).flatten(1))
