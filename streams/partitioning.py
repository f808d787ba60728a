"""The partition of a case's messages: by the hash of its key that all Kafka clients agree on.

aiokafka works the hash out in Python at every hop of a case, whose key stays the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from aiokafka.partitioner import murmur2


def partition_of(key: bytes, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Returns the partition of a key, as Kafka's default partitioner does; one without a leader too."""
    return partitions[_hash_of(key) % len(partitions)]


@functools.lru_cache(8192)
def _hash_of(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF
