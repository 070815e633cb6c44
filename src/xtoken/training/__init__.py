"""Training a student on text and on its teachers.

The entry point is `distil`:

    from xtoken.training import distil
    result = distil({"student": {"model": "A"}, "teachers": [{"model": "B"}],
                     "data": {"files": ["text.jsonl"]}, "output": {"folder": "run"}})

It is made of parts that work alone: `load_model` and `load_teacher`, `prepare` (documents to examples), `Collator`
(examples to batches), `Distiller` (logits to a loss), `XTokenTrainer` (the loop) and `EvaluateHeldOut` (a callback).
Each is loaded on first use, so that a worker process, which only
tokenises and aligns, starts without torch and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtoken.training.collator import Collator as Collator
    from xtoken.training.data import DataReport as DataReport
    from xtoken.training.data import Example as Example
    from xtoken.training.data import PreparedData as PreparedData
    from xtoken.training.data import Side as Side
    from xtoken.training.data import prepare as prepare
    from xtoken.training.data import side_key as side_key
    from xtoken.training.distiller import Counts as Counts
    from xtoken.training.distiller import Distiller as Distiller
    from xtoken.training.distiller import Terms as Terms
    from xtoken.training.evaluate import EvaluateHeldOut as EvaluateHeldOut
    from xtoken.training.evaluate import Evaluation as Evaluation
    from xtoken.training.mixture import Corpus as Corpus
    from xtoken.training.mixture import MixedData as MixedData
    from xtoken.training.models import LoadedModel as LoadedModel
    from xtoken.training.models import load_model as load_model
    from xtoken.training.output import save_student as save_student
    from xtoken.training.packing import PackedData as PackedData
    from xtoken.training.participants import Teacher as Teacher
    from xtoken.training.participants import load_teacher as load_teacher
    from xtoken.training.run import RunResult as RunResult
    from xtoken.training.run import TeacherChoice as TeacherChoice
    from xtoken.training.run import distil as distil
    from xtoken.training.streaming import StreamedData as StreamedData
    from xtoken.training.texts import TextSource as TextSource
    from xtoken.training.texts import conversations_from_list as conversations_from_list
    from xtoken.training.texts import texts_from_dataset as texts_from_dataset
    from xtoken.training.texts import texts_from_files as texts_from_files
    from xtoken.training.texts import texts_from_list as texts_from_list
    from xtoken.training.trainer import XTokenTrainer as XTokenTrainer

_HOME = {
    "Collator": "xtoken.training.collator",
    "Corpus": "xtoken.training.mixture",
    "Counts": "xtoken.training.distiller",
    "DataReport": "xtoken.training.data",
    "Distiller": "xtoken.training.distiller",
    "EvaluateHeldOut": "xtoken.training.evaluate",
    "Evaluation": "xtoken.training.evaluate",
    "Example": "xtoken.training.data",
    "LoadedModel": "xtoken.training.models",
    "MixedData": "xtoken.training.mixture",
    "PackedData": "xtoken.training.packing",
    "PreparedData": "xtoken.training.data",
    "RunResult": "xtoken.training.run",
    "Side": "xtoken.training.data",
    "StreamedData": "xtoken.training.streaming",
    "Teacher": "xtoken.training.participants",
    "TeacherChoice": "xtoken.training.run",
    "Terms": "xtoken.training.distiller",
    "TextSource": "xtoken.training.texts",
    "XTokenTrainer": "xtoken.training.trainer",
    "conversations_from_list": "xtoken.training.texts",
    "distil": "xtoken.training.run",
    "load_model": "xtoken.training.models",
    "load_teacher": "xtoken.training.participants",
    "prepare": "xtoken.training.data",
    "save_student": "xtoken.training.output",
    "side_key": "xtoken.training.data",
    "texts_from_dataset": "xtoken.training.texts",
    "texts_from_files": "xtoken.training.texts",
    "texts_from_list": "xtoken.training.texts",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
