"""Score vectors that were left in a folder: `python -m gamut.probe.fit FOLDER PID`, a process of its own.

It is given no GPU, one core and little priority, so the training beside it goes on. It ends with the process PID, which
started it. In the folder are `clips.npz` (target, fold, class), one `rank-*.npz` for each rank (row of each clip, and
vectors), and `request.json`, written last; it leaves `result.json` and, where it was asked for, `embedding.png`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gamut.data.share import in_order
from gamut.errors import RunError, ShardError
from gamut.files import appears, write_json

REQUEST, RESULT, PICTURE = "request.json", "result.json", "embedding.png"
MOST_POINTS = 2000  # of an embedding


def leave(
    folder: Path, rows: np.ndarray, target: np.ndarray, fold: np.ndarray, labels: tuple[str, ...], **request: Any
) -> None:
    """Write what `fit` wants besides the ranks' shares; once the request is there, all of it is."""
    np.savez(folder / "clips.npz", row=rows, target=target, fold=fold)
    write_json(folder / REQUEST, request | {"labels": list(labels)})


def gather(folder: Path, ranks: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What `join` makes of the shares of so many ranks in a folder.

    A share that another node has written may show here a while later (NFS). Raises RunError where one never does.
    """
    with np.load(folder / "clips.npz", allow_pickle=False) as known:
        row, target, fold = known["row"], known["target"], known["fold"]
    shares = []
    for rank in range(ranks):
        path = share_of(folder, rank)
        if not appears(path):
            raise RunError(f"{path}, the share of rank {rank}, is not there: is {folder} on a shared file system?")
        with np.load(path, allow_pickle=False) as share:
            shares.append({name: share[name] for name in share.files})
    return join(shares, row, target, fold)


def share_of(folder: Path, rank: int) -> Path:
    """Where a rank leaves its vectors."""
    return folder / f"rank-{rank:05d}.npz"


def join(
    shares: list[dict[str, np.ndarray]], row: np.ndarray, target: np.ndarray, fold: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(vectors by kind, target, fold) of the clips that could be read, in index order.

    Each share has the `row` of its clips and their vectors; `row`, ascending, `target` and `fold` are of all clips.
    `both` is the class token (or pooled vector) and the mean token side by side. Raises ShardError for no clips.
    """
    vectors = in_order(shares)
    if not vectors:
        raise ShardError("None of the clips of the probe can be read; see `python -m gamut.shards verify`.")
    there = np.searchsorted(row, vectors.pop("row"))
    if (pooled := next((name for name in ("cls", "pool") if name in vectors), None)) is not None:
        vectors["both"] = np.concatenate([vectors[pooled], vectors["mean"]], axis=1)
    return vectors, target[there], fold[there]


def fit(vectors: dict[str, np.ndarray], target: np.ndarray, fold: np.ndarray, neighbours: int) -> dict[str, float]:
    """The metrics of a probe: {"probe/knn/cls": share, ..., "probe/clips": clips scored}."""
    from gamut.evaluate.probe import probe

    found = probe(vectors, target, fold, k=neighbours)
    return {f"probe/{name}": value for name, value in found.items()} | {"probe/clips": float((fold >= 0).sum())}


def embedding(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """float64 [n, 2]: t-SNE (van der Maaten and Hinton 2008) of scaled vectors [n, dim], begun from their two main
    axes; the same numbers give the same picture. Fewer than 8 clips: the main axes themselves."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(np.asarray(vectors, np.float64))
    axes = PCA(min(50, *scaled.shape), random_state=seed, svd_solver="full").fit_transform(scaled)
    if len(axes) < 8:
        return np.pad(axes, ((0, 0), (0, 2)))[:, :2]
    tsne = TSNE(2, perplexity=min(30.0, (len(axes) - 1) / 3), init="pca", random_state=seed, n_jobs=1)
    return tsne.fit_transform(axes)


def plot(vectors: np.ndarray, target: np.ndarray, labels: list[str], title: str, file: Path) -> None:
    """The embedding of vectors [n, dim] as a PNG, coloured by the (first) class of each; of many, a sample."""
    from gamut.track.figures import embedding as figure

    some = slice(None, None, -(-len(vectors) // MOST_POINTS))
    points = embedding(vectors[some])
    figure(points, target[some].argmax(axis=1), labels, title).savefig(file, format="png", dpi=110)


def main(folder: Path) -> None:
    request = json.loads((folder / REQUEST).read_text())
    vectors, target, fold = gather(folder, request["ranks"])
    result = fit(vectors, target, fold, request["neighbours"]) if request["scores"] else {}
    if request["title"]:
        kind = "both" if "both" in vectors else "mean"
        plot(vectors[kind], target, request["labels"], request["title"], folder / PICTURE)
    write_json(folder / RESULT, result)


if __name__ == "__main__":
    os.nice(10)
    from gamut.processes import watch_ancestors

    watch_ancestors(int(sys.argv[2]), parent=int(sys.argv[2]))
    main(Path(sys.argv[1]))
