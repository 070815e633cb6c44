"""ALM: how likely the text of each chunk is, student against teacher, and nothing about what else it could have been.

A chunk is one event to both tokenizers, however each cuts it: its likelihood is the product of its tokens' conditional
probabilities. The two likelihoods P and Q are compared as coins, by KL( (P, 1 - P) || (Q, 1 - Q) ). Law: never
negative, and 0 only where P = Q.
"""

from __future__ import annotations

from torch import Tensor

from xtoken.errors import XTokenError
from xtoken.losses.chunk_loss import ChunkLoss
from xtoken.losses.divergence import kl_divergence
from xtoken.losses.index import ChunkIndex
from xtoken.losses.likelihood import binary, chunk_sum, token_log_probs
from xtoken.losses.merge import realised_log_prob
from xtoken.losses.term import LossTerm
from xtoken.teachers.signal import TeacherSignal, TopKSignal, flat_log_probs

__all__ = ["ALM", "ALM_TEMPERATURE"]

# That of the authors' code. Likelihoods of chunks are mostly near 0, where a coin says little; raised to 1/100 they are
# near 1. With a and b the surprises -log P and -log Q, 100 times the loss nears a log(a / b) - a + b.
ALM_TEMPERATURE = 100.0


class ALM(ChunkLoss):
    """Approximate Likelihood Matching: the binary KL of chunk likelihoods, each raised to 1 / `likelihood_temperature`.

    In nats a chunk. The student is read at the signal's temperature tau, and the loss is multiplied by tau^2; that
    temperature acts on the tokens, the other on the chunks. Of a top-k signal a token outside the k has an equal share
    of the tail, which is a guess. The paper leaves out chunks whose two tokenizations are biased differently; here, as
    for every loss, all chunks of the alignment count.

    Args:
        student_vocab_size: V_S.
        teacher_vocab_size: V_T.
        likelihood_temperature: above 0; at 1 the likelihoods are compared as they are.

    Raises:
        XTokenError: the temperature is not above 0 and finite.

    Source: Minixhofer, Vulic, Ponti, "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    https://arxiv.org/abs/2503.20083, with KL as the f-divergence.
    """

    def __init__(
        self, student_vocab_size: int, teacher_vocab_size: int, likelihood_temperature: float = ALM_TEMPERATURE
    ) -> None:
        super().__init__()
        if not 0 < likelihood_temperature < float("inf"):
            raise XTokenError(
                f"likelihood_temperature is {likelihood_temperature}; it must be above 0 and finite (1 compares the "
                "likelihoods as they are)."
            )
        self.student_vocab_size, self.teacher_vocab_size = student_vocab_size, teacher_vocab_size
        self.likelihood_temperature = likelihood_temperature

    def kernel(self) -> None:
        return None

    def reference(self, student_logits: Tensor, teacher: TeacherSignal, index: ChunkIndex) -> LossTerm:
        tau = teacher.temperature
        rows = flat_log_probs(student_logits, self.student_vocab_size, tau, "student", index.student_rows)
        log_q = chunk_sum(token_log_probs(rows, index.student_tokens), index.student_starts)
        log_p = chunk_sum(_teacher_log_probs(teacher, index), index.teacher_starts)
        coins = (binary(x / self.likelihood_temperature) for x in (log_p, log_q))
        return LossTerm.of(tau**2 * kl_divergence(*coins))


def _teacher_log_probs(teacher: TeacherSignal, index: ChunkIndex) -> Tensor:
    if isinstance(teacher, TopKSignal):
        return realised_log_prob(teacher, index.teacher_rows, index.teacher_tokens)
    return token_log_probs(teacher.log_probs_at(index.teacher_rows), index.teacher_tokens)
