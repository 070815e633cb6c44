"""Measures a model: on held-out text, and on prompts that have one right answer.

Law: a student and a reference are measured by the same code, on the same text. What a teacher gives is computed once in
a process and kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from xtoken.config import DataConfig
from xtoken.errors import XTokenError
from xtoken.evaluation import bits_per_byte
from xtoken.evaluation.answers import Answer, answer_distributions, answer_kl, exact_answers, read_answers
from xtoken.evaluation.teacher_kl import teacher_kl
from xtoken.files import write_whole
from xtoken.study.config import TextsConfig
from xtoken.tokens import Vocabulary
from xtoken.training.models import LoadedModel, load_model

__all__ = ["Against", "keep_beliefs", "loaded_model", "measure", "vocabulary_of"]

Floats = NDArray[np.float64]

_BELIEFS = "probabilities"


@dataclass(frozen=True)
class Against:
    """What a model is measured on and compared with.

    Attributes:
        texts: held-out text; None for none.
        answers: the path of prompts and answers; None for none.
        teacher: the folder or id of whom KL is measured to; None for none.
        teacher_answers: the file of what it believes of the answers; None for none.
        batch_size: documents in a forward pass.
    """

    texts: TextsConfig | None
    answers: str | None
    teacher: str | None
    teacher_answers: str | None
    batch_size: int


# A pair's teachers and those of another; what is held is memory.
@lru_cache(maxsize=4)
def loaded_model(model: str) -> LoadedModel:
    """A model that is not trained, kept in the process; bfloat16 on a GPU, float32 on a CPU, as a run has teachers."""
    loaded = load_model(model, who=f"model {model}", dtype="bfloat16" if torch.cuda.is_available() else "float32")
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return loaded


@lru_cache(maxsize=8)
def vocabulary_of(model: str) -> Vocabulary:
    """A model's tokenizer."""
    return Vocabulary.from_pretrained(model)


def measure(model: Any, vocabulary: Vocabulary, asked: Iterable[str], against: Against) -> dict[str, float]:
    """The measures asked for, by name; a class of token that the text lacks has none.

    Args:
        model: a Hugging Face causal LM on its device.
        vocabulary: its tokenizer.
        asked: names of `xtoken.study.measures`.
        against: text, answers and teacher.

    Raises:
        XTokenError: a measure that is not finite, which a student that diverged has.
    """
    names, found = set(asked), dict[str, float]()
    model.eval()
    if any(name.startswith("bits_per_byte") for name in names):
        found |= _bits_per_byte(model, vocabulary, against)
    if any(name.startswith("teacher_kl") for name in names):
        found |= _teacher_kl(model, vocabulary, against)
    if "exact_answers" in names:
        found["exact_answers"] = exact_answers(model, vocabulary, _answers(str(against.answers)))
    if "answer_kl" in names:
        found["answer_kl"] = _answer_kl(model, vocabulary, against)
    wrong = [name for name in found if name in names and not math.isfinite(found[name])]
    if wrong:
        raise XTokenError(f"{wrong[0]} is {found[wrong[0]]}, so the student is no use: it diverged")
    return {name: float(value) for name, value in found.items() if name in names}


@lru_cache(maxsize=4)
def _texts(texts: str) -> tuple[str, ...]:
    from xtoken.training.inputs import sources_of

    (source,) = sources_of(DataConfig.model_validate_json(texts), None)
    return tuple(source.read())


def _held_out(against: Against) -> tuple[str, ...]:
    assert against.texts is not None, "the study was checked"
    return _texts(DataConfig(**against.texts.model_dump()).model_dump_json())


def _bits_per_byte(model: Any, vocabulary: Vocabulary, against: Against) -> dict[str, float]:
    found = bits_per_byte(model, vocabulary, _held_out(against), batch_size=against.batch_size)
    by_class = {"numerals": found.classes.get("numerals"), "words": found.classes.get("alphabetic")}
    scored = {f"bits_per_byte/{name}": s.bits_per_byte for name, s in by_class.items() if s is not None and s.bytes}
    return {"bits_per_byte": found.bits_per_byte, **scored}


def _teacher_kl(model: Any, vocabulary: Vocabulary, against: Against) -> dict[str, float]:
    teacher = loaded_model(str(against.teacher))
    found = teacher_kl(
        model, vocabulary, teacher.model, teacher.vocabulary, _held_out(against), batch_size=against.batch_size
    )
    return {"teacher_kl": found.total} | {f"teacher_kl/{name}": value for name, value in found.classes.items()}


@lru_cache(maxsize=4)
def _answers(path: str) -> tuple[Answer, ...]:
    return tuple(read_answers(path))


def _answer_kl(model: Any, vocabulary: Vocabulary, against: Against) -> float:
    teacher = _believed(str(against.teacher_answers))
    return answer_kl(teacher, _beliefs(model, vocabulary, str(against.answers)))


def _beliefs(model: Any, vocabulary: Vocabulary, path: str) -> Floats:
    return answer_distributions(model, vocabulary, [each.prompt for each in _answers(path)])


def keep_beliefs(model: Any, vocabulary: Vocabulary, answers: str, file: Path) -> None:
    """Writes down what a teacher believes of the answers, for every student to be compared with.

    Args:
        model: the teacher.
        vocabulary: its tokenizer.
        answers: the path of prompts and answers.
        file: safetensors; left alone where it is there.
    """
    if not file.is_file():
        content = save({_BELIEFS: _beliefs(model, vocabulary, answers)})
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)


@lru_cache(maxsize=4)
def _believed(file: str) -> Floats:
    try:
        return cast(Floats, load_file(file)[_BELIEFS])
    except FileNotFoundError:
        raise XTokenError("the teacher was not asked for its answers; see what failed before") from None
