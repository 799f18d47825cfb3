"""What a recipe may say of remote shards."""

from __future__ import annotations

import pytest

from gamut.errors import RecipeError
from gamut.recipe.load import load_recipe
from gamut.recipe.resolved import recipe_hash


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=pipe:cat /x/{}"], r"data names a command, which only runs with remote\.allow_pipe=true"),
        (["data=s3://b/x", "remote.tries=60"], r"waits .* but run\.timeout_seconds=600 ends it earlier"),
        (["remote.s3_endpoint=https://me:word@host"], r"remote\.s3_endpoint must be a URL"),
        (["remote.cache_gb=0"], r"remote\.cache_gb .* above 0"),
        (["remote.chache=/x"], r"remote\.cache"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("pretrain", "asit_tiny", overrides)


def test_where_shards_are_read_from_decides_nothing() -> None:
    here = load_recipe("pretrain", "asit_tiny")
    there = load_recipe("pretrain", "asit_tiny", ["data=pipe:cat /x/{}", "remote.allow_pipe=true", "remote.cache_gb=1"])
    assert there.remote.cache_bytes == 10**9
    assert recipe_hash(here) == recipe_hash(there)
    assert not here.remote.allow_pipe
