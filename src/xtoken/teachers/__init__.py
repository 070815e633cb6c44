"""What the losses know of a teacher."""

from xtoken.teachers.signal import (
    DenseSignal,
    TeacherSignal,
    TopKSignal,
    signal_from_logits,
)

__all__ = [
    "DenseSignal",
    "TeacherSignal",
    "TopKSignal",
    "signal_from_logits",
]
