"""xtoken: distil any large language model into any smaller one, whatever their tokenizers.

The names below load on first use: reading a tokenizer never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtoken import losses as losses
    from xtoken.alignment import Alignment as Alignment
    from xtoken.alignment import align as align
    from xtoken.alignment import align_batch as align_batch
    from xtoken.coverage import AuditReport as AuditReport
    from xtoken.coverage import audit as audit
    from xtoken.errors import XTokenError as XTokenError
    from xtoken.evaluation import bits_per_byte as bits_per_byte
    from xtoken.projection import Partition as Partition
    from xtoken.projection import PathTries as PathTries
    from xtoken.projection import Projection as Projection
    from xtoken.projection import build_projection as build_projection
    from xtoken.projection import build_tries as build_tries
    from xtoken.projection import relaxed_partition as relaxed_partition
    from xtoken.projection import strict_partition as strict_partition
    from xtoken.teachers.online import OnlineTeacher as OnlineTeacher
    from xtoken.teachers.signal import signal_from_logits as signal_from_logits
    from xtoken.tokens import Vocabulary as Vocabulary
    from xtoken.training import LoadedModel as LoadedModel
    from xtoken.training import distil as distil
    from xtoken.training import load_model as load_model
    from xtoken.training import load_teacher as load_teacher
    from xtoken.training import prepare as prepare
    from xtoken.training.trainer import XTokenTrainer as XTokenTrainer

__version__ = "0.1.0"

_HOME = {
    "Alignment": "xtoken.alignment",
    "AuditReport": "xtoken.coverage",
    "LoadedModel": "xtoken.training",
    "OnlineTeacher": "xtoken.teachers.online",
    "Partition": "xtoken.projection",
    "PathTries": "xtoken.projection",
    "Projection": "xtoken.projection",
    "Vocabulary": "xtoken.tokens",
    "XTokenError": "xtoken.errors",
    "XTokenTrainer": "xtoken.training.trainer",
    "align": "xtoken.alignment",
    "align_batch": "xtoken.alignment",
    "audit": "xtoken.coverage",
    "bits_per_byte": "xtoken.evaluation",
    "build_projection": "xtoken.projection",
    "build_tries": "xtoken.projection",
    "distil": "xtoken.training",
    "load_model": "xtoken.training",
    "load_teacher": "xtoken.training",
    "prepare": "xtoken.training",
    "relaxed_partition": "xtoken.projection",
    "signal_from_logits": "xtoken.teachers.signal",
    "strict_partition": "xtoken.projection",
}

__all__ = [*_HOME, "losses"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("xtoken.losses")
    if name not in _HOME:
        raise AttributeError(f"module 'xtoken' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
