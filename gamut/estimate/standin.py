"""Clips to plan with: the lengths of the recipe's own set where it is there, else lengths like those of its data set.

An account needs no sound, so nothing is read: every clip is noise of its length. A few thousand clips make a plan like
that of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gamut.errors import GamutError, RecipeError
from gamut.models.cost import ENCODERS
from gamut.numbers import RATE
from gamut.plan import Catalogue, Clips
from gamut.randomness import Purpose, integers, key, uniform
from gamut.recipe import cli, schema
from gamut.recipe.policy import training_policy

MOST = 16_384  # clips that are planned with; their number a step is the same for all
STEPS = 25  # of cached features: 10 s, 20 of Whisper's steps of 20 ms averaged
FLAC = 0.58  # bytes of FLAC for one of 16-bit PCM: 10 s of AudioSet take 186 kB


@dataclass(frozen=True)
class Like:
    """What is known of a data set without having it. Lengths in seconds: a share of the clips has the longest one, the
    others are spread evenly from the shortest on."""

    clips: int
    classes: int
    shortest: float
    longest: float
    share: float
    labels: int = 1  # a clip

    @property
    def seconds(self) -> float:
        """Of a clip, the mean."""
        return self.share * self.longest + (1.0 - self.share) * (self.shortest + self.longest) / 2.0


LIKE = {
    "audioset": Like(2_000_000, 527, 1.0, 10.0, 0.92, 3),
    "vggsound": Like(183_730, 309, 10.0, 10.0, 1.0),
    "voxceleb1": Like(138_361, 1251, 4.0, 16.0, 0.02),
    "epic-sounds": Like(60_055, 44, 0.3, 10.0, 0.15),
    "speechcommands": Like(84_843, 35, 0.5, 1.0, 0.9),
    "esc50": Like(2_000, 50, 5.0, 5.0, 1.0),
    "librispeech": Like(281_241, 2_338, 2.0, 16.0, 0.3),
}
OTHER = LIKE["audioset"]


@dataclass(frozen=True)
class Sounds:
    """Clips of known lengths, of which nothing else is; what `gamut.data.assemble` takes for a reader."""

    clips: Clips  # at most MOST, rows 0 to n - 1
    draws: int  # a whole epoch's
    classes: int
    labels: int  # a clip
    said: str  # where the lengths come from

    @property
    def index(self) -> Sounds:
        return self

    @property
    def size(self) -> np.ndarray:
        """Bytes of each clip in its shard."""
        return self.clips.size

    def label_ids(self, row: int) -> np.ndarray:
        return (row + np.arange(self.labels)) % self.classes

    def key(self, row: int) -> str:
        return f"clip {row}"

    def decode(self, row: int) -> np.ndarray:
        """Noise, int16 [samples]."""
        count = int(self.clips.samples[row])
        return (uniform(key(row, np.arange(count, dtype=np.int64))) * 2000.0 - 1000.0).astype(np.int16)


def sounds(recipe: schema.Recipe, clips: int | None = None) -> Sounds:
    """Of the recipe's data where that is on this machine, else of a set like it. clips: of the set, if it is known."""
    found, why = _of_the_set(recipe) if clips is None else (None, f"of {clips:,} clips as given")
    if found is not None:
        return found
    like = LIKE.get(recipe.dataset, OTHER)
    count = clips or like.clips
    draws = recipe.plan.draws or count
    few = min(count, MOST)
    row = np.arange(few, dtype=np.int64)
    keys = key(7, row)
    other = like.shortest + (like.longest - like.shortest) * uniform(key(keys, Purpose.SAMPLE))
    seconds = np.where(uniform(key(keys, Purpose.ORDER_CLIPS)) < like.share, like.longest, other)
    samples = (seconds * RATE).astype(np.int64)
    bytes_ = (samples * 2 * FLAC).astype(np.int64)
    table = Clips(row=row, clip_id=keys, shard=(row // 1000).astype(np.int32), samples=samples, size=bytes_)
    name = recipe.dataset or "audioset"
    said = f"stand-in clips with lengths like {name if name in LIKE else 'audioset'}'s ({why})"
    return Sounds(_mixed(recipe, table), draws, like.classes, like.labels, said)


def _of_the_set(recipe: schema.Recipe) -> tuple[Sounds | None, str]:
    """The recipe's own clips, or why there are none."""
    from gamut.shards.joined import open_sets
    from gamut.shards.select import select

    folds = recipe.folds
    try:
        index = open_sets(cli.require_sets(recipe), recipe.remote)
        subset = recipe.subset
        if recipe.stage == "finetune" and folds.train:
            subset = subset | {folds.column: list(folds.train)}
        every = select(index, subset, "", training_policy(recipe))
    except GamutError:
        return None, f"{recipe.data or 'its data'} is not here"
    draws = recipe.plan.draws or len(every)
    if isinstance(every, Catalogue):
        few = every.select(np.unique(integers(key(0, np.arange(MOST), Purpose.SAMPLE), 0, len(every))))
    elif len(every) <= MOST:
        few = every
    else:
        order = np.argsort(key(0, every.clip_id, Purpose.SAMPLE), kind="stable")
        few = every.select(np.sort(order[:MOST]))
    labels = [len(index.label_ids(int(row))) for row in few.row[:200]]
    few = replace(few, row=np.arange(len(few), dtype=np.int64))
    average = max(1, round(float(np.mean(labels or [1]))))
    said = f"{len(every):,} clips of {recipe.data}"
    return Sounds(few, draws, max(1, len(index.labels)), average, said), ""


def _mixed(recipe: schema.Recipe, table: Clips) -> Clips:
    """The same as clips of a mixture, where the recipe has one."""
    sets = len(recipe.mixture)
    return replace(table, source=(table.row % sets).astype(np.int32)) if sets > 1 else table


@dataclass(frozen=True)
class Records:
    """Cached features of noise; what `gamut.data.reader.FeatureReader` takes for a cache."""

    layers: int
    steps: int
    dim: int
    encoder: str = ""
    holes: tuple = ()

    @classmethod
    def of(cls, recipe: schema.Recipe) -> Records:
        """Of the recipe's cache where it is on this machine, else by the encoder in its name, of 10 s a clip.

        Raises RecipeError where the name tells nothing.
        """
        from gamut.features import FeatureCache

        name = Path(recipe.features).name
        try:
            info = FeatureCache(recipe.features).info
            return cls(info.layers, info.steps, info.dim, name)
        except GamutError:
            spelled = name.replace("_", "-")
            known = [one for one in sorted(ENCODERS, key=len, reverse=True) if one in spelled]
            if not known:
                raise RecipeError(
                    f"There is no cache at {recipe.features}, and its name tells no encoder ({', '.join(ENCODERS)}): "
                    "an estimate needs to know how large its records are."
                ) from None
            layers, dim = ENCODERS[known[0]]
            return cls(layers, STEPS, dim, known[0])

    @property
    def info(self) -> Records:
        return self

    @property
    def record_bytes(self) -> int:
        return self.layers * self.steps * self.dim * 2

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float16 [k, layers, steps, dim]."""
        return np.zeros((len(rows), self.layers, self.steps, self.dim), np.float16)
