"""What the losses know of a teacher."""

from xtoken.teachers.head import Head
from xtoken.teachers.signal import (
    DenseSignal,
    HeadSignal,
    LogitSignal,
    TeacherSignal,
    TopKSignal,
    signal_from_logits,
)

__all__ = [
    "DenseSignal",
    "Head",
    "HeadSignal",
    "LogitSignal",
    "TeacherSignal",
    "TopKSignal",
    "signal_from_logits",
]
