"""A classifier of a clip's rows of patches."""

from __future__ import annotations

import pytest
import torch

from gamut.errors import RecipeError
from gamut.models.classifier import ClassifierNetwork
from gamut.models.layout import drop_tokens
from gamut.recipe import schema
from gamut.recipe.load import load_recipe
from tests.close import assert_close

SIZES = (32, 48)


def network(stride: int = 16) -> ClassifierNetwork:
    model = schema.Model(dim=32, depth=2, heads=2, table_frames=96, stride=stride, pooling="rows", drop_path=0.0)
    return ClassifierNetwork(model, 3, seed=0).eval()


def read_by_loops(network: ClassifierNetwork, tokens: torch.Tensor, places: list[list[int]]) -> torch.Tensor:
    """Logits [clips, 3] of tokens [T, 32], of which places[clip] holds each one's row, or -1 for another clip's."""
    bands, logits = network.backbone.bands, []
    for rows in places:
        means = []
        for band in range(bands):
            own = [tokens[i].double() for i, row in enumerate(rows) if row == band]
            means.append(sum(own) / len(own) if own else torch.zeros(32, dtype=torch.float64))
        vector = torch.cat(means)
        vector = (vector - vector.mean()) / (vector.var(correction=0) + network.head.norm.eps).sqrt()
        head = network.head.linear
        logits.append(head.weight.double() @ vector + head.bias.double())
    return torch.stack(logits)


@pytest.mark.parametrize("stride", [16, 10])
@torch.no_grad()
def test_it_reads_the_mean_over_time_of_every_row(stride: int) -> None:
    net = network(stride)
    where = net.backbone.layout(torch.tensor(SIZES), SIZES)
    patches = torch.randn(len(where.patch), 256, generator=torch.Generator().manual_seed(0))
    tokens, bands = net.backbone(patches, where), net.backbone.bands
    columns = where.columns.tolist()
    first = columns[0] * bands
    row = [number % bands for number in range(len(patches))]
    places = [[r if (i < first) == (clip == 0) else -1 for i, r in enumerate(row)] for clip in range(2)]
    assert len(patches) == sum(columns) * bands
    assert_close(net(patches, where, None).double(), read_by_loops(net, tokens, places), 1e-5)


@torch.no_grad()
def test_of_dropped_patches_it_reads_the_others() -> None:
    net, frames = network(), torch.tensor(SIZES)
    kept = drop_tokens((torch.arange(2),), frames, SIZES, 0.8)
    where = net.backbone.layout(frames, SIZES, kept)
    patches = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))[kept.patch]
    tokens = net.backbone(patches, where)
    numbers = kept.patch.tolist()  # of all patches: 16 are the first clip's, time-major
    places = [[n % 8 if (n < 16) == (clip == 0) else -1 for n in numbers] for clip in range(2)]
    assert len({n % 8 for n in numbers if n < 16}) < 8, "no row of the first clip is wholly dropped"
    assert_close(net(patches, where, None).double(), read_by_loops(net, tokens, places), 1e-5)


def test_it_is_a_way_to_classify_and_not_to_pretrain() -> None:
    assert load_recipe("finetune", "esc10", ["model.pooling=rows"]).model.pooling == "rows"
    with pytest.raises(RecipeError, match=r"model\.pooling rows is a way to classify"):
        load_recipe("pretrain", "esc10", ["model.pooling=rows"])
