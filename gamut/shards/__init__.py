"""Sets of WebDataset tars with a memory-mapped index beside them: convert, index, verify, describe, open."""

from gamut.shards.index import Index

__all__ = ["Index"]
