"""What each way of batching spends, against a straightforward count."""

from __future__ import annotations

import numpy as np
import pytest

from gamut.shards.batching import BATCHES, spending


def by_hand(tokens: list[int], row: int, batch: int) -> int:
    """Tokens of in-order packing, a batch at a time, rows padded to the batch's longest."""
    processed = 0
    for at in range(0, len(tokens), batch):
        rows = [0]
        for size in tokens[at : at + batch]:
            if rows[-1] + size > row:
                rows.append(0)
            rows[-1] += size
        processed += max(rows) * len(rows)
    return processed


@pytest.mark.parametrize("seed", range(4))
def test_the_table_is_what_counting_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = np.maximum(1, rng.exponential(6 * 16000, 300).astype(np.int64))
    own = [max(1, max(0, 1 + (n - 400) // 160) // 16) * 8 for n in samples[np.random.default_rng(0).permutation(300)]]
    table = {one.way: one for one in spending(samples)}
    assert len(table) == 3 + len(BATCHES)

    standard = table["standard AST, 1,024 frames"]
    assert standard.tokens == 300 * 512
    assert standard.padding == pytest.approx(sum(max(0, 512 - n) for n in own) / (300 * 512))
    assert standard.cut == pytest.approx(sum(max(0, n - 512) for n in own) / sum(own))

    tokens = [min(n, 1536) for n in own]
    for batch in BATCHES:
        one = table[f"in order, batches of {batch}"]
        assert one.tokens == by_hand(tokens, 2048, batch)
        assert one.padding == pytest.approx(1 - sum(tokens) / one.tokens)
        assert one.cut == pytest.approx(1 - sum(tokens) / sum(own))
    whole = table["in order, whole epoch"]
    exact = table["exact fill, whole epoch (ours)"]
    assert whole.tokens % 2048 == exact.tokens % 2048 == 0
    assert -(-sum(tokens) // 2048) * 2048 <= exact.tokens <= whole.tokens
    assert exact.padding < 0.03  # the last row


def test_what_the_paper_says_of_voxceleb_is_of_this_kind() -> None:
    """VoxCeleb's lengths (4 s and more, 8.2 s in the mean, a long tail): most is padding or cut away by a standard AST,
    and in-order packing wastes less the more clips it sees at once (ElasticAST, Table 1)."""
    rng = np.random.default_rng(0)
    samples = (np.minimum(4 + rng.exponential(4.2, 5000), 145) * 16000).astype(np.int64)
    table = spending(samples)
    assert 0.2 < table[0].padding < 0.4
    assert 0.05 < table[0].cut < 0.25
    padding = [one.padding for one in table[1 : 1 + len(BATCHES)]]
    assert padding == sorted(padding, reverse=True)
    assert table[-1].padding < 0.002


def test_one_clip_of_one_sample() -> None:
    table = spending(np.array([1]))
    assert {one.tokens for one in table[1:5]} == {8}
    assert [one.tokens for one in table[5:]] == [2048, 2048]
    assert all(one.cut == 0 for one in table)
