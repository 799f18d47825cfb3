"""An epoch as a pure function of metadata: which clips, crops and packs make each step. Arrays in, arrays out: no
torch, no operating system, no audio.

    epoch = plan_epoch(index.table(), seed=0, epoch=3, policy=Policy(packs=32, clips=5, views=2, crop_frames=592))

The number of ranks, nodes and loader workers only decides who runs which pack (`deal`). Epochs are saved and
mapped by `gamut.data.plans`, and planned ahead by `gamut.data.ahead`; those of large sets a block at a time
(`gamut.plan.blocks`).
"""

from __future__ import annotations

from gamut.plan.balance import deal, forwards
from gamut.plan.blocks import Border, block_count, first_plan, plan_block
from gamut.plan.catalogue import Catalogue, Held, in_blocks
from gamut.plan.clips import Clips
from gamut.plan.crops import frames_within
from gamut.plan.epoch import Epoch
from gamut.plan.planner import plan_epoch, plan_evaluation, plan_fingerprint
from gamut.plan.policy import PLANNER_VERSION, Policy, differing, digest

__all__ = [
    "PLANNER_VERSION",
    "Border",
    "Catalogue",
    "Clips",
    "Epoch",
    "Held",
    "Policy",
    "block_count",
    "deal",
    "differing",
    "digest",
    "first_plan",
    "forwards",
    "frames_within",
    "in_blocks",
    "plan_block",
    "plan_epoch",
    "plan_evaluation",
    "plan_fingerprint",
]
