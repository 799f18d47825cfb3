"""Files of embeddings that other programs read: NumPy's npz, safetensors, Parquet; written piece by piece."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gamut.errors import FeatureError
from gamut.files import replacing

ROWS = 1 << 14  # of a row group of Parquet


@dataclass(frozen=True)
class Table:
    """Embeddings of n files: rows one behind the other, in the files' order."""

    about: Mapping[str, Any]  # model, level, and files that could not be read
    files: Sequence[str]
    rows: Sequence[int]  # of each file
    shape: Sequence[int]  # of a row: [dim], of layers [layers, dim], of patches [bands, dim]
    values: Callable[[], Iterator[np.ndarray]]  # float32 [rows, *shape], a file at a time
    times: Callable[[], Iterator[np.ndarray]] | None  # float64 [rows], likewise; None: a row is a clip

    @property
    def offset(self) -> np.ndarray:
        """int64 [n + 1]: file k has the rows [offset[k], offset[k + 1])."""
        return np.concatenate([[0], np.cumsum(self.rows)]).astype(np.int64)


def write(path: Path, table: Table) -> None:
    """By the ending of `path`, one of `ENDINGS`. Raises FeatureError where it cannot be written."""
    with replacing(path, FeatureError) as file:
        ENDINGS[path.suffix.lower()](file, table)


def _npz(file: BinaryIO, table: Table) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        _entry(archive, "about", [np.array(json.dumps(table.about))])
        _entry(archive, "files", [np.array(table.files, dtype=np.str_)])
        total = int(sum(table.rows))
        if table.times is not None:
            _entry(archive, "offset", [table.offset])
            _entry(archive, "times", table.times(), (np.float64, (total,)))
        _entry(archive, "values", table.values(), (np.float32, (total, *table.shape)))


def _entry(archive: zipfile.ZipFile, name: str, pieces: Any, whole: tuple[type, tuple[int, ...]] | None = None) -> None:
    """An array of an npz, of its only piece or, where `whole` has its type and shape, of several along axis 0."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        if whole is None:
            buffer = io.BytesIO()
            np.save(buffer, pieces[0], allow_pickle=False)
            file.write(buffer.getvalue())
            return
        kind, shape = whole
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, kind).tobytes())


def _safetensors(file: BinaryIO, table: Table) -> None:
    total = int(sum(table.rows))
    parts: list[tuple[str, str, tuple[int, ...], int, Callable[[], Iterator[np.ndarray]]]] = []
    if table.times is not None:
        parts += [("offset", "I64", table.offset.shape, 8, lambda: iter([table.offset]))]
        parts += [("times", "F64", (total,), 8, table.times)]
    parts += [("values", "F32", (total, *table.shape), 4, table.values)]
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(table.about), "files": json.dumps([*table.files])}}
    end = 0
    for name, kind, shape, width, _ in parts:
        begin, end = end, end + width * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for *_, pieces in parts:
        for piece in pieces():
            file.write(np.ascontiguousarray(piece).tobytes())


def _parquet(file: BinaryIO, table: Table) -> None:
    """A row a clip, a step, a step's layer or a step's patch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    *inner, dim = table.shape
    each = int(np.prod(inner, dtype=int))  # rows of a step
    within = "layer" if table.about.get("level") == "layer" else "band"
    fields = [pa.field("file", pa.string())]
    fields += [pa.field("time", pa.float64())] if table.times is not None else []
    fields += [pa.field(within, pa.int32())] if inner else []
    fields += [pa.field("vector", pa.list_(pa.float32(), dim))]
    schema = pa.schema(fields, metadata={"about": json.dumps(table.about)})
    times = iter(()) if table.times is None else table.times()
    waiting: list[Any] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for name, values in zip(table.files, table.values()):
            columns: list[Any] = [pa.array([name] * len(values) * each)]
            columns += [pa.array(np.repeat(next(times), each))] if table.times is not None else []
            columns += [pa.array(np.tile(np.arange(each, dtype=np.int32), len(values)))] if inner else []
            columns += [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)]
            waiting.append(pa.record_batch(columns, schema=schema))
            if sum(len(batch) for batch in waiting) >= ROWS:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))


ENDINGS = {".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors}
