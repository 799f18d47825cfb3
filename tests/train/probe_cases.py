"""What ranks do who pretrain and look at what they learn; in a module of its own, so that a rank can import it."""

from __future__ import annotations

from gamut.train import world as worlds
from gamut.train.world import World


def pretrained(world: World, words: list[str]) -> int:
    """`pretrain/run.py WORDS` on the ranks of this world."""
    worlds.start = lambda run: world
    worlds.stop = lambda: None
    from pretrain.run import main

    return main(words)
