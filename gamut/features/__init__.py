"""Features of frozen encoders, encoded once and read at the speed of the disk.

Reading, from any thread or forked worker:

    cache = FeatureCache("features/whisper_tiny_esc50")        # or the folder FINGERPRINT inside
    cache.info.layers, cache.info.steps, cache.info.dim        # 4, 25, 384
    cache.info.dtype, cache.info.fingerprint, cache.info.index # fp16 | fp32 | int8; its address; the shard set's
    cache.read(rows)                                           # rows of the shard set's index: [k, layers, steps, dim]
    cache.read_ids(clip_ids)                                   # the same by uint64 clip ids, as a plan has them
    cache.rows, cache.clip_id                                  # what is there, in index order: int64 [n], uint64 [n]
    cache.holes                                                # clips that could not be encoded, and why

What is read is float16 (of `fp32` caches float32), checked record by record against a checksum that is bound to the
clip and to the cache. What is missing, damaged or a hole is a FeatureError that names the clip; nothing is ever filled
in. `cache.has(rows)` says beforehand which clips have features.

Writing one from arrays, as tests do:

    cache = write_cache(folder, x, clip_id=index.clip_id, index=index.fingerprint)   # x float32 [n, layers, steps, dim]

On disk (`gamut/features/shard.py`) a cache is safetensors files of 128 clips with one tensor `x`, so anything that
knows safetensors can read it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamut.features.arrays import write_cache
    from gamut.features.cache import FeatureCache, Info

__all__ = ["FeatureCache", "Info", "write_cache"]
_PLACES = {"FeatureCache": "cache", "Info": "cache", "write_cache": "arrays"}


def __getattr__(name: str) -> Any:
    """These import torch, which whoever only asks a command for help need not wait for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
