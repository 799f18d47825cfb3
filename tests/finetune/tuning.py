"""What a rank of these tests runs: fine-tuning as it is typed."""

from __future__ import annotations

from finetune.run import main
from gamut.train.world import World


def tune(world: World, line: list[str]) -> int:
    """The exit status."""
    return main(line)
