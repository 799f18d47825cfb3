"""One library at one large set, in a process of its own: build it, draw from it, take a state, go on from it.

    python bench/library.py NAME WORK FOLDER ITEMS

Started by bench/large.py, in the library's environment; prints a JSON object. Needs nothing of ours but for ours.

An item is its own number. Shards have 1,000 items, as many as 64 to 100 MB hold of clips of 10 s: by bytes, as the
libraries would cut them, 20 million numbers were four files. Clocks start when the library is imported.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

A_SHARD = 1000
DRAWN = 20_000  # neighbours that are looked at
WRITTEN = 200_000  # items that a library writes itself where it takes long


class Library(ABC):
    """A library as it is used here. Making one imports it."""

    package = ""  # as installed
    shuffling = ""  # in words
    noted = ""  # what else is to be known
    resumes = "state"  # or "replays", or "no"
    depth: int | None = 200_000  # draws before a state; None: in the middle, as a state is a count of samples
    beside = ""  # the library whose set it uses

    @abstractmethod
    def build(self, folder: Path, items: int) -> float | None:
        """Write the set. Where only the first WRITTEN items are written by the library, because it takes long: the
        seconds that all would have taken it."""

    @abstractmethod
    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        """Open the set and give the items' numbers in a shuffled order, from a state on where there is one."""

    def version(self) -> str:
        return version(self.package)

    def state(self, drawn: int) -> Any:
        """The state after so many draws of `draw`; not asked for where `resumes` is no."""
        raise NotImplementedError

    def middle(self, folder: Path, items: int) -> tuple[Any, int, int | None]:
        """(a state in the middle of an epoch, how many draws came before it, the next one where it is known)."""
        depth = min(items // 2, self.depth or items)
        there = self.depth or depth <= DRAWN
        draws = self.draw(folder, items)
        for _ in islice(draws, depth if there else 1):
            pass
        state = deepcopy(self.state(depth))  # before the next draw is made
        return state, depth, next(draws) if there else None


CUT = '{"id": "%08d", "start": 0, "duration": 10.0, "channel": 0, "supervisions": [], "type": "MonoCut"}\n'


class Lhotse(Library):
    """Cuts without recordings, in Lhotse Shar, whose files are the lazy manifests that it can shuffle by shards."""

    package = "lhotse"
    shuffling = "Shar, shuffle_shards, DynamicCutSampler(shuffle=True): a buffer of 20,000 cuts"
    noted = "cuts without a payload; a state draws again all that came before it"
    resumes = "replays"

    def __init__(self) -> None:
        import lhotse.shar
        from lhotse.dataset import DynamicCutSampler

        self.lhotse, self.sampler_of = lhotse, DynamicCutSampler

    def build(self, folder: Path, items: int) -> float | None:
        folder.mkdir(parents=True)
        since = time.perf_counter()
        with self.lhotse.shar.SharWriter(str(folder), fields={}, shard_size=A_SHARD) as writer:
            for number in range(min(items, WRITTEN)):
                writer.write(self.lhotse.MonoCut(f"{number:08d}", start=0.0, duration=10.0, channel=0))
        seconds = time.perf_counter() - since
        for first in range(WRITTEN, items, A_SHARD):
            lines = "".join(CUT % number for number in range(first, min(first + A_SHARD, items)))
            (folder / f"cuts.{first // A_SHARD:06d}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        return seconds * items / WRITTEN if items > WRITTEN else None

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        cuts = self.lhotse.CutSet.from_shar(in_dir=str(folder), shuffle_shards=True)
        self.sampler = self.sampler_of(cuts, max_cuts=1, shuffle=True, rank=0, world_size=1)
        if state is not None:
            self.sampler.load_state_dict(state)
        for batch in self.sampler:
            for cut in batch:
                yield int(cut.id)

    def state(self, drawn: int) -> Any:
        return self.sampler.state_dict()


class Mosaic(Library):
    """MDS."""

    package = "mosaicml-streaming"
    shuffling = "StreamingDataset(shuffle=True): py1e, blocks of 4,000,000"
    depth = None

    def __init__(self) -> None:
        import streaming

        self.streaming = streaming

    def build(self, folder: Path, items: int) -> float | None:
        # A sample is 8 bytes and an offset of 4; a shard is the limit, less what its header takes.
        columns = {"number": "int64"}
        probe = self.streaming.MDSWriter(out=str(folder), columns=columns)
        limit = probe.extra_bytes_per_shard + A_SHARD * (8 + probe.extra_bytes_per_sample)
        shutil.rmtree(folder)
        with self.streaming.MDSWriter(out=str(folder), columns=columns, size_limit=limit) as writer:
            for number in range(items):
                writer.write({"number": number})

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        self.dataset = self.streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=1)
        if state is not None:
            self.dataset.load_state_dict(state)
        for sample in self.dataset:
            yield int(sample["number"])

    def state(self, drawn: int) -> Any:
        return self.dataset.state_dict(drawn, from_beginning=True)


class Litdata(Library):
    """Its own chunks."""

    package = "litdata"
    shuffling = "StreamingDataset(shuffle=True): chunks, then blocks of 256 items of a chunk and the items in them"
    depth = None

    def __init__(self) -> None:
        import litdata
        from litdata.streaming.writer import BinaryWriter

        self.litdata, self.writer_of = litdata, BinaryWriter

    def build(self, folder: Path, items: int) -> float | None:
        folder.mkdir(parents=True)
        writer = self.writer_of(str(folder), chunk_size=A_SHARD)
        for number in range(items):
            writer.add_item(number, number)
        writer.done()
        writer.merge()

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        self.dataset = self.litdata.StreamingDataset(str(folder), shuffle=True)
        if state is not None:
            self.dataset.load_state_dict(state)
        yield from self.dataset

    def state(self, drawn: int) -> Any:
        return self.dataset.state_dict(drawn, num_workers=0, batch_size=1)


class Webdataset(Library):
    """Tars with a member of 8 bytes for each item, which takes 1 KiB."""

    package = "webdataset"
    shuffling = "WebDataset(shardshuffle=100).shuffle(1000)"
    noted = "a state is not to be had"
    resumes = "no"

    def __init__(self) -> None:
        import webdataset

        self.webdataset = webdataset

    def build(self, folder: Path, items: int) -> float | None:
        """By numpy a tar at a time: the names and their digits' sums change, and the payload."""
        folder.mkdir(parents=True)
        member = tarfile.TarInfo("00000000.bin")
        member.size = 8
        head = np.frombuffer(member.tobuf(tarfile.USTAR_FORMAT), np.uint8)
        checksum = int(bytes(head[148:154]), 8)
        for shard, first in enumerate(range(0, items, A_SHARD)):
            numbers = np.arange(first, min(first + A_SHARD, items))
            members = np.zeros((len(numbers), 1024), np.uint8)
            members[:, :512] = head
            digits = numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10
            members[:, :8] += digits.astype(np.uint8)
            members[:, 148:154] = ord("0") + (checksum + digits.sum(1))[:, None] // 8 ** np.arange(5, -1, -1) % 8
            members[:, 512:520] = numbers.astype("<i8")[:, None].view(np.uint8)
            (folder / f"shard-{shard:06d}.tar").write_bytes(members.tobytes() + bytes(1024))

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        tars = sorted(str(path) for path in folder.glob("*.tar"))
        for sample in self.webdataset.WebDataset(tars, shardshuffle=100).shuffle(1000):
            yield int.from_bytes(sample["bin"], "little")


class Energon(Library):
    """The tars that webdataset has, and an index beside them."""

    package = "megatron-energon"
    shuffling = "shuffle_buffer_size=100, max_samples_per_sequence=100"
    noted = "the bytes are with webdataset's tars, the build is without them"
    beside = "webdataset"
    depth = 20_000

    def __init__(self) -> None:
        import megatron.energon as energon
        from megatron.energon.epathlib import EPath
        from megatron.energon.flavors.webdataset.indexing import SqliteIndexWriter
        from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

        self.energon, self.path_of, self.preparator = energon, EPath, WebdatasetPreparator
        self.index_of = SqliteIndexWriter

    def build(self, folder: Path, items: int) -> float | None:
        tars = sorted(path.name for path in folder.glob("*.tar"))
        meta = folder / ".nv-meta"
        since = time.perf_counter()
        self.preparator.prepare_dataset(
            self.path_of(folder), tars[: WRITTEN // A_SHARD], split_parts_ratio=[("train", 1.0)], tar_index_only=False,
            workers=1,
        )  # fmt: skip
        seconds = time.perf_counter() - since
        (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
        if items <= WRITTEN:
            return None
        self.index(folder, tars, items)
        return seconds * items / WRITTEN

    def index(self, folder: Path, tars: list[str], items: int) -> None:
        """What `prepare_dataset` writes beside the tars, by what is known of them instead of reading them."""
        meta = folder / ".nv-meta"
        with self.index_of(self.path_of(meta / "index.sqlite")) as index:
            samples = ((n // A_SHARD, f"{n:08d}", n % A_SHARD, n % A_SHARD * 1024, 1024) for n in range(items))
            index.db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
            parts = ((n // A_SHARD, n % A_SHARD, "bin", n % A_SHARD * 1024 + 512, 8) for n in range(items))
            index.db.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)
        counts = {name: min(A_SHARD, items - number * A_SHARD) for number, name in enumerate(tars)}
        for name, count in counts.items():
            (np.arange(count + 1) * 1024).astype("<u8").tofile(folder / f"{name}.idx")
        info = json.loads((meta / ".info.json").read_text()) | {"shard_counts": counts}
        (meta / ".info.json").write_text(json.dumps(info, indent=2))
        shuffled = np.random.default_rng(42).permutation(tars)
        lines = ["split_parts:", "  train:", *(f"  - {name}" for name in shuffled), "exclude: []"]
        (meta / "split.yaml").write_text("\n".join(lines) + "\n")

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        energon = self.energon

        @energon.stateless
        def cook(sample: dict) -> dict:
            return {**energon.basic_sample_keys(sample), "bin": sample["bin"]}

        class Encoder(energon.DefaultTaskEncoder):
            cookers = [energon.Cooker(cook)]  # noqa: RUF012
            decoder = None  # bytes as they are

            def batch(self, samples: list) -> list:
                return samples

        dataset = energon.get_train_dataset(
            str(folder), worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0), batch_size=1,
            shuffle_buffer_size=100, max_samples_per_sequence=100, task_encoder=Encoder(),
        )  # fmt: skip
        self.loader = energon.get_savable_loader(dataset)
        if state is not None:
            self.loader.restore_state_rank(state)
        for (sample,) in self.loader:
            yield int.from_bytes(sample["bin"], "little")

    def state(self, drawn: int) -> Any:
        return self.loader.save_state_rank()


class Gamut(Library):
    """An index without its tars, whose clips have lengths like AudioSet's: packs of 2,048 tokens, 1,024 a step."""

    package = "gamut"
    shuffling = "an epoch's plan in blocks of 2**20 draws: 16 lanes of shuffled shards, a window of 16,384 clips each"
    noted = "no payload is read, as there are no tars: the row of the first clip is known"

    def __init__(self) -> None:
        from argparse import Namespace

        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from bench import planning
        from gamut.data.ahead import Ahead

        self.planning, self.ahead_of, self.mix = planning, Ahead, "AudioSet, mixed"
        self.options = Namespace(tokens=2048, class_token=False, seed=0)

    def build(self, folder: Path, items: int) -> float | None:
        self.options.clips = items
        self.planning.write_index(folder, items)
        self.planning.write_lengths(folder, self.mix, self.options)

    def version(self) -> str:
        return "this one"

    def plans(self, folder: Path, items: int) -> Any:
        self.options.packs = 1024 if items >= 1_000_000 else 16  # that a small set has a middle
        policy = self.planning.policy_of(self.mix, self.options)
        return self.ahead_of(folder / "plan", self.planning.opened_clips(folder, policy), 0, policy, epochs=1)

    def draw(self, folder: Path, items: int, state: Any = None) -> Iterator[int]:
        """Of one plan, as the process that trains maps it."""
        if state is None:
            shutil.rmtree(folder / "plan", ignore_errors=True)
        with self.plans(folder, items) as plans:
            plans.begin()
            epoch = plans.take(0, state or 0)
            first = int(epoch.pack_offset[epoch.packs_of(state or 0).start])
            for row in epoch.row[first:]:
                yield int(row)

    def middle(self, folder: Path, items: int) -> tuple[Any, int, int | None]:
        with self.plans(folder, items) as plans:
            plans.begin()
            steps = plans.take(0).forecast().steps
            step = int(steps) // 2
            epoch = plans.take(0, step)  # all blocks before it are planned, one after the other, as in a run
            first = int(epoch.pack_offset[epoch.packs_of(step).start])
            return step, round(items * step / steps), int(epoch.row[first])


LIBRARIES: dict[str, type[Library]] = {
    "gamut": Gamut,
    "mosaic": Mosaic,
    "litdata": Litdata,
    "lhotse": Lhotse,
    "webdataset": Webdataset,
    "energon": Energon,
}


def memory(what: str = "VmHWM") -> float:
    """MB that this process has held at most, or with VmRSS holds."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def processor() -> float:
    """Seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def shuffled(order: np.ndarray, items: int) -> tuple[float, float]:
    """(Spearman's rank correlation of neighbours, their mean distance by the number of items) of int64 [k]."""
    one, other = order[:-1], order[1:]
    ranks = np.stack([np.argsort(np.argsort(side)) for side in (one, other)])
    return float(np.corrcoef(ranks)[0, 1]), float(np.abs(one - other).mean() / items)


def build(library: Library, folder: Path, items: int) -> dict[str, Any]:
    since, used = time.perf_counter(), processor()
    estimate = library.build(folder, items)
    found = {"seconds": time.perf_counter() - since, "processor": processor() - used, "estimate": estimate}
    return found | {"bytes": sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))}


def first(library: Library, folder: Path, items: int) -> dict[str, Any]:
    """Open, take the first sample, then so many that their order can be judged."""
    imports = memory("VmRSS")
    since, used = time.perf_counter(), processor()
    draws = library.draw(folder, items)
    order = [next(draws)]
    found = {"seconds": time.perf_counter() - since, "processor": processor() - used, "imports": imports}
    order += islice(draws, DRAWN)
    correlation, distance = shuffled(np.array(order), items)
    found |= {"memory": memory(), "correlation": correlation, "distance": distance}
    found["shards"] = len({number // A_SHARD for number in order})
    return found | {"drawn": len(order), "distinct": len(set(order))}


def state_of(library: Library, folder: Path) -> Path:
    return folder.parent / f"{library.package}.state"


def save(library: Library, folder: Path, items: int) -> dict[str, Any]:
    since = time.perf_counter()
    state, depth, follows = library.middle(folder, items)
    found = {"depth": depth, "follows": follows, "seconds": time.perf_counter() - since}
    state_of(library, folder).write_bytes(pickle.dumps((state, found)))
    return found


def resume(library: Library, folder: Path, items: int) -> dict[str, Any]:
    state, found = pickle.loads(state_of(library, folder).read_bytes())  # noqa: S301  (of `save`)
    since, used = time.perf_counter(), processor()
    sample = next(library.draw(folder, items, state))
    seconds = time.perf_counter() - since
    same = None if found["follows"] is None else sample == found["follows"]
    return {"seconds": seconds, "processor": processor() - used, "same": same, "memory": memory()}


def main() -> None:
    """library.py NAME WORK FOLDER ITEMS"""
    name, work, folder, items = sys.argv[1:]
    sys.path.pop(0)  # bench/streaming.py is not mosaicml-streaming
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    library = LIBRARIES[name]()
    found = {"build": build, "first": first, "save": save, "resume": resume}[work](library, Path(folder), int(items))
    print(json.dumps(found | {"version": library.version()}), file=answers, flush=True)
    os._exit(0)  # without waiting for what a library has left running


if __name__ == "__main__":
    main()
