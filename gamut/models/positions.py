"""Position tables for segments of any length.

`learned` is ViT's table over the grid of patches (ASiT); `factorised` one table over time plus one over frequency
(ElasticAST). A segment no longer than the table takes its first columns (AST: its middle ones); a longer one takes the
table stretched to its length. Stretching is a matrix, made once a length, times the table: unlike torch's interpolation
its gradient is the same from run to run on every device.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from gamut.models.layout import Layout


@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)  # it is kept: made during an evaluation, it must still serve a backward later
def resampling(old: int, new: int, kind: str, device: torch.device | None = None) -> torch.Tensor:
    """float32 [new, old]: what `F.interpolate(mode="bicubic" or "linear", align_corners=False)` does along an axis."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        at = (row + 0.5) * old / new - 0.5
        if kind == "linear":
            at = max(at, 0.0)
        left = math.floor(at)
        for tap, weight in _taps(at - left, kind):
            matrix[row, min(max(left + tap, 0), old - 1)] += weight
    return matrix.float().to(device, non_blocking=True)


def _taps(part: float, kind: str) -> list[tuple[int, float]]:
    if kind == "linear":
        return [(0, 1.0 - part), (1, part)]
    a = -0.75  # Keys' cubic with torch's constant
    weights = []
    for tap in (-1, 0, 1, 2):
        x = abs(part - tap)
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
        weights.append((tap, near if x <= 1.0 else far))
    return weights


def stretch(table: torch.Tensor, new: int, kind: str) -> torch.Tensor:
    """A table [old, features] resampled to [new, features], in its dtype, computed in fp32."""
    if new == len(table):
        return table
    with torch.autocast(table.device.type, enabled=False):
        return (resampling(len(table), new, kind, table.device) @ table.float()).to(table.dtype)


def middle(table: torch.Tensor, columns: int) -> torch.Tensor:
    """The middle `columns` of a table [old >= columns, ...], where AST begins: old // 2 - columns // 2."""
    first = len(table) // 2 - columns // 2
    return table[first : first + columns]


def _with_longer(
    table: torch.Tensor, where: Layout, kind: str, middle: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The table and, below it, one stretched copy for each length beyond it; the row at which each segment's begins.

    table: [columns, features]. middle: a shorter segment takes the middle columns. Returns ([rows, features], int64
    [S], or None where all begin at row 0).
    """
    longer = sorted({width for width in where.widths if width > len(table)})
    begin: dict[int, int] = {}
    if middle:
        begin = {width: len(table) // 2 - width // 2 for width in where.widths if width < len(table)}
    if not longer and not begin:
        return table, None
    tables, length = [table], len(table)
    for width in longer:
        tables.append(stretch(table, width, kind))
        begin[width] = length
        length += width
    first = torch.tensor([begin.get(width, 0) for width in where.widths], dtype=torch.int64)
    return torch.cat(tables), first.to(where.time.device, non_blocking=True)


def _column(where: Layout, first: torch.Tensor | None) -> torch.Tensor:
    """int64 [patches]: the row of each patch in a table over time."""
    return where.time if first is None else where.time + torch.index_select(first, 0, where.owner)


def grid_positions(table: torch.Tensor, where: Layout, like: str = "asit") -> torch.Tensor:
    """[patches, dim] from a learned grid [columns * bands, dim], time-major.

    like: `asit`, a shorter segment takes the first columns, a longer one a bicubic stretch over time; or `ast`, the
    middle columns, or a linear stretch.
    """
    dim, ast = table.shape[-1], like == "ast"
    grid, first = _with_longer(table.reshape(-1, where.bands * dim), where, "linear" if ast else "bicubic", middle=ast)
    return F.embedding(_column(where, first) * where.bands + where.frequency, grid.reshape(-1, dim))


def factorised_positions(time: torch.Tensor, frequency: torch.Tensor, where: Layout) -> torch.Tensor:
    """[patches, dim] from tables over time [columns, dim] and frequency [bands, dim]; longer segments: linear."""
    table, first = _with_longer(time, where, "linear")
    return F.embedding(_column(where, first), table) + F.embedding(where.frequency, frequency)


def resize_grid(grid: torch.Tensor, columns: int, bands: int, like: str = "asit") -> torch.Tensor:
    """A saved grid [old columns, old bands, dim] as [columns, bands, dim], once and for all.

    like: over time `asit` stretches it (bicubic); `ast` takes the middle columns, or stretches it (linear). Where
    patches overlap in the one and not in the other, it is stretched linearly in both directions.
    """
    if grid.shape[1] != bands:
        return resize_image(grid, columns, bands, "linear")
    if like == "ast" and columns < len(grid):
        return middle(grid, columns)
    return stretch(grid.flatten(1), columns, "linear" if like == "ast" else "bicubic").unflatten(1, grid.shape[1:])


def resize_image(grid: torch.Tensor, height: int, width: int, kind: str) -> torch.Tensor:
    """A table of an image's patches [old height, old width, dim] as [height, width, dim]: `F.interpolate` of both."""
    tall = stretch(grid.flatten(1), height, kind).unflatten(1, grid.shape[1:])
    return stretch(tall.transpose(0, 1).flatten(1), width, kind).unflatten(1, (height, -1)).transpose(0, 1)


def sines(columns: int, bands: int, dim: int) -> torch.Tensor:
    """float32 [columns, bands, dim]: MAE's fixed positions. The first half of a row tells the band, the second the
    column: sines, then cosines, of dim / 4 frequencies from 1 to 1 / 10000."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def of(length: int) -> torch.Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], 1)

    band, column = of(bands)[None], of(columns)[:, None]
    return torch.cat([band.expand(columns, -1, -1), column.expand(-1, bands, -1)], 2).float()
