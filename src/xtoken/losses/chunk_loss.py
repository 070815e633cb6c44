"""`ChunkLoss`: what the losses over chunks have in common, and which of a loss's two versions runs.

Each is written twice: `reference`, differentiable operations over whole matrices, easy to read and large; and a kernel
with its gradient by hand, which the walkers run over blocks. The kernel runs wherever there is one for the call; the
reference, a block of chunks at a time, everywhere else. Law: the two are equal, in value, gradient and metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from xtoken.losses.blocks import in_blocks
from xtoken.losses.fast.passes import Kernel
from xtoken.losses.fast.walk import from_logits
from xtoken.losses.index import ChunkIndex
from xtoken.losses.merge import check_teacher
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal, TopKSignal, check_logits

__all__ = ["ChunkLoss"]


class ChunkLoss(nn.Module, ABC):
    """A sum over chunks, to be called as `loss(student_logits, teacher, index)`.

    Attributes:
        student_vocab_size, teacher_vocab_size: V_S and V_T.
    """

    student_vocab_size: int
    teacher_vocab_size: int

    @abstractmethod
    def kernel(self) -> Kernel | None:
        """The fast version; None where there is only the reference."""

    @abstractmethod
    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        """The loss by plain differentiable operations over whole [tokens, vocabulary] matrices."""

    def takes_part(self, index: ChunkIndex) -> Tensor | None:
        """bool [K], the chunks that the loss says something of; None for all.

        It follows from the index alone, so that whoever owns the global batch can count before a model has run.
        """
        return None

    def count(self, index: ChunkIndex) -> Tensor:
        """int64 scalar, how many chunks take part: the count of the loss's term, and what its sum is divided by."""
        takes_part = self.takes_part(index)
        if takes_part is not None:
            return takes_part.sum()
        return torch.full((), index.n_chunks, dtype=torch.int64, device=index.student_starts.device)

    def check(self, teacher: TeacherSignal, index: ChunkIndex) -> None:
        """Refuses what the loss cannot be computed from.

        Raises:
            XTokenError: the signal is of another vocabulary.
        """
        check_teacher(teacher, self.teacher_vocab_size)

    def forward(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        """The sum over the chunks, differentiable once.

        Args:
            student_logits: [..., V_S or wider], in any floating type; leading dimensions are flattened to the rows the
                index counts.
            teacher: its signal.
            index: the chunks.

        Returns:
            total, count in the chunks that take part, and the metrics the class names, summed over the chunks.

        Raises:
            XTokenError: logits or signal do not fit the vocabularies, or the loss cannot use such a signal.
        """
        check_logits(student_logits, self.student_vocab_size, teacher.temperature, "student")
        self.check(teacher, index)
        kernel = self.kernel()
        has_fast = kernel is not None and (kernel.takes_top_k or not isinstance(teacher, TopKSignal))
        if kernel is None or not has_fast or not index.n_chunks:
            learnt = [p for p in self.parameters() if p.requires_grad]
            return in_blocks(self.reference, student_logits, teacher, index, parameters=learnt)
        return from_logits(kernel, student_logits, teacher, index)
