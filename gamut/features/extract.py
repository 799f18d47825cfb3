"""From a recipe to a cache: what is to be encoded, how long and how large that is, and the encoding."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gamut.accelerator import accelerator
from gamut.data.batch import Hole, PackedBatch
from gamut.data.loader import Loader
from gamut.errors import FeatureError, RecipeError
from gamut.features.about import About, chosen
from gamut.features.cache import FeatureCache
from gamut.features.encoders import Encoder, load_encoder
from gamut.features.folder import ABOUT
from gamut.features.store import Records, Store, refuse_holes
from gamut.numbers import CLIPS_A_SHARD, WINDOW
from gamut.plan import Clips, Policy, plan_evaluation
from gamut.progress import Progress
from gamut.recipe.cli import require_data
from gamut.recipe.schema import Recipe
from gamut.shards import Index
from gamut.shards.select import select
from gamut.watchdog import WATCHDOG

LARGEST = 1 << 30  # bytes of a shard: of larger records it holds fewer
STRETCH = 16  # shards taken on at a time, at most


@dataclass(frozen=True)
class Job:
    """An extraction, ready to begin."""

    recipe: Recipe
    index: Index
    clips: Clips  # in the cache's order
    encoder: Encoder
    about: About
    seconds: float  # a clip, as tried
    folder: Path  # of the cache
    device: torch.device

    @property
    def batch(self) -> int:
        return min(self.recipe.extract.batch, self.about.per_shard)

    def begin(self) -> Store:
        """Make the cache's folder, or take up what is there."""
        rows = self.clips.row
        return Store.begin(
            self.folder, self.about, self.clips.clip_id, rows, [self.index.key(int(row)) for row in rows]
        )


def prepare(recipe: Recipe) -> Job:
    """Load the encoder, try it once, and say what the cache will be. Writes nothing.

    Raises GamutError where the data, the encoder or the recipe is not as it should be.
    """
    extract = recipe.extract
    index = Index.open(require_data(recipe), remote=recipe.remote)
    clips = select(index, recipe.subset)
    device = torch.device(accelerator())
    encoder = load_encoder(recipe, device)
    if extract.blocks and max(extract.blocks) >= encoder.depth:
        raise RecipeError(
            f"extract.blocks names block {max(extract.blocks)}; the encoder has 0 to {encoder.depth - 1}."
        )
    blocks = tuple(extract.blocks) or tuple(range(encoder.depth))
    tried = extract.batch if device.type == "cuda" else 1  # a CPU gains little from more, and takes as much longer
    clip = noise(encoder.policy(tried), tried)
    steps = encode(encoder, clip, blocks, extract.pool).shape[2]
    since = time.perf_counter()
    encode(encoder, clip, blocks, extract.pool).cpu()
    seconds = (time.perf_counter() - since) / tried
    about = About(
        name=recipe.run.name,
        model=encoder.model,
        front=encoder.front,
        pooling={"kind": "mean", "steps": extract.pool},
        blocks=blocks,
        steps=steps,
        dim=encoder.dim,
        dtype=extract.dtype,
        index=index.fingerprint,
        chosen=chosen(clips.row),
        clips=len(clips),
        per_shard=CLIPS_A_SHARD,
    )
    while about.per_shard > 1 and about.per_shard * about.record_bytes > LARGEST:
        about = replace(about, per_shard=about.per_shard // 2)
    return Job(recipe, index, clips, encoder, about, seconds, place(recipe, about), device)


def noise(policy: Policy, clips: int) -> PackedBatch:
    """A batch of so many clips of faint noise, each filling its view: to see what an encoder gives, and how long it
    takes."""
    frames, hop = policy.crop_frames or 16, policy.hops[0]
    samples = (frames - 1) * hop + WINDOW
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((clips,), samples, dtype=torch.int64)
    none = torch.zeros(clips, dtype=torch.int64)
    return PackedBatch(
        waveform=torch.randint(-99, 99, (clips * samples,), generator=generator, dtype=torch.int16),
        offset=torch.arange(clips + 1) * samples,
        length=sizes,
        hop=torch.full((clips,), hop, dtype=torch.int64),
        frames=torch.full((clips,), frames, dtype=torch.int64),
        clip_id=torch.arange(clips),
        draw=none,
        row=torch.arange(clips),
        label_offset=torch.zeros(clips + 1, dtype=torch.int64),
        label=torch.zeros(0, dtype=torch.int64),
        views=1,
        epoch=0,
        sizes=(frames,) * clips,
        pack_clips=(clips,),
    )


def place(recipe: Recipe, about: About) -> Path:
    """FOLDER/NAME/FINGERPRINT; or the folder of another name that has these very features."""
    folder, address = Path(recipe.extract.folder), about.fingerprint[:16]
    mine = folder / recipe.run.name / address
    same = sorted(
        path.parent for path in (*folder.glob(f"*/{address}/{ABOUT}"), *folder.glob(f"*/*/{address}/{ABOUT}"))
    )
    return mine if mine in same or not same else same[0]


@torch.no_grad()
def encode(encoder: Encoder, batch: PackedBatch, blocks: Sequence[int], width: int) -> torch.Tensor:
    """float32 [clips, blocks, steps, dim] on the encoder's device: outputs of these blocks, pooled as they come."""
    pooled: list[torch.Tensor] = []

    def each(block: int, output: torch.Tensor) -> None:
        if block in blocks:
            pooled.append(pool(output, width))

    encoder(batch, each)
    return torch.stack(pooled, 1)


def pool(x: torch.Tensor, width: int) -> torch.Tensor:
    """Means of `width` neighbouring steps, float32 [n, ceil(steps / width), dim] of [n, steps, dim]; the last of fewer
    where that is what is left (Gong et al. 2023, section 3: 500 steps into 25)."""
    x = x.float()
    if width == 1:
        return x
    whole = x.shape[1] // width * width
    means = x[:, :whole].unflatten(1, (-1, width)).mean(2)
    return means if whole == x.shape[1] else torch.cat([means, x[:, whole:].mean(1, keepdim=True)], 1)


def require_room(made: Store, missing: int) -> None:
    """Raises FeatureError where the disk has no room for so many shards."""
    needed = missing * (made.about.per_shard * made.about.record_bytes + (1 << 13))
    needed = min(needed, made.about.clips * made.about.record_bytes + made.about.shards * (1 << 13))
    free = shutil.disk_usage(made.folder).free
    if free < needed:
        raise FeatureError(
            f"{made.folder} needs {needed / 1e9:.2f} GB for {missing} shards, and its disk has {free / 1e9:.2f} GB "
            "free. Free some space, name another folder with extract.folder=, or store less: extract.dtype=int8, a "
            "larger extract.pool, fewer extract.blocks."
        )


def run(job: Job, made: Store, first: int = 0, jobs: int = 1) -> FeatureCache:
    """Make what is missing of the cache, from shard `first` on and round, sharing it with whoever else does.

    jobs: how many are expected to share. Raises FeatureError where features are not finite, the disk is full or too
    many clips are unusable, ShardError where the shard set cannot be read.
    """
    about = made.about
    missing = made.missing() if not made.finished else []
    require_room(made, len(missing))
    waiting = deque(sorted(missing, key=lambda number: (number - first) % max(about.shards, 1)))
    stretch = max(1, min(STRETCH, len(missing) // (4 * jobs)))
    holes: list[Hole] = []
    with (
        Progress("encoding", sum(len(about.clips_of(number)) for number in missing)) as progress,
        WATCHDOG.within(job.recipe.run.timeout_seconds, "encoding"),
    ):
        while waiting:
            mine: list[int] = []
            busy: list[int] = []
            with contextlib.ExitStack() as held:
                while waiting and len(mine) < stretch:
                    number = waiting.popleft()
                    if _claim(made, number, held):
                        mine.append(number)
                    elif made.header(number) is None:
                        busy.append(number)
                    else:
                        progress.add(len(about.clips_of(number)))  # somebody else has made it
                for number in _make(job, made, sorted(mine), holes):
                    progress.add(len(about.clips_of(number)))
                    refuse_holes(holes, job.recipe.loader.max_holes, about.clips)
            waiting.extend(busy)
            if busy and not mine:  # others are at all that is left: wait for one of them to be done, or to be gone
                with WATCHDOG.resting(), made.claim(busy[0], wait=True):
                    pass
    return made.seal(job.recipe.loader.max_holes)


def _claim(made: Store, number: int, held: contextlib.ExitStack) -> bool:
    """Whether a shard is ours to make; it is then, while `held` is open."""
    with contextlib.ExitStack() as claim:
        if not claim.enter_context(made.claim(number)):
            return False
        held.push(claim.pop_all())
        return True


def _make(job: Job, made: Store, numbers: list[int], holes: list[Hole]) -> Iterator[int]:
    """Encode these shards, ascending; yields each when it is on disk. What is unusable is added to `holes`.

    A shard is written while the next one is encoded.
    """
    about, extract = job.about, job.recipe.extract
    if not numbers:
        return
    places = np.concatenate([np.array(about.clips_of(number)) for number in numbers])
    policy = job.encoder.policy(job.batch)
    epoch = plan_evaluation(job.clips.select(places), replace(policy, packs=-(-about.per_shard // job.batch)))
    loader = Loader(
        job.index,
        epoch,
        rank=0,
        world=1,
        per_forward=1,
        workers=job.recipe.loader.workers,
        prefetch=job.recipe.loader.prefetch,
        pin=job.device.type == "cuda",
    )
    with ThreadPoolExecutor(1) as writer:
        writing: tuple[int, Future[None]] | None = None
        for step, batches in loader:
            records = made.records(numbers[step])
            for batch in sorted((batch for batch in batches if batch.clips), key=lambda batch: int(batch.row[0])):
                x = encode(job.encoder, batch, about.blocks, extract.pool)
                # Waits for the device, to check and keep them: little beside a whole encoder on `extract.batch` clips.
                WATCHDOG.beat()
                records.add(batch.clip_id.cpu().numpy().view(np.uint64), x)
            found = [hole for batch in batches for hole in batch.holes]
            holes += found
            if writing is not None:
                writing[1].result()
                yield writing[0]
            writing = numbers[step], writer.submit(_put, made, records, found)
        if writing is not None:
            writing[1].result()
            yield writing[0]


def _put(made: Store, records: Records, holes: list[Hole]) -> None:
    made.put(records, sorted(holes, key=lambda hole: hole.row))
