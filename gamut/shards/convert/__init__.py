"""From a data set in its own layout to a shard set."""

from gamut.shards.convert.esc50 import Esc50
from gamut.shards.convert.folder import Folder
from gamut.shards.convert.source import Listing, Record, Source

SOURCES: dict[str, Source] = {source.name: source for source in (Esc50(), Folder())}

__all__ = ["SOURCES", "Listing", "Record", "Source"]
