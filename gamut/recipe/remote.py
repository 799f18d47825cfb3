"""What a recipe says of remote shards must be such that a run can go by it."""

from __future__ import annotations

import re

from gamut.recipe.schema import Recipe
from gamut.recipe.views import Problem
from gamut.remote import is_remote
from gamut.remote.fetch import LONGEST_PAUSE


def remote_that_cannot_be(recipe: Recipe) -> list[Problem]:
    """What of `data` and the section `remote` contradicts itself or the rest."""
    remote = recipe.remote
    found: list[Problem] = []
    if remote.s3_endpoint and not re.fullmatch(r"https?://[^@?]+", remote.s3_endpoint):
        found.append(
            (("remote.s3_endpoint",), "remote.s3_endpoint must be a URL such as http://host:9000, without user")
        )
    if recipe.data.startswith("pipe:") and not remote.allow_pipe:
        found.append(
            (("data", "remote.allow_pipe"), "data names a command, which is run only with remote.allow_pipe=true")
        )
    pauses = sum(min(remote.pause_seconds * 2.0 ** min(n, 64), LONGEST_PAUSE) for n in range(remote.tries - 1))
    waiting = remote.tries * remote.timeout_seconds + pauses
    if is_remote(recipe.data) and waiting >= recipe.run.timeout_seconds:
        found.append(
            (
                ("remote.tries", "remote.timeout_seconds", "remote.pause_seconds", "run.timeout_seconds"),
                f"a server that stalls is waited for {waiting:g} s ({remote.tries} tries of {remote.timeout_seconds:g} "
                f"s and the pauses between them), but run.timeout_seconds={recipe.run.timeout_seconds:g} ends it first",
            )
        )
    return found
