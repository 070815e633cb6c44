"""The losses: tensors in, a sum and a count out."""

from xtoken.losses.alm import ALM
from xtoken.losses.blocks import in_blocks
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.combine import (
    dynamic_scale,
    weighted_sum,
)
from xtoken.losses.cross_entropy import cross_entropy
from xtoken.losses.fast.hidden import (
    HiddenLosses,
    Lesson,
    Multipliers,
    Weigh,
    losses_from_hidden,
)
from xtoken.losses.hybrid import (
    GOLD,
    HKL,
)
from xtoken.losses.index import ChunkIndex
from xtoken.losses.p_kl import PKL
from xtoken.losses.partition_kl import PartitionKL
from xtoken.losses.path_kl import PathKL
from xtoken.losses.same_tokenizer import SameTokenizerKL
from xtoken.losses.strict import StrictKL
from xtoken.losses.term import LossTerm
from xtoken.losses.uld import ULD

__all__ = [
    "ALM",
    "GOLD",
    "HKL",
    "PKL",
    "ULD",
    "ChunkIndex",
    "ChunkLoss",
    "HiddenLosses",
    "Lesson",
    "LossTerm",
    "Multipliers",
    "PartitionKL",
    "PathKL",
    "SameTokenizerKL",
    "StrictKL",
    "Weigh",
    "cross_entropy",
    "dynamic_scale",
    "in_blocks",
    "losses_from_hidden",
    "weighted_sum",
]
