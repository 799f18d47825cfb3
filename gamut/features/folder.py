"""The names of what lies in a cache's folder, besides its shards (`gamut/features/store.py`)."""

ABOUT = "about.json"  # what it is of, from its beginning
CACHE = "cache.json"  # from its end: without it the cache is not finished
INDEX = "index"
LOCKS = "locks"
