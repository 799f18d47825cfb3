"""A listing with folds, where it has none of its own."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from gamut.shards.convert.source import SPLIT, Listing, Missing, Record
from gamut.shards.folds import FOLD, Strata, folds_of, hash_of_name, told


def with_folds(make: Callable[[], Listing], folds: int) -> Listing:
    """The listing with a column `fold`, 1 to `folds`, of which `folds_of` chooses the values. It is iterated over
    twice, so `make` is called twice; 16 bytes of memory a clip and some more a label."""
    groups, strata, grouped = array("Q"), Strata(), False
    for record in make().records:
        if isinstance(record, Record):
            groups.append(hash_of_name(f"group/{record.group}" if record.group else record.key))
            strata.add(record.labels)
            grouped = grouped or bool(record.group)
    listing = make()
    classes = [hash_of_name(name) for name in listing.labels]
    chosen = folds_of(np.array(groups, np.uint64), strata.rarest(), classes, folds)

    def folded() -> Iterator[Record | Missing]:
        number = 0
        for record in listing.records:
            if isinstance(record, Record):
                record = replace(record, columns={**record.columns, FOLD: int(chosen[number])})
                number += 1
            yield record

    said = told(listing.name, folds, SPLIT in listing.columns, "the clips of a group or recording" * grouped)
    return replace(listing, columns=(*listing.columns, FOLD), records=folded(), said=(*listing.said, said))
