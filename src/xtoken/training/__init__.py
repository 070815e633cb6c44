"""Training a student on text and on its teachers.

The entry point is `distil`:

    from xtoken.training import distil
    result = distil({"student": {"model": "A"}, "teachers": [{"model": "B"}],
                     "data": {"files": ["text.jsonl"]}, "output": {"folder": "run"}})

It is made of parts that work alone: `prepare` (documents to examples), `Collator` (examples to batches), `Distiller`
(logits to a loss) and `XTokenTrainer` (the loop).
"""

from xtoken.training.collator import Collator
from xtoken.training.data import DataReport, Example, PreparedData, Side, prepare, side_key
from xtoken.training.distiller import Counts, Distiller, Terms
from xtoken.training.models import LoadedModel, load_model
from xtoken.training.run import RunResult, TeacherChoice, distil
from xtoken.training.texts import TextSource, texts_from_dataset, texts_from_files, texts_from_list
from xtoken.training.trainer import XTokenTrainer

__all__ = [
    "Collator",
    "Counts",
    "DataReport",
    "Distiller",
    "Example",
    "LoadedModel",
    "PreparedData",
    "RunResult",
    "Side",
    "TeacherChoice",
    "Terms",
    "TextSource",
    "XTokenTrainer",
    "distil",
    "load_model",
    "prepare",
    "side_key",
    "texts_from_dataset",
    "texts_from_files",
    "texts_from_list",
]
