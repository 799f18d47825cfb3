"""What stands where a mask hides, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gamut.models.layout import layout
from gamut.randomness import key_torch, normal_torch
from gamut.recipe import schema
from pretrain import masking
from pretrain.masking import Hidden, hide, mask_keys

PLAIN = schema.Asit()


def keys(n: int, salt: int = 0) -> torch.Tensor:
    return key_torch(salt, torch.arange(n))


class Pack:
    """Clips of two views each, made of patches whose every pixel tells where it is from."""

    def __init__(self, frames: list[int], packs: tuple[int, ...]) -> None:
        self.packs, self.clips = packs, len(frames)
        self.sizes = tuple(size for size in frames for _ in range(2))
        self.frames = torch.tensor(self.sizes, dtype=torch.int64)
        self.where = layout(self.frames, self.sizes, class_token=True)
        self.clean = torch.arange(len(self.where.patch) * 256, dtype=torch.float32).view(-1, 256) + 1.0

    def hide(self, epoch: int = 0, **options: object) -> Hidden:
        clip = torch.arange(self.clips).repeat_interleave(2) + 100
        view = torch.arange(2).repeat(self.clips)
        own = mask_keys(7, epoch, clip, torch.zeros_like(clip), view)
        return hide(self.clean, self.where, self.frames, self.sizes, own, 2, self.packs, replace(PLAIN, **options))

    def views(self, patches: torch.Tensor) -> list[torch.Tensor]:
        """Patches of each segment as a grid [columns, 8, 256]."""
        return [part.view(-1, 8, 256) for part in patches.split([size // 16 * 8 for size in self.sizes])]


def test_zeros_stand_where_the_mask_is_and_nothing_else_changes() -> None:
    pack = Pack([96, 48], (2,))
    found = pack.hide()
    assert not found.patches[found.masks.patches].any()
    assert torch.equal(found.patches[~found.masks.patches], pack.clean[~found.masks.patches])
    assert found.alone == 0


def test_noise_has_the_datas_spread_and_is_a_segments_own() -> None:
    pack = Pack([592] * 3, (3,))
    found = pack.hide(mask_fill="noise")
    hidden = found.masks.patches
    assert torch.equal(hidden, pack.hide().masks.patches)  # a fill changes no mask
    assert torch.equal(found.patches[~hidden], pack.clean[~hidden])
    noise = found.patches[hidden]
    assert noise.mean().item() == pytest.approx(0.0, abs=0.003)
    assert noise.std().item() == pytest.approx(0.5, abs=0.003)
    assert torch.equal(pack.hide(mask_fill="noise").patches, found.patches)
    assert not torch.equal(pack.hide(mask_fill="noise", epoch=1).patches, found.patches)
    first = masking.noise(keys(6), pack.where).split(296)
    alone = Pack([592], (1,))
    assert torch.equal(masking.noise(keys(6)[2:4], alone.where), torch.cat(first[2:4]))
    assert not torch.equal(first[0], first[1])


def test_normal_numbers_are_normal() -> None:
    drawn = normal_torch(key_torch(3, torch.arange(200_000))).double()
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.01)
    for sigma, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert (drawn.abs() < sigma).double().mean().item() == pytest.approx(share, abs=0.004)
    neighbours = np.corrcoef(drawn[:-1].numpy(), drawn[1:].numpy())[0, 1]
    assert abs(neighbours) < 0.01


def test_another_clips_same_region_is_copied_from_its_same_view() -> None:
    pack = Pack([96] * 4, (4,))
    found = pack.hide(mask_fill="clip")
    hidden = found.masks.patches
    assert torch.equal(found.patches[~hidden], pack.clean[~hidden])
    clean, seen = pack.views(pack.clean), pack.views(found.patches)
    masks = pack.views(hidden)
    partners = []
    for clip in range(4):
        sources = {
            other
            for other in range(4)
            if all(
                torch.equal(seen[2 * clip + v][masks[2 * clip + v]], clean[2 * other + v][masks[2 * clip + v]])
                for v in range(2)
            )
        }
        assert len(sources) == 1
        partners.append(sources.pop())
    assert all(partner != clip for clip, partner in enumerate(partners))


def test_a_partner_is_of_the_same_pack_and_every_other_clip_is_as_likely() -> None:
    packs = (3, 1, 4)
    seen: dict[int, set[int]] = {clip: set() for clip in range(8)}
    for salt in range(200):
        for clip, partner in enumerate(masking.other_clips(keys(8, salt), packs).tolist()):
            seen[clip].add(partner)
    assert [seen[clip] for clip in range(3)] == [{1, 2}, {0, 2}, {0, 1}]
    assert seen[3] == {3}  # alone in its pack
    assert [seen[clip] for clip in range(4, 8)] == [set(range(4, 8)) - {clip} for clip in range(4, 8)]
    assert masking.other_clips(keys(0), ()).tolist() == []


def test_joining_packs_in_one_forward_changes_no_copy() -> None:
    together = Pack([96] * 5, (2, 3)).hide(mask_fill="clip")
    first = Pack([96] * 2, (2,)).hide(mask_fill="clip")
    assert torch.equal(together.patches[: len(first.patches)], first.patches)


def test_a_clip_alone_in_its_pack_is_filled_with_itself_and_counted() -> None:
    pack = Pack([96, 96, 96], (1, 2))
    found = pack.hide(mask_fill="clip")
    alone = 2 * 48
    assert torch.equal(found.patches[:alone], pack.clean[:alone])
    assert found.masks.patches[:alone].any()
    assert found.alone == 1


def test_of_a_shorter_clip_the_time_goes_round() -> None:
    pack = Pack([80, 32], (2,))
    found = pack.hide(mask_fill="clip", mask_target=0.9)
    clean, seen, masks = (pack.views(x) for x in (pack.clean, found.patches, found.masks.patches))
    for column in range(5):
        hidden = masks[0][column]
        assert torch.equal(seen[0][column][hidden], clean[2][column % 2][hidden])
    for column in range(2):
        hidden = masks[2][column]
        assert torch.equal(seen[2][column][hidden], clean[0][column][hidden])


def test_half_the_views_have_a_smaller_share_copied_and_the_others_zeros() -> None:
    """The first published code's mix: in half of the views 30 % is copied, in the others U(.5, .7) is zero."""
    pack = Pack([96] * 300, (300,))
    found = pack.hide(mask_target_least=0.5, mask_target=0.7, mask_copied=0.5)
    hidden = found.masks.patches
    share = hidden.view(600, -1).float().mean(1)
    copied = torch.stack([part.all() for part in found.patches.view(600, -1).bool()])  # no clean pixel is 0
    assert copied.float().mean().item() == pytest.approx(0.5, abs=0.1)
    first, second = copied.view(300, 2).unbind(1)  # each view by itself: both of a clip in a quarter of the clips
    assert (first & second).float().mean().item() == pytest.approx(0.25, abs=0.1)
    assert (first ^ second).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert share[copied].min() >= 0.3
    assert share[copied].max() < 0.4
    assert share[~copied].min() >= 0.5
    assert torch.equal(found.patches[~hidden], pack.clean[~hidden])
    zeros = ~copied.repeat_interleave(48)
    assert not found.patches[zeros][hidden[zeros]].any()
    changed = found.patches.view(600, -1)[copied] != pack.clean.view(600, -1)[copied]
    assert torch.equal(changed, hidden.view(600, -1)[copied])


def test_no_clip_at_all() -> None:
    pack = Pack([], ())
    for fill in ("zeros", "noise", "clip"):
        found = pack.hide(mask_fill=fill, mask_copied=0.5)
        assert found.patches.shape == (0, 256)
        assert found.alone == 0
