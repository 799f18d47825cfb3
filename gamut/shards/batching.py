"""What each way of batching would spend on a set of clips: ElasticAST's Table 1, from the clips' lengths alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gamut.numbers import HOP, PATCH, WINDOW, bands
from gamut.plan.packing import exact_fill, next_fit

STANDARD = 1024  # frames that a standard AST cuts or pads every clip to
LONGEST = 3072  # frames, about 30 s: where the packed ways cut (ElasticAST, section 4)
ROW = 2048  # tokens
BATCHES = (12, 24, 48, 96)  # clips
MOST = 100_000  # clips looked at; a larger set is sampled


@dataclass(frozen=True)
class Spending:
    """One way of batching."""

    way: str
    tokens: int  # that the model would process, padding included
    padding: float  # share of them that is padding
    cut: float  # share of the audio's tokens that the model never sees


def spending(samples: np.ndarray, row: int = ROW, seed: int = 0) -> list[Spending]:
    """What each way of batching spends on clips of these `samples` (int64 [n] at 16 kHz, n >= 1), in shuffled order.

    A clip has 8 tokens for every 16 whole frames of 10 ms, and at least 8. The standard AST cuts or pads each to 1,024
    frames. In-order packing (ElasticAST, section 3.1) fills rows of `row` tokens from one batch of clips at a time and
    pads them to the longest row of the batch. Whole epochs are packed in order and by exact fill, with rows padded to
    `row`. Packed clips are cut at 3,072 frames.

    >>> [f"{one.way}: {one.padding:.0%}" for one in spending(np.full(96, 160_000))][:2]
    ['standard AST, 1,024 frames: 3%', 'in order, batches of 12: 0%']
    """
    rng = np.random.default_rng(seed)
    few = len(samples) <= MOST
    order = rng.permutation(len(samples)) if few else rng.choice(len(samples), MOST, replace=False)
    frames = 1 + (np.asarray(samples[order], np.int64) - WINDOW) // HOP
    own = np.maximum(frames // PATCH, 1) * bands()
    tokens = np.minimum(own, min(LONGEST // PATCH * bands(), row))
    standard = STANDARD // PATCH * bands()

    def one(way: str, seen: np.ndarray, processed: int) -> Spending:
        heard = int(seen.sum())
        return Spending(way, processed, 1 - heard / processed, 1 - heard / int(own.sum()))

    table = [one(f"standard AST, {STANDARD:,} frames", np.minimum(own, standard), standard * len(own))]
    for batch in BATCHES:
        processed = sum(_rectangle(tokens[at : at + batch], row) for at in range(0, len(tokens), batch))
        table.append(one(f"in order, batches of {batch}", tokens, processed))
    everything = len(tokens)  # no bound on clips a row: it is the tokens that are compared
    table.append(one("in order, whole epoch", tokens, row * len(next_fit(tokens, row, everything).counts)))
    exact = exact_fill(tokens, row, everything, lookahead=64)
    table.append(one("exact fill, whole epoch (ours)", tokens, row * len(exact.counts)))
    return table


def _rectangle(tokens: np.ndarray, row: int) -> int:
    """Tokens of one batch packed in order, its rows padded to the longest."""
    counts = next_fit(tokens, row, len(tokens)).counts
    ends = np.cumsum(counts)
    filled = np.diff(np.concatenate([[0], np.cumsum(tokens)[ends - 1]]))
    return int(filled.max()) * len(filled)
