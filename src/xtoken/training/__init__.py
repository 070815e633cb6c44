"""Training a student on text and on its teachers.

The entry point is `distil`:

    from xtoken.training import distil
    result = distil({"student": {"model": "A"}, "teachers": [{"model": "B"}],
                     "data": {"files": ["text.jsonl"]}, "output": {"folder": "run"}})

It is made of parts that work alone: `load_model` and `load_teacher`, `prepare` (documents to examples), `Collator`
(examples to batches), `Distiller` (logits to a loss), `XTokenTrainer` (the loop) and `EvaluateHeldOut` (a callback).
"""

from xtoken.training.collator import Collator
from xtoken.training.data import DataReport, Example, PreparedData, Side, prepare, side_key
from xtoken.training.distiller import Counts, Distiller, Terms
from xtoken.training.evaluate import EvaluateHeldOut, Evaluation
from xtoken.training.models import LoadedModel, load_model
from xtoken.training.output import save_student
from xtoken.training.participants import Teacher, load_teacher
from xtoken.training.run import RunResult, TeacherChoice, distil
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list
from xtoken.training.trainer import XTokenTrainer

__all__ = [
    "Collator",
    "Counts",
    "DataReport",
    "Distiller",
    "EvaluateHeldOut",
    "Evaluation",
    "Example",
    "LoadedModel",
    "PreparedData",
    "RunResult",
    "Side",
    "Teacher",
    "TeacherChoice",
    "Terms",
    "TextSource",
    "XTokenTrainer",
    "distil",
    "load_model",
    "load_teacher",
    "prepare",
    "save_student",
    "side_key",
    "texts_from_dataset",
    "texts_from_files",
    "texts_from_list",
]
