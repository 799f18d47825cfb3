"""A micro-batch as ASiT's teacher and student see it: both views of each clip, whole and masked, and local crops.

Places are the patches of the masked views. Of n masks a view (`asit.clones`) all views of the batch come with the first
mask, then all with the second, and so on: place p is the teacher's patch p modulo theirs. Where views are mixtures of
two clips (`asit.mixtures`) the teacher has the other clips' views, too, after them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gamut.data.batch import PackedBatch
from gamut.data.front import Mixtures
from gamut.models.layout import BANDS, Layout
from gamut.models.predictor import Gaps, gaps
from gamut.numbers import PATCH
from gamut.randomness import Begun, Purpose, begun
from gamut.recipe import schema
from pretrain.masking import Hidden, hide, mask_key


class Second(NamedTuple):
    """Where in what the teacher gives of patches and segments the other half of a mixture is; of what is no mixture,
    the place itself."""

    patch: torch.Tensor  # int64 [G]
    segment: torch.Tensor  # int64 [S]


@dataclass(frozen=True)
class MaskedBatch:
    """A micro-batch on the training device: clean patches, masks and the packed layout."""

    clean: torch.Tensor  # float32 [G, 256], normalised, of the two views of each clip: what is rebuilt
    taught: torch.Tensor  # float32 [G + H, 256]: what the teacher gets, the same but in mixtures
    second: Second | None  # None: there are no mixtures
    own: Hidden  # the same two views, masked, with each of the masks: P = clones * G places
    teacher: Layout
    hidden: torch.Tensor  # float32 [N, 256], masked, local crops included: what the student gets
    student: Layout
    number: torch.Tensor  # int64 [P], which of the patches that the network gives is at each place, if any
    given: torch.Tensor  # int64, ascending: the places of which the network says anything
    gaps: Gaps | None  # the places that are predicted; None: there is no predictor
    drop_keys: torch.Tensor  # int64 [S], where the batch came from, the host's memory or the device's
    local: torch.Tensor  # int64: the places of the local loss
    local_counts: torch.Tensor | None  # bool, which of these count; None: all
    rebuild: torch.Tensor | None  # int64: the places of the reconstruction loss, if there is one
    counted: torch.Tensor  # bool [n, 256]: pixels of the reconstruction loss
    beside: torch.Tensor | None  # int64 [S]: the student's segments of one number are neighbours for KoLeo, if it is on
    clips: int
    crops: int  # local crops a clip
    clones: int
    neighbours: int  # segments that have any
    partner_holes: int  # clips that are no mixtures since their partner could not be read

    def heard(self, places: torch.Tensor) -> torch.Tensor:
        """The teacher's patches at these places."""
        return places if self.clones == 1 else places % len(self.clean)

    def counts(self) -> torch.Tensor:
        """float64 [5], what the losses are means over: masked pixels, patches of the local loss, pairs of class tokens,
        pixels, segments with neighbours."""
        pairs = 2 * (self.clones + self.crops) * self.clips
        known = [len(self.local), pairs, self.own.patches.numel(), self.neighbours]
        counts = torch.tensor([0, *known], dtype=torch.float64).to(self.clean.device, non_blocking=True)
        counts[0] = self.counted.sum()
        if self.local_counts is not None:
            counts[1] = self.local_counts.sum()
        return counts


def masked_batch(
    batch: PackedBatch,
    patches: torch.Tensor | Mixtures,
    layout: Callable[..., Layout],
    options: schema.Asit,
    segments: Begun,
    fixed: bool | None = None,
    compiled: bool = False,
) -> MaskedBatch:
    """The views of a batch on the training device, whose clean patches are float32 [N, 256]; of mixtures also those
    of what is mixed, and of the partners.

    layout: the backbone's. segments: the keys of the segments (seed, epoch, clip id, draw, view), by which masks and
    drops are drawn.
    fixed: give the losses of masked patches all patches, of which those masked count, since their number can be had
    only by waiting for the device. None: on all devices but a CPU. compiled: lay masks by torch.compile.
    """
    crops, whole, clones = batch.local_views, batch.views - batch.local_views, options.clones
    assert not crops or (clones == 1 and not options.unseen), "the recipe's checks allow local crops only beside all"
    patches, mixed, partners = patches if isinstance(patches, Mixtures) else (patches, None, None)
    assert not crops or mixed is None, "the recipe's checks allow no local crops with mixtures"
    segments = cloned(segments, clones)
    frames, sizes, number, clean = batch.frames, batch.sizes, torch.arange(len(patches), device=patches.device), patches
    keys = mask_key(segments).to(clean.device, non_blocking=True)
    if crops:
        frames, keys = (x.view(-1, batch.views)[:, :whole].reshape(-1) for x in (frames, keys))
        sizes = tuple(size for at, size in enumerate(batch.sizes) if at % batch.views < whole)
        number = patch_numbers(batch.frames, batch.views, whole, sum(sizes) // PATCH * BANDS)
        clean = torch.index_select(patches, 0, number)
    teacher = places = layout(frames, sizes)
    heard, taught, second = clean if mixed is None else mixed, clean, None
    if partners is not None and batch.mixtures:
        taught = torch.cat([clean, partners])
        teacher, second = joint(batch, layout, places)
        clean = torch.maximum(clean, torch.index_select(taught, 0, second.patch))
    if clones > 1:
        frames, sizes, heard = frames.repeat(clones), sizes * clones, heard.repeat(clones, 1)
        places, number = layout(frames, sizes), torch.arange(len(heard), device=clean.device)
    own = hide(heard, places, frames, sizes, keys, whole, batch.pack_clips * clones, options, compiled)
    hidden, student, given = own.patches, places, torch.arange(len(heard), device=clean.device)
    missing = None
    if crops:
        hidden, student = patches.index_copy(0, number, own.patches), layout(batch.frames, batch.sizes)
    if own.kept is not None:
        kept = own.kept.patch
        hidden, student = torch.index_select(own.patches, 0, kept), layout(frames, sizes, own.kept)
        if options.predictor == "none":
            given, number = kept, number.index_copy(0, kept, torch.arange(len(kept), device=clean.device))
        else:
            missing = gaps(places, own.kept)
    masked = options.mask_target > 0
    fixed = clean.device.type != "cpu" if fixed is None else fixed
    if missing is not None and options.mask_aligned:  # all that is masked is predicted, and its number known
        rebuild, fixed = missing.hidden, False
    else:
        touched = torch.index_select(own.masks.touched, 0, given) if len(given) < len(heard) else own.masks.touched
        rebuild = torch.index_select(given, 0, touched.nonzero()[:, 0]) if masked and not fixed else given
    on_masked = masked and options.local_on == "masked" and options.weight_local > 0
    local = rebuild if on_masked else given
    return MaskedBatch(
        clean=clean,
        taught=taught,
        second=second,
        own=own,
        teacher=teacher,
        hidden=hidden,
        student=student,
        number=number,
        given=given,
        gaps=missing,
        drop_keys=segments.word,
        local=local if options.weight_local else given[:0],
        local_counts=touched if on_masked and fixed else None,
        rebuild=rebuild if options.weight_reconstruction else None,
        counted=own.masks.patches[rebuild] if masked else torch.ones_like(heard, dtype=torch.bool),
        beside=neighbourhoods(batch, clones) if options.weight_koleo else None,
        clips=batch.clips,
        crops=crops,
        clones=clones,
        neighbours=sum(clips for clips in batch.pack_clips if clips > 1) * whole * clones,
        partner_holes=len(batch.partner_holes),
    )


def joint(batch: PackedBatch, layout: Callable[..., Layout], own: Layout) -> tuple[Layout, Second]:
    """The layout of all views and after them of their partners, and which of these belongs to what.

    own: the layout of the views alone.
    """
    assert batch.partner_frames is not None
    device, views, patches = batch.frames.device, batch.segments, len(own.patch)
    which = torch.tensor(batch.mixtures).to(device, non_blocking=True)
    frames = torch.cat([batch.frames, batch.partner_frames[which]])
    both = layout(frames, batch.sizes + tuple(filter(None, batch.partner_sizes)))
    count = own.columns * own.bands
    first = (count.cumsum(0) - count)[which]
    beside = first[both.owner[patches:] - views] + both.time[patches:] * own.bands + both.frequency[patches:]
    numbers, segments = torch.arange(len(both.patch), device=device), torch.arange(both.segments, device=device)
    return both, Second(
        numbers[:patches].index_copy(0, beside, numbers[patches:]),
        segments[:views].index_copy(0, which, segments[views:]),
    )


def cloned(segments: Begun, clones: int) -> Begun:
    """The keys of the segments [S] once for each mask, [clones * S]; with the first mask they are what they were."""
    others = [begun(segments, Purpose.CLONE, clone) for clone in range(1, clones)]
    return Begun(torch.cat([each.word for each in (segments, *others)])) if others else segments


def patch_numbers(frames: torch.Tensor, views: int, whole: int, total: int) -> torch.Tensor:
    """int64 [total], ascending: the numbers of the patches that belong to the first `whole` of each clip's `views`.

    frames: int64 [clips * views].
    """
    count = frames // PATCH * BANDS
    first = count.cumsum(0) - count
    count, first = (x.view(-1, views)[:, :whole].reshape(-1) for x in (count, first))
    ahead = torch.repeat_interleave(first - (count.cumsum(0) - count), count, output_size=total)
    return ahead + torch.arange(total, device=frames.device)


def neighbourhoods(batch: PackedBatch, clones: int = 1) -> torch.Tensor:
    """int64 [clones * S]: a number for each pack, view and mask; a local crop has one of its own, so no neighbours.

    Neighbours are of one pack, since a pack is the same at any number of ranks and micro-batches.
    """
    device, views, whole = batch.frames.device, batch.views, batch.views - batch.local_views
    packs = torch.arange(len(batch.pack_clips)).repeat_interleave(torch.tensor(batch.pack_clips, dtype=torch.int64))
    number = packs[:, None] * views + torch.arange(views)
    number = torch.cat([number + clone * len(batch.pack_clips) * views for clone in range(clones)])
    alone = -1 - torch.arange(number.numel()).view(number.shape)
    number = torch.where(torch.arange(views) < whole, number, alone)
    return number.view(-1).to(device, non_blocking=True)
