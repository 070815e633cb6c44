"""Bits per byte of the student on held-out text, while it trains.

Types: `HeldOut`, the text cut once for a student; `Evaluation`, one figure; `EvaluateHeldOut`, the callback that makes
them: before the first step, every so many steps, and after the last. Law: a run that is evaluated ends with the weights
of one that is not, to the bit.

Several processes share the work, and all learn the result. Where the weights are spread over them, every forward pass
needs all; so each makes the same number of passes.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from xtoken.errors import XTokenError
from xtoken.evaluation import BitsPerByte, CutText, Share
from xtoken.evaluation.bits_per_byte import NUMERALS_NAME
from xtoken.training.models import LoadedModel
from xtoken.training.texts import TextSource
from xtoken.training.trainer import XTokenTrainer

__all__ = ["EvaluateHeldOut", "Evaluation", "HeldOut", "evaluations", "warn_of_overlap"]

log = logging.getLogger(__name__)

# Training documents that held-out ones are looked for among: seconds of reading, and all of a small run.
_LOOKED_AT = 20_000
# The trackers of transformers show a key `eval_X` as `eval/X`.
_KEY = "eval_bits_per_byte"
_NUMERALS_KEY = f"{_KEY}/{NUMERALS_NAME}"


@dataclass(frozen=True)
class Evaluation:
    """The student's figure after some step.

    Attributes:
        step: optimizer steps behind it; 0 is before training.
        bits_per_byte: over all held-out text.
        numerals: bits per byte of the digits in it; None where it has none.
    """

    step: int
    bits_per_byte: float
    numerals: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """Held-out text, ready to be scored.

    Attributes:
        name: what messages call it.
        key: sha256 in hexadecimal; equal keys mean figures that compare.
        text: its documents, cut into windows.
    """

    name: str
    key: str
    text: CutText

    @classmethod
    def prepare(cls, source: TextSource, student: LoadedModel, context_length: int) -> HeldOut:
        """Reads and encodes held-out text.

        Args:
            source: the documents.
            student: whom it is for.
            context_length: tokens in a window.

        Raises:
            XTokenError: no text; a context that the student has no positions for.
        """
        key = hashlib.sha256(f"{source.key} {context_length}".encode()).hexdigest()
        try:
            text = CutText(student.model, student.vocabulary, source.read(), context_length=context_length)
        except XTokenError as error:
            raise XTokenError(f"held-out text ({source.name}): {error}") from error
        log.info("held out: %d documents, %d bytes", text.documents, text.bytes)
        return cls(source.name, key, text)


class EvaluateHeldOut(TrainerCallback):
    """Scores the student on held-out text before the first step, every so many steps, and after the last.

    Logged as `eval_bits_per_byte`, which `metrics.jsonl` and the trackers show as `eval/bits_per_byte`. Training mode,
    random state and the model's settings are left as they were.

    Args:
        trainer: the one it is added to.
        text: held out, cut for the trainer's model.
        every: steps between two evaluations.
        batch_size: windows in a forward pass.
        keep_best: save a checkpoint wherever the figure is the lowest so far, and have the Trainer never delete it. The
            student before the first step is not a candidate: it is there already.
    """

    def __init__(
        self, trainer: XTokenTrainer, text: CutText, *, every: int, batch_size: int = 8, keep_best: bool = False
    ) -> None:
        self.trainer, self.text, self.every, self.batch_size = trainer, text, every, batch_size
        self.keep_best = keep_best

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step; and after a resume, what the stop left out."""
        done = {evaluation.step for evaluation in evaluations(state.log_history)}
        if self._is_due(state) and state.global_step not in done:
            self._evaluate(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        is_stopped = control.should_training_stop and state.global_step < state.max_steps
        if self._is_due(state) and not is_stopped and self._evaluate(state, control):
            control.should_save = True

    def _is_due(self, state: Any) -> bool:
        return bool(state.global_step % self.every == 0 or state.global_step >= state.max_steps)

    def _evaluate(self, state: Any, control: Any) -> bool:
        """Logs the figure; whether it is the best so far, and to be kept."""
        with self.trainer.off_the_clock():
            found = self.score()
        figures = {_KEY: found.bits_per_byte}
        if NUMERALS_NAME in found.classes:
            figures[_NUMERALS_KEY] = found.classes[NUMERALS_NAME].bits_per_byte
        asked_to_log = control.should_log
        self.trainer.log(figures)
        control.should_log = asked_to_log  # logging takes it back, and the step's own line is still to come
        best = math.inf if state.best_metric is None else float(state.best_metric)
        is_best = self.keep_best and bool(state.global_step > 0) and found.bits_per_byte < best  # never so for NaN
        if is_best:
            state.best_metric, state.best_global_step = found.bits_per_byte, state.global_step
        return is_best

    def score(self) -> BitsPerByte:
        """The trainer's model as it is, by all processes together; to be called in each."""
        trainer, device = self.trainer, self.trainer.args.device
        # The weights of a sharded model are whole only in the forward of what wraps it. A data-parallel wrapper has
        # nothing to add to a forward without gradients.
        is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        model = trainer.model_wrapped if is_sharded else trainer.accelerator.unwrap_model(trainer.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return self.text.score(model, batch_size=self.batch_size, share=_share(trainer))


def _share(trainer: XTokenTrainer) -> Share:
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return Share()

    def add(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        on_device = torch.from_numpy(sums).to(trainer.args.device)
        total: NDArray[np.float64] = accelerator.reduce(on_device, reduction="sum").cpu().numpy()
        return total

    return Share(accelerator.process_index, accelerator.num_processes, add)


def evaluations(log_history: Iterable[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    """The figures in a Trainer's log."""
    lines = [line for line in log_history if _KEY in line]
    return tuple(Evaluation(int(line["step"]), line[_KEY], line.get(_NUMERALS_KEY)) for line in lines)


def warn_of_overlap(held_out: TextSource, training: TextSource) -> None:
    """Says so where held-out documents are trained on, word for word, among the first 20,000."""
    documents = {text for text in held_out.read() if text.strip()}
    shared = documents.intersection(islice(training.read(), _LOOKED_AT))
    if shared:
        log.warning(
            "%d of %d held-out documents are trained on as well: bits per byte will look better than they are",
            len(shared),
            len(documents),
        )
