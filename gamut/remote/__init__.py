"""Shards that are not on this machine's disks: http(s), S3, or the output of a command."""

from gamut.remote.place import is_remote
from gamut.remote.settings import Remote

__all__ = ["Remote", "is_remote"]
