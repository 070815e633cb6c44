"""The projection W between two vocabularies, and the partitions into common and other tokens."""

from xtoken.projection.build import build_projection
from xtoken.projection.matrix import Projection
from xtoken.projection.partition import Partition, relaxed_partition, strict_partition

__all__ = ["Partition", "Projection", "build_projection", "relaxed_partition", "strict_partition"]
