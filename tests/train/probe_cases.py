"""What ranks do who pretrain and look at what they learn; in a module of its own, so that a rank can import it."""

from __future__ import annotations

import time
from typing import Any

from gamut.train import world as worlds
from gamut.train.world import World


def pretrained(world: World, words: list[str]) -> int:
    """`pretrain/run.py WORDS` on the ranks of this world."""
    worlds.start = lambda run: world
    worlds.stop = lambda: None
    from pretrain.run import main

    return main(words)


def hung(world: World, words: list[str]) -> int:
    """The same, where the last rank hangs in a probe of what it has learned."""
    from gamut.probe import features

    encode = features.Encoder.__call__

    def hang(self: features.Encoder, batch: Any, with_logmel: bool = False) -> Any:
        if not with_logmel and world.rank == world.size - 1:
            time.sleep(1000)
        return encode(self, batch, with_logmel)

    features.Encoder.__call__ = hang  # type: ignore[method-assign]
    return pretrained(world, [*words, "run.timeout_seconds=5"])
