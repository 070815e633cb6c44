"""The projection W between two vocabularies, and the partitions into common and other tokens."""

from xtoken.projection.build import build_projection
from xtoken.projection.matrix import Projection
from xtoken.projection.partition import Partition, relaxed_partition, strict_partition
from xtoken.projection.tries import PathTries, build_tries

__all__ = [
    "Partition",
    "PathTries",
    "Projection",
    "build_projection",
    "build_tries",
    "relaxed_partition",
    "strict_partition",
]
